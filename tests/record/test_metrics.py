"""metrics.jsonl: writing, resuming, reading."""

import json
import os
import time

import pytest

from largebatch._errors import UserError
from largebatch.record import MetricsWriter, read_metrics


def line(samples, split="train", **values):
    return {"samples": samples, "step": samples // 10, "epoch": 0, "split": split, **values}


def fill(path, lines):
    writer = MetricsWriter(path)
    for values in lines:
        writer.write(values)
    writer.close()


def test_lines_come_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        line(10, loss=0.1 + 0.2, order_hash="ab"),
        line(10, "val", top1=1.0),
        line(20, loss=1e-30),
    ]
    fill(path, lines)
    assert read_metrics(path) == lines
    assert [json.loads(text) for text in path.read_text().splitlines()] == lines


def test_a_line_is_on_its_way_at_once(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write(line(10))
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    writer.close()


def test_what_json_cannot_hold_becomes_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, [line(10, loss=float("nan"), weight_norm=float("inf"), lr=0.5)])
    assert read_metrics(path) == [line(10, loss=None, weight_norm=None, lr=0.5)]
    assert "NaN" not in path.read_text()


@pytest.mark.parametrize("torn", ["", '{"samples": 50, "sp', '{"samples": 50}\n', "\x00\x00\x00"])
def test_a_run_goes_on_at_its_checkpoint(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    fill(path, [line(n) for n in (10, 20, 30, 40)])
    with open(path, "a") as file:
        file.write(torn)
    assert [values["samples"] for values in read_metrics(path)] == [10, 20, 30, 40]
    writer = MetricsWriter(path)
    writer.truncate_after(20)
    writer.write(line(35))
    writer.close()
    assert [values["samples"] for values in read_metrics(path)] == [10, 20, 35]


def test_truncation_keeps_all_lines_when_none_is_past(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, [line(10), line(20)])
    with open(path, "a") as file:
        file.write('{"samples": 30')
    writer = MetricsWriter(path)
    writer.truncate_after(100)
    writer.close()
    assert path.read_text().count("\n") == 2
    assert path.read_text().endswith("}\n")


def test_a_repeated_evaluation_counts_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, [line(10), line(10, "val", top1=0.1), line(10, "val", top1=0.2), line(20)])
    assert [values.get("top1") for values in read_metrics(path)] == [None, 0.2, None]


def test_damage_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match=r"metrics\.jsonl: No such file"):
        read_metrics(path)
    fill(path, [line(10), line(20), line(30)])
    path.write_text(path.read_text().replace('"samples": 20', '"samples": ?'))
    with pytest.raises(UserError, match=r"line 2 is damaged"):
        read_metrics(path)


def damage(path, number):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace(b'"', b"\xff", 1)
    path.write_bytes(b"".join(lines))


def truncated(path, samples):
    writer = MetricsWriter(path)
    told = writer.truncate_after(samples)
    writer.close()
    return told


def test_a_damaged_line_costs_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, [line(n) for n in range(10, 240, 10)])
    damage(path, 3)
    whole = path.read_bytes()
    assert truncated(path, 1000) is None
    assert path.read_bytes() == whole
    said = []
    found = [values["samples"] for values in read_metrics(path, said.append)]
    assert found == [10, 20, *range(40, 240, 10)]
    assert said == ["metrics.jsonl: left out as damaged: line 3, of 23"]
    assert truncated(path, 100) is None
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:10])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "bad",
    [
        b"\x00" * 50 + b"\n",
        b'{"samples": 15, "split": 7}\n',
        b'{"samples": 1e999, "split": "train"}\n',
        b'{"samples": 15.5, "split": "train"}\n',
        b'{"samples": true, "split": "train"}\n',
        b'{"samples": -1, "split": "train"}\n',
        b'{"samples": 15, "split": "train", "step": "x"}\n',
        b'{"samples": 15, "split": "train", "epoch": NaN}\n',
        b'{"samples": 15, "split": "hardware"}\n',
        b'{"samples": 15, "split": "hardware", "rank": "one"}\n',
        b'{"samples": 15, "split": "layers"}\n',
        b'{"samples": 15, "split": "layers", "layers": {"w": [1, 2]}}\n',
        b"[" * 100_000 + b"\n",
        b"\n",
        b"null\n",
    ],
)
def test_lines_that_have_no_place_are_damaged_ones(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    fill(path, [line(10), line(20), line(30)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + bad + lines[1] + lines[2])
    truncated(path, 20)
    assert path.read_bytes() == lines[0] + bad + lines[1]
    with pytest.raises(UserError, match="line 2 is damaged"):
        read_metrics(path)
    said = []
    assert [values["samples"] for values in read_metrics(path, said.append)] == [10, 20]
    assert "line 2, of 3" in said[0]


def test_a_line_that_claims_to_be_far_ahead_costs_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, [line(10), line(9_000_020), line(30), line(40)])
    assert truncated(path, 30) is None
    assert [values["samples"] for values in read_metrics(path)] == [10, 9_000_020, 30]


def test_damaged_lines_that_would_be_cut_are_kept_aside(tmp_path):
    path = tmp_path / "metrics.jsonl"
    fill(path, [line(n) for n in (10, 20, 30, 40)])
    damage(path, 3)
    whole = path.read_bytes()
    told = truncated(path, 20)
    assert "metrics-1.jsonl" in told
    assert (tmp_path / "metrics-1.jsonl").read_bytes() == whole
    assert [values["samples"] for values in read_metrics(path)] == [10, 20]


def test_a_run_that_starts_over_keeps_its_old_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for number in (1, 2):
        fill(path, [line(10, loss=number), line(20)])
        told = truncated(path, 0)
        assert f"metrics-{number}.jsonl" in told
        assert path.read_bytes() == b""
    for number in (1, 2):
        assert read_metrics(tmp_path / f"metrics-{number}.jsonl")[0]["loss"] == number
    assert truncated(path, 0) is None  # nothing to keep
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_no_file_is_an_error_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        MetricsWriter(path)
    with pytest.raises(UserError, match="not a regular file"):
        read_metrics(path)


def test_a_line_is_cheap(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    values = line(10, **{f"figure_{n}": 0.123456789 * n for n in range(10)})
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            writer.write(values)
        best = min(best, (time.perf_counter() - start) / 100)
    writer.close()
    assert best < 30e-6, f"{best * 1e6:.1f} microseconds a line"
