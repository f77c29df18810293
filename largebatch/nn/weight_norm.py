"""Weight norm, plain and bounded: normalise the weights instead of the activations.

Salimans and Kingma, "Weight normalization", 2016. Hoffer, Banner, Golan, Soudry, "Norm matters",
2018, section 5: plain weight norm fails in large networks, and weights of fixed norm do not.

The classes are parametrisations for ``torch.nn.utils.parametrize``:
``register_parametrization(layer, "weight", BoundedWeightNorm(layer.weight))``.
"""

# No annotations as strings here: torch.jit reads those of what it compiles.

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from largebatch.nn.config import NormConfig
from largebatch.nn.fixed_classifier import find_classifier
from largebatch.nn.leaf import Proxy, recorded
from largebatch.nn.registry import NormFacts, norms


class WeightNorm(nn.Module):
    """Weight norm: w_i = g_i v_i / |v_i| for every output channel i; g and v are learned.

    Training starts at ``weight``: v = w and g_i = |w_i|. The gradient of v_i is orthogonal to v_i,
    so gradient steps only increase |v_i|. g is one-dimensional, so ``param_groups`` gives it no
    decay.

    Args:
        weight: the layer's weight, (channels, ...).

    Raises:
        ValueError: a channel of ``weight`` is zero and so has no direction.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        _positive_norms(weight)

    def forward(self, v: Tensor, g: Tensor) -> Tensor:
        """Return the weight, of the shape of ``v``."""
        return _with_norms(v, g)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the v and g of ``weight``."""
        return weight, channel_norms(weight)


class BoundedWeightNorm(nn.Module):
    """Bounded weight norm: the norm of the weight stays rho in training.

    With ``gain`` (the form of a lecture, not of the paper), w_i = rho (g_i / |g|) v_i / |v_i| with
    rho the norm of ``weight``. Then channels learn how to share a fixed norm. Without ``gain`` (the
    paper's form), w_i = rho v_i / |v_i|, where rho is the mean norm of the channels of ``weight``,
    as in the authors' code. Then all channels have the same norm. rho is a buffer. A weight that is
    assigned later is scaled to the norm rho.

    Args:
        weight: the layer's weight, (channels, ...).
        gain: learn how the channels share the norm.

    Raises:
        ValueError: a channel of ``weight`` is zero and so has no direction.
    """

    rho: Tensor

    def __init__(self, weight: Tensor, gain: bool = True) -> None:
        super().__init__()
        found = _positive_norms(weight)
        self.gain = gain
        self.register_buffer("rho", torch.linalg.vector_norm(found) if gain else found.mean())

    def forward(self, v: Tensor, g: Tensor | None = None) -> Tensor:
        """Return the weight, of the shape of ``v``."""
        if g is None:
            return _with_norms(v, self.rho)
        return _with_norms(v, self.rho * g / torch.linalg.vector_norm(g))

    def right_inverse(self, weight: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the v, and with ``gain`` the g, of ``weight`` brought to the norm rho."""
        return (weight, channel_norms(weight)) if self.gain else weight


def channel_norms(weight: Tensor) -> Tensor:
    """Return the norm of every output channel of ``weight`` (channels, ...)."""
    return torch.linalg.vector_norm(weight.flatten(1), dim=1)


def _positive_norms(weight: Tensor) -> Tensor:
    found = channel_norms(weight.detach())
    if not bool((found > 0).all()):
        raise ValueError("weight norm: a channel of the weight is zero: it has no direction")
    return found


def _with_norms(v: Tensor, norms: Tensor) -> Tensor:
    factor = norms / channel_norms(v)
    return v * factor.view([-1] + [1] * (v.dim() - 1))


class ChannelBias(nn.Module):
    """y = x + bias per channel: replaces a batch norm after a layer with normalised weights.

    Args:
        num_features: channels C of the (N, C, ...) input.
    """

    __constants__: ClassVar[list[str]] = ["followers"]
    followers: tuple[str, ...] = ()

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (N, C, ...) with each channel's bias added."""
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]  # noqa: SIM102
            if isinstance(x, Proxy):
                return recorded(self, x)
        y = x + self.bias.view([-1] + [1] * (x.dim() - 2))
        for name, child in self.named_children():
            if name in self.followers:
                y = child(y)
        return y

    def extra_repr(self) -> str:
        return str(self.num_features)


FORMS: dict[str, Callable[[Tensor], nn.Module]] = {
    "weight": WeightNorm,
    "bounded_weight": BoundedWeightNorm,
    "equal_weight": lambda weight: BoundedWeightNorm(weight, gain=False),
}
"""The parametrisation of each ``norm.kind`` that normalises weights."""


def normalize_weights(model: nn.Module, kind: str) -> None:
    """Parametrise the weight of every convolution and linear layer but the classifier.

    ``kind`` is a name in ``FORMS``. Left as they are: layers whose weight has a parametrisation
    already, and transposed convolutions, whose channels lie in another dimension.
    """
    classifier = find_classifier(model)
    for name, layer in list(model.named_modules()):
        plain = isinstance(layer, (nn.Linear, _ConvNd)) and not isinstance(layer, _ConvTransposeNd)
        if plain and name != classifier and not parametrize.is_parametrized(layer, "weight"):
            parametrize.register_parametrization(layer, "weight", FORMS[kind](layer.weight))


def _channel_bias(num_features: int, config: NormConfig) -> ChannelBias:
    return ChannelBias(num_features)


norms.register(
    "weight",
    "no statistics: weight norm and a bias",
    "Salimans and Kingma 2016",
    NormFacts(weights=True),
)(_channel_bias)
norms.register(
    "bounded_weight",
    "weight norm whose total over a layer's channels is fixed, and a bias",
    "Hoffer et al. 2018, section 5; the lecture's form",
    NormFacts(weights=True),
)(_channel_bias)
norms.register(
    "equal_weight",
    "weight norm fixed alike for every channel of a layer, and a bias",
    "Hoffer et al. 2018, section 5; the paper's form",
    NormFacts(weights=True),
)(_channel_bias)
