"""`largebatch study` as a user meets it, and the jobs written down for others to start."""

from __future__ import annotations

import inspect
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from largebatch.cli import main
from largebatch.record import read_record
from largebatch.study import studies
from largebatch.study.critical_batch import CriticalBatch
from largebatch.study.options import read_options, spoken

LONG = "--steps=600"  # as the undisturbed study


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["study", *arguments]) == 2
    line = capsys.readouterr().err.rstrip("\n")
    assert "\n" not in line
    return line


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_commands_by_hand_give_the_same_conclusion(here: Path, capsys, undisturbed) -> None:
    """In a folder whose name a shell would take apart; what follows of results is written next."""
    folder = here / "its $(touch gone) 'runs'; #1"
    arguments = ["study", "three:Three", "--folder", str(folder), "--commands", LONG]
    rounds = []
    while not (folder / "record.json").exists():
        assert main(arguments) == 0
        rounds.append(capsys.readouterr().out.splitlines()[0])
        if (folder / "record.json").exists():
            break
        commands = (folder / "jobs" / "commands.txt").read_text().splitlines()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        for number, line in enumerate(commands, 1):
            if len(rounds) == 1:  # the list
                done = subprocess.run(["bash", "-c", line], env=environment, timeout=200)
            else:  # the array, as Slurm starts a task of it
                environment["SLURM_ARRAY_TASK_ID"] = str(number)
                script = str(folder / "jobs" / "array.sbatch")
                done = subprocess.run(["bash", script], env=environment, timeout=200)
            assert done.returncode == 0
    assert rounds[:2] == ["2 of 2 jobs to do", "1 of 3 jobs to do"] and len(rounds) == 3
    assert not (here / "gone").exists()
    assert "branching off" in (folder / "jobs" / "branch.log").read_text()
    assert read_record(folder / "record.json").rows == undisturbed


