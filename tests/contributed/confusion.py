"""Which class is mistaken most often."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from largebatch.probes.further import Run, evaluations


@evaluations.register("confusion", "share of the worst class that is right, and which it is")
def confusion(evaluator: Any, world: Any, device: torch.device) -> Run:
    """Return what is called with the model at each evaluation, on every rank."""
    classes: int = evaluator.task.num_classes

    def run(model: nn.Module) -> dict[str, float]:
        table = torch.zeros(classes, classes, device=device)
        for batch in evaluator.batches():
            pairs = (batch.targets, model(batch.inputs).argmax(1))
            table.index_put_(pairs, torch.ones(len(batch), device=device), accumulate=True)
        if world.world_size > 1:
            dist.all_reduce(table)
        right = table.diagonal() / table.sum(1).clamp(min=1)
        return {"worst": float(right.min()), "class": int(right.argmin())}

    return run
