"""Optimizers of a small BERT at three batches, equal samples and an equal budget of tuning.

    python benchmarks/bert_batches.py --data=FOLDER --folder RUNS --json FILE

Every contender gets ``budget`` runs to find its rate at every batch, with a seed of its own; the
best rate then runs with the seeds given. Rates are powers of two times a starting point, tried as
``optimizers_f1_mnist`` tries them. ``FOLDER`` holds train.txt and val.txt.

LAMB with a trust ratio held at 1 is Adam with decoupled decay: so Adam with and without bias
correction ("the bug of the open-source BERT", Nado et al. 2021) differ in nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from optimizers_f1_mnist import next_exponents

from largebatch._errors import UserError
from largebatch._paths import UserPath
from largebatch.cli import main
from largebatch.record import BenchmarkRecord
from largebatch.study import Done, Job, Study
from largebatch.study.grid import spread, value_of
from largebatch.train.parse import parse

FORMULA = (
    "loss = mean over the chosen tokens of the validation text after the last step, nats, mean and"
    " standard deviation over seeds; tuning by the same figure with another seed"
)
TUNING_SEED = 100
REFERENCE = 64
MODEL = [
    *("--task.name=masked_lm", "--data.name=text", "--data.tokenizer=bytes", "--data.context=64"),
    *("--model.layers=2", "--model.heads=2", "--model.width=64"),
    *("--schedule.warmup=10%", "--schedule.curve=poly", "--schedule.power=1"),
    *("--evaluate.every=100%", "--checkpoint.every=100%", "--telemetry.hardware_every=0"),
]
UNSCALED = "min_ratio: 1.0, max_ratio: 1.0"
# Where the search begins at a batch of 64, as a rate goes with the root of the batch; settings.
CONTENDERS: dict[str, tuple[float, list[str]]] = {
    "lamb": (0.008, ["--optim.name=lamb"]),
    "lamb, no bias correction": (0.008, ["--optim.name=lamb", "--optim.preset=author"]),
    "lamb, correction on the rate": (0.008, ["--optim.name=lamb", "--optim.preset=deepspeed"]),
    "adamw": (0.002, ["--optim.name=lamb", f"--optim.options={{{UNSCALED}}}"]),
    "adamw, no bias correction": (
        0.002,
        ["--optim.name=lamb", f"--optim.options={{{UNSCALED}, bias_correction: none}}"],
    ),
    "muon": (0.01, ["--optim.name=muon"]),
}


class Contender:
    """One optimizer at one batch."""

    def __init__(self, name: str, batch: int, samples: int, data: str) -> None:
        self.name, self.batch = name, batch
        start, settings = CONTENDERS[name]
        self.start = start * (batch / REFERENCE) ** 0.5
        words = name.replace(",", "").replace(" ", "-")
        self.title = f"{words}-{batch}-{samples}"
        self._common = [
            *(*MODEL, *settings, "--optim.weight_decay=0.01", f"--data.root={data}"),
            *(f"--batch.size={batch}", f"--batch.micro={min(batch, 256)}"),
            f"--schedule.length={samples}sa",
        ]

    def rate(self, exponent: int) -> float:
        """Return the rate at an exponent of two."""
        return float(f"{self.start * 2.0**exponent:.4g}")

    def job(self, exponent: int, seed: int) -> Job:
        """Return a run with a rate."""
        rate = self.rate(exponent)
        settings = [f"--optim.lr={rate}", f"--run.seed={seed}"]
        return Job(f"{self.title}-{rate:g}-seed-{seed}", parse([*self._common, *settings]))

    def value(self, done: Done, exponent: int, seed: int) -> float | None:
        """Return the loss of a run that ended; one that diverged counts as the worst."""
        found = done.get(self.job(exponent, seed).name)
        return None if found is None else value_of(found.summary or {}, "loss")

    def tried(self, done: Done, budget: int) -> dict[int, float]:
        """Return the losses found by now, less is better, as far as the search has come."""
        values: dict[int, float] = {}
        while asked := next_exponents({e: -loss for e, loss in values.items()}, budget):
            found = {e: self.value(done, e, TUNING_SEED) for e in asked}
            if None in found.values():
                break
            values |= {e: loss for e, loss in found.items() if loss is not None}
        return values


class Batches(Study):
    """Every contender at every batch, with ``budget`` runs to find its rate."""

    def __init__(
        self,
        data: UserPath,
        seeds: Sequence[int] = (0, 1, 2),
        batches: Sequence[int] = (64, 512, 4096),
        samples: int = 65536,
        budget: int = 5,
    ) -> None:
        if budget < 5:
            raise UserError(f"--budget={budget}: at least 5 runs, so that the best has neighbours")
        self.seeds, self.budget, self.samples = seeds, budget, samples
        self.contenders = [
            Contender(name, batch, samples, data) for batch in batches for name in CONTENDERS
        ]

    def jobs(self, done: Done) -> Iterable[Job]:
        """Return the searches as far as they are known, and what follows from those that ended."""
        for contender in self.contenders:
            yield from self._jobs(contender, done)

    def _jobs(self, contender: Contender, done: Done) -> Iterator[Job]:
        values = contender.tried(done, self.budget)
        further = next_exponents({e: -loss for e, loss in values.items()}, self.budget)
        for exponent in (*values, *further):
            yield contender.job(exponent, TUNING_SEED)
        if not further:
            for seed in self.seeds:
                yield contender.job(min(values, key=values.__getitem__), seed)

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return a line a contender and batch."""
        notes = [
            f"{self.samples:,} windows of 64 bytes a run at every batch, 2 layers, 2 heads, width"
            " 64; rate up over a tenth and down in a straight line; weight decay 0.01; fp32"
        ]
        rows = [self._row(contender, done) for contender in self.contenders]
        return BenchmarkRecord("bert-batches", FORMULA, rows, notes=notes)

    def _row(self, contender: Contender, done: Done) -> dict[str, Any]:
        values = contender.tried(done, self.budget)
        best = min(values, key=values.__getitem__)
        losses = [contender.value(done, best, seed) for seed in self.seeds]
        return {
            "batch": contender.batch,
            "optimizer": contender.name,
            "rate": contender.rate(best),
            **spread([loss for loss in losses if loss is not None], "loss", digits=4),
            "on the edge": best in (min(values), max(values)),
            "tuning": {f"{contender.rate(e):g}": round(v, 4) for e, v in sorted(values.items())},
        }


if __name__ == "__main__":
    sys.exit(main(["study", "bert_batches:Batches", *sys.argv[1:]]))
