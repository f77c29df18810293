"""Pictures of a landscape: their places, and the measurement at each place."""

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
        cost: number of evaluations per place.
    """

    cost = 1

    @abstractmethod
    def places(self) -> Sequence[Place]:
        """Return the coordinates of all points, in the order in which they are measured."""

    @abstractmethod
    def measure(self, place: Place, judged: Judged) -> Mapping[str, float]:
        """Return the figures of a point; every rank must call this alike."""


class Around(Picture):
    """A line or a plane through a network, along filter-normalised directions.

    Li et al. 2018, section 4. The directions are drawn from the seed. A plane's first direction is
    that of the line.
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
        path: path of the weights.
        statistics: path of the norms' statistics along with the weights; None: as the judge sets
            them.
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
    """The line of :class:`Around`, with the loss smoothed by Gaussian noise at every point.

    The noise is filter-normalised like the line's direction. So a width means the same for rescaled
    networks that compute the same function. The noise is the same at every point.
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
    """Return the directions around the first network, drawn from the seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    model = networks.run.model
    return [
        filter_normalized_direction(model, generator, settings.one_dimensional)
        for _ in range(count)
    ]


def symmetric(extent: float, count: int) -> list[float]:
    """Return ``count`` multiples from -extent to extent, symmetric about 0."""
    return [extent * (2 * number - (count - 1)) / (count - 1) for number in range(count)]
