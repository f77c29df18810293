"""BERT: a bidirectional transformer that predicts hidden tokens.

Devlin et al. 2019: learned positions, norms after the residual addition, GELU, weights from N(0,
0.02^2). The output is a linear layer, GELU, a norm and the table of embeddings, with a bias for
each token. As in RoBERTa (Liu et al. 2019, section 4.2), next-sentence prediction is left out, and
with it the segments and the pooler. With the sizes 12 x 12 x 768, 30,522 tokens and windows of 512
it has 109,512,762 parameters: those of BERT base's masked model but for two segments.
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

EPS = 1e-12  # of the norms


class Block(nn.Module):
    """Attention and a feed-forward layer, a norm after each."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, causal=False, drop=drop)
        self.attention_norm, self.norm = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.feed_forward, self.drop = FeedForward(width), nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, tokens, width) of ``x``."""
        x = self.attention_norm(x + self.drop(self.attention(x)))
        out: Tensor = self.norm(x + self.drop(self.feed_forward(x)))
        return out


class BERT(nn.Module):
    """A masked language model.

    Args:
        vocabulary: number of tokens, the mask token included.
        context: the longest window, in tokens.
        layers, heads, width: number of blocks, attention heads of each, residual stream.
        tied_embeddings: whether the output layer is the table of embeddings.
        drop: probability to drop an activation.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        layers: int,
        heads: int,
        width: int,
        tied_embeddings: bool,
        drop: float,
    ) -> None:
        super().__init__()
        check_sizes("bert", layers, heads, width)
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.norm, self.drop = nn.LayerNorm(width, EPS), nn.Dropout(drop)
        self.blocks = nn.Sequential(*(Block(width, heads, drop) for _ in range(layers)))
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, EPS))
        self.head = None if tied_embeddings else nn.Linear(width, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        start_normal(self)

    def forward(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Return logits (chosen, vocabulary), or (n, tokens, vocabulary) of all places.

        Args:
            tokens: int64 (n, tokens of a window), at most ``context`` of them.
            places: int64 (chosen,), indices into the concatenated tokens of all windows; None: all.
        """
        length = tokens.shape[1]
        check_window("bert", length, self.positions.num_embeddings)
        at = torch.arange(length, device=tokens.device)
        x = self.drop(self.norm(self.tokens(tokens) + self.positions(at)))
        x = self.blocks(x)
        if places is not None:
            x = x.flatten(0, 1).index_select(0, places)
        table = self.tokens.weight if self.head is None else self.head.weight
        return linear(self.transform(x), table, self.bias)


@models.register("bert", "transformer that sees both sides of a token", "Devlin et al. 2019")
def bert(
    vocabulary: int,
    context: int,
    layers: int = 4,
    heads: int = 4,
    width: int = 128,
    tied_embeddings: bool = True,
    drop: float = 0.0,
) -> BERT:
    """Build a BERT with the sizes in section ``model``; the defaults are small, for a CPU."""
    return BERT(vocabulary, context, layers, heads, width, tied_embeddings, drop)
