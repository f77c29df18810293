"""Make other libraries' optimizers load their state without a change of one bit."""

from __future__ import annotations

from typing import Any

import torch

from largebatch.optim.state import exactly
from largebatch.optim.uncompiled import uncompiled


class _Exact(torch.optim.Optimizer):
    base: type[torch.optim.Optimizer]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state bit by bit."""
        with exactly(self):
            super().load_state_dict(state_dict)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return _empty, (self.base,), self.__getstate__()


_MADE: dict[type[torch.optim.Optimizer], type[torch.optim.Optimizer]] = {}


def exact(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return a subclass of ``kind`` that loads its state exactly, also when copied or pickled.

    torch casts loaded state to the parameter's type; the subclass undoes the cast (see
    ``restore_exactly``). The subclass is made at run time and stands in no module, so copies and
    pickles name ``kind``.
    """
    if kind not in _MADE:
        members = {"base": kind, "__doc__": kind.__doc__}
        _MADE[kind] = type(kind.__name__, (_Exact, uncompiled(kind)), members)
    return _MADE[kind]


def _empty(kind: type[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    made = exact(kind)
    return made.__new__(made)
