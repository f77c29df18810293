"""The command as a user meets it: exit codes, one-line errors, verbs."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from largebatch import __version__
from largebatch.cli import VERBS, main


def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return subprocess.run(
        [sys.executable, "-m", "largebatch", *arguments],
        capture_output=True,
        text=True,
        env={**clean, "OMP_NUM_THREADS": "1", **changes},
        timeout=300,
    )


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line with which the command, run in this process, ends with 2."""
    assert main(list(arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    line = printed.err.rstrip("\n")
    assert "\n" not in line and line.startswith("largebatch: ")
    return line


def test_version_and_usage(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"largebatch {__version__}\n"
    assert main([]) == 0
    usage = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} +\w", usage, re.MULTILINE) for verb in VERBS)


def test_a_wrong_verb_names_the_nearest(capsys):
    assert "did you mean 'train'" in refused(capsys, "trian")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--optim.lrr=1"], ["optim.lrr", "optim.lr"]),
        (["--optim.lr=fast"], ["optim.lr", "fast", "number"]),
        (["--schedule.length=30"], ["schedule.length", "30", "90ep"]),
        (["--norm.kind=ghost", "--norm.ghost_size=32", "--batch.micro=48"], ["batch.micro", "48"]),
        (["--data.name=mnist"], ["data.root"]),
        (["--data.name=imagefolder", "--data.root=/no/such/folder"], ["data.root", "/no/such"]),
        (["--model.name=cifar_resnet20", "--data.image_size=1"], ["cifar_resnet20"]),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, "train", "--run.nproc=2", *arguments)
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def image_folder(root: Path, train: list[str], val: list[str]) -> Path:
    rng = np.random.default_rng(0)
    for split, classes in (("train", train), ("val", val)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpeg")
    return root


def test_class_folders_that_differ(capsys, tmp_path):
    root = image_folder(tmp_path, ["cat", "dog"], ["cat", "cow"])
    line = refused(
        capsys, "train", "--run.nproc=2", "--data.name=imagefolder", f"--data.root={root}"
    )
    assert "dog" in line and "cow" in line


def test_a_label_out_of_range(capsys, tmp_path):
    x, y = np.zeros((8, 4, 4), np.uint8), np.arange(8) % 3
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.where(y == 2, 77, y), x_test=x, y_test=y)
    line = refused(
        capsys,
        "train",
        "--run.nproc=2",
        "--data.name=arrays",
        f"--data.root={tmp_path / 'd.npz'}",
        "--model.num_classes=3",
    )
    assert "77" in line and "y_train" in line


@pytest.mark.slow
def test_an_unreadable_image_ends_a_run_and_may_be_skipped(tmp_path):
    root = image_folder(tmp_path / "data", ["cat", "dog"], ["cat", "dog"])
    bad = root / "train" / "dog" / "3.jpeg"
    bad.write_bytes(bad.read_bytes()[:60])
    common = [
        "train",
        "--data.name=imagefolder",
        f"--data.root={root}",
        "--data.image_size=32",
        "--data.workers=1",
        "--model.name=resnet18",
        "--norm.kind=ghost",
        "--norm.ghost_size=4",
        "--batch.size=8",
        "--schedule.length=1ep",
    ]
    done = run(*common, f"--run.dir={tmp_path / 'a'}", "--run.nproc=2")
    assert done.returncode == 2, done.stdout + done.stderr
    line = re.search(r"largebatch: rank [01] on \S+: unreadable image (\S+):", done.stderr)
    assert line is not None and line.group(1) == str(bad)
    assert "Traceback" not in done.stderr
    done = run(*common, f"--run.dir={tmp_path / 'b'}", "--data.skip_corrupt=1")
    assert done.returncode == 0, done.stderr
    found = run("doctor", "--data", str(root))
    assert found.returncode == 1 and str(bad) in found.stdout + found.stderr


def test_an_unwritable_place(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "train", f"--run.dir={tmp_path / 'file' / 'run'}", "--run.nproc=2")
    assert "run.dir" in line


def test_nproc_under_a_launcher_is_refused(tmp_path):
    done = run(
        "train", "--run.nproc=2", f"--run.dir={tmp_path}", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0"
    )
    assert done.returncode == 2
    assert "run.nproc=2" in done.stderr and "torchrun" in done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "run"
    done = run("train", f"--run.dir={directory}", "--schedule.length=2ep", "--data.limit=500")
    assert done.returncode == 0, done.stderr
    return directory


def test_a_run_leaves_what_the_design_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "report.html",
        "weights.safetensors",
        "summary.json",
    } <= names
    summary = json.loads((finished / "summary.json").read_text())
    for key in (
        "top1",
        "loss",
        "samples",
        "steps",
        "epochs",
        "global_batch",
        "world_size",
        "samples_per_second",
        "wall_seconds",
        "start_seconds",
        "pipeline",
        "ops",
        "weights_sha256",
    ):
        assert key in summary, key
    line = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    for key in (
        "samples",
        "step",
        "epoch",
        "split",
        "loss",
        "top1",
        "lr",
        "batch_size",
        "samples_per_second",
        "weight_norm",
        "weight_distance",
        "order_hash",
    ):
        assert key in line, key


