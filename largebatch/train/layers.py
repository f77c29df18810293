"""layers.jsonl: what LARS and LAMB found of every tensor, at steps spread over the run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from largebatch.optim import LayerwiseOptimizer, Offload
from largebatch.record import MetricsWriter
from largebatch.schedule import Step
from largebatch.train.telemetry import Every


class LayerRecord:
    """Writes weight norm, gradient norm (LAMB: update norm) and ratio of tensors that adapt.

    A line has ``samples``, ``step``, ``epoch``, ``split`` (``layers``) and ``layers``, which maps
    the parameter's name (with ``[number]`` for a piece of a split one) to the three numbers.

    Attributes:
        kept: what is to be told of lines that were put aside, None if none were.

    Args:
        path: the file; lines past ``samples`` are dropped, the run goes on there.
        every: which steps are written.
        epoch_samples: training samples in an epoch.
    """

    def __init__(
        self,
        optimizer: LayerwiseOptimizer | Offload,
        model: nn.Module,
        path: Path,
        every: Every,
        epoch_samples: int,
        samples: int,
    ) -> None:
        self.due = every.due
        self._optimizer, self._path, self._epoch_samples = optimizer, path, epoch_samples
        excluded = {id(param) for param in optimizer.excluded()}
        self._names = {
            id(param): name for name, param in model.named_parameters() if id(param) not in excluded
        }
        writer = MetricsWriter(path)
        self.kept = writer.truncate_after(samples)
        writer.close()

    def measure(self) -> tuple[list[str], Tensor]:
        """Return the tensors' names and an (N, 3) table on the device, without waiting for it."""
        names, rows = [], []
        found = [each for each in self._optimizer.layer_norms() if id(each[0]) in self._names]
        pieces = Counter(id(param) for param, _, _ in found)
        for param, number, row in found:
            name = self._names[id(param)]
            names.append(f"{name}[{number}]" if pieces[id(param)] > 1 else name)
            rows.append(row)
        return names, torch.stack(rows) if rows else torch.empty(0, 3)

    def write(self, step: Step, number: int, found: tuple[list[str], Tensor]) -> None:
        """Append the line of a step taken."""
        names, table = found
        line: dict[str, Any] = {
            "split": "layers",
            "samples": step.end,
            "step": number,
            "epoch": round(step.end / self._epoch_samples, 6),
            "layers": dict(zip(names, table.tolist(), strict=True)),
        }
        writer = MetricsWriter(self._path)
        writer.write(line)
        writer.close()
