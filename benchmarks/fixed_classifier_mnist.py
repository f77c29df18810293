"""Fixed classifiers against a learned one: F1 on MNIST (Hoffer et al. 2018, Fix your classifier).

    python benchmarks/fixed_classifier_mnist.py --data DATA --runs RUNS --json FILE

The recipe is `hoffer-f1-mnist-small` (batch 128), `--epochs` long, its milestones at a fifth, two
and three fifths; only the classifier differs between rows.
"""

from __future__ import annotations

from statistics import mean

from training_runs import all_top1, arguments, spread

from largebatch.record import BenchmarkRecord, write_record

CLASSIFIERS = ("learned", "hadamard", "orthonormal")
FORMULA = (
    "top-1 = right answers / 10,000 test images after the last epoch, in %, mean and standard "
    "deviation over seeds; against learned = mean top-1 - mean top-1 of the learned classifier"
)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    milestones = ", ".join(f"{options.epochs * part / 5:g}ep" for part in (1, 2, 3))
    base = [
        "--recipe=hoffer-f1-mnist-small",
        f"--data.root={options.data}",
        f"--schedule.length={options.epochs}ep",
        f"--schedule.milestones=[{milestones}]",
    ]
    jobs = [
        (
            options.runs / f"{classifier}-{options.epochs}ep-{seed}",
            [*base, f"--model.classifier={classifier}", f"--run.seed={seed}"],
        )
        for classifier in CLASSIFIERS
        for seed in options.seeds
    ]
    values = all_top1(jobs, options.jobs)
    count = len(options.seeds)
    learned = mean(values[:count])
    rows = []
    for index, classifier in enumerate(CLASSIFIERS):
        found = values[index * count : (index + 1) * count]
        against = round(mean(found) - learned, 2)
        rows.append({"classifier": classifier, **spread(found), "against learned": against})
    notes = [
        f"batch 128, {options.epochs} epochs, SGD 0.9, rate 0.1, weight decay 1e-4, clip 5.0",
        "one rate for all, that of the learned classifier",
    ]
    record = BenchmarkRecord("fixed-classifier-mnist", FORMULA, rows, notes=notes)
    write_record(options.json, record)
    print(record.table())


if __name__ == "__main__":
    main()
