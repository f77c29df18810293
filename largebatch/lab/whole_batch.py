"""Use a whole set of samples as one step, to apply probes to a model outside of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from largebatch.lab.descent import LossOf
from largebatch.lab.digits import Samples
from largebatch.nn import frozen_statistics
from largebatch.probes import Forward, Replay, Side
from largebatch.weight_space import Loss, Weights


class WholeBatch(Replay):
    """Runs all samples in one pass, like a step of a run in training mode.

    Args:
        samples: samples of the step.
        loss: mean loss over samples, a function of outputs and targets.
    """

    def __init__(self, model: nn.Module, samples: Samples, loss: LossOf = cross_entropy) -> None:
        self._model, self._samples, self._loss = model, samples, loss

    def train(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the loss sum and the sums [loss, weight]."""
        inputs, targets = batch
        total = self._loss(model(inputs), targets) * len(targets)
        return total, torch.stack((total.detach(), total.new_tensor(float(len(targets)))))

    def visit(self, forward: Forward) -> Tensor:
        """Return the loss sum."""
        with torch.no_grad(), frozen_statistics(self._model):
            return forward(self._model, self._samples)[0].double()

    def loss(self) -> Tensor:
        """Return the mean loss."""
        return self.visit(self.train) / len(self._samples[1])

    def gradient(self, forward: Forward | None = None, sides: Sequence[Side] = ()) -> list[Tensor]:
        """Return the gradient of the mean loss, summed over the sides."""
        params = [p for p in self._model.parameters() if p.requires_grad]
        found = [torch.zeros_like(p) for p in params]
        for move, factor in sides or ((lambda: None, 1.0),):
            move()
            with torch.enable_grad(), frozen_statistics(self._model):
                total, _ = (forward or self.train)(self._model, self._samples)
                grads = torch.autograd.grad(total, params)
            torch._foreach_add_(found, grads, alpha=factor / len(self._samples[1]))
        return found


def dense_hessian(model: nn.Module, samples: Samples, loss: LossOf = cross_entropy) -> Tensor:
    """Return the (n, n) Hessian by torch's own second derivatives, as a reference for small n."""
    inputs, targets = samples
    params = dict(model.named_parameters())
    lengths = [p.numel() for p in params.values()]

    def of(flat: Tensor) -> Tensor:
        parts = zip(params.items(), flat.split(lengths), strict=True)
        named = {name: part.view(p.shape) for (name, p), part in parts}
        return loss(torch.func.functional_call(model, named, (inputs,)), targets)

    flat = torch.cat([p.detach().reshape(-1) for p in params.values()])
    matrix: Tensor = torch.func.jacrev(torch.func.grad(of), chunk_size=128)(flat)
    return (matrix + matrix.T) / 2


def loss_of(model: nn.Module, samples: Samples, loss: LossOf = cross_entropy) -> Loss:
    """Return the mean loss as a function of weights, in the model's present mode."""
    inputs, targets = samples

    @torch.no_grad()
    def of(weights: Weights) -> float:
        with frozen_statistics(model):
            outputs = torch.func.functional_call(model, dict(weights), (inputs,))
        return float(loss(outputs, targets))

    return of
