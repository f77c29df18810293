"""Reports on what something else wrote: shown as far as it can be, or refused in one line."""

import json
import os
import re
import time

import pytest

from largebatch._errors import UserError
from largebatch.cli import main
from largebatch.report import read_run, write_report

LINE = {"samples": 5000, "step": 40, "epoch": 3.5, "split": "train", "loss": 0.5}
HARDWARE = {**LINE, "split": "hardware", "gpu_power_watts": 300.0}
LAYERS = {**LINE, "split": "layers", "layers": {"w": [1.0, 2.0, 3.0]}}


def shown(tmp_path, run):
    """Return the run's data on its page, the page, and what was said of it."""
    output = tmp_path / "out.html"
    begun = time.monotonic()
    said = write_report([run], output)
    assert time.monotonic() - begun < 5
    page = output.read_text(encoding="utf-8")
    found = re.search(r'id="largebatch-data">(.*?)</script>', page, re.DOTALL)

    def refuse(name):
        raise AssertionError(name)

    return json.loads(found[1], parse_constant=refuse)["runs"][0], page, said


def add(run, *lines, name="metrics.jsonl"):
    with open(run / name, "a", encoding="utf-8") as file:
        for line in lines:
            file.write((line if isinstance(line, str) else json.dumps(line)) + "\n")


@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, '"text"', "null",
     "true", "[1]", '{"a": 1}'],
    ids=lambda value: value[:9],
)  # fmt: skip
def test_a_value_that_is_no_number_is_no_point(tmp_path, make_run, value):
    run = make_run()
    text = json.dumps({**LINE, "loss": 0.25, "lr": "?"}).replace('"?"', value)
    add(run, text, text.replace("5000", "6000"))
    add(run, json.dumps({**HARDWARE, "rank": 0, "x": "?"}).replace('"?"', value))
    data, _, said = shown(tmp_path, run)
    assert not said
    assert data["series"]["train"]["loss"]["value"][-2:] == [0.25, 0.25]
    assert 5000 not in data["series"]["train"]["lr"]["samples"]
    assert "x" not in data["hardware"]


@pytest.mark.parametrize(
    "line",
    [
        {**LINE, "epoch": "one"},
        '{"samples": 5000, "split": "train", "step": NaN}',
        '{"samples": 5000, "split": "train", "epoch": 1e999}',
        '{"samples": 1e999, "split": "train"}',
        HARDWARE,
        {**HARDWARE, "rank": "one"},
        {**HARDWARE, "rank": None},
        {**HARDWARE, "rank": [0]},
        {**HARDWARE, "rank": 1.5},
        "[" * 100_000,
        '{"a":' * 100_000,
        "\x00" * 100,
        "7",
    ],
    ids=lambda line: str(line)[:40].replace("\x00", "0"),
)
def test_a_line_that_has_no_place_is_left_out_and_named(tmp_path, make_run, line):
    run = make_run(ranks=2)
    before = (run / "metrics.jsonl").read_bytes()
    number = before.count(b"\n") + 1
    add(run, line, {**LINE, "samples": 6000})
    data, page, said = shown(tmp_path, run)
    assert 6000 in data["series"]["train"]["loss"]["samples"]
    remark = f"metrics.jsonl: left out as damaged: line {number}, of {number + 1}"
    assert said == [f"digits: {remark}"]
    assert remark in page


def test_many_damaged_lines_are_counted(tmp_path, make_run, capsys):
    run = make_run()
    text = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(["junk\n"] * 3000 + text))
    assert main(["report", str(run), "-o", str(tmp_path / "out.html")]) == 0
    printed = capsys.readouterr()
    assert "line 1, 2, 3, 4, 5 and 2,995 more, of" in printed.err
    assert len(read_run(run).series["val"]["top1"]["value"]) == 10


@pytest.mark.parametrize(
    "layers",
    [None, 7, {"w": 1}, {"w": [1, 2]}, {"w": ["a", "b", "c"]}, {"w": [[1], 2, 3]}, "absent"],
    ids=str,
)
def test_layers_that_are_none(tmp_path, make_run, layers):
    run = make_run()
    wrong = {**LAYERS, "layers": layers}
    if layers == "absent":
        del wrong["layers"]
    add(run, LAYERS, wrong, {**LAYERS, "samples": 6000}, name="layers.jsonl")
    data, _, said = shown(tmp_path, run)
    assert data["layers"]["samples"] == [5000, 6000]
    assert said == ["digits: layers.jsonl: left out as damaged: line 2, of 3"]


