"""The digits as runs divide them, and as a seed does."""

from __future__ import annotations

import torch

from largebatch.lab.digits import CLASSES, digits, drawn_digits


def test_they_are_those_of_a_run() -> None:
    inputs, targets = digits("train")
    assert inputs.shape == (1442, 1, 8, 8) and len(digits("val")[1]) == 355
    assert abs(float(inputs.mean())) < 0.02 and abs(float(inputs.std()) - 1) < 0.02
    assert targets.unique().tolist() == list(range(CLASSES))
    assert len(digits("train", limit=40)[0]) == 40


def test_a_seed_divides_them_its_own_way_and_loses_none() -> None:
    (train, y), (held, z) = drawn_digits(1000, 3)
    assert len(train) == len(y) == 1000 and len(held) == len(z) == 797
    everything = torch.cat((digits("train")[0], digits("val")[0])).flatten(1)
    divided = torch.cat((train, held)).flatten(1)
    torch.testing.assert_close(divided.sum(1).sort().values, everything.sum(1).sort().values)
    assert torch.equal(drawn_digits(1000, 3)[1][1], z)
    assert not torch.equal(drawn_digits(1000, 4)[1][1], z)
