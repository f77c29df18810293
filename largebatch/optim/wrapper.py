"""The base of optimizers that wrap another and share its groups and state."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from largebatch.optim.optimizer import Portable


class Wrapper(Portable):
    """Base of SAM and Offload: shares groups, state and defaults with the wrapped optimizer.

    Attributes:
        optimizer: the wrapped optimizer.
    """

    carried: ClassVar[tuple[str, ...]] = ("optimizer",)

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__([{"params": group["params"]} for group in optimizer.param_groups], {})
        self.optimizer = optimizer
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        self.defaults = self.optimizer.defaults

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        if hasattr(self, "optimizer"):
            self.optimizer.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state, after the hooks of both optimizers."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state = self.optimizer.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state)
            state = state if changed is None else changed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state of the wrapped optimizer's form, after the load hooks of this wrapper."""
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self.load_inner(state_dict)
        self._share()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def load_inner(self, state_dict: dict[str, Any]) -> None:
        """Load the wrapped optimizer's state."""
        self.optimizer.load_state_dict(state_dict)
