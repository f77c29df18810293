"""`largebatch bench data`: images a second of the JPEG pipeline, and of other loaders."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch

from largebatch._errors import UserError
from largebatch.bench.data_peers import BATCH, PEERS, SIZE, Peer
from largebatch.data import DataConfig, Pipeline, Request
from largebatch.data.dali import DaliReader
from largebatch.data.imagefolder import FileSource
from largebatch.data.scan import find_images
from largebatch.data.workers import WorkerReader
from largebatch.record import BenchmarkRecord

FORMULA = (
    "images/s = images of the batches received in a measurement / its seconds, after a warm-up; "
    "rounds alternate between the loaders; the figure is the median over rounds; "
    "ratio = median over rounds of (images/s / torchvision's images/s in that round); "
    "CPU ms an image = user and system time of the process and its workers in a measurement / "
    "images, median over rounds"
)
Speed = tuple[float, float]  # images a second, CPU milliseconds an image


def run(root: str, workers: int = 2, seconds: float = 4.0, rounds: int = 3) -> BenchmarkRecord:
    """Measure the training pipeline (RandomResizedCrop 224 and flip) on a folder of JPEGs.

    Args:
        root: any folder with images below it: ROOT/CLASS/* or ROOT/train/CLASS/*.
        workers: worker processes, or threads where a loader uses threads.
        seconds: length of one measurement.
        rounds: number of measurements of each loader, in turn.

    Raises:
        UserError: the folder holds no image.
    """
    paths = find_images(root)
    if not paths:
        raise UserError(f"--root {root!r}: no image below it")
    loaders: dict[str, Peer] = {
        "largebatch": _ours,
        "largebatch, normalised on the CPU": _ours_normalised,
        "largebatch, pipeline dali": _ours_dali,
        **PEERS,
    }
    speeds: dict[str, list[Speed]] = {name: [] for name in loaders}
    absent: dict[str, str] = {}
    for number in range(rounds):
        order = list(loaders) if number % 2 == 0 else list(loaders)[::-1]
        for name in order:
            if name in absent:
                continue
            try:
                speeds[name].append(_measured_apart(loaders[name], paths, workers, seconds))
            except (ImportError, UserError) as error:
                absent[name] = f"not run: {error}"
    rows = [_row(name, speeds, absent) for name in loaders]
    notes = [
        f"{len(paths)} images, {workers} workers each, batches of {BATCH}, {SIZE}x{SIZE} pixels",
        "largebatch, dali and spdl deliver uint8, which is normalised on the device; "
        "torchvision's standard transforms deliver normalised float32",
        "largebatch with pipeline dali takes the windows and flips of its keyed draws; dali alone "
        "draws its own",
    ]
    return BenchmarkRecord("data", FORMULA, rows, notes=notes)


def _row(name: str, speeds: dict[str, list[Speed]], absent: dict[str, str]) -> dict[str, Any]:
    if name in absent:
        return {"loader": name, "images/s": absent[name]}
    rates, costs = zip(*speeds[name], strict=True)
    baseline, _ = zip(*speeds["torchvision"], strict=True)
    ratios = [a / b for a, b in zip(rates, baseline, strict=True)]
    return {
        "loader": name,
        "images/s": round(median(rates)),
        "min": round(min(rates)),
        "max": round(max(rates)),
        "ratio to torchvision": round(median(ratios), 3),
        "CPU ms an image": round(median(costs), 3),
        "rounds": len(ratios),
    }


def _measured_apart(loader: Peer, paths: list[str], workers: int, seconds: float) -> Speed:
    """Measure in a process of its own, forked from one where nothing has run: a worker forked where
    DALI has run may inherit a lock that one of DALI's threads held."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, loader, paths, workers, seconds))
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    finally:
        process.join()
    if isinstance(answer, Exception):
        raise answer
    return answer


def _answer(
    sender: Connection, loader: Peer, paths: list[str], workers: int, seconds: float
) -> None:
    multiprocessing.set_start_method("fork", force=True)  # the loaders' own workers, as in a run
    try:
        sender.send(_measure(loader, paths, workers, seconds))
    except Exception as error:
        sender.send(error)


def _measure(loader: Peer, paths: list[str], workers: int, seconds: float) -> Speed:
    """Measure one loader once; a warm-up uses up what was read ahead before the clock starts."""
    with loader(paths, workers) as batches:
        for _ in range(4 * workers):
            next(batches)
        count, elapsed = 0, 0.0
        busy, start = _cpu_seconds(), time.perf_counter()
        while elapsed < seconds:
            next(batches)
            count += BATCH
            elapsed = time.perf_counter() - start
        return count / elapsed, (_cpu_seconds() - busy) / count * 1e3


def _cpu_seconds() -> float:
    """User and system time so far of this process and those it started."""
    mine = psutil.Process()
    times = [process.cpu_times() for process in (mine, *mine.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


def _requests(count: int) -> Iterator[Request]:
    random, positions = np.random.default_rng(0), np.arange(BATCH)
    for epoch in range(1 << 30):
        yield Request(epoch, random.integers(count, size=BATCH), positions)


@contextmanager
def _ours(paths: list[str], workers: int) -> Iterator[Iterator[Any]]:
    """What the training device receives: uint8 from the workers."""
    source = FileSource(paths, [0] * len(paths), 1, SIZE)
    reader = WorkerReader(source, 0, workers, augment=True, pin_memory=False)
    try:
        yield reader.read(_requests(len(paths)))
    finally:
        reader.close()


@contextmanager
def _ours_dali(paths: list[str], workers: int) -> Iterator[Iterator[Any]]:
    """The same views with data.pipeline=dali: uint8 from its threads, on the CPU."""
    source = FileSource(paths, [0] * len(paths), 1, SIZE)
    reader = DaliReader(source, 0, workers, augment=True, device=torch.device("cpu"))
    try:
        yield reader.read(_requests(len(paths)))
    finally:
        reader.close()


@contextmanager
def _ours_normalised(paths: list[str], workers: int) -> Iterator[Iterator[Any]]:
    """The whole pipeline of a run on the CPU: normalised float32, channels last."""
    source = FileSource(paths, [0] * len(paths), 1, SIZE)
    config = DataConfig(name="imagefolder", workers=workers)
    with Pipeline(source, config, 0, channels_last=True) as pipeline:
        yield iter(pipeline.read(_requests(len(paths))))
