"""What a picture is made of: places, and what is measured at each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import TypeAlias

import torch

from largebatch.landscape.networks import Networks
from largebatch.landscape.settings import Settings
from largebatch.weight_space import (
    WeightPath,
    Weights,
    filter_normalized_direction,
    gaussian_noise,
    moved,
    normalize_filters,
    smoothed_loss,
)

Place: TypeAlias = tuple[float, ...]
Judged: TypeAlias = Callable[[Weights], Mapping[str, float]]
NOISE = 1_000_003  # apart from the seeds of directions


class Picture(ABC):
    """A picture's places in order, and the measurement at each.

    Attributes:
        cost: evaluations that a place takes.
    """

    cost = 1

    @abstractmethod
    def places(self) -> Sequence[Place]:
        """Return the coordinates of all points, in the order in which they are measured."""

    @abstractmethod
    def measure(self, place: Place, judged: Judged) -> Mapping[str, float]:
        """Return the figures of a point; every rank must call it alike."""


class Around(Picture):
    """A line or a plane through a network, along filter-normalised directions.

    Li et al. 2018, section 4. The directions are drawn from the seed: a plane's first is the
    line's.
    """

    def __init__(self, settings: Settings, networks: Networks, name: str) -> None:
        self._weights = networks.weights[0]
        count = 2 if name == "plane" else 1
        self.directions = directions(settings, networks, count)
        self.side = symmetric(settings.extent, settings.side(name))

    def places(self) -> Sequence[Place]:
        """Return multiples of each direction, the last of them changing first."""
        return list(product(self.side, repeat=len(self.directions)))

    def measure(self, place: Place, judged: Judged) -> Mapping[str, float]:
        """Return the figures there."""
        return judged(moved(self._weights, *zip(self.directions, place, strict=True)))


class Between(Picture):
    """A path from one network to the other.

    Args:
        path: of the weights. statistics: of norms, that go along with them; None: as judged.
    """

    def __init__(
        self, settings: Settings, name: str, path: WeightPath, statistics: WeightPath | None = None
    ) -> None:
        self._path, self._statistics = path, statistics
        count = settings.side(name)
        self._side = [number / (count - 1) for number in range(count)]

    def places(self) -> Sequence[Place]:
        """Return places from 0 to 1."""
        return [(t,) for t in self._side]

    def measure(self, place: Place, judged: Judged) -> Mapping[str, float]:
        """Return the figures there."""
        beside = {} if self._statistics is None else self._statistics(place[0])
        return judged({**self._path(place[0]), **beside})


class Smooth(Picture):
    """The line of :class:`Around`, and the loss smoothed by Gaussian noise at every point of it.

    The noise is filter-normalised as the line's direction is, so that a width means the same to
    networks that are the same function, and the same at every point.
    """

    def __init__(self, settings: Settings, networks: Networks) -> None:
        self._weights, (self._along,) = networks.weights[0], directions(settings, networks, 1)
        self._side = symmetric(settings.extent, settings.side("smooth"))
        self._widths, self._draws = (0.0, *settings.widths), settings.draws
        self._trained = list(self._along)
        self._seed, self._kind = settings.seed, settings.one_dimensional
        self.cost = 1 + 2 * settings.draws
        self._noise = lru_cache(maxsize=1)(self._drawn)

    def places(self) -> Sequence[Place]:
        """Return (width, multiple of the direction): the loss itself, of width 0, first."""
        return list(product(self._widths, self._side))

    def measure(self, place: Place, judged: Judged) -> Mapping[str, float]:
        """Return the smoothed loss and its standard error."""
        width, multiple = place
        centre = moved(self._weights, (self._along, multiple))
        found = smoothed_loss(
            lambda weights: judged(weights)["loss"], centre, width, self._draws, self._noise
        )
        return {"loss": found.value, "error": found.error}

    def _drawn(self, number: int) -> Weights:
        own = {name: self._weights[name] for name in self._trained}
        noise = gaussian_noise(own, NOISE * (self._seed + 1) + number)
        return normalize_filters(noise, own, self._kind)


def directions(settings: Settings, networks: Networks, count: int) -> list[Weights]:
    """Return the directions around the first network that the seed says."""
    generator = torch.Generator().manual_seed(settings.seed)
    model = networks.run.model
    return [
        filter_normalized_direction(model, generator, settings.one_dimensional)
        for _ in range(count)
    ]


def symmetric(extent: float, count: int) -> list[float]:
    """Return ``count`` multiples from -extent to extent, as far from 0 on both sides."""
    return [extent * (2 * number - (count - 1)) / (count - 1) for number in range(count)]
