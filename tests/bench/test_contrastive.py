"""Bench contrastive at a small size: its rows are what was measured, its peers the same loss."""

from __future__ import annotations

import pytest
import torch

from largebatch._errors import UserError
from largebatch.bench import contrastive, run
from largebatch.bench.contrastive import MATRIX, OURS, contenders, embeddings


@pytest.mark.parametrize("kind", contrastive.KINDS)
def test_all_compute_the_same_loss(kind: str) -> None:
    losses, absent = contenders(kind, 9, torch.device("cpu"))
    assert {MATRIX, OURS} <= {*losses} and (kind == "ntxent" or not absent)
    inputs = [z.detach().double().requires_grad_() for z in embeddings(9, 6, torch.device("cpu"))]
    known = losses[MATRIX](*inputs)
    expected = torch.autograd.grad(known, inputs)
    for loss in losses.values():
        found = loss(*inputs)
        torch.testing.assert_close(found, known, rtol=1e-6, atol=1e-8)
        gradients = torch.autograd.grad(found, inputs)
        torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_rows_are_measured() -> None:
    record = contrastive.run(rounds=2, pairs=[32], held=[2048], width=8, kinds=["ntxent"])
    timed = [row for row in record.rows if "times matrix" in row]
    assert all(row["times matrix"] == 1 for row in timed if row["contender"] == MATRIX)
    assert {row["ranks"] for row in timed} == {1, 2}
    over = {row["contender"]: row for row in record.rows if row["ranks"] == 2}
    for name in ("gather", "ring"):
        row = over[f"{OURS}, {name}"]
        assert row["sent KB"] == row["formula KB"] > 0
    # Gather and all-reduce of all views: the matrix's way sends more than the gather of ours.
    assert over[MATRIX]["sent KB"] > 2 * over[f"{OURS}, gather"]["sent KB"]
    large = {row["contender"]: row for row in record.rows if row["pairs"] == 2048}
    assert large[MATRIX]["peak MB"] > 4 * 4096**2 / 1e6 > large[OURS]["peak MB"] > 0


def test_what_is_no_case_is_refused() -> None:
    with pytest.raises(UserError, match="--batches: at least 2 pairs for each of --ranks"):
        run(["contrastive", "--batches", "3", "--ranks", "2"])
    with pytest.raises(UserError, match="--models 'simclr': choose from ntxent, clip, siglip"):
        run(["contrastive", "--models", "simclr"])
