"""Write layers.jsonl: norms and trust ratio of every tensor under LARS or LAMB, at some steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from largebatch.optim import LayerwiseOptimizer, Offload
from largebatch.probes.instrument import Instrument, Moment
from largebatch.record import MetricsWriter
from largebatch.schedule import Every, Step


class LayerRecord(Instrument):
    """Writes weight norm, gradient norm (LAMB: update norm) and trust ratio of adapted tensors.

    A line has ``samples``, ``step``, ``epoch``, ``split`` (``layers``) and ``layers``. The last
    maps a parameter's name to the three numbers; ``[number]`` is added for a piece of a split
    parameter. No line is written before :meth:`begin`.

    Args:
        path: path of the file.
        every: which steps are written.
        epoch_samples: training samples in an epoch.
    """

    name = "layers"

    def __init__(
        self,
        optimizer: LayerwiseOptimizer | Offload,
        model: nn.Module,
        path: Path,
        every: Every,
        epoch_samples: int,
    ) -> None:
        self.every, self._begun = every, False
        self._optimizer, self._path, self._epoch_samples = optimizer, path, epoch_samples
        excluded = {id(param) for param in optimizer.excluded()}
        self._names = {
            id(param): name for name, param in model.named_parameters() if id(param) not in excluded
        }

    def begin(self, samples: int, steps: int) -> str | None:
        """Remove lines past ``samples``, from which the run resumes."""
        writer = MetricsWriter(self._path)
        kept = writer.truncate_after(samples)
        writer.close()
        self._begun = True
        return kept

    def due(self, step: Step, number: int) -> bool:
        """Return whether a step gets a line."""
        return self._begun and super().due(step, number)

    def measure(self, at: Moment) -> Mapping[str, Tensor]:
        """Return the three numbers of every tensor that adapts, by its name."""
        found = [each for each in self._optimizer.layer_norms() if id(each[0]) in self._names]
        pieces = Counter(id(param) for param, _, _ in found)
        names = [
            self._names[id(param)] + (f"[{number}]" if pieces[id(param)] > 1 else "")
            for param, number, _ in found
        ]
        return dict(zip(names, (row for _, _, row in found), strict=True))

    def write(self, step: Step, number: int, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Append the step's line to the file; nothing is added to the metrics."""
        line: dict[str, Any] = {
            "split": "layers",
            "samples": step.end,
            "step": number,
            "epoch": round(step.end / self._epoch_samples, 6),
            "layers": dict(values),
        }
        writer = MetricsWriter(self._path)
        writer.write(line)
        writer.close()
        return {}
