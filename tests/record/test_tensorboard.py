"""The TensorBoard mirror, read back by TensorBoard.

Event files are read in the order of their names, which hold whole seconds: a mirror that goes on
after another is made a second later.
"""

import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from largebatch.record import TensorBoardMirror


def scalars(folder, tag):
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]


def line(samples, split="train", **values):
    return {"samples": samples, "step": 1, "epoch": 0, "split": split, "order_hash": "ab", **values}


def test_training_is_thinned_and_evaluation_is_not(tmp_path):
    mirror = TensorBoardMirror(tmp_path / "tensorboard")
    for samples in range(10, 110, 10):
        mirror.write(line(samples, loss=0.5))
        mirror.write(line(samples, "val", top1=samples / 1000))
    mirror.close()
    assert len(scalars(mirror.folder, "train/loss")) < 5
    assert scalars(mirror.folder, "val/top1") == [(n, n / 1000) for n in range(10, 110, 10)]


def test_figures_of_few_lines_do_not_fall_between(tmp_path):
    mirror = TensorBoardMirror(tmp_path, every_seconds=1e6)
    mirror.write(line(10, loss=0.5, lr=0.1))
    mirror.write(line(20, loss=0.4, lr=0.1, noise_scale=7.0, text="a", layers=[1.0]))
    mirror.write(line(30, loss=0.3, lr=0.1, hessian_top=3, bad=float("nan"), large=10**400))
    mirror.write(line(40, loss=0.2, lr=0.1, noise_scale=8.0, on=True))
    mirror.write(line(40, "val", perplexity=31.5, ema_perplexity=30.5))
    mirror.close()
    events = EventAccumulator(str(mirror.folder))
    events.Reload()
    found = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert found == {
        "train/loss": [(10, 0.5)],
        "train/lr": [(10, pytest.approx(0.1))],
        "train/noise_scale": [(20, 7.0)],
        "train/hessian_top": [(30, 3.0)],
        "val/perplexity": [(40, 31.5)],
        "val/ema_perplexity": [(40, 30.5)],
    }


def test_resumption_hides_what_was_undone(tmp_path):
    for resumed_at, samples in ((None, (10, 20, 30)), (20, (25, 35))):
        mirror = TensorBoardMirror(tmp_path, resumed_at, every_seconds=0)
        for n in samples:
            mirror.write(line(n, loss=float(n)))
        mirror.close()
        time.sleep(1.1)
    assert scalars(tmp_path, "train/loss") == [(10, 10), (20, 20), (25, 25), (35, 35)]


def test_a_run_that_starts_again_hides_its_first_start(tmp_path):
    for value in (1.0, 2.0):
        mirror = TensorBoardMirror(tmp_path)
        mirror.write(line(10, "val", loss=value))
        mirror.close()
        time.sleep(1.1)
    assert scalars(tmp_path, "val/loss") == [(10, 2.0)]


def test_nothing_is_imported_or_made_before_the_first_event(tmp_path):
    mirror = TensorBoardMirror(tmp_path / "tensorboard")
    mirror.close()
    assert not mirror.folder.exists()
