"""Measure a landscape from its settings to its record; points measured before are only read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from largebatch.landscape.conclude import conclude
from largebatch.landscape.curves import train_between
from largebatch.landscape.judge import Judge
from largebatch.landscape.networks import Networks, open_networks
from largebatch.landscape.pictures import Around, Between, Judged, Picture, Place, Smooth
from largebatch.landscape.points import Points, require_same_settings
from largebatch.landscape.progress import Progress
from largebatch.landscape.settings import TRAINED, Settings
from largebatch.processes import World
from largebatch.processes.agreement import agreed, together
from largebatch.processes.heartbeat import Heartbeat
from largebatch.processes.lifetime import StopRequest, signals_as_before
from largebatch.record import BenchmarkRecord
from largebatch.train.config import Config
from largebatch.train.outcome import Outcome
from largebatch.train.progress import say
from largebatch.train.session import session
from largebatch.weight_space import WeightPath

SETTINGS = "settings.json"
RUNS = "runs"  # the figures of the networks themselves


class Runs(Picture):
    """The picture of the networks themselves, by number."""

    def __init__(self, networks: Networks, statistics: bool) -> None:
        self._of = [
            {**weights, **(own if statistics else {})}
            for weights, own in zip(networks.weights, networks.statistics, strict=True)
        ]

    def places(self) -> list[Place]:
        """Return the numbers of the networks."""
        return [(float(number),) for number in range(len(self._of))]

    def measure(self, place: Place, judged: Judged) -> Mapping[str, float]:
        """Return the figures of one network."""
        return judged(self._of[int(place[0])])


def carry_out(
    settings: Settings, folder: Path, world: World, device: torch.device, heartbeat: Heartbeat
) -> BenchmarkRecord | None:
    """Measure the missing points, on every rank; return the record.

    Returns:
        The record; None if a signal stopped the training of a curve, which the same command
        continues.

    Raises:
        UserError: a run cannot be opened, or the folder belongs to other settings; raised on every
            rank.
    """
    networks = together(lambda: open_networks(settings, device), world)

    def prepared() -> Judge:
        if world.is_main:
            require_same_settings(folder / SETTINGS, _settled(settings, networks))
        return Judge(settings, networks, world)

    judge = together(prepared, world)
    interpolated = settings.statistics == "interpolated"
    pictures: dict[str, Picture] = {RUNS: Runs(networks, interpolated)}
    for name in settings.pictures:
        if len(settings.runs) == 1:
            smooth = name == "smooth"
            pictures[name] = (
                Smooth(settings, networks) if smooth else Around(settings, networks, name)
            )
            continue
        path: WeightPath | None = WeightPath(networks.weights)
        if name in TRAINED:
            path = train_between(
                settings, networks, folder, name, _trainer(world, device, heartbeat)
            )
            if path is None:
                if world.is_main:
                    say("stopped; the same command goes on")
                return None
        beside = WeightPath(networks.statistics) if interpolated else None
        assert path is not None
        pictures[name] = Between(settings, name, path, beside)
    found = _measured(pictures, folder, judge, world)
    return conclude(settings, networks, judge, found) if world.is_main else None


def _trainer(
    world: World, device: torch.device, heartbeat: Heartbeat
) -> Callable[[Config, Callable[[nn.Module], nn.Module]], Outcome]:
    def train(config: Config, around: Callable[[nn.Module], nn.Module]) -> Outcome:
        with signals_as_before():
            stop = StopRequest().install()
            return session(config, None, world, device, stop, heartbeat, around)

    return train


def _measured(
    pictures: Mapping[str, Picture], folder: Path, judge: Judge, world: World
) -> dict[str, list[dict[str, Any]]]:
    """Return the points of all pictures; those on file are only read."""
    with ExitStack() as stack:

        def files() -> dict[str, Points]:
            opened = {}
            for name in pictures if world.is_main else ():
                opened[name] = points = Points(folder / f"{name}.jsonl")
                stack.callback(points.close)
            return opened

        points = together(files, world)
        there = agreed({name: len(each.found) for name, each in points.items()}, world)
        places = {name: picture.places() for name, picture in pictures.items()}
        total = sum(pictures[name].cost * len(of) for name, of in places.items())
        done = sum(pictures[name].cost * count for name, count in there.items())
        progress = Progress(total, done, world.is_main)
        stack.callback(progress.close)
        for name, picture in pictures.items():
            for place in places[name][there[name] :]:
                figures = picture.measure(place, judge)
                if world.is_main:
                    points[name].add(place, figures)
                progress.add(name, picture.cost, figures)
        return {name: each.found for name, each in points.items()}


def _settled(settings: Settings, networks: Networks) -> dict[str, Any]:
    """Return what points depend on, by the names of the options."""
    config = networks.run.config
    return {
        "runs": networks.digests,
        "--points": settings.points,
        "--extent": settings.extent,
        "--split": settings.split,
        "--samples": settings.samples,
        "--seed": settings.seed,
        "--norm-statistics": settings.statistics,
        "--norm-samples": settings.statistics_samples,
        "--one-dimensional": settings.one_dimensional,
        "--widths": list(settings.widths),
        "--draws": settings.draws,
        "--bends": settings.bends,
        "--length": settings.length,
        "--lr": settings.lr,
        "data.name": config.data.name,
        "precision.compute": config.precision.compute,
    }
