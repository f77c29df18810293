"""The cosine between the gradients of two real ranks, against gradients taken by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy

from largebatch.data import DataConfig, Delivery, Request, build_source
from largebatch.models import ModelConfig, build_model
from largebatch.nn import NormConfig

BATCH = 50


@pytest.mark.slow
def test_two_ranks_measure_the_cosine_of_their_own_gradients(train) -> None:
    found = train(
        "ranks", "--data.limit=200", f"--batch.size={BATCH}", "--schedule.length=2st",
        "--model.name=linear", "--norm.kind=none", "--precision.compute=fp64", "--run.seed=3",
        "--probes=[{name: rank_cosine, every: 1st}]", nproc=2,
    )  # fmt: skip
    first, second = found.lines("train")
    config = DataConfig(limit=200)
    source = build_source(config, "train")
    delivery = Delivery(3, torch.device("cpu"), True, torch.float64, False)
    indices = source.order(3).indices(0, 0, BATCH)
    (batch,) = source.reader(config, delivery).read([Request(0, indices, np.arange(BATCH))])
    model = build_model(
        ModelConfig(name="linear"), NormConfig(kind="none"), source.offers(), torch.float64, seed=3
    )
    gradients = []
    for part in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH)):
        loss = cross_entropy(model(batch.inputs[part]), batch.targets[part], reduction="sum")
        parts = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([each.flatten() for each in parts]))
    expected = float(cosine_similarity(*gradients, dim=0))
    assert first["rank_cosine"] == pytest.approx(expected, rel=1e-9)
    assert second["rank_cosine"] != first["rank_cosine"]
    assert "cosine between ranks' gradients" in found.output
    alone = train("alone", "--data.limit=200", "--schedule.length=2st", "--batch.size=50",
                  "--probes=[{name: rank_cosine, every: 1st}]")  # fmt: skip
    assert "rank_cosine: there is one rank" in alone.output
    assert not any("rank_cosine" in line for line in alone.lines("train"))
