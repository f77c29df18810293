"""Vectors in the place of tensors: rates by their norms are nobody's, and said to be so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from largebatch.optim import LAMB, LARS, SGD, Fragment
from largebatch.optim.flat import warn_of_flat


def flattened(optimizer: torch.optim.Optimizer) -> nn.Parameter:
    """Do as DeepSpeed's ZeRO does to an optimizer, on one rank of two."""
    group = optimizer.param_groups[0]
    whole = torch.cat([param.detach().flatten() for param in group["params"]])
    part = nn.Parameter(whole[: len(whole) // 2].clone())
    part.grad = torch.ones_like(part)
    group["params"] = [part]
    return part


@pytest.mark.parametrize("kind", [LARS, LAMB])
def test_a_partition_in_the_place_of_parameters(kind) -> None:
    optimizer = kind(nn.Linear(4, 4).parameters())
    part = flattened(optimizer)
    with pytest.warns(
        UserWarning, match=r"flat vector .* DeepSpeed.*shard_for_deepspeed\(engine\)"
    ):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # once
        optimizer.shard(part, [Fragment(0, 10, 0, 2)], 2)
        groups = [(optimizer.param_groups[0], [part])]
        warn_of_flat("x", groups, optimizer._given, optimizer.fragments)


def test_a_vector_that_was_given_is_a_vector() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in (LARS, LAMB):
            bias, late = (nn.Parameter(torch.ones(4)) for _ in range(2))
            optimizer = kind([bias])
            optimizer.add_param_group({"params": [late]})
            bias.grad = late.grad = torch.ones(4)
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.step()
        optimizer = SGD(nn.Linear(4, 4).parameters(), 0.1)
        flattened(optimizer)
        optimizer.step()  # whose step knows no tensors


def test_a_flat_parameter_of_torchs_older_fsdp() -> None:
    param = nn.Parameter(torch.ones(4))
    param._fsdp_flattened = True
    param.grad = torch.ones(4)
    with pytest.warns(UserWarning, match="FullyShardedDataParallel .* use fully_shard"):
        LAMB([param]).step()
