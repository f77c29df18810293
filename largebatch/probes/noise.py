"""Measure the gradient noise scale of a live run, in samples, with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from largebatch import _ops
from largebatch._errors import UserError
from largebatch.nn import ghost_sizes, minimum_samples, observable_norms, ties_samples
from largebatch.optim import LAMB, layer_rates
from largebatch.optim.parameters import local
from largebatch.optim.second_moment import OTHERS
from largebatch.optim.squares import Squares
from largebatch.probes.ghost_squares import GhostSquares
from largebatch.probes.instrument import Instrument, Moment
from largebatch.probes.noise_estimate import FEWEST, NoiseEstimate
from largebatch.probes.noise_record import NoiseRecord
from largebatch.probes.noise_source import SOURCES, means_of
from largebatch.probes.noise_terms import noise_terms
from largebatch.probes.registry import probes
from largebatch.processes import World
from largebatch.record import MetricsWriter, RunDirectory
from largebatch.schedule import Clock, Duration, Every, Phase, Schedule, Step

EVERY, HALF_LIFE, LAYERS = "16st", "10%", "1%"
RENEWED = 64  # times at least within a half-life, or within a run that is shorter
SPLIT = 32  # parts of a pass, of which one is taken once more
SPLIT_EVERY = "100st"  # a pass costs a good part of a step, however few samples it has


class NoiseScale(Instrument):
    """Measures |G|^2 and T at some steps and estimates T / |G|^2, the gradient noise scale.

    G is the true gradient and T the trace of the covariance of one sample's gradient. At a batch
    far below the noise scale, doubling the batch nearly doubles the progress of a step. Far above,
    doubling gains almost nothing (McCandlish et al. 2018). Gradients are taken before clipping,
    weight decay and momentum; with SAM the first gradient; under fp16 without the loss scale. Steps
    that are not finite are left out.

    Args:
        every: which steps are measured; None: each 16th, or 100th where it splits the only pass.
        source: gradients to compare with the whole step's: ``ranks``; ``first`` (pass); ``passes``
            (costs a second copy of the gradients); ``split`` (costs a 32nd of a pass, or one
            ghost); ``norms`` (parameters of norms only, free); or ``auto``: ranks if there are
            several, else the first pass if there are several, else a split.
        half_life: half-life of the weight of measured steps in the estimate.
        layers: distance between lines of layers.jsonl with the layers' noise scales.

    Raises:
        UserError: the run has no source to measure the noise scale by.
    """

    name = "noise"
    moment = "exchanged"

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        engine: Any,
        world: World,
        clock: Clock,
        schedule: Schedule,
        folder: Path,
        task: Any,
        every: Every | None = None,
        source: str = "auto",
        half_life: str = HALF_LIFE,
        layers: str = LAYERS,
    ) -> None:
        if hasattr(task, "couple"):
            raise UserError(
                "noise: the task's loss ties the samples of a step together, whose gradient is no"
                " mean over independent parts"
            )
        self._line_samples = max(1, _duration("layers", layers).samples(clock))
        kept = _duration("half_life", half_life).samples(clock)
        self._model, self._optimizer, self._engine = model, optimizer, engine
        self._world, self._clock, self._folder = world, clock, RunDirectory(folder)
        means = means_of(model, engine, world, schedule, task.carry() is not None)
        self.source = means.choose(source)
        usual = SPLIT_EVERY if self.source == "split" else EVERY
        self.every = every or Every(Duration.parse(usual), clock)
        # Where a later phase makes one pass a step, that is split.
        self._splits = self.source == "split" or (source == "auto" and means.splits)
        self._ghosts: GhostSquares | None = None
        self._known = (0, torch.empty(0))  # about the ghosts of a step, by its samples
        self._squares: Squares | None = None
        names = {id(param): name for name, param in model.named_parameters()}
        if self.source == "norms":
            self._ghosts = GhostSquares(model, engine)
            self.names = self._ghosts.names
        else:
            self.reads_squares = True
            self._squares = engine.watch_squares()
            self._squares.apart = self.source if self.source in ("first", "passes") else "ranks"
            self.names = [names[id(param)] for param in self._squares.params]
        self.record = NoiseRecord(len(self.names), kept)
        self._adapts: NDArray[np.bool_] | None = None
        layerwise = layer_rates(optimizer)
        if layerwise is not None and self._squares is not None:
            still = {id(param) for param in layerwise.excluded(self._squares.groups)}
            self._adapts = np.array([id(param) not in still for param in self._squares.params])
        wrapped = getattr(optimizer, "optimizer", optimizer)
        self._kind = "lamb" if isinstance(wrapped, LAMB) else "lars"

    def begin(self, samples: int, steps: int) -> str | None:
        """Return the source in words; remove lines past ``samples``, where the run resumes."""
        if not self._world.is_main:
            return None
        writer = MetricsWriter(self._folder.layers)
        kept = writer.truncate_after(samples)
        writer.close()
        sizes = {norm.ghost_size or 0 for norm in observable_norms(self._model).values()}
        ghosts = f", at ghost size {' and '.join(map(str, sorted(sizes)))}" if sizes else ""
        if ties_samples(self._model):
            ghosts = ", at the samples of a pass as ghost size"
        told = f"probes: noise: {SOURCES[self.source]}{ghosts}"
        return told if kept is None else f"{kept}; {told}"

    # A measured step.

    def before(self, at: Moment) -> None:
        """Start to observe the norms, if they are the source."""
        if self._ghosts is not None:
            self._ghosts.open()

    @torch.no_grad()
    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return a row: squares of the parts by layer, their shares, squares of the whole by layer.

        For a layer-wise optimizer the squared norms of the weights follow.
        """
        if self._ghosts is not None:
            whole, parts = self._ghosts.take()
            return {"row": torch.cat((parts, self._shares_of_ghosts(at.step.size, whole), whole))}
        squares = at.squares
        assert squares is not None
        whole, parts, shares_of = squares.summed, squares.parts, squares.shares
        if self._engine.alone and squares.passes < 2:
            if not self._splits:
                return {}
            split = self._split(at, squares)
            if split is None:
                return {}
            parts, shares_of = split
        sums = [parts, shares_of.to(parts.device)]
        rows, divided = [whole], squares.copies is not None
        if self._adapts is not None:
            # Under ZeRO every rank has whole weights: the sum is too large, by one factor for all.
            lengths = [_ops.global_norm([local(p.detach())]).double() for p in squares.params]
            rows.append(torch.stack(lengths).square() / (squares.copies or 1))
        # What every rank holds whole is not to be added up.
        if divided:
            sums += rows
        message = torch.cat(sums)
        work = self._engine.sum(message)
        if work is not None:
            work.wait()
        return {"row": torch.cat([message, *([] if divided else rows)])}

    def _shares_of_ghosts(self, samples: int, like: Tensor) -> Tensor:
        """Return what is known of the shares of a step's ghosts: sum, sum of squares, number."""
        if samples != self._known[0]:
            size = next(iter(observable_norms(self._model).values())).ghost_size
            assert size is not None
            sizes = ghost_sizes(samples, size, minimum_samples(self._model))
            shares = [each / samples for each in sizes]
            known = (1.0, sum(share * share for share in shares), len(shares))
            self._known = (samples, _filled(like, known))
        return self._known[1]

    def _split(self, at: Moment, squares: Squares) -> tuple[Tensor, Tensor] | None:
        """Take the head of the only pass once more; the run's own gradients stay.

        A part of the share w has the variance 4 V^2 / ((1 - w) d) in |G|^2 (V: of the whole sum):
        the smaller the better, and the cheaper.
        """
        batch = at.batch()
        if batch is None or len(batch.ghosts) < 2:
            return None
        head = batch.head(max(1, len(batch.ghosts) // SPLIT))
        share = len(head) / len(batch)
        with torch.enable_grad():
            found = torch.autograd.grad(at.loss(head), squares.params, allow_unused=True)
        zero = torch.zeros((), dtype=torch.float64, device=squares.summed.device)
        parts = [
            zero if g is None else _ops.global_norm([g]).double().square() * share**2 for g in found
        ]
        return torch.stack(parts), _filled(zero, (share, share * share, 1.0))

    def write(self, step: Step, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Record the terms of a step; return the updated estimate."""
        row, count = np.asarray(values["row"]), self.record.layers
        parts, whole, lengths = row[:count], row[count + 3 : 2 * count + 3], row[2 * count + 3 :]
        share, squares, groups = row[count : count + 3]
        if not np.isfinite(row).all() or share - squares < 1e-9:
            return {}
        signal, trace = noise_terms(whole, parts, share, squares, step.size)
        if self._adapts is not None:
            self.record.lengths = np.sqrt(lengths)
        before = self.record.samples
        self.record.add(step.end, signal, trace)
        # Of the steps measured, the first past each stretch.
        if self._world.is_main and step.end // self._line_samples > before // self._line_samples:
            self._write_layers(step, number)
        figures: dict[str, Any] = {
            "noise_groups": int(groups),
            "noise_signal": float(signal.sum()),
            "noise_trace": float(trace.sum()),
        }
        # Once for every hundredth or so of what the estimate looks back on.
        span = min(step.end, self.record.half_life)
        stretch = 1 << max(0, int(span // RENEWED).bit_length() - 1)  # the same in every session
        if step.end // stretch == before // stretch:
            return figures
        estimate = self.record.estimate()
        if estimate is not None:
            figures |= _figures("noise_scale", estimate)
            of_set = estimate.of_set(self._clock.epoch_samples)
            figures |= _figures("noise_scale_of_set", of_set)
        if self._adapts is not None:
            layerwise = self.record.layerwise(self._adapts)
            if layerwise is not None:
                figures |= _figures(f"noise_scale_{self._kind}", layerwise)
        return figures

    def _write_layers(self, step: Step, number: int) -> None:
        signal, trace = self.record.of_layers()
        writer = MetricsWriter(self._folder.layers)
        writer.write(
            {
                "split": "noise",
                "samples": step.end,
                "step": number,
                "epoch": round(step.end / self._clock.epoch_samples, 6),
                "layers": {
                    name: [float(g), float(t), float(t / g) if g > 0 else math.inf]
                    for name, g, t in zip(self.names, signal, trace, strict=True)
                },
            }
        )
        writer.close()

    def close(self) -> str | None:
        """Return one sentence on the last noise scale."""
        if not self._world.is_main or not self.record.samples:
            return None
        estimate = self.record.estimate()
        if estimate is None:
            more = max(FEWEST - self.record.steps, 1)
            return f"noise scale: not known yet; at least {more} more measurements for an interval"
        return f"noise scale {estimate.text()}, with 95% confidence"

    # For who decides by it.

    def require_measurable(self, phase: Phase) -> None:
        """Refuse a run in which a phase's steps are one pass that cannot be divided.

        Raises:
            UserError: the message names a remedy.
        """
        micro = phase.micro if isinstance(phase.micro, int) else phase.size
        blind = self._engine.alone and self.source == "first" and not self._splits
        if blind and micro >= phase.size:
            raise UserError(
                f"a step of {phase.size} samples is one pass, with nothing to compare; set"
                " batch.micro below it"
            )

    def judged(self, confidence: float) -> NoiseEstimate | None:
        """Return the noise scale that fits the run's optimizer; None after too few steps.

        For layer-wise optimizers the noise scale is computed from the layers. Otherwise it is that
        of all parameters together: McCandlish's for SGD. It serves for Adam and sign descent too,
        whose progress follows the same hyperbola (Li et al. 2024).
        """
        if self._adapts is None:
            return self.record.estimate(confidence)
        return self.record.layerwise(self._adapts, confidence)

    def second_moment_factors(self, before: int, after: int) -> dict[str, float]:
        """Return (G^2 + T / after) / (G^2 + T / before) of every tensor measured, and of all (*).

        A second moment must be multiplied by this factor when the batch changes from ``before`` to
        ``after`` samples.
        """
        signal, trace = self.record.of_layers()
        rows = [(OTHERS, signal.sum(), trace.sum()), *zip(self.names, signal, trace, strict=True)]
        found = {}
        for name, g, t in rows:
            g, t = max(float(g), 0.0), max(float(t), 0.0)
            old = g + t / before
            of_norm = self._ghosts is not None and name != OTHERS  # its weight and bias
            for each in (f"{name}.weight", f"{name}.bias") if of_norm else (name,):
                found[each] = (g + t / after) / old if old > 0 else 1.0
        return found

    def state(self) -> dict[str, Tensor]:
        """Return the terms measured so far."""
        return self.record.state()

    def check(self, state: Any) -> None:
        """Require terms of steps, as :meth:`state` returns."""
        self.record.check(state)

    def load(self, state: Any) -> None:
        """Restore terms measured before, on any number of ranks."""
        self.record.load(state)


def _figures(name: str, estimate: NoiseEstimate) -> dict[str, float]:
    """Return the figures of an estimate; one without an upper end has its lower one alone."""
    found = {f"{name}_low": estimate.low}
    if estimate.bounded:
        found = {name: estimate.value, **found, f"{name}_high": estimate.high}
    return found


def _filled(like: Tensor, values: Sequence[float]) -> Tensor:
    """Return numbers on a device without a copy to it, which would wait."""
    return torch.stack([like.new_full((), value) for value in values])


def _duration(key: str, text: object) -> Duration:
    try:
        duration = Duration.parse(text)
    except UserError as error:
        raise UserError(f"{key}={text!r}: {error}") from None
    if duration.value == 0:
        raise UserError(f"{key}={text}: more than 0")
    return duration


probes.register(
    "noise",
    "gradient noise scale with an interval: how large a batch pays",
    "McCandlish et al. 2018",
)(NoiseScale)
