"""The command ``largebatch bench``: benchmarks of the package against baselines.

Each benchmark states its formula and runs its baselines in turn, in the same session.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from largebatch._errors import UserError
from largebatch._paths import UserPath, user_path
from largebatch.record import BenchmarkRecord, write_record

Charts = list[tuple[str, str, Any]]


def _loop(options: argparse.Namespace) -> BenchmarkRecord:
    from largebatch.bench import loop

    return loop.run(options.root, options.seconds or 4.0, options.rounds)


def _data(options: argparse.Namespace) -> BenchmarkRecord:
    from largebatch.bench import data

    if options.root is None:
        raise UserError("largebatch bench data: --root names a folder of JPEG images")
    return data.run(options.root, options.workers, options.seconds or 4.0, options.rounds)


def _norm(options: argparse.Namespace) -> BenchmarkRecord:
    from largebatch.bench import norm

    return norm.run(options.rounds)


def _optim(options: argparse.Namespace) -> BenchmarkRecord:
    from largebatch.bench import optim

    for name in options.models:
        if name not in optim.MODELS:
            raise UserError(
                f"largebatch bench optim: --models {name!r}: choose from {', '.join(optim.MODELS)}"
            )
    return optim.run(options.models, options.seconds or 4.0, options.rounds)


def _sync(options: argparse.Namespace) -> BenchmarkRecord:
    from largebatch.bench import sync

    return sync.run(options.rounds)


def _contrastive(options: argparse.Namespace) -> BenchmarkRecord:
    from largebatch.bench import contrastive

    for kind in options.models:
        if kind not in contrastive.KINDS:
            known = ", ".join(contrastive.KINDS)
            raise UserError(f"largebatch bench contrastive: --models {kind!r}: choose from {known}")
    pairs, ranks = options.batches or [contrastive.PAIRS], options.ranks or [1, 2]
    if min(ranks) < 1 or min(pairs) < 2 * max(ranks):
        raise UserError(
            "largebatch bench contrastive: --batches: at least 2 pairs for each of --ranks"
        )
    return contrastive.run(
        options.rounds, pairs, ranks, kinds=options.models or tuple(contrastive.KINDS)
    )


def _scaling(options: argparse.Namespace) -> tuple[BenchmarkRecord, Charts]:
    from largebatch.bench import scaling
    from largebatch.train.parse import parse

    base = [f"--config={options.config}"] if options.config else []
    base += [f"--recipe={options.recipe}"] if options.recipe else []
    if base and (len(base) > 1 or options.models or options.image_size):
        raise UserError(
            "largebatch bench scaling: one of --recipe, --config, and --models with --image-size"
        )
    if base and options.root is not None:
        base.append(f"--data.root={options.root}")
    settings = scaling.Settings(
        model=_one_model(options, "resnet18"),
        image_size=options.image_size or 64,
        seconds=options.seconds or 2.0,
        rounds=options.rounds,
        price=options.price,
        epochs=options.epochs,
        config=parse(base) if base else None,
    )
    record = scaling.run(options.ranks or [1, 2, 4], options.batches or [16, 32], settings)
    return record, scaling.charts(record)


def _imagenet(options: argparse.Namespace) -> tuple[BenchmarkRecord, Charts]:
    from largebatch.bench import imagenet

    settings = imagenet.Settings(
        model=_one_model(options, "resnet50"),
        image_size=options.image_size or 224,
        root=options.root,
        workers=options.workers,
        seconds=options.seconds or 8.0,
        rounds=options.rounds,
    )
    own = [f"largebatch, {change}" for change in options.with_]
    for name in own:
        if name not in imagenet.OWN:
            known = ", ".join(repr(n.removeprefix("largebatch, ")) for n in list(imagenet.OWN)[1:])
            raise UserError(f"largebatch bench imagenet: --with: choose from {known}")
    record = imagenet.run(options.batches or [32], settings, ["largebatch", *own] if own else ())
    return record, imagenet.charts(record)


def _tokens(options: argparse.Namespace) -> BenchmarkRecord:
    from largebatch.bench import tokens

    settings = tokens.settings_of(
        _one_model(options, "4x4x128"), options.context, options.vocabulary
    )
    return tokens.run(options.batches or [12], settings, options.seconds or 4.0, options.rounds)


def _one_model(options: argparse.Namespace, default: str) -> str:
    if len(options.models) > 1:
        raise UserError(f"largebatch bench {options.what}: --models names one model")
    return options.models[0] if options.models else default


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "loop": _loop,
    "data": _data,
    "norm": _norm,
    "optim": _optim,
    "sync": _sync,
    "contrastive": _contrastive,
    "imagenet": _imagenet,
    "tokens": _tokens,
    "scaling": _scaling,
}


def run(arguments: Sequence[str]) -> int:
    """Run ``largebatch bench WHAT`` and return its exit code."""
    parser = argparse.ArgumentParser(prog="largebatch bench", exit_on_error=False)
    parser.add_argument("what", choices=tuple(BENCHMARKS), help="the claim to measure")
    parser.add_argument(
        "--root",
        type=UserPath,
        help="data: loop takes MNIST's folder, data and imagenet an ImageNet sample, scaling those"
        " of a recipe",
    )
    parser.add_argument("--recipe", help="scaling: time the steps of this recipe, on its own data")
    parser.add_argument(
        "--config", type=UserPath, help="scaling: the same of a config, such as that of a run"
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes (data, imagenet)")
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds")
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        help="optim: whose tensors; all. imagenet, scaling: one. tokens: layers x heads x width of"
        " a GPT, such as 12x12x768. contrastive: kinds of losses; all",
    )
    parser.add_argument(
        "--with",
        dest="with_",
        nargs="+",
        default=[],
        help="imagenet: what our further rows change, such as LARS, contiguous, compiled",
    )
    parser.add_argument("--ranks", type=int, nargs="+", help="scaling: 1 2 4. contrastive: 1 2")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        help="images of a rank's step (imagenet, scaling), windows (tokens), pairs of all ranks"
        " (contrastive)",
    )
    parser.add_argument("--image-size", type=int, help="pixels a side (imagenet, scaling)")
    parser.add_argument("--context", type=int, default=64, help="tokens: of a window; 64")
    parser.add_argument("--vocabulary", type=int, default=256, help="tokens: that there are; 256")
    parser.add_argument(
        "--price", type=float, default=0.0, help="scaling: of a device an hour, for the costs"
    )
    parser.add_argument(
        "--epochs", type=float, default=90.0, help="scaling: to the accuracy aimed at"
    )
    parser.add_argument("--json", type=user_path, help="write the record here")
    parser.add_argument("--html", type=user_path, help="imagenet, scaling: write the page here")
    try:
        options = parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(f"largebatch bench: {error}") from None
    for name in ("seconds", "rounds", "workers", "image_size", "epochs", "context", "vocabulary"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            option = name.replace("_", "-")
            raise UserError(f"largebatch bench: --{option} {value}: above 0")
    if options.html is not None and options.what not in ("imagenet", "scaling"):
        raise UserError(f"largebatch bench {options.what} has no page: --json keeps its record")
    result = BENCHMARKS[options.what](options)
    record, charts = result if isinstance(result, tuple) else (result, [])
    print(record.table())
    if options.json is not None:
        write_record(options.json, record)
        print(f"record: {options.json}")
    if options.html is not None:
        from largebatch.report.record_page import write_page

        write_page(options.html, record, charts)
        print(f"page: {options.html}")
    return 0
