"""What branches will cost, from the record of the run that they leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from largebatch.record import RunDirectory, json_text
from largebatch.schedule import Duration
from largebatch.study.cost import Cost, Speed
from largebatch.study.job import Job
from largebatch.train import Outcome
from largebatch.train.config import EmaConfig
from largebatch.train.parse import parse


@pytest.mark.parametrize(("averaged", "passes"), [(False, 4), (True, 8)])
def test_a_run_says_what_a_sample_and_a_pass_take(tmp_path: Path, averaged, passes) -> None:
    run = RunDirectory(tmp_path)
    lines = [
        {"split": split, "samples": n, "loss": 1.0}
        for n, split in enumerate(["val"] * 4 + ["train"] * 9)
    ]
    run.metrics.write_text("".join(f"{json_text(line)}\n" for line in lines))
    summary = {"samples": 1000, "samples_per_second": 100.0, "wall_seconds": 14.0}
    summary["start_seconds"] = 3.0
    summary |= {"ema_loss": 1.0} if averaged else {}
    outcome = Outcome(tmp_path, True, 1000, 100, summary)
    speed = Speed.of(outcome, 9.0)
    assert speed.sample == pytest.approx(0.01)
    assert speed.judged == pytest.approx(4.0 / passes), "what is left of 14 s after 10 of training"
    assert speed.start == 3.0
    assert Speed.of(replace(outcome, seconds=18.0), 9.0).start == 4.0, "and its end took another"
    del summary["start_seconds"]
    assert Speed.of(outcome, 9.0).start == 9.0


def test_a_run_of_two_sessions_has_the_speed_of_both(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    # 400 samples at 10 a second, then 600 at 100 a second: 40 s and 6 s, in lines of 100 samples.
    lines = [
        {"split": "train", "samples": n, "batch_size": 100, "samples_per_second": rate}
        for n, rate in zip(range(100, 1100, 100), [10.0] * 4 + [100.0] * 6, strict=True)
    ]
    lines += [{"split": "val", "samples": n, "loss": 1.0} for n in (500, 1000)]
    run.metrics.write_text("".join(f"{json_text(line)}\n" for line in lines))
    summary = {"samples": 1000, "samples_per_second": 100.0, "wall_seconds": 50.0}
    speed = Speed.of(Outcome(tmp_path, True, 1000, 10, summary), 1.0)
    assert speed.sample == pytest.approx(0.046)
    assert speed.judged == pytest.approx(2.0), "not the 34 s by which the first was slower"


def test_jobs_are_counted_by_their_samples_and_evaluations() -> None:
    config = parse(["--recipe=quadratic", "--batch.size=16", "--evaluate.every=10sa"])
    schedule = replace(config.schedule, length=Duration(1120, "sa"))
    plain = replace(config, schedule=schedule)
    averaged = replace(plain, ema=EmaConfig(Duration(10, "sa")))
    cost = Cost.of([(Job("a", plain), 1000), (Job("b", averaged), 1000)])
    # 120 samples are 8 steps of 16, and no step is followed by two evaluations.
    assert cost == Cost(240, 8 + 16, 2)
    assert cost.seconds(Speed(0.5, 2.0, 3.0)) == (120.0, 48.0, 6.0)
