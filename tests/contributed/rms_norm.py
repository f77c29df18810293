"""RMS norm over all of a sample (Zhang and Sennrich 2019, "Root mean square layer norm")."""

# No annotations as strings here: torch.jit reads those of what it compiles.

import torch
from torch import Tensor

from largebatch.nn.config import NormConfig
from largebatch.nn.leaf import Proxy, recorded
from largebatch.nn.registry import NormFacts, norms
from largebatch.nn.sample_norm import SampleNorm


class RMSNorm(SampleNorm):
    """Layer norm without the mean: a sample over the root of its mean square."""

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` (N, C, ...) normalised, with a scale and a shift a channel."""
        if not torch.jit.is_scripting() and isinstance(input, Proxy):
            return recorded(self, input)
        channels = [1, -1] + [1] * (input.dim() - 2)
        scale = (input.square().flatten(1).mean(1) + self.eps).rsqrt()
        y = input * scale.view([-1] + [1] * (input.dim() - 1))
        return y * self.weight.view(channels) + self.bias.view(channels)


@norms.register(
    "rms_norm",
    "over the root of a sample's mean square",
    "Zhang and Sennrich 2019",
    NormFacts(per_sample=True),
)
def _rms(num_features: int, config: NormConfig) -> RMSNorm:
    return RMSNorm(1, num_features)
