"""Dropout at test time: average several passes with different dropout, and measure their spread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from largebatch._errors import UserError
from largebatch.probes.further import Run, evaluations

FIGURES = ("spread", "entropy", "information")


class DropoutPasses:
    """Figures of the mean of ``passes`` predictions of a model whose dropout is on.

    Gal and Ghahramani 2016, "Dropout as a Bayesian approximation". The task's figures are computed
    from the averaged probabilities. Further figures are means over the samples of:

    - ``spread``: standard deviation of a class probability over the passes, as a root mean square
      over the classes;
    - ``entropy``: entropy of the averaged probabilities, in nats;
    - ``information``: ``entropy`` minus the mean entropy of the single passes: the model's own part
      of the uncertainty, which more data would remove (Houlsby et al. 2011).

    Without dropout, or at a probability of 0, spread and information are 0. Dropout that a model
    calls as a function, not as a layer, stays off.

    Args:
        task: must give log-probabilities (``outputs``, ``score``), as classification does.
        evaluator: iterates over this rank's share of the validation data.

    Raises:
        UserError: fewer than two passes, or a task without probabilities.
    """

    def __init__(self, task: Any, evaluator: Any, seed: int, passes: int = 10) -> None:
        if not isinstance(passes, int) or passes < 2:
            raise UserError(f"passes={passes!r}: a number from 2 up")
        if not (hasattr(task, "outputs") and hasattr(task, "score")):
            raise UserError("dropout at test time averages probabilities, and the task gives none")
        self._task, self._evaluator = task, evaluator
        self._seed, self._passes = seed, passes

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the figures; the model is in evaluation mode, and is again afterwards."""
        sums, extra = None, torch.zeros(len(FIGURES) + 1, dtype=torch.float64)
        with dropping(model):
            for number, batch in enumerate(self._evaluator.batches()):
                votes = []
                for which in range(self._passes):
                    torch.manual_seed((self._seed * 1_000_003 + number) * 1_009 + which)
                    votes.append(self._task.outputs(model, batch))
                logs = torch.stack(votes)
                mean = logs.logsumexp(0) - torch.tensor(float(len(votes))).log()
                found = self._task.score(mean, batch).double()
                sums = found if sums is None else sums + found
                extra += _uncertainty(logs, mean).cpu()
        if sums is None:
            sums = torch.zeros(2 + len(self._task.figures), dtype=torch.float64)
        if dist.is_available() and dist.is_initialized():
            extra = extra.to(sums.device)
            dist.all_reduce(sums)
            dist.all_reduce(extra)
        *numbers, count = extra.tolist()
        return {
            **self._task.read(sums.tolist()),
            **{name: n / max(count, 1.0) for name, n in zip(FIGURES, numbers, strict=True)},
        }


def _uncertainty(logs: Tensor, mean: Tensor) -> Tensor:
    """Return the sums of the figures over samples, and the number of these.

    Args:
        logs: (passes, n, classes) log-probabilities. mean: (n, classes), of the averaged ones.
    """
    probabilities = logs.double().exp()
    spread = probabilities.var(0, correction=0).mean(-1).sqrt()
    entropy = -(mean.double().exp() * mean.double()).nan_to_num(0.0).sum(-1)
    each = -(probabilities * logs.double()).nan_to_num(0.0).sum(-1).mean(0)
    count = torch.full_like(entropy, 1.0)
    return torch.stack([row.sum() for row in (spread, entropy, entropy - each, count)])


@contextmanager
def dropping(model: nn.Module) -> Iterator[None]:
    """Put only a model's dropout layers into training mode for a ``with`` block."""
    layers = [m for m in model.modules() if isinstance(m, _DropoutNd)]
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer.training = flag


@evaluations.register(
    "mc_dropout",
    "the mean of several passes with dropout on, and how far they differ",
    "Gal and Ghahramani 2016",
)
def mc_dropout(task: Any, evaluator: Any, seed: int, passes: int = 10) -> Run:
    """Build the evaluation ``mc_dropout`` of ``evaluate.also``."""
    return DropoutPasses(task, evaluator, seed, passes)
