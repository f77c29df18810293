"""Batch norms at a large batch: F1 on MNIST at 4096, plain, ghost of every size, L1, bfloat16.

    python benchmarks/norms_f1_mnist.py --data DATA --runs RUNS --json benchmarks/results/FILE.json

The recipe is `hoffer-f1-mnist-ghost` at a fifth of its length; only the norm and the precision
differ between rows. The sweep over ghost sizes at a fixed batch tests the lecture's claim that the
ghost size can be tuned by itself (Hoffer et al. 2017, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence

from training_runs import all_top1, arguments, spread

from largebatch.record import BenchmarkRecord, write_record

FORMULA = (
    "top-1 = right answers / 10,000 test images after the last epoch, in %, mean and standard "
    "deviation over seeds"
)
SHORT = ["--schedule.length=10ep", "--schedule.milestones=[2ep, 4ep, 6ep]"]
BFLOAT16 = "--precision.compute=bf16"


def ghost(kind: str, size: int) -> list[str]:
    """Return the settings of a norm over ghosts of ``size`` samples."""
    return [f"--norm.kind={kind}", f"--norm.ghost_size={size}"]


ROWS = {
    "batch": ["--norm.kind=batch", "--norm.ghost_size=null"],
    **{f"ghost {size}": ghost("ghost", size) for size in (16, 32, 64, 128, 256, 512, 1024, 4096)},
    "l1 ghost 128": ghost("l1", 128),
    "linf ghost 128": ghost("linf", 128),
    "topk ghost 128": ghost("topk", 128),
    "ghost 128, bf16": [*ghost("ghost", 128), BFLOAT16],
    "l1 ghost 128, bf16": [*ghost("l1", 128), BFLOAT16],
}


def compare(
    description: str, base: Sequence[str], names: Sequence[str], benchmark: str, note: str
) -> None:
    """Train ``base`` with every norm and seed that the command line asks for; write the record."""
    parser = arguments(description)
    parser.add_argument("--norms", nargs="+", choices=ROWS, default=list(names))
    options = parser.parse_args()
    jobs = [
        (
            options.runs / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}",
            [*base, f"--data.root={options.data}", *ROWS[name], f"--run.seed={seed}"],
        )
        for name in options.norms
        for seed in options.seeds
    ]
    values = all_top1(jobs, options.jobs)
    count = len(options.seeds)
    rows = [
        {"norm": name, **spread(values[index * count : (index + 1) * count])}
        for index, name in enumerate(options.norms)
    ]
    record = BenchmarkRecord(benchmark, FORMULA, rows, notes=[note])
    write_record(options.json, record)
    print(record.table())


def main() -> None:
    compare(
        __doc__.splitlines()[0],
        ["--recipe=hoffer-f1-mnist-ghost", *SHORT],
        list(ROWS),
        "norms-f1-mnist",
        "batch 4096, 10 epochs, SGD 0.9, rate 0.1 times the root of 4096 / 128, clip 5.0",
    )


if __name__ == "__main__":
    main()