def test_the_array(here: Path, capsys) -> None:
    folder = here / "runs"
    assert main(["study", "three:Three", "--folder", str(folder), "--commands"]) == 0
    array = folder / "jobs" / "array.sbatch"
    assert f"sbatch {array}" in capsys.readouterr().out
    text = array.read_text()
    assert "#SBATCH --array=1-2\n" in text and text.startswith("#!/bin/bash\n")
    words = [shlex.split(line) for line in (folder / "jobs/commands.txt").read_text().splitlines()]
    assert [Path(line[-1]).name for line in words] == ["first.yaml", "long.yaml"]
    assert all(line[1:4] == ["-m", "largebatch", "train"] for line in words)
    for number in ("3", None):
        environment = {k: v for k, v in os.environ.items() if k != "SLURM_ARRAY_TASK_ID"}
        environment |= {"SLURM_ARRAY_TASK_ID": number} if number else {}
        done = subprocess.run(["bash", str(array)], env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and "no job" in done.stderr
    own = here / "list.txt"
    arguments = ["study", "three:Three", "--folder", str(folder), "--commands", str(own)]
    assert main(arguments) == 0
    assert f"sbatch {own.with_suffix('.sbatch')}" in capsys.readouterr().out
    assert own.read_text() == (folder / "jobs" / "commands.txt").read_text()
    assert own.with_suffix(".sbatch").read_text().count("exec") == 2
    assert "does not fit in a line" in refused(
        capsys, "three:Three", "--folder", str(here / "a\nb"), "--commands"
    )


@pytest.mark.slow
def test_a_sweep_by_its_name(here: Path, capsys) -> None:
    arguments = [
        *("study", "sweep", "--folder", "runs", "--at-a-time", "2", "--json", "grid.json"),
        "--cells={small: [--batch.size=32], 'large, too': [--batch.size=64]}",
        *("--seeds=[0, 1]", "--base=[--data.limit=64, --schedule.length=2st]", "--figure=top1"),
    ]
    assert main([*arguments, "--percent=true", "--column=batch"]) == 0
    record = read_record("grid.json")
    assert [row["batch"] for row in record.rows] == ["small", "large, too"]
    assert set(record.rows[0]) == {"batch", "seeds", "top1", "sd", "all"}
    assert record.rows[0]["seeds"] == 2 and len(record.rows[0]["all"]) == 2
    assert (here / "runs" / "large-too-1" / "summary.json").exists()
    assert record.formula in capsys.readouterr().out
    assert "figure=top2: large-too-0 has none" in refused(
        capsys, *arguments[1:-1], "--figure=top2", "--cells={'large, too': [--batch.size=64]}"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["name one of", "sweep", "package.module:callable"]),
        (["swep", "--folder", "r"], ["study='swep'", "did you mean 'sweep'"]),
        (["three:Three", "word"], ["'word'", "written --key=value"]),
        (["three:Three", "--folder", "r", "--step=3"], ["--step", "did you mean 'steps'"]),
        (["three:Three", "--folder", "r", "--steps", "3", "4"], ["--steps", "one value, not 2"]),
        (["three:Three", "--folder", "r", "--commands", "a.sbatch"], ["--commands a.sbatch"]),
        (["three:Three", "--folder", "r", "--steps=many"], ["--steps=many", "a whole number"]),
        (["three:Three", "--folder", "r", "--lr={"], ["--lr", "malformed YAML"]),
        (["three:Three", "--folder", "r", "--at-a-time", "0"], ["--at-a-time 0", "at least 1"]),
        (["three:nothing", "--folder", "r"], ["--folder=VALUE is missing"]),
        (["three:broken", "--folder", "r"], ["no such thing"]),
        (["three:broken", "--folder", "r", "--many=x"], ["--many=[x]", "a list"]),
        (["three:BASE", "--folder", "r"], ["no callable"]),
        (["sweep", "--folder", "r"], ["--over={optim.lr: [0.1, 0.2]}", "--cells="]),
        (["sweep", "--folder", "r", "--cells={a: []}", "--seeds=[]"], ["at least one cell"]),
        (["sweep", "--folder", "r", "--cells={a: [--optim.lrr=1]}"], ["optim.lrr", "optim.lr"]),
        (["sweep", "--folder", "r", "--over={run.seed: [0, 1]}"], ["--seeds=[0, 1, 2]"]),
        (["sweep", "--folder", "r", "--over={run.dir: [a]}"], ["run.dir", "--folder"]),
        (["sweep", "--folder", "r", "--over={optim.lr: [-1]}"], ["job lr-1-0: ", "optim.lr=-1"]),
        (["sweep", "--folder", "r", "--over={optim.lr: [1]}", "--seeds=[-1]"], ["run.seed=-1"]),
        (["sweep", "--folder", "r", "--over={optim.lr: [-1]}", "--commands"], ["optim.lr=-1"]),
        (["generalization-gap", "--recipe=digits", "--ghost=0"], ["ghosts-0: ", "ghost_size=0"]),
        (["generalization-gap", "--recipe=digits", "--part=0%"], ["--part=0%"]),
        (["generalization-gap", "--recipe=digits", "--part=120%"], ["--part=120%"]),
        (["critical-batch", "--recipe=digits", "--at=abc"], ["--at=[abc]", "each a duration"]),
        (["critical-batch", "--recipe=digits", "--batches=[3.5]"], ["'3.5'", "such as x2 x4"]),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(here: Path, capsys, arguments, words) -> None:
    line = refused(capsys, *arguments)
    assert all(word in line for word in words), line


def test_an_option_with_a_space_after_one_without_a_value(here: Path, capsys) -> None:
    """argparse takes it for the value, being no option that it knows."""
    arguments = ["--folder", "r", "--commands", "--over={optim.lr: [0.1, 0.2]}", "--seeds", "0"]
    assert main(["study", "sweep", *arguments]) == 0
    assert "2 of 2 jobs to do" in capsys.readouterr().out
    assert (here / "r" / "jobs" / "commands.txt").exists()


def test_the_list(capsys) -> None:
    assert main(["study", "--list"]) == 0
    printed = capsys.readouterr().out
    assert (
        "\nsweep " in f"\n{printed}"
        and "--seeds=  one or more, each a whole number [0, 1, 2]" in printed
    )


def test_the_help_says_what_each_option_is_for(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["study", "decision", "--help"])
    assert "watts: that a GPU draws." in capsys.readouterr().out


@pytest.mark.parametrize("name", studies.names())
def test_every_study_is_listed_with_its_options(name: str, capsys) -> None:
    assert main(["study", "--list"]) == 0
    printed = capsys.readouterr().out
    entry = studies.entry(name)
    assert f"\n{name} " in f"\n{printed}" and entry.summary in printed
    assert all(f"--{spoken(k)}=" in printed for k in inspect.signature(entry.factory).parameters)


def test_a_study_without_jobs_has_no_commands_to_write(here: Path, capsys) -> None:
    (here / "known.csv").write_text("batch,seed,samples\n8,0,1000\n16,0,1200\n32,0,1600\n")
    line = refused(capsys, "steps-to-target", "--from=known.csv", "--commands")
    assert "steps-to-target: it has no jobs to write; leave --commands out" in line


@pytest.mark.parametrize("option", ["--probes=[{name: noise, every: 1st}]", "--optim.lr=0.1"])
def test_every_option_of_training_is_taken(option: str) -> None:
    read = read_options(CriticalBatch, "critical-batch", ["--recipe=digits", option])
    assert read == {"base": ["--recipe=digits", option]}
