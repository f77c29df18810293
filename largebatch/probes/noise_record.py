"""The noise terms that a run has measured so far, by step and layer, in bounded memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from largebatch.probes.noise_estimate import NoiseEstimate, estimate_noise, student
from largebatch.probes.noise_layers import layerwise_noise_scale

MOST = 512  # rows: when there are more, neighbours are averaged two by two
BLOCKS = 16  # of the jackknife over steps, for what is no ratio of sums
REMEMBERED = 12  # half-lives: older terms weigh less than 1 / 4096


class NoiseRecord:
    """Terms of measured steps, weighted by 2^(-samples since / half-life).

    A row holds the samples seen, the number of steps that it averages, and |G|^2 and T of every
    layer. Old rows are averaged with their neighbours to save memory. Estimates stay the same,
    except for the weights inside a row.

    Args:
        layers: number of layers.
        half_life: half-life of a step's weight, in samples.
    """

    def __init__(self, layers: int, half_life: float) -> None:
        self.layers, self.half_life = layers, half_life
        self._hold(np.empty((0, 2 + 2 * layers), dtype=np.float64))
        self.lengths = np.ones(layers)
        self._merged = 1  # steps of a whole row
        self._open: list[NDArray[np.float64]] = []  # steps of a row that is not whole yet

    def add(self, samples: int, signal: NDArray[np.float64], trace: NDArray[np.float64]) -> None:
        """Add the terms of a step, (layers,) each."""
        self._open.append(np.concatenate(([float(samples), 1.0], signal, trace)))
        if len(self._open) < self._merged:
            return
        self._append(self._open[0] if self._merged == 1 else _mean(np.stack(self._open)))
        self._open = []
        self._first += int(self._rows[:, 0].searchsorted(samples - REMEMBERED * self.half_life))
        rows = self._rows
        if len(rows) > MOST:
            odd = len(rows) % 2
            pairs = [_mean(pair) for pair in rows[odd:].reshape(-1, 2, rows.shape[1])]
            self._hold(np.vstack((rows[:odd], *pairs)))
            self._merged *= 2

    @property
    def _rows(self) -> NDArray[np.float64]:
        return self._memory[self._first : self._end]

    def _hold(self, rows: NDArray[np.float64]) -> None:
        self._memory, self._first, self._end = rows, 0, len(rows)

    def _append(self, row: NDArray[np.float64]) -> None:
        if self._end == len(self._memory):  # room for many: a copy at each step would be slow
            rows = self._rows
            self._hold(np.concatenate((rows, np.empty((MOST, rows.shape[1])))))
            self._end = len(rows)
        self._memory[self._end] = row
        self._end += 1

    @property
    def steps(self) -> int:
        """Number of measured steps in the record."""
        return int(self._all[:, 1].sum())

    @property
    def samples(self) -> int:
        """Samples seen by the last measured step; 0 before the first."""
        rows = self._open or self._rows
        return int(rows[-1][0]) if len(rows) else 0

    @property
    def _all(self) -> NDArray[np.float64]:
        return np.vstack((self._rows, _mean(np.stack(self._open)))) if self._open else self._rows

    def _weights(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        age = rows[-1:, 0] - rows[:, 0]
        weights: NDArray[np.float64] = rows[:, 1] * np.exp2(-age / self.half_life)
        return weights

    def estimate(self, confidence: float = 0.95) -> NoiseEstimate | None:
        """Return the noise scale of all layers together; None after too few steps."""
        rows = self._all
        signal, trace = np.split(rows[:, 2:], 2, axis=1)
        return estimate_noise(signal.sum(1), trace.sum(1), self._weights(rows), confidence)

    def of_layers(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the weighted means of |G|^2 and T, (layers,) each."""
        rows = self._all
        means = np.average(rows[:, 2:], axis=0, weights=self._weights(rows))
        return means[: self.layers], means[self.layers :]

    def layerwise(self, which: NDArray[np.bool_], confidence: float = 0.95) -> NoiseEstimate | None:
        """Return :func:`layerwise_noise_scale` of some layers, with :attr:`lengths`.

        The interval is computed for the logarithm, by a jackknife over blocks of successive steps.
        None after too few steps, or if the interval is wider than a factor of 8 on either side.
        """
        rows = self._all
        if len(rows) < 2 * BLOCKS or not which.any():
            return None
        weights, chosen = self._weights(rows), np.concatenate((which, which))
        sums = rows[:, 2:][:, chosen] * weights[:, None]
        blocks = np.stack([block.sum(0) for block in np.array_split(sums, BLOCKS)])
        whole, count = blocks.sum(0), int(which.sum())

        def scale(terms: NDArray[np.float64]) -> float:
            lengths = self.lengths[which]
            return layerwise_noise_scale(terms[:count], terms[count:], lengths)

        value, left = scale(whole), [scale(whole - block) for block in blocks]
        if not all(0 < each < math.inf for each in (value, *left)):
            return None
        logs = np.log(left)
        error = math.sqrt((BLOCKS - 1) / BLOCKS * float(np.square(logs - logs.mean()).sum()))
        if error > 1.0:  # a factor of 8 either way says nothing
            return None
        wide = math.exp(student(confidence, BLOCKS - 1) * error)
        steps = float(weights.sum() ** 2 / np.square(weights).sum())
        return NoiseEstimate(value, value * error, value / wide, value * wide, steps, 0.0)

    def state(self) -> dict[str, Tensor]:
        """Return the state to resume from."""
        started = np.stack(self._open) if self._open else self._rows[:0]
        return {
            "rows": torch.from_numpy(self._rows.copy()),
            "open": torch.from_numpy(started.copy()),
            "lengths": torch.from_numpy(self.lengths.copy()),
            "merged": torch.tensor(self._merged),
        }

    def check(self, state: Any) -> None:
        """Require a result of :meth:`state`, for any number of layers.

        Raises:
            ValueError: the state has another form.
        """
        names = {"rows", "open", "lengths", "merged"}
        if not isinstance(state, dict) or state.keys() != names:
            raise ValueError("no record of a noise scale")
        forms = {name: getattr(state[name], "ndim", None) for name in names}
        if forms != {"rows": 2, "open": 2, "lengths": 1, "merged": 0}:
            raise ValueError("no record of a noise scale")
        widths = {state["rows"].shape[1], state["open"].shape[1], 2 + 2 * len(state["lengths"])}
        if len(widths) > 1:
            raise ValueError("no record of a noise scale")

    def load(self, state: Any) -> None:
        """Restore a result of :meth:`state`; start anew if its layers differ (another source)."""
        if len(state["lengths"]) != self.layers:
            return
        self._hold(state["rows"].double().numpy().copy())
        self._open = list(state["open"].double().numpy().copy())
        self.lengths = state["lengths"].double().numpy().copy()
        self._merged = max(1, int(state["merged"]))


def _mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return rows as one: the last's samples, the count of all, means of the terms."""
    count = rows[:, 1]
    means = np.average(rows[:, 2:], axis=0, weights=count)
    return np.concatenate(([rows[-1, 0], count.sum()], means))
