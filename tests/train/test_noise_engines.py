"""The noise scale under every engine, on several ranks: the same terms as under ddp."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from largebatch.record import read_metrics


def terms_of(run: Any) -> list[list[float]]:
    """Return what a run has measured, a list a step."""
    keys = ("noise_signal", "noise_trace", "noise_groups")
    return [[line[key] for key in keys] for line in run.lines("train") if keys[0] in line]


def apart(found: list[list[float]], wanted: list[list[float]]) -> str:
    """Return the largest relative difference of a signal or a trace, over the steps of both."""
    pairs = [
        (a, b)
        for one, other in zip(found, wanted, strict=False)
        for a, b in zip(one, other, strict=True)
    ]
    return f"{max(abs(a - b) / abs(b) for a, b in pairs):.1e}"


@pytest.mark.slow
def test_fsdp_measures_the_first_passes(train: Any, record_property: Any) -> None:
    """Two ranks, two passes each: the same whole as under ddp, and no other bit of the run."""
    options = ["--data.limit=330", "--batch.size=64", "--batch.micro=16", "--norm.kind=ghost"]
    options += ["--norm.ghost_size=16", "--schedule.length=1ep", "--data.workers=0"]
    options += ["--precision.compute=fp64", "--telemetry.hardware_every=0", "--optim.name=lars"]
    probe = "--probes=[{name: noise, every: 1st, source: first}]"
    runs = [
        train("ddp", *options, probe, nproc=2),
        train("fsdp", *options, probe, "--distributed.engine=fsdp", nproc=2),
        train("plain", *options, "--distributed.engine=fsdp", nproc=2),
    ]
    assert runs[1].summary["weights_sha256"] == runs[2].summary["weights_sha256"]
    ddp, fsdp = map(terms_of, runs[:2])
    assert len(fsdp) == 5
    record_property("fsdp from ddp", apart(fsdp, ddp))
    for one, other in zip(fsdp, ddp, strict=False):
        assert one == pytest.approx(other, rel=1e-9) and one[2] == 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_deepspeed_measures_the_first_passes(
    optimizer: str, stage: int, train: Any, record_property: Any
) -> None:
    """Of the same steps as under ddp, and without another bit of the run."""
    options = ["--data.limit=330", "--batch.size=64", "--batch.micro=16", "--norm.kind=ghost"]
    options += ["--norm.ghost_size=16", "--schedule.length=1ep", "--data.workers=0"]
    options += ["--telemetry.hardware_every=0", f"--optim.name={optimizer}", "--optim.lr=0.01"]
    probe = "--probes=[{name: noise, every: 1st, source: first, layers: 1st}]"
    engine = ["--distributed.engine=deepspeed", f"--distributed.zero_stage={stage}"]
    runs = [
        train("ddp", *options, probe, nproc=2),
        train("ds", *options, probe, *engine, nproc=2),
        train("plain", *options, *engine, nproc=2),
    ]
    assert runs[1].summary["weights_sha256"] == runs[2].summary["weights_sha256"]
    ddp, zero = map(terms_of, runs[:2])
    assert len(zero) == 5
    record_property("DeepSpeed from ddp", apart(zero, ddp))
    # In float32 the passes of the two differ in the last bits, and the terms are small differences.
    assert zero[0] == pytest.approx(ddp[0], rel=1e-3) and zero[0][2] == 2
    for terms, same in zip(zero, ddp, strict=False):
        assert terms == pytest.approx(same, rel=1e-2)
    lines = [read_metrics(run.directory / "layers.jsonl") for run in runs[:2]]
    layers = [next(line["layers"] for line in of if line["split"] == "noise") for of in lines]
    assert layers[0].keys() == layers[1].keys()
    for name, (signal, trace, _) in layers[0].items():
        assert layers[1][name][:2] == pytest.approx([signal, trace], rel=1e-2, abs=1e-4 * trace)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_deepspeed_measures_the_ghosts_of_the_norms(
    stage: int, train: Any, record_property: Any
) -> None:
    """The same terms as under ddp: what each rank sees of its ghosts, added up."""
    options = ["--data.limit=330", "--batch.size=64", "--batch.micro=16", "--norm.kind=ghost"]
    options += ["--norm.ghost_size=16", "--schedule.length=1ep", "--data.workers=0"]
    options += ["--telemetry.hardware_every=0", "--optim.lr=0.01"]  # SGD: Adam magnifies rounding
    options += ["--probes=[{name: noise, every: 1st, source: norms}]"]
    engine = ["--distributed.engine=deepspeed", f"--distributed.zero_stage={stage}"]
    ddp, other = train("ddp", *options, nproc=2), train("ds", *options, *engine, nproc=2)
    one, two = terms_of(ddp), terms_of(other)
    assert len(one) == len(two) == 5
    record_property("DeepSpeed from ddp", apart(two, one))
    # In float32 the passes of the two differ in the last bits, and the terms are small differences.
    for terms, same in zip(one, two, strict=True):
        assert same == pytest.approx(terms, rel=1e-2)
    assert two[0] == pytest.approx(one[0], rel=1e-3)


@pytest.mark.slow
def test_ranks_agree_and_tell_what_they_measure(train: Any, record_property: Any) -> None:
    """Passes of one ghost each: the same groups on one, two and three ranks."""
    found = {}
    for nproc in (1, 2, 3):
        run = train(
            str(nproc),
            *("--data.limit=330", "--batch.size=64", "--batch.micro=16", "--norm.kind=ghost"),
            *("--norm.ghost_size=16", "--schedule.length=1ep", "--data.workers=0"),
            *("--precision.compute=fp64", "--telemetry.hardware_every=0"),
            "--probes=[{name: noise, every: 1st, source: passes, half_life: 100%}]",
            nproc=nproc,
        )
        what = "probes: noise: every pass of a step, all parameters, at ghost size 16"
        assert run.output.count(what) == 1 and run.output.count("noise scale ") == 1
        found[nproc] = terms_of(run)
    # The last step is one ghost, which says nothing.
    assert [row[2] for row in found[1]] == [4, 4, 4, 4, 4]
    for nproc in (2, 3):
        record_property(f"{nproc} ranks from one", apart(found[nproc], found[1]))
        for one, other in zip(found[1], found[nproc], strict=True):
            assert other == pytest.approx(one, rel=1e-9)
