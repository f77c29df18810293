"""The generalisation gap of F1 on MNIST and what closes it (Hoffer et al. 2017, table 1).

    python benchmarks/hoffer_f1_mnist.py --data DATA --runs RUNS --json benchmarks/results/FILE.json

Every recipe runs with every seed. Regime adaptation runs a fifth of the lecture's regime (1,600
epochs) unless `--whole-regime` is given: 10 epochs stretched by 4096 / 128, milestones in
proportion.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from training_runs import all_top1, arguments, spread

from largebatch.record import BenchmarkRecord, write_record

RECIPES = ("small", "large", "sqrt", "ghost", "regime")
A_FIFTH = ["--schedule.length=10ep", "--schedule.milestones=[2ep, 4ep, 6ep]"]
LECTURE = {"small": 98.27, "large": 97.05, "sqrt": 97.55, "ghost": 97.60, "regime": 98.53}
FORMULA = (
    "top-1 = right answers / 10,000 test images after the last epoch, in %, mean and standard "
    "deviation over seeds; gap = mean top-1 of the small batch - mean top-1"
)


def job(recipe: str, seed: int, data: str, runs: Path, more: list[str]) -> tuple[Path, list[str]]:
    """Return one recipe's run with one seed: its folder and its settings."""
    recipe_name = f"--recipe=hoffer-f1-mnist-{recipe}"
    settings = [recipe_name, f"--data.root={data}", f"--run.seed={seed}", *more]
    return runs / f"{recipe}-{seed}", settings


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--whole-regime", action="store_true")
    parser.add_argument("--finished-only", action="store_true", help="read, start nothing")
    options = parser.parse_args()
    fifth = [] if options.whole_regime else A_FIFTH
    jobs = {
        (recipe, seed): job(
            recipe, seed, options.data, options.runs, fifth if recipe == "regime" else []
        )
        for recipe in options.recipes
        for seed in options.seeds
    }
    if options.finished_only:
        jobs = {key: run for key, run in jobs.items() if (run[0] / "summary.json").exists()}
    values = all_top1(list(jobs.values()), options.jobs)
    found: dict[str, list[float]] = {}
    for (recipe, _), value in zip(jobs, values, strict=True):
        found.setdefault(recipe, []).append(value)
    rows = [
        {
            "recipe": f"hoffer-f1-mnist-{recipe}",
            **spread(top1),
            "gap": round(mean(found["small"]) - mean(top1), 2),
            "lecture": LECTURE[recipe],
        }
        for recipe, top1 in found.items()
    ]
    regime = "1,600 epochs" if options.whole_regime else "320 epochs, a fifth of the regime"
    notes = [
        "50 epochs (regime: " + regime + "), fp32, SGD momentum 0.9, weight decay 1e-4, clip 5.0",
        "lecture: the table of Hoffer et al. 2017, their own hyperparameters and code",
    ]
    record = BenchmarkRecord("hoffer-f1-mnist", FORMULA, rows, notes=notes)
    write_record(options.json, record)
    print(record.table())


if __name__ == "__main__":
    main()