def test_eval_gives_the_summary_again(finished, capsys):
    summary = json.loads((finished / "summary.json").read_text())
    newest = sorted((finished / "checkpoints").iterdir())[-1]
    for path in (finished, newest):
        assert main(["eval", str(path), "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["top1"] == summary["top1"]
        assert result["loss"] == pytest.approx(summary["loss"], rel=1e-6)
        assert result["count"] == summary["count"]
    assert "neither a run" in refused(capsys, "eval", str(finished.parent))


def test_the_weights_start_another_run(finished, tmp_path):
    done = run(
        "train",
        f"--run.dir={tmp_path / 'next'}",
        "--schedule.length=1st",
        "--optim.lr=0",
        f"--model.init_from={finished / 'weights.safetensors'}",
    )
    assert done.returncode == 0, done.stderr
    top1 = [json.loads((d / "summary.json").read_text())["top1"] for d in
            (finished, tmp_path / "next")]  # fmt: skip
    assert abs(top1[0] - top1[1]) < 0.05


def test_report_over_runs(finished, tmp_path, capsys):
    output = tmp_path / "both.html"
    assert main(["report", str(finished), str(finished), "-o", str(output)]) == 0
    assert output.stat().st_size > 100_000
    capsys.readouterr()
    assert str(tmp_path) in refused(capsys, "report", str(tmp_path), "-o", str(output))


def test_recipes_all_parse(capsys):
    from largebatch.train.check import check
    from largebatch.train.parse import parse
    from largebatch.train.recipe import recipe_names

    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    for name in recipe_names():
        check(parse(["--recipe", name]))
        assert name in listed


@pytest.mark.parametrize("name", ["resnet50", "ghost", "sgd", "digits", "poly", "ddp"])
def test_explain(name, capsys):
    assert main(["explain", name]) == 0
    assert name in capsys.readouterr().out


def test_explain_something_unknown(capsys):
    assert "did you mean" in refused(capsys, "explain", "resnet51")


def test_print_config_can_be_read_back(tmp_path):
    done = run("train", "--optim.lr=0.3", "--schedule.length=2ep", "--print_config")
    assert done.returncode == 0
    (tmp_path / "c.yaml").write_text(done.stdout)
    from largebatch.train.parse import parse

    config = parse(["--config", str(tmp_path / "c.yaml")])
    assert config.optim.lr == 0.3 and str(config.schedule.length) == "2ep"


def test_doctor_json(capsys):
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_nothing_is_printed_after_the_end() -> None:
    """Triton, which the trace of a model imports, complains of objects that are not collected."""
    done = run("plan", "--nodes", "1", "--model", "resnet18", "--image", "3x64x64")
    assert done.returncode == 0
    assert done.stderr == ""


def test_garbage_is_not_looked_for_among_modules_that_stay() -> None:
    """Where the command is a process of its own; in a program's, the collector is the program's."""
    program = (
        "import gc, sys; from largebatch.cli import main\n"
        "main(['train', '--optim.name=none'])\n"
        "print(gc.get_freeze_count() > 100_000, gc.isenabled(), file=sys.stderr)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stderr.split()[-2:] == ["True", "True"]
    assert torch.__name__ in sys.modules  # as where a program calls the command's function
    before = gc.get_freeze_count()
    assert main(["train", "--optim.name=none"]) == 2
    assert gc.get_freeze_count() == before
    assert gc.isenabled()
