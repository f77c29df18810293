"""Mixup of hidden states: samples are mixed between two blocks of a model.

Verma, Lamb, Beckham, Najafi, Mitliagkas, Lopez-Paz and Bengio 2019, "Manifold Mixup: Better
representations by interpolating hidden states" (arXiv:1806.05236), section 2. The data pipeline
draws which samples are mixed at which block and by how much. This module does the mixing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from largebatch._errors import UserError, nearest

INPUT = "input"
"""Names the inputs, among blocks: what is mixed there is no business of the model's."""

# One plain global, as in ``place``: forwards of one process run one at a time.
_current: hidden_mixing | None = None


class hidden_mixing:
    """Mix hidden states of forward passes in a ``with`` block: ``lerp(state[partners], state)``.

    Args:
        partners: int64 (n,), for each row the index of the row that is mixed into it.
        shares: tensors (n,) by block, numbered as in the ``blocks`` of :func:`mix_blocks`: the
            share of a row that stays its own. 1 leaves a row unchanged to the bit.

    Raises:
        UserError: at the end of the ``with`` block, if a named block was not called exactly once.
    """

    def __init__(self, partners: Tensor, shares: Mapping[int, Tensor]) -> None:
        self.partners, self.shares = partners, shares
        self._met: list[int] = []

    def __enter__(self) -> None:
        global _current
        self._before, _current = _current, self

    def __exit__(self, kind: object, *_: object) -> None:
        global _current
        _current = self._before
        if kind is None and sorted(self._met) != sorted(self.shares):
            raise UserError(
                "data.mixup_layers: a block that it names is not called once in a forward pass;"
                " name others"
            )

    def at(self, number: int, name: str, state: Any) -> Tensor | None:
        """Return the mixed output of a block; None if nothing is mixed there."""
        share = self.shares.get(number)
        if share is None:
            return None
        self._met.append(number)
        if not isinstance(state, Tensor) or state.ndim < 2 or len(state) != len(share):
            raise UserError(
                f"data.mixup_layers: block {name!r} returns no tensor with a row for each sample,"
                " which could be mixed; name another"
            )
        share = share.to(state.dtype).view(-1, *(1,) * (state.ndim - 1))
        return torch.lerp(state.index_select(0, self.partners), state, share)


def mix_blocks(model: nn.Module, blocks: Sequence[int | str]) -> None:
    """Hook a model's top-level blocks so that :class:`hidden_mixing` can mix their outputs.

    Args:
        blocks: names of the model's children, or their indices from 0. ``input`` (the model's
            input) is skipped.

    Raises:
        UserError: there is no such block, or one is named twice.
    """
    children = dict(model.named_children())
    names = [_name(children, block) for block in blocks]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(f"data.mixup_layers={list(blocks)}: {name} is named twice")
        if name != INPUT:
            children[name].register_forward_hook(partial(_after, number, name))


def _name(children: Mapping[str, nn.Module], block: int | str) -> str:
    if block == INPUT or block in children:
        return str(block)
    names = list(children)
    if isinstance(block, int) and not isinstance(block, bool) and 0 <= block < len(names):
        return names[block]
    raise UserError(
        f"data.mixup_layers: {block!r} is no block of the model: choose {INPUT}, an index from 0 to"
        f" {len(names) - 1}, or from {', '.join(names)}{nearest(str(block), names)}"
    )


def _after(number: int, name: str, _module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
    return None if _current is None else _current.at(number, name, output)
