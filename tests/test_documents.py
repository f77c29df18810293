"""What people write in YAML and JSON: read once, in one way, and refused by name and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from largebatch._errors import UserError
from largebatch.cli import main
from largebatch.train.check import check
from largebatch.train.parse import dump, parse, read_config

TEN_OF_TEN = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 11)
)
TEN_MERGES = "optim: &a0 {lr: 0.1}\n" + "".join(
    f"b{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 11)
)
LONG_TIMES_MANY = f"a: &a {'s' * 10_000}\nb: [{', '.join(['*a'] * 1000)}]\n"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    line = capsys.readouterr().err.rstrip("\n")
    assert "\n" not in line and line.startswith("largebatch: ")
    return line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim: {lr: 0.5}\noptim: {weight_decay: 1e-4}\n", ["optim", "line 2", "line 1"]),
        ("optim:\n  lr: 0.5\n  momentum: 0.8\n  lr: 0.1\n", ["optim.lr", "line 4", "line 2"]),
        ("batch:\n  plan:\n  - {until: 1ep}\n  - {size: 8, size: 16}\n",
         ["batch.plan[1].size", "line 4"]),
        ("optim:\n  options: {a: {b: 1, c: 2, b: 3}}\n", ["optim.options.a.b", "line 2"]),
        ("optim:\n  options: {1: a, 0x1: b}\n", ["optim.options.0x1", "line 2"]),
        ("optim:\n  lr: 0.5\n'optim':\n  lr: 0.1\n", ["optim", "line 3"]),
        ("optim: &o {lr: 1}\nema: {<<: *o, <<: *o}\n", ["ema.<<", "line 2"]),
        (TEN_OF_TEN, ["larger than"]),
        (TEN_MERGES, ["larger than"]),
        (LONG_TIMES_MANY, ["larger than"]),
        (f"run:\n  name: {'x' * 2**20}\n", ["larger than"]),
        ("optim: &o {options: *o}\n", ["optim.options", "line 1"]),
        (f"optim: {'[' * 200}{']' * 200}\n", ["nested deeper"]),
        (f"optim: {'[' * 20_000}\n", ["line 1", "nested deeper"]),
        ("optim: !!python/object/apply:os.system ['true']\n", ["line 1", "malformed"]),
        ("optim: {lr: 1}\n---\noptim: {lr: 2}\n", ["another document"]),
    ],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_configs_that_do_not_say_what_they_mean(capsys, tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    line = refused(capsys, "train", f"--config={path}")
    assert "c.yaml" in line and all(word in line for word in words), line
    assert len(line) < 400
    run = tmp_path / "run"
    run.mkdir()
    path.rename(run / "config.yaml")
    line = refused(capsys, "eval", str(run))
    assert "config.yaml" in line and all(word in line for word in words), line
    (run / "metrics.jsonl").write_text('{"samples": 1, "step": 1, "epoch": 1, "split": "val"}\n')
    line = refused(capsys, "report", str(run), "-o", str(tmp_path / "r.html"))
    assert "config.yaml" in line and all(word in line for word in words), line


def test_a_key_twice_on_the_command_line(capsys):
    line = refused(capsys, "train", "--batch.plan=[{size: 8, size: 16}]")
    assert "batch.plan" in line and "size is given twice" in line
    assert parse(["--optim.lr=1", "--optim.lr=2"]).optim.lr == 2  # the later one, as ever


def test_aliases_and_merges_within_reason(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "batch:\n  plan:\n  - &p {until: 1ep, size: 8}\n  - {<<: *p, until: 2ep}\n  - {size: 16}\n"
    )
    plan = parse([f"--config={path}"]).batch.plan
    assert [(str(phase.until), phase.size) for phase in plan[:2]] == [("1ep", 8), ("2ep", 8)]


@pytest.mark.parametrize(
    "name", ["1e-4", "2026-01-01", "0x10", "yes", "1:20", "<<", "=", "{a: 1}", "- a"]
)
def test_text_that_looks_like_something_else_stays_text(tmp_path, name):
    """The config.yaml of a run named 1e-4 could not be read again."""
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"run": {"name": name}}, default_style="'"))
    config = parse([f"--config={path}"])
    assert config.run.name == name
    path.write_text(dump(config))
    assert read_config(path).run.name == name


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", ".001", "1_0e-4", "1.e-3"])
def test_numbers_are_read_alike_in_a_file_and_on_the_command_line(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(f"optim: {{lr: {text}}}\n")
    assert parse([f"--config={path}"]).optim.lr == parse([f"--optim.lr={text}"]).optim.lr == 1e-3


def test_a_config_that_can_be_read_once(tmp_path):
    """A shell's <(...) and /dev/stdin give their text once."""
    import os

    reading, writing = os.pipe()
    os.write(writing, b"optim: {lr: 0.7}\n")
    os.close(writing)
    config = parse([f"--config=/dev/fd/{reading}", "--optim.momentum=0.5"])
    os.close(reading)
    assert (config.optim.lr, config.optim.momentum) == (0.7, 0.5)


def test_files_without_end(capsys, tmp_path):
    assert "larger than" in refused(capsys, "train", "--config=/dev/zero")
    run = tmp_path / "run"
    run.mkdir()
    os_mkfifo(run / "config.yaml")
    assert "neither a run" in refused(capsys, "eval", str(run))


def os_mkfifo(path: Path) -> None:
    import os

    os.mkfifo(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"zero_optimization": {"stage": 1, "stage": 2}}', ["stage", "twice"]),
        ('{"gradient_clipping": 1, "gradient_clipping": 2}', ["gradient_clipping", "twice"]),
        ('{"gradient_clipping": NaN}', ["NaN"]),
        ("[" * 100_000, ["nested"]),
        (json.dumps({"a": "x" * 2**20}), ["larger"]),
    ],
)
def test_deepspeed_configs_likewise(tmp_path, text, words):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(UserError) as found:
        check(parse(["--distributed.engine=deepspeed", f"--distributed.deepspeed_config={path}"]))
    assert all(word in str(found.value) for word in ["ds.json", *words]), found.value
