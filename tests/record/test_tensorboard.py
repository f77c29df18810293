"""The TensorBoard mirror, read back by TensorBoard.

Event files are read in the order of their names, which hold whole seconds: a mirror that goes on
after another is made a second later.
"""

import time

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
