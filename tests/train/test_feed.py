"""A share is what a rank does of a step: passes with their batches and ghosts."""

from __future__ import annotations

import torch

from largebatch.data import DataConfig
from largebatch.nn import NormConfig
from largebatch.processes import World
from largebatch.schedule import BatchConfig, Duration, ScheduleConfig
from largebatch.train.build import build
from largebatch.train.config import Config
from largebatch.train.feed import _joined


def parts_of(**sections):
    config = Config(
        data=DataConfig(limit=70),
        batch=BatchConfig(size=32, micro=16),
        schedule=ScheduleConfig(length=Duration.parse("1ep")),
        **sections,
    )
    return build(config, World(), torch.device("cpu"))


def test_shares_hold_every_sample_once_with_its_ghosts():
    feed = parts_of(norm=NormConfig(kind="ghost", ghost_size=8)).feed
    seen, hashes = [], []
    for share in feed.shares(0):
        passes = list(share.passes)
        assert len(passes) == len(share.parts)
        assert sum(len(one.ghosts) for one in passes) == share.ghosts
        for one in passes:
            assert one.ghosts == one.part.sizes == one.batch.ghosts
            assert len(one.batch) == sum(one.ghosts)
            begin = share.step.position + one.part.start
            assert one.batch.positions.tolist() == list(range(begin, begin + len(one.batch)))
            seen += one.batch.indices.tolist()
        hashes.append(share.order_hash())
    assert sorted(seen) == list(range(70))
    assert len(set(hashes)) == 3
    walk = feed.shares(32)  # from the middle the same
    share = next(walk)
    assert [i for one in share.passes for i in one.batch.indices.tolist()] == seen[32:64]
    assert share.order_hash() == hashes[1]
    walk.close()


def test_ghosts_are_the_norms_only_where_the_run_sets_them():
    feed = parts_of(norm=NormConfig(kind="none")).feed
    walk = feed.shares(0)
    assert next(next(walk).passes).ghosts is None
    walk.close()


def test_a_ghost_that_lost_its_samples_joins_one_beside_it():
    assert _joined((8, 8, 3), 2) == (8, 8, 3)
    assert _joined((8, 1, 8), 2) == (9, 8)
    assert _joined((1, 8, 8), 2) == (9, 8)
    assert _joined((1, 1), 2) == (2,)
    assert _joined((1,), 1) == (1,)
