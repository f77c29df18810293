"""What the optimizers of this room share: what is theirs travels, and groups and state are checked.

torch copies and pickles three attributes of an optimizer and casts loaded state to the type of its
parameter; both lose something here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from largebatch.optim.foreign import Foreign, translate
from largebatch.optim.state import check_state, exactly


class Portable(torch.optim.Optimizer):
    """An optimizer whose own attributes are copied and pickled with it.

    Attributes:
        carried: names of those attributes.
    """

    carried: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        held: dict[str, Any] = super().__getstate__()
        return {**held, **{key: vars(self)[key] for key in self.carried if key in vars(self)}}


class Optimizer(Portable):
    """Base of the optimizers whose formula is ours.

    Attributes:
        moments: names of the moments in a parameter's state.
        foreign: arguments of the optimizers whose place it takes.
    """

    moments: ClassVar[tuple[str, ...]] = ()
    foreign: ClassVar[Mapping[str, Foreign]] = {}

    @abstractmethod
    def check(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters out of range, and parameters that cannot be stepped.

        Raises:
            UserError: naming the hyperparameter and its value.
        """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as torch does, having checked its hyperparameters and parameters."""
        super().add_param_group(param_group)
        try:
            self.check(self.param_groups[-1])
        except Exception:
            del self.param_groups[-1]
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # state of older versions and of torch's lacks settings
            for key in set(self.defaults) - {"differentiable"}:  # which torch adds to them here
                group.setdefault(key, self.defaults[key])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load state bit by bit, masters included, also that of the optimizer that it replaces.

        Moments of another type become what the parameters ask for. Masters of 16-bit parameters
        are dropped, with a warning, where the parameters are none: those count as they are.

        Raises:
            UserError: settings out of range, or state that does not fit the parameters. Nothing
                has changed then.
        """
        with exactly(self, self.adopted, self.state_dtypes):
            super().load_state_dict(state_dict)

    def adopted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return a state dict in our terms, having checked it."""
        saved = state_dict["param_groups"]
        if [len(group["params"]) for group in saved] != [
            len(g["params"]) for g in self.param_groups
        ]:
            return state_dict  # torch says what does not fit
        groups, states = [], {**state_dict["state"]}
        for own, old in zip(self.param_groups, saved, strict=True):
            group = self.adopt_group(dict(old), states)
            check_state(
                type(self).__name__, (*self.moments, "master"), own["params"], group, states
            )
            self.check({**self.defaults, **group, "params": own["params"]})
            groups.append(group)
        return {**state_dict, "param_groups": groups, "state": states}

    def adopt_group(self, group: dict[str, Any], states: dict[Any, Any]) -> dict[str, Any]:
        """Return a saved group in our terms, and put state that it holds into ``states``."""
        foreign = {key: group.pop(key) for key in list(group) if key in self.foreign}
        return {**group, **translate(type(self).__name__, self.foreign, foreign)}

    @abstractmethod
    def state_dtypes(self, param: Tensor, group: dict[str, Any]) -> dict[str, torch.dtype]:
        """Return the types of what a parameter's state holds, as far as its names are ours."""
