"""The norm benchmark: every contender is measured in turn, and an absent one says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from largebatch.bench import norm, norm_peers


def test_contenders_are_measured_and_absent_ones_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> norm_peers.Forward:
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(norm_peers, "compiled_add_relu", absent)
    record = norm.run(rounds=2, batch=4, shapes=((64, 5),))
    for layout in ("contiguous", "channels_last"):
        rows = {row["contender"]: row for row in record.rows if row["layout"] == layout}
        assert rows["torch.compile + add + ReLU"]["forward ms"] == "not run: no compiler"
        assert rows["torch"]["times baseline"] == 1
        assert rows["torch + ReLU"]["times baseline"] == 1
        for name in ("largebatch ghost", "largebatch L1 ghost", "chunk and cat", "eager L1"):
            assert rows[name]["over floor"] > 0
            assert rows[name]["backward ms"] >= 0
    assert any("not run: SyncBatchNorm" in note for note in record.notes)


def test_peers_compute_what_they_claim() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4)
    chunks, folded = norm_peers.ChunkAndCat(3, 4), norm_peers.ReshapedGhosts(3, 4)
    torch.testing.assert_close(chunks(x), folded(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        norm_peers.EagerL1(3)(x), norm.L1BatchNorm(3, 8)(x), rtol=1e-4, atol=1e-5
    )