def test_layers_of_infinite_norm_and_lines_without_step(tmp_path, make_run):
    run = make_run()
    bare = {"split": "layers", "samples": 7000, "layers": {"w": [1, None, 2]}}
    add(run, bare, json.dumps(LAYERS).replace("2.0", "1e999"), LINE, name="layers.jsonl")
    data, _, _ = shown(tmp_path, run)
    assert data["layers"]["update"] == [[None, None]]


@pytest.mark.parametrize(
    "config",
    ["batch: [1]", "batch: {plan: 7}", "batch: {plan: [1, x]}", "batch: {plan: [{size: [1]}]}",
     "batch: {size: .nan}", "batch: {size: text}", "batch: 7", "model: [1]", "1: {2: 3}",
     "batch: {size: 1e999, plan: {a: 1}}"],
)  # fmt: skip
def test_a_config_of_another_form_is_shown(tmp_path, make_run, config):
    run = make_run()
    (run / "config.yaml").write_text(config)
    _, page, _ = shown(tmp_path, run)
    assert config.replace("'", "&#39;") in page


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n"
    for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    "config",
    [
        "a: &a [*a]",
        "a: &a {b: *a}",
        "&a {b: *a}",
        BOMB,
        "a: " + "[" * 100_000,
        "a: " + "{b: " * 200 + "1" + "}" * 200,
        "a: !!python/object/apply:os.system [ls]",
        "? [1, 2]\n: 3",
        "a: \x00",
    ],
    ids=lambda config: config[:20].replace("\x00", "0"),
)
def test_a_config_that_is_none_is_one_line(tmp_path, make_run, config, capsys):
    run = make_run()
    (run / "config.yaml").write_text(config)
    begun = time.monotonic()
    assert main(["report", str(run), "-o", str(tmp_path / "out.html")]) == 2
    assert time.monotonic() - begun < 5
    printed = capsys.readouterr().err
    assert "config.yaml: damaged" in printed and printed.count("\n") == 1
    assert len(printed) < 600


@pytest.mark.parametrize("value", ["NaN", "1e999", '"x"', "[]", "true", "-1", "1e300"])
@pytest.mark.parametrize(
    "key", ["wall_seconds", "top1", "loss", "samples_per_second", "world_size"]
)
def test_a_summary_of_another_form_is_shown(tmp_path, make_run, key, value):
    run = make_run()
    (run / "summary.json").write_text(f'{{"{key}": {value}}}')
    _, page, _ = shown(tmp_path, run)
    assert "unfinished" not in page.split("<script")[0]


def test_names_that_are_no_text(tmp_path, make_run):
    run = make_run().rename(tmp_path / "a\udcffb")
    add(run, '{"samples": 5000, "split": "train", "\\ud800key": 1.0}')
    (run / "summary.json").write_text('{"top1": "\\ud800"}')
    data, _, _ = shown(tmp_path, run)
    assert "\ud800key" in data["series"]["train"]


