"""Runs on text: any ranks, streams with a memory, phases of windows, refusals."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from largebatch._errors import UserError
from largebatch.data import settled
from largebatch.train import run as perform
from largebatch.train.continuation import differences
from largebatch.train.parse import parse

if TYPE_CHECKING:
    from tests.train.conftest import Finished, Train

SIZES = ("--model.layers=2", "--model.heads=2", "--model.width=16")
COMMON = (
    *("--data.context=12", "--optim.name=adamw", "--optim.lr=0.01", "--precision.compute=fp64"),
    *SIZES,
)
GPT = ("--task.name=causal_lm", *COMMON, "--batch.size=14", "--schedule.length=20st")
MASKED = ("--task.name=masked_lm", *COMMON, "--batch.size=14", "--schedule.length=15st")
XL = (
    *("--task.name=causal_lm", "--model.name=transformer_xl", "--data.streams=6", *COMMON),
    *("--batch.size=6", "--schedule.length=2ep"),
)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Return the options of a text of 3,000 bytes whose every word comes twice."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = np.random.default_rng(0).integers(97, 107, (100, 15), dtype=np.uint8)
    (tmp_path / "text.txt").write_bytes(np.concatenate((words, words), axis=1).tobytes())
    return ("--data.name=text", f"--data.root={tmp_path / 'text.txt'}")


def agree(found: Finished, expected: Finished) -> None:
    for name, tensor in expected.weights.items():
        assert torch.allclose(found.weights[name], tensor, rtol=1e-9, atol=1e-9), name


def test_gpt_is_the_same_on_any_ranks_and_passes(train: Train, text: tuple[str, ...]) -> None:
    options = (*GPT, *text, "--data.tokenizer=characters")
    alone = train("one", *options)
    agree(train("two", *options, "--batch.micro=3", nproc=2), alone)
    assert alone.summary["headline"] == "loss"
    assert {"loss", "perplexity", "bits_per_byte"} <= alone.lines("val")[-1].keys()
    assert alone.lines("val")[-1]["count"] == 299  # every token but the first, the last window too
    assert "digest:" in (alone.directory / "config.yaml").read_text()


PROMPTS = """
import numpy as np
import torch
from largebatch.data import Source, TokenBatch

class Prompts(Source):
    '''Windows of which only what follows a prompt of the sample's own length is learned.'''

    def __init__(self, split):
        self.rows = np.random.RandomState(len(split)).randint(0, 9, (70, 13))
        self.prompt = np.random.RandomState(1).randint(0, 12, 70)

    def __len__(self):
        return 70

    def offers(self):
        return {"vocabulary": 9, "context": 12}

    def batch(self, request, delivery):
        rows, prompt = self.rows[request.indices], self.prompt[request.indices]
        counted = np.arange(13) > prompt[:, None]
        ghosts = request.ghosts or (len(rows),)
        return TokenBatch(
            torch.from_numpy(rows), request.indices, request.positions, ghosts, counted
        )
