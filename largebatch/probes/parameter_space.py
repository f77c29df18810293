"""Flat vectors over all parameters of a model, divided over ranks as the engine divides them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from largebatch.distributed.sharding import is_sharded, part_like, whole
from largebatch.optim.parameters import local


class ParameterSpace:
    """Flat vectors over the parameters that take a gradient, in the model's order.

    If an engine shards the parameters, a vector holds this rank's part. Inner products are of whole
    vectors, so every rank must call them alike.

    Attributes:
        params: the parameters, by name.
        size: length of a whole vector.
    """

    def __init__(self, model: nn.Module) -> None:
        named: dict[str, nn.Parameter] = {
            name: p for name, p in model.named_parameters() if p.requires_grad
        }
        self.params = named
        self._parts = [local(param.detach()) for param in named.values()]
        self._lengths = [part.numel() for part in self._parts]
        self._shapes = [part.shape for part in self._parts]
        self.size = sum(param.numel() for param in named.values())
        first = next(iter(named.values()))
        self._groups = (
            [
                first.device_mesh.get_group(dimension)
                for dimension, placement in enumerate(first.placements)
                if placement.is_shard()
            ]
            if is_sharded(first)
            else []
        )

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Copy tensors in the form of the parameters into a new vector."""
        return torch.cat([local(tensor.detach()).reshape(-1) for tensor in tensors])

    def weights(self) -> Tensor:
        """Return a copy of the parameters."""
        return self.flat(self._parts)

    @torch.no_grad()
    def set(self, weights: Tensor) -> None:
        """Write the values of a vector into the parameters."""
        torch._foreach_copy_(self._parts, self.split(weights))

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return views of a vector in the form of the parameters, without a copy."""
        pieces = vector.split(self._lengths)
        return [p.view(s) for p, s in zip(pieces, self._shapes, strict=True)]

    def dots(self, vectors: Tensor, other: Tensor) -> Tensor:
        """Return inner products of (k, n) or (n,) vectors with ``other``, summed over ranks."""
        found: Tensor = (vectors @ other).double()
        for group in self._groups:
            dist.all_reduce(found, group=group)
        return found

    def norm(self, vector: Tensor) -> float:
        """Return a vector's Euclidean norm."""
        return float(self.dots(vector, vector).sqrt())

    def random(self, seed: int) -> Tensor:
        """Return a vector of random signs (Rademacher), the same on any number of ranks."""
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for param in self.params.values():
            signs = torch.randint(0, 2, param.shape, generator=generator).mul_(2).sub_(1)
            drawn.append(part_like(signs.to(device=param.device, dtype=param.dtype), param))
        return self.flat(drawn)

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """Gather a vector into whole tensors by parameter name, for a checkpoint."""
        tensors = self.split(vector.clone())
        if self._groups:
            from torch.distributed.tensor import DTensor

            tensors = [
                DTensor.from_local(
                    tensor, like.device_mesh, like.placements,
                    shape=like.shape, stride=like.stride(),
                )
                for tensor, like in zip(tensors, self.params.values(), strict=True)
                if is_sharded(like)
            ]  # fmt: skip
        found: dict[str, Tensor] = whole(dict(zip(self.params, tensors, strict=True)))
        return found

    def from_named(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the vector of tensors made by :meth:`named`, on any number of ranks."""
        return self.flat(
            [part_like(tensors[name].to(p.device), p) for name, p in self.params.items()]
        )
