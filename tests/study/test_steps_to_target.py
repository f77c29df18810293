"""`study steps-to-target`: published figures, tables of one's own, and runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from largebatch._errors import UserError
from largebatch.cli import main
from largebatch.record import read_record
from largebatch.study.carry_out import carry_out
from largebatch.study.convergence import Cell, Convergence, read_convergence
from largebatch.study.steps_to_target import StepsToTarget, concluded
from largebatch.train import Outcome

# Of mlcommons/logging, Apache-2.0.
LLAMA = {
    16: [159744] * 17 + [172032] * 3,
    32: [172032] * 9 + [184320] * 10 + [196608] * 1,
    64: [208896] * 4 + [221184] * 4 + [233472] * 11 + [245760] * 1,
    96: [260064] * 2 + [272448] * 10 + [284832] * 4 + [297216] * 4,
    128: [307200] * 2
    + [319488] * 2
    + [331776] * 4
    + [344064] * 4
    + [356352] * 3
    + [368640] * 3
    + [380928] * 1
    + [405504] * 1,
}
GPT3 = {
    1536: [1157627904] * 3 + [1207959552] * 1 + [1258291200] * 2,
    2048: [1157627904] * 4 + [1207959552] * 3,
    3072: [1207959552] * 5 + [1258291200] * 1 + [13790871552] * 1,
    4096: [1258291200] * 5 + [1308622848] * 1,
    6144: [1409286144] * 6,
    8192: [1610612736] * 4 + [1660944384] * 2,
}
SSD = {
    256: [4] * 20,
    320: [4] * 17 + [5] * 3,
    512: [5] * 20,
    768: [5] * 10,
    1024: [6] * 10,
    1280: [6] * 7 + [7] * 13,
    2048: [7] * 3 + [8] * 16 + [9] * 1,
    2560: [8] * 5 + [9] * 8,
    4096: [14] * 1 + [15] * 11 + [16] * 3,
}


def entries(task: str, cells: dict[int, list[float]]) -> dict[str, Any]:
    return {
        f"{task}_ref_{batch}": {"Benchmark": task, "BS": batch, "Epochs to converge": needed}
        for batch, needed in cells.items()
    }


def write(folder: Path, task: str, cells: dict[int, list[float]], version: str = "1.0.0") -> Path:
    path = folder / version / f"{task}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries(task, cells)))
    return path


REAL = Path(os.environ.get("LARGEBATCH_TEST_DATA", "")) / "mlperf_rcps"
needs_data = pytest.mark.skipif(
    "LARGEBATCH_TEST_DATA" not in os.environ or not REAL.exists(),
    reason="no mlperf_rcps in LARGEBATCH_TEST_DATA",
)


def within(row: dict, estimate: float, low: float, high: float) -> None:
    assert row["critical batch"] == pytest.approx(estimate, rel=0.01)
    assert row["low"] == pytest.approx(low, rel=0.03)
    assert row["high"] == pytest.approx(high, rel=0.03)


def test_published_figures(tmp_path: Path, capsys) -> None:
    files = [write(tmp_path, "llama31_8b", LLAMA), write(tmp_path, "gpt3", GPT3)]
    files.append(write(tmp_path, "ssd", SSD))
    arguments = ["study", "steps-to-target", "--from", *map(str, files)]
    record, page = tmp_path / "r.json", tmp_path / "p.html"
    assert main([*arguments, "--json", str(record), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    rows = {row["task"]: row for row in read_record(record).rows}
    within(rows["llama31_8b"], 91, 79, 106)
    assert rows["llama31_8b"]["runs"] == 100
    assert rows["llama31_8b"]["verdict"] == "line does not fit"
    assert "gpt3: batch 3,072: a run of 1.37909e+10 tokens is left out" in printed
    assert "ssd: batch 1,536 needs 55 epochs" not in printed or rows["ssd"]["verdict"] == "refused"
    text = page.read_text()
    assert "llama31_8b: need against batch" in text and "B20 = " in text
    assert not (tmp_path / "studies").exists()


@needs_data
def test_all_of_mlperf(tmp_path: Path, capsys) -> None:
    files = sorted(map(str, REAL.glob("*/*.json")))
    record = tmp_path / "r.json"
    begun = time.monotonic()
    assert main(["study", "steps-to-target", "--from", *files, "--json", str(record)]) == 0
    assert time.monotonic() - begun < 2
    printed = capsys.readouterr().out
    rows = {row["task"]: row for row in read_record(record).rows}
    within(rows["resnet"], 46_550, 41_400, 52_400)
    within(rows["llama31_8b"], 91, 79, 106)
    within(rows["bert"], 12_490, 9_820, 16_120)
    assert "bert: the line does not fit: flat to batch 4,608, then a step" in printed
    assert rows["unet3d"]["verdict"] == rows["ssd"]["verdict"] == "refused"
    assert "unet3d: refused: what is needed does not grow with the batch" in printed
    assert "ssd: batch 1,536 needs 55 epochs, its neighbours 1,280 and 2,048" in printed
    assert "gpt3: batch 3,072: a run of 1.37909e+10 tokens is left out" in printed
    own = [str(REAL / "4.0.0" / "resnet.json"), "--json", str(record)]
    assert main(["study", "steps-to-target", "--from", *own]) == 0
    (row,) = read_record(record).rows
    within(row, 44_480, 39_200, 50_480)
    assert row["B20 by line"] == pytest.approx(8_900, rel=0.01) and row["runs"] == 130


def test_flat_and_then_a_step_is_no_line_but_has_a_batch() -> None:
    """Runs of F1: the same need up to 1,024, three times as much at 2,048."""
    flat = [Cell(batch, (72_000.0, 72_400.0)) for batch in (64, 128, 256, 512, 1024)]
    row, said, _ = concluded(Convergence("f1", (*flat, Cell(2048, (180_000.0, 250_000.0)))))
    assert row["verdict"] == "refused" and "B20" not in row
    (told,) = [line for line in said if line.startswith("though no line")]
    # 20% of 72,200 is a tenth of the way to 215,000.
    assert "by interpolation batch 1,128 [" in told
    _, said, _ = concluded(Convergence("flat", tuple(flat)))
    assert not any("though no line" in line for line in said)


def test_the_newest_version_of_a_batch_counts(tmp_path: Path) -> None:
    old = write(tmp_path, "bert", {8: [1.0, 1.0], 16: [2.0]}, "1.10.0")
    new = write(tmp_path, "bert", {8: [3.0]}, "1.9.0")
    for files in ([old, new], [new, old]):
        (task,) = read_convergence(files)
        assert [(cell.batch, cell.needed) for cell in task.cells] == [(8, (1.0, 1.0)), (16, (2.0,))]


def test_a_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    lines = [f"{b},{seed},{1000 + 10 * b + seed}" for b in (8, 16, 32, 64) for seed in (0, 1, 2)]
    path.write_text("\n".join(["batch,seed,samples", *lines, "64,3,diverged"]))
    (task,) = read_convergence([path])
    row, said, _ = concluded(task)
    assert row["task"] == "mine" and row["critical batch"] == pytest.approx(100, rel=0.01)
    assert "batch 64: 1 of 4 runs never reached the target" in said
    left, _, _ = concluded(task.without([64]))
    assert left["batches"] == 3


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "batch,seed\n1,2", "its first line names batch, seed"),
        ("a.csv", "batch,samples\n0,2", "line 2: batch=0: a whole number"),
        ("a.csv", "batch,samples\n8,-2", "line 2: samples=-2: a number above"),
        ("a.csv", "batch,samples\n8,1e308", "line 2: samples=1e308"),
        ("a.csv", "batch,samples\n8,1e-300", "line 2: samples=1e-300"),
        ("a.csv", "batch,samples\n1e300,8", "line 2: batch=1e300"),
        ("a.csv", "batch,samples\n8,4\n8", "line 3: 1 values, the first line names 2"),
        ("a.csv", "batch,samples\n8,4,5", "line 2: 3 values, the first line names 2"),
        ("a.csv", "batch,samples,batch\n8,4,5", "its first line names batch, samples, batch"),
        ("a.csv", f"batch,samples\n8,{'4' * 200_000}", "line 2: no table"),
        ("a.csv", "batch,samples", "holds no runs"),
        ("a.json", "{", "no JSON"),
        ("a.json", "{}", "no reference convergence points"),
        ("a.json", '{"x": {"Benchmark": "b", "BS": 0, "Epochs to converge": [1]}}', "BS=0"),
        ("a.json", json.dumps(entries("b", {10**400: [1]})), "BS=1000"),
        ("a.json", '{"x": {"Benchmark": "b", "BS": 8, "Epochs to converge": ["1"]}}', "above 0"),
    ],
)
def test_files_that_are_none(tmp_path: Path, capsys, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    assert main(["study", "steps-to-target", "--from", str(tmp_path / name)]) == 2
    line = capsys.readouterr().err.rstrip("\n")
    assert words in line and "\n" not in line
    assert main(["study", "steps-to-target", "--from", str(tmp_path / "absent.json")]) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name the training by --recipe"),
        (["--recipe", "quadratic"], "--target={FIGURE: VALUE} is missing"),
        (["--recipe", "quadratic", "--target={loss: 1}", "--seeds", "0"], "at least one seed"),
        (["--batch.plan=[{size: 8}]", "--target={loss: 1}"], "batch.plan has batches of its own"),
        (["--recipe", "quadratic", "--target={loss: 1}", "--batch", "3"], "did you mean"),
    ],
)
def test_mistakes(capsys, arguments: list[str], words: str) -> None:
    assert main(["study", "steps-to-target", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_runs_to_a_target(tmp_path: Path) -> None:
    study = StepsToTarget(
        batches=[4, 16, 64],
        rates=[0.5, 1.0],
        seeds=2,
        target={"loss": 0.2},
        base=["--recipe=quadratic", "--schedule.curve=constant", "--evaluate.every=64sa"],
    )
    record = carry_out(study, tmp_path)
    (row,) = record.rows
    assert row["batches"] == 3 and row["runs"] == 6
    task, unit = record.details["tasks"][0], study.config.optim.lr / study.config.batch.size
    for batch, rate in zip(task["batches"], task["learning_rates"], strict=True):
        assert rate / (unit * batch) in (pytest.approx(0.5), pytest.approx(1.0))
    lost = [note for note in record.notes if "is not finite" in note]
    assert lost, "the largest rate diverges at the largest batch, which is said"
    assert carry_out(study, tmp_path).rows == record.rows


def test_a_table_of_a_spreadsheet(tmp_path: Path) -> None:
    """It begins with a mark of byte order, and may have empty lines."""
    text = "batch,seed,samples\n8,0,100\n\n16,0,diverged\n"
    (tmp_path / "a.csv").write_text(text, encoding="utf-8-sig")
    (task,) = read_convergence([tmp_path / "a.csv"])
    assert task.cells == (Cell(8, (100.0,)), Cell(16, (), 1))


def test_needs_that_no_batch_explains() -> None:
    task = Convergence("x", (Cell(8, (1.0,)), Cell(16, (2.0,)), Cell(32, (1e15,))))
    row, said, _ = concluded(task)
    assert row["verdict"] == "refused" and "a mistaken unit" in said[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--without=999"], "--without=999: no runs of that batch; there are 8, 16"),
        (["--target={loss: 0.3}"], "leave out what makes runs"),
        (["--scaling=linear"], "leave out what makes runs"),
    ],
)
def test_options_that_published_figures_have_no_use_for(
    tmp_path: Path, capsys, more: list[str], words: str
) -> None:
    (tmp_path / "a.csv").write_text("batch,samples\n8,100\n16,120\n")
    assert main(["study", "steps-to-target", "--from", str(tmp_path / "a.csv"), *more]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("target", ["x", {"samples": "x"}, {"samples": -5}, {"samples": 0}, {}])
def test_a_damaged_summary_is_named(tmp_path: Path, target: Any) -> None:
    study = StepsToTarget(
        base=["--recipe=quadratic"], batches=[4], rates=[1.0], seeds=1, target={"loss": 0.3}
    )
    (job,) = study.jobs({})
    done = {job.name: Outcome(tmp_path, True, 8, 2, {"target": target})}
    with pytest.raises(UserError, match=r"summary.json: target=.*delete it to run again"):
        study.conclude(done)
    done = {job.name: Outcome(tmp_path, True, 8, 2, {"target": None})}
    assert study.conclude(done).rows[0]["runs"] == 0
