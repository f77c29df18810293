"""Merge running statistics over ranks in one message, in the model or in a copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.nn.running import RunningStatistics


@torch.no_grad()
def merge_running_stats(model: nn.Module, group: dist.ProcessGroup | None = None) -> None:
    """Make the running statistics global, in one all-reduce of all of them together.

    Call this on every rank before evaluation or a checkpoint. Norms run inside ``ghost_place`` sum
    the ranks' updates since the last merge. Other norms, torch's batch norms among them, take the
    average over the ranks that saw data. Without a process group nothing is done.
    """
    norms = dict(_tracked(model))
    for name, tensor in merged_running_stats(model, group).items():
        owner, _, buffer = name.rpartition(".")
        getattr(norms[owner], buffer).copy_(tensor)
    for norm in norms.values():
        if isinstance(norm, RunningStatistics):
            norm.forget_terms()


@torch.no_grad()
def merged_running_stats(
    model: nn.Module, group: dist.ProcessGroup | None = None
) -> dict[str, Tensor]:
    """Return the merged buffers by name in ``state_dict``; the model is left unchanged.

    A run that merges out of place has the same bits however often it is evaluated or saved. Every
    rank must call this. Without a process group the result is empty, since the model's own buffers
    are right.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1:
        return {}
    norms = list(_tracked(model))
    if not norms:
        return {}
    shares = [_share(norm) for _, norm in norms]
    double = any(share.dtype == torch.float64 for _, share in shares)
    dtype = torch.float64 if double else torch.float32
    voters = torch.tensor([float(votes) for votes, _ in shares], device=shares[0][1].device)
    packed = torch.cat([voters.to(dtype), *(share.flatten().to(dtype) for _, share in shares)])
    dist.all_reduce(packed, group=group)
    votes = packed[: len(norms)].tolist()
    sums = packed[len(norms) :].split([share.numel() for _, share in shares])
    merged = {}
    for (name, norm), count, total, (_, share) in zip(norms, votes, sums, shares, strict=True):
        owns = share
        if isinstance(norm, RunningStatistics) and not count:
            assert norm.local is not None
            owns = norm.local
        for buffer, new, own in zip(
            ("running_mean", "running_var"), total.view_as(share), owns, strict=True
        ):
            old = getattr(norm, buffer)
            value = new / count if count else old + (new - own)
            merged[f"{name}.{buffer}" if name else buffer] = value.to(old.dtype)
    return merged


def rank_statistics(model: nn.Module) -> Tensor | None:
    """Return this rank's own running statistics as one flat tensor, None if there are none.

    After :func:`load_rank_statistics`, on the same rank of the same number of ranks, a run
    continues bit by bit. With the merged buffers alone the last bits would differ.
    """
    parts = _parts(model)
    if not parts:
        return None
    double = any(part.dtype == torch.float64 for part in parts)
    return torch.cat([part.flatten().to(torch.float64 if double else part.dtype) for part in parts])


@torch.no_grad()
def load_rank_statistics(model: nn.Module, flat: Tensor) -> None:
    """Restore the result of :func:`rank_statistics`; call this after ``load_state_dict``."""
    parts = _parts(model)
    for part, values in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
        part.copy_(values.view_as(part))


def _parts(model: nn.Module) -> list[Tensor]:
    parts = []
    for _, norm in _tracked(model):
        buffers = [norm.running_mean, norm.running_var]
        if isinstance(norm, RunningStatistics):
            buffers.append(norm.local)
        parts += [buffer for buffer in buffers if buffer is not None]
    return parts


def _tracked(model: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Walk the norms over samples that keep running statistics."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            yield name, module


def _share(norm: _BatchNorm) -> tuple[bool, Tensor]:
    """Return whether the ranks are to be averaged, and this rank's part, (2, channels)."""
    if isinstance(norm, RunningStatistics) and not norm._alone:
        assert norm.local is not None
        return False, norm.local / norm.ranks_of_a_ghost
    assert norm.running_mean is not None and norm.running_var is not None
    return True, torch.stack((norm.running_mean, norm.running_var))
