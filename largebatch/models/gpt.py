"""GPT: a causal transformer with norms before attention and feed-forward layers.

The form of GPT-2 (Radford et al. 2019, section 2.3): learned positions, a norm at the end, weights
from N(0, 0.02^2), those that write into the residual stream smaller by sqrt(2 layers). With the
sizes 12 x 12 x 768, 50,257 tokens and windows of 1,024 it has GPT-2's 124,439,808 parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from largebatch.models.attention import (
    FeedForward,
    SelfAttention,
    check_sizes,
    check_window,
    start_normal,
)
from largebatch.models.registry import models


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to the residual stream."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal=True, drop=drop)
        self.feed_forward, self.drop = FeedForward(width, "tanh"), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, tokens, width) of ``x``."""
        x = x + self.drop(self.attention(self.attention_norm(x)))
        out: Tensor = x + self.drop(self.feed_forward(self.norm(x)))
        return out


class GPT(nn.Module):
    """A causal language model.

    Args:
        vocabulary: number of tokens.
        context: the longest window, in tokens.
        layers, heads, width: number of blocks, attention heads of each, residual stream.
        tied_embeddings: whether the output layer is the table of embeddings.
        drop: probability to drop an activation.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        tied_embeddings: bool = True,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes("gpt", layers, heads, width)
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.drop = nn.Dropout(drop)
        self.blocks = nn.Sequential(*(Block(width, heads, drop) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = None if tied_embeddings else nn.Linear(width, vocabulary, bias=False)
        start_normal(self)
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in (block.attention.out, block.feed_forward[2]):
                assert isinstance(layer, nn.Linear)
                nn.init.normal_(layer.weight, std=0.02 / (2 * layers) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (n, tokens, vocabulary) of the tokens that follow.

        Args:
            tokens: int64 (n, tokens of a window), at most ``context`` of them.
        """
        length = tokens.shape[1]
        check_window("gpt", length, self.positions.num_embeddings)
        places = torch.arange(length, device=tokens.device)
        x = self.drop(self.tokens(tokens) + self.positions(places))
        x = self.norm(self.blocks(x))
        return linear(x, self.tokens.weight if self.head is None else self.head.weight)


@models.register("gpt", "causal transformer with norms before its layers", "Radford et al. 2019")
def gpt(
    vocabulary: int,
    context: int,
    layers: int = 4,
    heads: int = 4,
    width: int = 128,
    tied_embeddings: bool = True,
    drop: float = 0.0,
) -> GPT:
    """Build a GPT with the sizes in section ``model``; the defaults are nanoGPT's for a CPU."""
    return GPT(vocabulary, context, layers, heads, width, tied_embeddings, drop)
