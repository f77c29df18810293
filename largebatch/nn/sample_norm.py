"""Norms that look at one sample alone: layer, instance and group norm, torch's own underneath.

Ba, Kiros, Hinton, "Layer normalization", 2016; Ulyanov, Vedaldi, Lempitsky, "Instance
normalization", 2016; Wu and He, "Group normalization", 2018. Layer norm is group norm with one
group, instance norm with one channel per group.
"""

# No annotations as strings here: torch.jit reads those of what it compiles.

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch._errors import UserError
from largebatch.nn.config import NormConfig
from largebatch.nn.leaf import Proxy, recorded
from largebatch.nn.registry import NormFacts, norms

DEFAULT_GROUPS = 32
"""Wu and He 2018, section 4."""


class SampleNorm(nn.GroupNorm):
    """torch's group norm in place of a batch norm: a weight and a bias per channel.

    There are no running statistics; those in a batch norm's ``state_dict`` are ignored on loading.
    One group makes layer norm (over channels and positions together). One channel per group makes
    instance norm.

    Raises:
        UserError: in a forward, if a group of a sample has one value only.
    """

    __constants__ = [*nn.GroupNorm.__constants__, "followers"]  # noqa: RUF012
    __jit_ignored_attributes__: ClassVar[list[str]] = ["converted_from", "followers"]
    converted_from: type[_BatchNorm] | None = None
    followers: tuple[str, ...] = ()

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` (N, C, ...) normalised, group by group of each sample."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            if isinstance(input, Proxy):
                return recorded(self, input)
            if 0 < input.numel() == input.shape[0] * self.num_groups:
                raise UserError(
                    f"norm.kind: input of shape {tuple(input.shape)} has one value in each of"
                    f" {self.num_groups} groups; take fewer groups, or norm.kind=layer"
                )
        y = F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        for name, child in self.named_children():
            if name in self.followers:
                y = child(y)
        return y

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_groups(groups: int, num_features: int) -> None:
    """Refuse a number of groups that does not divide the channels of a norm.

    Raises:
        UserError: the message lists the allowed numbers.
    """
    if num_features % groups:
        divisors = [n for n in range(1, num_features + 1) if num_features % n == 0]
        raise UserError(
            f"norm.groups={groups}: does not divide the {num_features} channels of a norm; "
            f"{', '.join(map(str, divisors))} do"
        )


@norms.register(
    "layer",
    "torch's group norm with one group: over all of a sample",
    "Ba et al. 2016",
    NormFacts(per_sample=True),
)
def _layer(num_features: int, config: NormConfig) -> SampleNorm:
    return SampleNorm(1, num_features)


@norms.register(
    "instance",
    "torch's group norm with a group a channel of each sample",
    "Ulyanov et al. 2016",
    NormFacts(per_sample=True),
)
def _instance(num_features: int, config: NormConfig) -> SampleNorm:
    return SampleNorm(num_features, num_features)


@norms.register(
    "group",
    "torch's group norm: norm.groups groups of each sample's channels",
    "Wu and He 2018",
    NormFacts(per_sample=True, own="groups"),
)
def _group(num_features: int, config: NormConfig) -> SampleNorm:
    groups = config.groups or DEFAULT_GROUPS
    check_groups(groups, num_features)
    return SampleNorm(groups, num_features)
