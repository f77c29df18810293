"""Parts that the transformers share: self-attention, feed-forward layer, initial weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from largebatch._errors import UserError


class SelfAttention(nn.Module):
    """Attention of a window over itself, in heads (Vaswani et al. 2017, section 3.2).

    Args:
        width: width of the residual stream, a multiple of ``heads``.
        causal: whether a token attends only to itself and earlier tokens.
        drop: probability to drop an attention weight.
    """

    def __init__(self, width: int, heads: int, causal: bool, drop: float) -> None:
        super().__init__()
        self.heads, self.causal, self.drop = heads, causal, drop
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, tokens, width) of ``x`` (n, tokens, width)."""
        n, tokens, width = x.shape
        qkv = self.qkv(x).view(n, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        drop = self.drop if self.training else 0.0
        mixed = scaled_dot_product_attention(
            query, key, value, dropout_p=drop, is_causal=self.causal
        )
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, width))


class FeedForward(nn.Sequential):
    """Two linear layers with GELU between them; the hidden width is four times ``width``."""

    def __init__(self, width: int, approximate: str = "none") -> None:
        inner = 4 * width
        gelu = nn.GELU(approximate)
        super().__init__(nn.Linear(width, inner), gelu, nn.Linear(inner, width))


def check_sizes(name: str, layers: int, heads: int, width: int) -> None:
    """Refuse sizes that are impossible for a transformer.

    Raises:
        UserError: the message names the keys.
    """
    if width % heads:
        near = max(heads, width // heads * heads)
        raise UserError(
            f"model.width={width}: model.name={name} divides it among model.heads={heads}; take"
            f" {near}"
        )


def start_normal(model: nn.Module, std: float = 0.02) -> None:
    """Draw the weights of linear layers and embeddings from N(0, std^2); biases become 0."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def check_window(name: str, tokens: int, context: int) -> None:
    """Refuse a window that a model with learned positions was not built for.

    Raises:
        UserError: the message names the key.
    """
    if tokens > context:
        raise UserError(
            f"batch.plan: extent={tokens}: model.name={name} has positions for data.context="
            f"{context} tokens; let data.context be the longest window"
        )
