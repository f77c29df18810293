"""What a batch that grows saves: by the noise scale, late, or by seesaw, against constant batches.

    python benchmarks/noise_control.py --folder RUNS --json results/noise_control_digits.json
    python benchmarks/noise_control.py --data=DATA --folder RUNS --json FILE

Every arm of an optimizer has one rate, tuned at the smallest batch, and the same samples: what
differs is how many steps they make. The best constant batch is the one of the lowest loss. The
arms that grow begin there: who has tuned a batch asks how many steps growing it saves. An arm is
non-inferior where its mean loss is above the best constant's by no more than the best one loses
when it trains on 1/1.2 of the samples, with 95% confidence (one-sided, paired by seeds: two arms
of a seed begin with the same weights and see the same order).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from statistics import mean, variance
from typing import Any

from largebatch._paths import UserPath
from largebatch.cli import main
from largebatch.probes.noise_estimate import student
from largebatch.record import BenchmarkRecord
from largebatch.study import Done, Job, Study
from largebatch.study.grid import value_of

FORMULA = (
    "steps = optimizer steps of a run of the same samples; saved = 1 - steps / steps of the best "
    "constant batch; loss = of the validation set at the end, mean over seeds; worse by = mean "
    "loss - the best constant's, with the upper end of its one-sided 95% interval; margin = the "
    "best constant's mean loss at 1/1.2 of the samples - at all of them"
)
OPTIMIZERS = {
    "sgd": ["--optim.name=sgd", "--optim.scaling=linear", "--optim.weight_decay=0.0005"],
    "adamw": ["--optim.name=adamw", "--optim.scaling=sqrt", "--optim.weight_decay=0.01"],
    "lamb": ["--optim.name=lamb", "--optim.scaling=sqrt", "--optim.weight_decay=0.01"],
}
RATES = {
    "digits": {"sgd": 0.02, "adamw": 0.002, "lamb": 0.01},
    "mnist": {"sgd": 0.02, "adamw": 0.001, "lamb": 0.005},
}
LENGTH = {"digits": 15.0, "mnist": 4.0}  # epochs
SHORT = "constant, 1/1.2 of the samples"


class NoiseControl(Study):
    """Arms of every optimizer, with every seed.

    Args:
        data: folder of MNIST; none: the digits.
        smallest: of the constant batches, which are it times 1, 2, 4, 8.
        epochs: length of every run; unset: that of the data set.
    """

    def __init__(
        self,
        data: UserPath | None = None,
        optimizers: Sequence[str] = ("sgd", "adamw", "lamb"),
        seeds: Sequence[int] = (0, 1, 2, 3, 4),
        smallest: int = 32,
        samples: int = 12000,
        epochs: float | None = None,
    ) -> None:
        self.task = "digits" if data is None else "mnist"
        self.optimizers, self.seeds = optimizers, seeds
        self.smallest = smallest
        self.length = LENGTH[self.task] if epochs is None else epochs
        self.base = [
            "--norm.kind=group" if data is None else "--norm.kind=ghost",
            "--norm.groups=4" if data is None else f"--norm.ghost_size={smallest // 2}",
            *("--schedule.warmup=5%", "--schedule.curve=cosine", f"--batch.micro={smallest // 2}"),
            *(f"--batch.reference={smallest}", "--telemetry.hardware_every=0"),
            *("--checkpoint.every=1000ep", "--evaluate.every=1000ep"),
        ]
        if data is not None:
            self.base += ["--data.name=mnist", f"--data.root={data}", "--model.name=f1"]
            self.base += [f"--data.limit={samples}"]
        self.constants = [smallest * 2**n for n in range(4)]

    @cached_property
    def arms(self) -> dict[str, list[str]]:
        """Return the options of every arm by its name."""
        whole = f"--schedule.length={self.length:g}ep"
        short = f"--schedule.length={self.length / 1.2:.4f}ep"
        found = {f"constant {b}": [f"--batch.size={b}", whole] for b in self.constants}
        for batch in self.constants:
            begins = f"--batch.size={batch}"
            grows = [begins, f"--batch.max={16 * batch}", whole]
            found[f"{SHORT}, {batch}"] = [begins, short]
            noise = ["--batch.noise_every=1st", "--batch.noise_half_life=5%"]
            found[f"noise, {batch}"] = [*grows, "--batch.control=noise", *noise]
            found[f"late, {batch}"] = [*grows, "--batch.control=late"]
            found[f"seesaw, {batch}"] = [*grows, "--batch.control=seesaw"]
        return found

    def _name(self, optimizer: str, arm: str, seed: int) -> str:
        plain = arm.replace(",", "").replace(" ", "-").replace("/", "of")
        return f"{self.task}-{optimizer}-{plain}-{seed}"

    def _job(self, optimizer: str, arm: str, seed: int) -> Job:
        rate = RATES[self.task][optimizer]
        options = [*self.base, *OPTIMIZERS[optimizer], *self.arms[arm]]
        options += [f"--optim.lr={rate}", f"--run.seed={seed}"]
        if arm.startswith("seesaw"):  # its own rule; the plan is made of the curve alone
            options.append("--optim.scaling=none")
        return Job.of(self._name(optimizer, arm, seed), options)

    def jobs(self, done: Done) -> Iterable[Job]:
        """Return the constant arms, and once they are done those that begin at the best of them."""
        for optimizer in self.optimizers:
            best = self._best(optimizer, done)
            for arm in self.arms:
                if arm.startswith("constant") or arm.endswith(f", {best}"):
                    yield from (self._job(optimizer, arm, seed) for seed in self.seeds)

    def _best(self, optimizer: str, done: Done) -> int | None:
        """Return the constant batch of the lowest loss, once all are done."""
        names = {
            b: [self._name(optimizer, f"constant {b}", s) for s in self.seeds]
            for b in self.constants
        }
        if not all(name in done for each in names.values() for name in each):
            return None
        return min(names, key=lambda b: mean(_values(done, names[b], "loss")))

    def conclude(self, done: Done) -> BenchmarkRecord:
        """Return a row an optimizer and arm."""
        rows = [row for optimizer in self.optimizers for row in self._rows(optimizer, done)]
        notes = [
            f"{self.task}, {self.length:g} epochs, growing up to 16 times the batch, "
            f"rates {RATES[self.task]} at {self.smallest}, seeds {list(self.seeds)}, fp32"
        ]
        return BenchmarkRecord(f"noise-control-{self.task}", FORMULA, rows, notes=notes)

    def _rows(self, optimizer: str, done: Done) -> Iterable[dict[str, Any]]:
        best = self._best(optimizer, done)
        assert best is not None

        def of(arm: str, figure: str) -> list[float]:
            return _values(done, [self._name(optimizer, arm, s) for s in self.seeds], figure)

        reference, steps = of(f"constant {best}", "loss"), mean(of(f"constant {best}", "steps"))
        margin = mean(of(f"{SHORT}, {best}", "loss")) - mean(reference)
        for arm in self.arms:
            ours = arm.startswith("constant") or arm.endswith(f", {best}")
            if arm.startswith(SHORT) or not ours:
                continue
            losses = of(arm, "loss")
            worse = mean(losses) - mean(reference)
            upper = worse + wide(losses, reference)
            is_best = arm == f"constant {best}"
            yield {
                "optimizer": optimizer,
                "arm": arm + (" (best constant)" if is_best else ""),
                "steps": round(mean(of(arm, "steps"))),
                "saved": f"{1 - mean(of(arm, 'steps')) / steps:+.1%}",
                "loss": f"{mean(losses):.4f}",
                "top1": f"{100 * mean(of(arm, 'top1')):.2f}",
                "worse by": f"{worse:+.4f}",
                "at most": f"{0.0 if is_best else upper:+.4f}",
                "margin": f"{margin:+.4f}",
                "non-inferior": is_best or upper <= margin,
            }


def _values(done: Done, names: Sequence[str], figure: str) -> list[float]:
    return [value_of(done[name].summary or {}, figure, False) for name in names]


def wide(one: Sequence[float], other: Sequence[float]) -> float:
    """Return how far the one-sided 95% bound of the mean of paired differences lies above it."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    count = len(differences)
    return student(0.9, count - 1) * math.sqrt(variance(differences) / count)


if __name__ == "__main__":
    sys.exit(main(["study", "noise_control:NoiseControl", *sys.argv[1:]]))
