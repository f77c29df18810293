"""Transformer-XL: attention over a memory of earlier windows, with relative positions.

Dai et al. 2019, "Transformer-XL: attentive language models beyond a fixed-length context", sections
3.2 and 3.3. A layer attends from its input to this input and to the same layer's inputs for earlier
tokens, which are kept without gradients. The score of query i and key j is

    (q_i + u) k_j + (q_i + v) W r_(i-j),    divided by sqrt(head width),

with sinusoids r of the distance. u and v are learned, one pair for the whole model. Norms come
after the residual addition, as in the paper's code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from largebatch._errors import UserError
from largebatch.models.attention import check_sizes, start_normal
from largebatch.models.registry import models


class RelativeAttention(nn.Module):
    """Attention of a window over the memory and itself, by distance."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.distance = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, memory: Tensor, distances: Tensor, hidden: Tensor, u: Tensor, v: Tensor
    ) -> Tensor:
        """Return (n, tokens, width).

        Args:
            x: (n, tokens, width).
            memory: (n, tokens before, width), this layer's earlier inputs.
            distances: (tokens before + tokens, width), sinusoids from the largest to 0.
            hidden: bool (tokens, tokens before + tokens), the keys that a query may not see.
            u, v: (heads, width of a head).
        """
        n, tokens, width = x.shape
        both = torch.cat((memory, x), dim=1)
        span, head = both.shape[1], width // self.heads
        query = self.query(x).view(n, tokens, self.heads, head)
        pair = self.key_value(both).view(n, span, 2, self.heads, head)
        key, value = pair.permute(2, 0, 3, 1, 4)
        place = self.distance(distances).view(span, self.heads, head)
        by_distance = torch.einsum("nthd,shd->nhts", query + v, place)
        bias = _shifted(by_distance) * head**-0.5
        bias = bias.masked_fill(hidden, float("-inf"))
        mixed = scaled_dot_product_attention(
            (query + u).transpose(1, 2),
            key,
            value,
            attn_mask=bias.to(query.dtype),
            dropout_p=self.drop if self.training else 0.0,
        )
        return self.out(mixed.transpose(1, 2).reshape(n, tokens, width))


class Layer(nn.Module):
    """Attention and a feed-forward layer, a norm after each."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.attention = RelativeAttention(width, heads, drop)
        self.attention_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        inner = 4 * width
        self.feed_forward = nn.Sequential(
            nn.Linear(width, inner), nn.ReLU(), nn.Dropout(drop), nn.Linear(inner, width)
        )
        self.drop = nn.Dropout(drop)

    def forward(
        self, x: Tensor, memory: Tensor, distances: Tensor, hidden: Tensor, u: Tensor, v: Tensor
    ) -> Tensor:
        """Return (n, tokens, width); the arguments are those of the attention."""
        mixed = self.attention(x, memory, distances, hidden, u, v)
        x = self.attention_norm(x + self.drop(mixed))
        out: Tensor = self.norm(x + self.drop(self.feed_forward(x)))
        return out


class TransformerXL(nn.Module):
    """A causal language model with a memory of earlier windows.

    Args:
        vocabulary: number of tokens.
        memory: number of tokens that are remembered.
        layers, heads, width: number of layers, attention heads of each, residual stream.
        tied_embeddings: whether the output layer is the table of embeddings.
        drop: probability to drop an activation.
    """

    def __init__(
        self,
        vocabulary: int,
        memory: int,
        layers: int,
        heads: int,
        width: int,
        tied_embeddings: bool,
        drop: float,
    ) -> None:
        super().__init__()
        check_sizes("transformer_xl", layers, heads, width)
        if width % 2:
            raise UserError(f"model.width={width}: model.name=transformer_xl takes an even one")
        self.memory = memory
        self.tokens, self.drop = nn.Embedding(vocabulary, width), nn.Dropout(drop)
        self.layers = nn.ModuleList(Layer(width, heads, drop) for _ in range(layers))
        self.u = nn.Parameter(torch.empty(heads, width // heads))
        self.v = nn.Parameter(torch.empty(heads, width // heads))
        self.head = None if tied_embeddings else nn.Linear(width, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        start_normal(self)
        nn.init.normal_(self.u, std=0.02)
        nn.init.normal_(self.v, std=0.02)

    def forward(self, tokens: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of the following tokens, and the next memory.

        Args:
            tokens: int64 (n, tokens of a window).
            memory: (n, layers, tokens before, width), returned by the call for the window before;
                None: no memory.

        Returns:
            logits (n, tokens, vocabulary) and the next memory, of at most ``self.memory`` tokens.
        """
        length = tokens.shape[1]
        x = self.tokens(tokens) * self.tokens.embedding_dim**0.5
        if memory is None:
            memory = x.new_zeros(len(x), len(self.layers), 0, x.shape[2])
        before = memory.shape[2]
        distances = self.drop(_sinusoids(before + length, x))
        places = torch.arange(before + length, device=x.device)
        hidden = places[None, :] > places[before:, None]
        x, kept = self.drop(x), []
        for layer, own in zip(self.layers, memory.to(x.dtype).unbind(1), strict=True):
            given = torch.cat((own, x.detach()), dim=1)
            kept.append(given[:, max(0, given.shape[1] - self.memory) :])
            x = layer(x, own, distances, hidden, self.u, self.v)
        table = self.tokens.weight if self.head is None else self.head.weight
        return linear(self.drop(x), table, self.bias), torch.stack(kept, dim=1).detach()


def _sinusoids(span: int, like: Tensor) -> Tensor:
    """Return (span, width): sines and cosines of the distances from ``span - 1`` to 0."""
    width = like.shape[2]
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    rates = 10000 ** (-torch.arange(0, width, 2, device=like.device, dtype=wide) / width)
    angles = torch.arange(span - 1, -1, -1, device=like.device, dtype=wide)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1).to(like.dtype)


def _shifted(scores: Tensor) -> Tensor:
    """Move row i of (n, heads, tokens, span), whose columns are distances, to columns of keys.

    The columns go from the largest distance to 0. Key j of query i is as far away as column
    j + tokens - 1 - i says; keys after the query get scores that are hidden (Dai et al. 2019,
    appendix B).
    """
    n, heads, tokens, span = scores.shape
    padded = torch.cat((scores.new_zeros(n, heads, tokens, 1), scores), dim=3)
    return padded.view(n, heads, span + 1, tokens)[:, :, 1:].reshape(n, heads, tokens, span)


@models.register(
    "transformer_xl", "causal transformer with a memory, relative positions", "Dai et al. 2019"
)
def transformer_xl(
    vocabulary: int,
    context: int,
    memory: int | None = None,
    layers: int = 4,
    heads: int = 4,
    width: int = 128,
    tied_embeddings: bool = True,
    drop: float = 0.0,
) -> TransformerXL:
    """Build a Transformer-XL with the sizes in section ``model``.

    The model remembers ``context`` tokens or more, and needs data read in streams
    (``data.streams``).
    """
    remembered = context if memory is None else memory
    return TransformerXL(vocabulary, remembered, layers, heads, width, tied_embeddings, drop)
