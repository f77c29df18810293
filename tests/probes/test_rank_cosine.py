"""The cosine between ranks against gradients at hand, and a rank that stands out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from largebatch._errors import UserError
from largebatch.probes import RankCosine
from largebatch.probes.rank_cosine import outlying
from largebatch.processes import World
from largebatch.schedule import Clock, Step
from largebatch.schedule.plan import Phase

STEP = Step(0, 60, 0, 0, Phase(size=60))


def probe_of(ranks: int) -> RankCosine:
    world = World(rank=0, world_size=ranks, local_rank=0, local_world_size=ranks)
    engine = SimpleNamespace(name="ddp", apart=("ranks",))
    return RankCosine(engine, world, Clock(600))


def row_of(gradients: Any, shares: Any) -> dict[str, Any]:
    """Return what the ranks measure of (ranks, n) parts of a step's gradient."""
    own, whole = np.square(gradients).sum(1), np.square(gradients.sum(0)).sum()
    return {"row": [*own, *shares, whole]}


def test_it_is_the_mean_over_pairs_weighted_by_lengths() -> None:
    random = np.random.default_rng(0)
    shares = np.array([0.5, 0.25, 0.25])
    gradients = shares[:, None] * (1.0 + random.standard_normal((3, 50)))
    found = probe_of(3).write(STEP, 1, row_of(gradients, shares))
    lengths = np.linalg.norm(gradients, axis=1)
    total = weight = 0.0
    for one in range(3):
        for other in range(one):
            total += gradients[one] @ gradients[other]
            weight += lengths[one] * lengths[other]
    assert found["rank_cosine"] == pytest.approx(total / weight, rel=1e-12)


def test_the_noise_scale_beside_it_is_that_of_the_samples() -> None:
    """Samples of mean 1 and variance 9 in 200 dimensions, 20 a rank: cosine 1 / (1 + 9 / 20)."""
    random, probe, found = np.random.default_rng(1), probe_of(3), []
    for _ in range(200):
        means = 1 + 3 * random.standard_normal((3, 200)) / np.sqrt(20)
        found.append(probe.write(STEP, 1, row_of(means / 3, np.full(3, 1 / 3))))
    scales = np.array([figures["rank_noise_scale"] for figures in found])
    cosines = np.array([figures["rank_cosine"] for figures in found])
    assert scales.mean() == pytest.approx(9.0, rel=0.05)
    assert cosines.mean() == pytest.approx(1 / (1 + 9 / 20), rel=0.02)
    assert not any("rank_outlier" in figures for figures in found)
    assert probe.close().startswith("cosine between ranks' gradients 0.")


def test_a_rank_of_damaged_data_is_named_and_stays_so_on_resumption() -> None:
    random, probe = np.random.default_rng(2), probe_of(4)
    found: dict[str, Any] = {}
    for _ in range(20):
        means = 1 + 3 * random.standard_normal((4, 200)) / np.sqrt(15)
        means[2] *= 2.0
        found = dict(probe.write(STEP, 1, row_of(means / 4, np.full(4, 1 / 4))))
    assert found["rank_outlier"] == 2
    said = probe.close()
    assert said is not None and "rank 2 stands out" in said and "look at its data" in said
    again = probe_of(4)
    again.check(probe.state())
    again.load(probe.state())
    assert outlying(again._ratios) == outlying(probe._ratios)
    fewer = probe_of(3)
    fewer.load(probe.state())
    assert outlying(fewer._ratios) is None


def test_too_little_tells_nothing() -> None:
    assert outlying(np.array([[0.0, 5.0]] * 20)) is None
    assert outlying(np.random.default_rng(0).standard_normal((7, 3))) is None
    assert outlying(np.random.default_rng(0).standard_normal((64, 8))) is None
    assert probe_of(3).write(STEP, 1, {"row": [1.0, np.nan, 1.0, 0.3, 0.3, 0.4, 1.0]}) == {}


def test_one_rank_has_nothing_to_compare_and_fsdp_nothing_to_look_at() -> None:
    probe = probe_of(1)
    assert not probe.due(STEP, 16) and "there is one rank" in str(probe.begin(0, 0))
    engine = SimpleNamespace(name="fsdp", apart=("first",))
    with pytest.raises(UserError, match=r"distributed.engine=fsdp keeps the gradients"):
        RankCosine(engine, World(), Clock(600))
