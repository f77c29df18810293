"""The first ghosts of a batch."""

from __future__ import annotations

import numpy as np
import torch

from largebatch.data.image_batch import ImageBatch
from largebatch.data.mixing import Mixed
from largebatch.data.token_batch import TokenBatch

GHOSTS = (4, 4, 3)
PLACES = np.arange(11), np.arange(20, 31)


def test_of_images_with_their_partners() -> None:
    inputs, targets = torch.randn(11, 1, 2, 2), torch.arange(11)
    mixed = Mixed(targets.flip(0), torch.rand(11), targets.flip(0), {1: torch.rand(11)})
    head = ImageBatch(inputs, targets, *PLACES, GHOSTS, mixed).head(2)
    assert len(head) == 8 and head.ghosts == (4, 4)
    assert head.positions.tolist() == list(range(20, 28))
    whole = (inputs, targets, mixed.partners, mixed.weight, mixed.rows, mixed.hidden[1])
    assert all(map(torch.equal, head.tensors(), (tensor[:8] for tensor in whole)))
    assert ImageBatch(inputs, targets, *PLACES, GHOSTS).head(1).mixed is None


def test_of_windows() -> None:
    tokens = torch.arange(55).view(11, 5)
    head = TokenBatch(tokens, *PLACES, GHOSTS).head(1)
    assert (len(head), head.ghosts) == (4, (4,)) and torch.equal(head.tokens, tokens[:4])
    counted, streams = np.arange(55).reshape(11, 5) % 2 == 0, np.arange(11)
    whole = TokenBatch(tokens, *PLACES, GHOSTS, counted, (3, 7), streams, True)
    head = whole.head(2)
    assert np.array_equal(head.counted, counted[:8]) and np.array_equal(head.streams, streams[:8])
    assert head.key == (3, 7) and head.begins
