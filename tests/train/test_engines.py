"""The same run under every engine, and checkpoints that go from one engine to another."""

from __future__ import annotations

import importlib.util

import pytest

# 290 samples are steps of 128, 128 and 34, the last of them two ghosts of 16 and one of 2: with
# three ranks and micro-batches of 16, ranks differ in the number of passes.
RUN = [
    "--data.limit=290",
    "--batch.size=128",
    "--batch.micro=16",
    "--norm.kind=ghost",
    "--norm.ghost_size=16",
    "--optim.name=lars",
    "--optim.lr=5",
    "--optim.weight_decay=0.001",
    "--optim.clip_norm=1",
    "--schedule.curve=constant",
    "--schedule.length=20st",
    "--checkpoint.every=10st",
    "--checkpoint.keep=5",
]
DOUBLE = ["--precision.compute=fp64", "--ema.half_life=1ep"]
HALF = 3 * 290 + 128  # samples after ten steps

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


def check_same(expected, found, tolerance):
    """Compare the lines that both runs have, which are all but those before a resumption."""
    first = found.lines("train")[0]["step"]
    for split in ("train", "val"):
        lines = [line for line in expected.lines(split) if line["step"] >= first]
        assert len(lines) == len(found.lines(split)) > 0
        for a, b in zip(lines, found.lines(split), strict=True):
            assert a.get("order_hash") == b.get("order_hash")
            for key in {"loss", "ema_loss", "clip_factor", "weight_distance"} & a.keys():
                assert a[key] == pytest.approx(b[key], rel=tolerance, abs=tolerance), key
    for name, tensor in expected.weights.items():
        gap = (found.weights[name].double() - tensor.double()).norm()
        assert float(gap) <= 10 * tolerance * float(tensor.double().norm() + 1), name


def check_both_ways(train, engine, ranks, run, tolerance):
    """Run whole and from each other's checkpoint half way."""
    plain = train("plain", *run)
    whole = train("whole", *run, *engine, nproc=ranks)
    check_same(plain, whole, tolerance)
    half = f"checkpoints/samples-{HALF:012d}"
    to = train("to", *run, *engine, f"--checkpoint.resume={plain.directory / half}", nproc=ranks)
    check_same(plain, to, tolerance)
    back = train("back", *run, f"--checkpoint.resume={whole.directory / half}")
    check_same(plain, back, tolerance)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fsdp(train):
    check_both_ways(train, ["--distributed.engine=fsdp"], 3, [*RUN, *DOUBLE], 1e-9)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_hybrid_sharding(train):
    engine = ["--distributed.engine=fsdp", "--distributed.shard_ranks=2"]
    lamb = [a for a in RUN if not a.startswith(("--optim.name", "--optim.lr"))]
    lamb += ["--optim.name=lamb", "--optim.lr=0.01"]
    check_both_ways(train, engine, 4, [*lamb, *DOUBLE], 1e-9)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_deepspeed
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_deepspeed(train, stage):
    engine = ["--distributed.engine=deepspeed", f"--distributed.zero_stage={stage}"]
    check_both_ways(train, engine, 2, RUN, 1e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_deepspeed
@pytest.mark.parametrize("compute", ["bf16", "fp16"])
def test_deepspeed_in_sixteen_bits_learns_and_resumes(train, compute):
    run = [*RUN, f"--precision.compute={compute}", "--schedule.length=40st"]
    found = train("whole", *run, "--distributed.engine=deepspeed", nproc=2)
    losses = [line["loss"] for line in found.lines("train")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    half = found.directory / f"checkpoints/samples-{HALF:012d}"
    again = [*run, "--distributed.engine=deepspeed", f"--checkpoint.resume={half}"]
    resumed = train("resumed", *again, nproc=2)
    rest = [line["loss"] for line in resumed.lines("train")]
    assert rest == pytest.approx(losses[-len(rest) :], rel=1e-3)


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed"
)
def test_absent_deepspeed_is_one_line(train):
    found = train("absent", *RUN, "--distributed.engine=deepspeed", code=2)
    assert "DeepSpeed is not installed" in found.output
    assert "pip install 'largebatch[deepspeed]'" in found.output
    assert found.output.strip().count("\n") == 0


@pytest.mark.slow
def test_shard_ranks_must_divide_the_ranks(train):
    engine = ["--distributed.engine=fsdp", "--distributed.shard_ranks=3"]
    found = train("odd", *RUN, *engine, nproc=2, code=2)
    assert "distributed.shard_ranks=3: 2 ranks do not divide" in found.output
