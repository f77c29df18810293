"""Claims measured: each benchmark states its formula and runs its baseline beside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from largebatch._errors import UserError
from largebatch.record import write_record


def run(arguments: Sequence[str]) -> int:
    """Run ``largebatch bench WHAT`` and return its exit code."""
    parser = argparse.ArgumentParser(prog="largebatch bench", exit_on_error=False)
    parser.add_argument(
        "what", choices=("loop", "data", "norm", "optim", "sync"), help="the claim to measure"
    )
    parser.add_argument("--root", help="data: loop takes MNIST's folder, data an ImageNet sample")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (data)")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="length of one measurement (loop, data)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds")
    parser.add_argument("--models", nargs="+", default=[], help="optim: whose tensors; all")
    parser.add_argument("--json", type=Path, help="write the record here")
    try:
        options = parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(f"largebatch bench: {error}") from None
    if options.seconds <= 0 or options.rounds < 1 or options.workers < 1:
        raise UserError("largebatch bench: --seconds, --rounds and --workers are above 0")
    if options.what == "loop":
        from largebatch.bench import loop

        record = loop.run(options.root, options.seconds, options.rounds)
    elif options.what == "optim":
        from largebatch.bench import optim

        for name in options.models:
            if name not in optim.MODELS:
                raise UserError(
                    f"largebatch bench optim: --models {name!r}: choose from "
                    f"{', '.join(optim.MODELS)}"
                )
        record = optim.run(options.models, options.seconds, options.rounds)
    elif options.what == "norm":
        from largebatch.bench import norm

        record = norm.run(options.rounds)
    elif options.what == "sync":
        from largebatch.bench import sync

        record = sync.run(options.rounds)
    else:
        from largebatch.bench import data

        if options.root is None:
            raise UserError("largebatch bench data: --root names a folder of JPEG images")
        record = data.run(options.root, options.workers, options.seconds, options.rounds)
    print(record.table())
    if options.json is not None:
        write_record(options.json, record)
        print(f"record: {options.json}")
    return 0
