"""The base of our optimizers: copies and pickles are complete, groups and state are checked.

torch copies and pickles only three attributes of an optimizer, and casts loaded state to the type
of the parameter. The first loses our own attributes, the second loses bits of float32 state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from largebatch.optim.foreign import Foreign, translate
from largebatch.optim.state import check_state, exactly
from largebatch.optim.uncompiled import without_compiler


class Portable(torch.optim.Optimizer):
    """An optimizer whose own attributes are copied and pickled with it.

    Attributes:
        carried: names of the attributes that are copied and pickled too.
    """

    carried: ClassVar[tuple[str, ...]] = ()

    add_param_group = without_compiler("add_param_group")
    load_state_dict = without_compiler("load_state_dict")
    state_dict = without_compiler("state_dict")
    zero_grad = without_compiler("zero_grad")

    def __getstate__(self) -> dict[str, Any]:
        held: dict[str, Any] = super().__getstate__()
        return {**held, **{key: vars(self)[key] for key in self.carried if key in vars(self)}}


class Optimizer(Portable):
    """Base of the optimizers that this package implements.

    Attributes:
        moments: names of the moments in a parameter's state.
        foreign: arguments of the optimizers that it replaces.
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
        """Check the group's hyperparameters and parameters, then add the group as torch does."""
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
        """Load state bit by bit, masters included; state of a replaced optimizer is accepted too.

        Moments of another type are converted to the type that the parameters need. Float32 masters
        of 16-bit parameters are dropped, with a warning, if the parameters are not 16-bit: then the
        parameters themselves count.

        Raises:
            UserError: settings out of range, or state that does not fit the parameters. The
                optimizer is unchanged then.
        """
        with exactly(self, self.adopted, self.state_dtypes):
            super().load_state_dict(state_dict)

    def adopted(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Check a state dict and return it in our terms."""
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
        """Return a saved group in our terms; move state that the group holds into ``states``."""
        foreign = {key: group.pop(key) for key in list(group) if key in self.foreign}
        return {**group, **translate(type(self).__name__, self.foreign, foreign)}

    @abstractmethod
    def state_dtypes(self, param: Tensor, group: dict[str, Any]) -> dict[str, torch.dtype]:
        """Return the type of each entry of a parameter's state whose name is ours."""