def test_sums_that_no_float_holds(tmp_path, make_run):
    run = make_run(ranks=0)
    phases = dict.fromkeys(("compute_seconds", "communication_seconds", "data_seconds"), 1.7e308)
    add(run, *({**LINE, "samples": 5000 + n, **phases} for n in range(2500)))
    add(run, *({**HARDWARE, "rank": n, "x": 1.7e308} for n in range(20)))
    data, _, _ = shown(tmp_path, run)
    assert data["hardware"]["x"]


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "summary.json", "config.yaml", "layers.jsonl", "task.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_what_never_ends_is_one_line(tmp_path, make_run, name, kind):
    run = make_run()
    (run / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(run / name)
    elif kind == "folder":
        (run / name).mkdir()
    else:
        (run / name).symlink_to(kind)
    with pytest.raises(UserError, match=rf"{name}: .*not a regular file"):
        write_report([run], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


HIGHER = {"name": "score", "better": "higher", "percent": False}


@pytest.mark.parametrize(
    ("record", "left_out"),
    [
        ({}, "headline"),
        ({"headline": "top1"}, "headline"),
        ({"headline": {**HIGHER, "better": "up"}}, "headline"),
        ({"headline": {**HIGHER, "better": ["higher"]}}, "headline"),
        ({"headline": {**HIGHER, "percent": 1}}, "headline"),
        ({"headline": {**HIGHER, "name": 7}}, "headline"),
        ({"headline": {**HIGHER, "name": "x" * 1000}}, "headline"),
        ({"headline": HIGHER, "figures": [1]}, "figures"),
        ({"headline": HIGHER, "figures": {"a\ud800": None}}, r"figure 'a\ud800'"),
        (
            {"headline": HIGHER, "figures": {f"f{n}": HIGHER for n in range(5000)}},
            "4,900 figures past the first 100",
        ),
        (
            {"headline": HIGHER, "figures": dict.fromkeys("abcdefg")},
            "figure 'a', figure 'b', figure 'c', figure 'd', figure 'e' and 2 more",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_task_of_another_form_is_shown(tmp_path, make_run, record, left_out):
    run = make_run()
    (run / "task.json").write_text(json.dumps(record))
    data, page, said = shown(tmp_path, run)
    assert said == [f"digits: task.json: left out as damaged: {left_out}"]
    assert ("top-1" in data["figures"]) == (left_out == "headline")
    assert "task.json: left out" in page


@pytest.mark.parametrize(
    "headline",
    [
        {"name": "<img src=x onerror=alert(1)>", "better": "lower", "unknown": {"a": [1]}},
        {"name": "samples", "better": "lower", "percent": True},
        {"name": "lr", "better": "higher"},
        {"name": "batch", "better": "higher"},
        {"name": "constructor", "better": "lower", "percent": True},
        {"name": "\ud800", "better": "higher"},
    ],
    ids=lambda headline: ascii(headline["name"]),
)
def test_a_headline_of_any_name_is_shown(tmp_path, make_run, headline):
    run = make_run()
    (run / "task.json").write_text(json.dumps({"headline": headline, "later": [1]}))
    add(run, {**LINE, "split": "val", headline["name"]: 6000, "samples": 6000})
    _, page, said = shown(tmp_path, run)
    assert not said
    assert "<img" not in page


@pytest.mark.parametrize("text", ["{", "[]", "7", "\x00", "[" * 100_000, " " * 2**21])
def test_a_task_that_is_none_is_one_line(tmp_path, make_run, text, capsys):
    run = make_run()
    (run / "task.json").write_text(text)
    assert main(["report", str(run), "-o", str(tmp_path / "out.html")]) == 2
    printed = capsys.readouterr().err
    assert "task.json: damaged" in printed and "delete it" in printed
    assert printed.count("\n") == 1


def test_numbers_without_end_are_counted(tmp_path, make_run):
    run = make_run(epochs=1)
    add(run, {**LINE, **{f"many_{n}": 1.0 for n in range(3000)}, "y" * 5000: 1.0})
    _, page, said = shown(tmp_path, run)
    assert not said
    assert page.count('id="chart-many_') == 100
    assert "2,901 more are not drawn: Many 100, Many 101," in " ".join(page.split())
    assert "y" * 100 not in page.split("<script")[0]


def test_a_count_of_steps_that_is_none(tmp_path, make_run):
    run = make_run()
    add(run, {**LINE, "nonfinite_steps": "many"}, {**LINE, "samples": 6000, "nonfinite_steps": 3})
    data, _, _ = shown(tmp_path, run)
    assert data["figures"]["not finite"] == "3"


def test_eigenvalues_with_their_shares(tmp_path, make_run):
    run = make_run()
    line = {"split": "spectrum", "samples": 5000, "step": 5, "epoch": 0.5}
    good = {**line, "values": [-1.0, 2.0, 30.0], "weights": [0.5, 0.5, 0.0]}
    wrong = {**line, "samples": 6000, "values": [1.0, None, "x", 4.0], "weights": [0.25, 1, 1]}
    bare = {**line, "samples": 7000, "values": 3}
    add(run, good, wrong, bare, name="spectrum.jsonl")
    data, _, said = shown(tmp_path, run)
    assert not said
    assert data["spectrum"] == {
        "samples": [5000, 5000, 6000],
        "step": [5, 5, 5],
        "epoch": [0.5, 0.5, 0.5],
        "value": [-1.0, 2.0, 1.0],
        "weight": [0.5, 0.5, 0.25],
    }