"""


@pytest.mark.parametrize(
    "ranks", [[(3, 5)], pytest.param([(1, 9), (2, 16)], marks=pytest.mark.slow)], ids=["3", "1, 2"]
)
def test_unequal_numbers_of_tokens_weigh_by_tokens(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ranks: list[tuple[int, int]],
) -> None:
    """One step of plain gradient descent: its weights differ by the gradients (1e-12)."""
    (tmp_path / "prompts.py").write_text(PROMPTS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    options = (
        *("--task.name=causal_lm", "--data.name=prompts:Prompts", *SIZES),
        *("--optim.lr=1", "--optim.momentum=0", "--precision.compute=fp64"),
        *("--batch.size=70", "--schedule.length=1st", "--schedule.curve=constant"),
    )
    whole = train("whole", *options)
    for nproc, micro in ranks:
        run = train(f"{nproc}", *options, f"--batch.micro={micro}", nproc=nproc)
        for key, tensor in whole.weights.items():
            assert torch.allclose(run.weights[key], tensor, rtol=0, atol=1e-12), (nproc, key)
    assert whole.lines("train")[0]["loss"] == pytest.approx(2.2, abs=0.2)


@pytest.mark.slow
def test_masked_tokens_are_the_same_on_any_ranks(train: Train, text: tuple[str, ...]) -> None:
    options = (*MASKED, *text)
    alone = train("one", *options)
    agree(train("two", *options, "--batch.micro=4", nproc=2), alone)
    assert 0 <= alone.summary["accuracy"] <= 1


def test_windows_grow_at_equal_tokens_with_a_warm_up_of_their_own(
    train: Train, text: tuple[str, ...]
) -> None:
    plan = "[{until: 120sa, size: 24, extent: 6}, {size: 12, extent: 12, warmup: 4st}]"
    run = train("grow", *GPT[:-2], *text, f"--batch.plan={plan}", "--schedule.length=220sa",
                "--schedule.curve=constant")  # fmt: skip
    lines = run.lines("train")
    assert [line["batch_size"] for line in lines[:6]] == [24] * 5 + [12]
    rates = [line["lr"] / 0.01 for line in lines]
    assert rates == pytest.approx([1.0] * 5 + [0.0, 0.25, 0.5, 0.75] + [1.0] * (len(lines) - 9))


@pytest.mark.slow
@pytest.mark.parametrize("memory", [0, 12, 20])
def test_streams_are_the_same_on_any_ranks_and_passes(
    train: Train, text: tuple[str, ...], memory: int
) -> None:
    options = (*XL, *text, f"--model.memory={memory}")
    alone = train("one", *options)
    agree(train("two", *options, "--batch.micro=1", nproc=2), alone)
    assert alone.lines("val")[-1]["count"] % 12 == 0


@pytest.mark.slow
def test_eval_reads_the_streams_as_the_run_does(train: Train, text: tuple[str, ...]) -> None:
    import subprocess

    run = train("judged", *XL, *text)
    command = [sys.executable, "-m", "largebatch", "eval", str(run.directory), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    import json

    told = json.loads(done.stdout)
    assert told["loss"] == run.summary["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [GPT, XL, (*MASKED, "--batch.micro=4")], ids=["gpt", "transformer_xl", "bert"]
)
def test_fsdp_trains_the_same(
    train: Train, text: tuple[str, ...], options: tuple[str, ...]
) -> None:
    alone = train("one", *options, *text)
    agree(train("fsdp", *options, *text, "--distributed.engine=fsdp", nproc=3), alone)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize(
    "options", [GPT, XL, (*MASKED, "--batch.micro=4")], ids=["gpt", "transformer_xl", "bert"]
)
def test_deepspeed_trains_the_same(
    train: Train, text: tuple[str, ...], options: tuple[str, ...], stage: int
) -> None:
    options = (*options, *text, "--precision.compute=fp32")
    one = train("one", *options)
    engine = ("--distributed.engine=deepspeed", f"--distributed.zero_stage={stage}")
    many = train("many", *options, *engine, nproc=2)
    for split in ("train", "val"):
        for a, b in zip(one.lines(split), many.lines(split), strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.slow
def test_streams_go_on_with_their_memory_after_a_kill(
    goes_on: Callable[..., Finished], text: tuple[str, ...]
) -> None:
    # Step 45 is in the second epoch.
    goes_on(*XL, *text, "--schedule.length=6ep", "--checkpoint.every=7st", step=45)


REFUSED = {
    "torn": ((*XL, "--batch.size=9"), "batch.size=9: a step takes one window of each of the 6"),
    "long": ((*GPT, "--data.context=5000"), "data.context=5000: a window of 5000 tokens"),
    "images": ((*GPT, "--model.name=f1"), "model.name=f1: takes no text"),
    "no memory": ((*GPT, "--data.streams=14"), "data.streams=14: model.name=gpt has no memory"),
    "no streams": ((*GPT, "--model.name=transformer_xl"), "set data.streams to batch.size"),
    "vocabulary": ((*GPT, "--data.vocabulary=99"), "data.vocabulary=99: the tokenizer has 256"),
    "extent": ((*GPT, "--batch.plan=[{extent: 24}]"), "extent=24: model.name=gpt has positions"),
    "digits": ((*GPT, "--data.name=digits"), "data.context=12: data.name=digits is no text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(
    case: str, text: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from largebatch.cli import main

    options, said = REFUSED[case]
    directory = tmp_path / "refused"
    assert main(["train", f"--run.dir={directory}", *text, *options]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1, printed.err
    assert not list(directory.glob("**/*.*")), "nothing is begun"


def test_another_text_is_not_gone_on_with(text: tuple[str, ...], tmp_path: Path) -> None:
    options = [f"--run.dir={tmp_path / 'held'}", *text, *GPT, "--schedule.length=1st"]
    assert perform(parse(options)).summary is not None
    (tmp_path / "text.txt").write_bytes(b"another text, of another length " * 90)
    with pytest.raises(UserError, match=r"data.digest=.* was started with"):
        perform(parse(options))


def test_a_config_without_the_digest_is_of_that_run(text: tuple[str, ...], tmp_path: Path) -> None:
    """As a study asks, which compares its configs with those of runs that are there."""
    plain = parse([*text, *GPT])
    assert not differences(plain, replace(plain, data=settled(plain.data)))
