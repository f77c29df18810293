"""The command `largebatch landscape`: parse its options and start its ranks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from largebatch._errors import UserError
from largebatch._output import forgive_lost_output
from largebatch._paths import user_path
from largebatch.landscape.carry_out import carry_out
from largebatch.landscape.curves import curve_config
from largebatch.landscape.networks import open_networks
from largebatch.landscape.settings import OF_ONE, OF_TWO, STATISTICS, TRAINED, USUAL, Settings
from largebatch.processes.environment import detect
from largebatch.processes.freed_memory import keep_freed_memory
from largebatch.processes.group import choose_device, process_group, set_threads
from largebatch.processes.launch import launch_local_ranks
from largebatch.processes.lifetime import die_with_launcher, die_with_parent
from largebatch.record import BenchmarkRecord, write_record

RECORD, PAGE = "record.json", "report.html"


def run(arguments: Sequence[str]) -> int:
    """Run ``largebatch landscape RUN [RUN] ...`` and return its exit code.

    Raises:
        UserError: bad input, raised before any rank starts if possible.
        RunFailure: a curve's training could not continue.
    """
    options = _parser().parse_args(list(arguments))
    settings = _settings(options)
    settings.check()
    for option, value in (("--nproc", options.nproc), ("--timeout", options.timeout)):
        if not value > 0:
            raise UserError(f"{option} {value}: above 0")
    folder: Path = options.folder or _folder(settings)
    forgive_lost_output()
    world = detect()
    die_with_launcher()
    if options.nproc > 1:
        if world.launcher != "alone":
            raise UserError(
                f"--nproc {options.nproc} under {world.launcher}: give one of them the number of"
                " ranks, not both"
            )
        _try(settings, folder)
        return launch_local_ranks(options.nproc, ["landscape", *arguments, "--nproc=1"])
    if world.launcher != "alone":
        die_with_parent()
    device = choose_device(world)
    set_threads(world)
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.cuda.set_device(device)
    with process_group(world, "auto", options.timeout, device) as heartbeat:
        record = carry_out(settings, folder, world, device, heartbeat)
        if record is not None:
            _write(record, options, folder)
    return 0


def _write(record: BenchmarkRecord, options: argparse.Namespace, folder: Path) -> None:
    from largebatch.landscape.charts import write_landscape

    print(record.table())
    path, page = options.json or folder / RECORD, options.html or folder / PAGE
    write_record(path, record)
    print(f"record: {path}")
    write_landscape(page, record)
    print(f"page: {page}")


def _try(settings: Settings, folder: Path) -> None:
    """Let a mistake show before any rank starts."""
    networks = open_networks(settings, torch.device("cpu"))
    for name in settings.pictures:
        if name in TRAINED:
            curve_config(settings, networks.run.config, folder, name)


def _folder(settings: Settings) -> Path:
    names = [Path(os.path.abspath(path)).name for path in settings.runs]
    return Path("landscapes") / "--".join(names)


def _settings(options: argparse.Namespace) -> Settings:
    if len(options.runs) > 2:
        raise UserError("largebatch landscape: name one run, or two")
    count = len(options.runs)
    root = [] if options.root is None else [f"--data.root={options.root.absolute()}"]
    return Settings(
        runs=tuple(options.runs),
        pictures=tuple(options.pictures or USUAL[count]),
        points=options.points,
        extent=options.extent,
        split=options.split,
        samples=options.samples,
        seed=options.seed,
        statistics=options.norm_statistics or STATISTICS[count],
        statistics_samples=options.norm_samples,
        one_dimensional=options.one_dimensional,
        widths=tuple(options.widths),
        draws=options.draws,
        bends=options.bends,
        length=options.length,
        lr=options.lr,
        overrides=tuple(root),
        allow_imports=options.allow_imports,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"largebatch landscape: {message}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="largebatch landscape",
        description="Draw the loss around a finished run, or between two, and train the paths"
        " between them. The same command goes on where it was stopped.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", type=user_path, nargs="+", metavar="RUN", help="run directory or checkpoint")
    add(
        "--pictures",
        nargs="+",
        choices=tuple(dict.fromkeys(OF_ONE + OF_TWO)),
        help="of one run: line, plane, smooth (default: line plane); of two: line, bezier,"
        " polychain (default: all)",
    )
    add("--points", type=int, help="along a side; 51, of a plane and of smooth 21")
    add("--extent", type=float, default=1.0, help="how far around one run, in its own lengths; 1")
    add("--split", choices=("train", "val"), default="val", help="whose loss; val")
    add("--samples", type=int, help="of the split, chosen by the seed; by default all")
    add("--seed", type=int, default=0, help="of directions, noise, samples and curves; 0")
    add(
        "--norm-statistics",
        choices=("as-trained", "recomputed", "interpolated"),
        help="running statistics of batch norms at a point: of the run (the default around one),"
        " recomputed there (the default between two), interpolated as the weights are",
    )
    add(
        "--norm-samples",
        type=int,
        default=2048,
        help="training samples that they are recomputed of; 2048",
    )
    add(
        "--one-dimensional",
        choices=("zero", "weights"),
        default="zero",
        help="what directions have for biases and parameters of norms: nothing (zero), or the"
        " weights themselves; zero",
    )
    add(
        "--widths",
        type=float,
        nargs="+",
        default=[0.1, 0.3],
        help="smooth: standard deviations of the noise, in lengths of filters; 0.1 0.3",
    )
    add("--draws", type=int, default=8, help="smooth: pairs of noise a point; 8")
    add("--bends", type=int, default=3, help="of a trained path, its ends among them; 3")
    add("--length", help="of a path's training, such as 10ep; by default the first run's")
    add("--lr", type=float, help="of a path's training; by default the first run's")
    add("--nproc", type=int, default=1, help="start so many ranks on this host; 1")
    add("--timeout", type=float, default=1800.0, help="seconds that ranks wait for each other")
    add("--data.root", dest="root", type=user_path, metavar="DIR", help="where the data lie now")
    add(
        "--allow-imports",
        action="store_true",
        help="import and call what the runs' configs name as package.module:callable",
    )
    add("--folder", type=user_path, help="for points and curves; landscapes/RUN[--RUN]")
    add("--json", type=user_path, help="the record's file; FOLDER/record.json")
    add("--html", type=user_path, help="the page's file; FOLDER/report.html")
    return parser
