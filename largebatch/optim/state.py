"""Optimizer state: make its first values, check saved state and load it bit by bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor

from largebatch import _ops
from largebatch._errors import UserError
from largebatch.optim.parameters import SIXTEEN_BIT

# Of a group: what its steps have come to, which goes on with the moments.
PROGRESS = ("previous_lr", "decayed_norm", "decayed_buffer")
COMMON = ("betas", "momentum", "weight_decay", "lr_multiplier")


def settings_of(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a group, without what records progress, to copy into another group.

    For an optimizer that is neither ours nor torch's, only a few settings of common meaning are
    returned: such an optimizer may count its steps in a group.
    """
    kind = type(getattr(optimizer, "optimizer", optimizer)).__module__
    known = kind.startswith(("torch.optim.", "largebatch."))
    names = set(group) - {"params", *PROGRESS} if known else set(group) & set(COMMON)
    return {name: group[name] for name in names}


def begin_state(
    param: Tensor, state: dict[str, Any], moments: Iterable[str], group: dict[str, Any]
) -> None:
    """Give a parameter's state the moments and master that a step needs, in the right types.

    Args:
        param: the parameter that ``state`` belongs to.
        moments: names of the moments. Missing ones are made as zeros; others are converted if their
            type differs.
        group: ``master_weights``: whether 16-bit parameters have float32 masters. ``state_dtype``
            (None or absent: float32): type of the moments of parameters that are not float64.
    """
    dtype = moment_dtype(param, group)
    for name in moments:
        if name not in state:
            state[name] = torch.zeros_like(param, dtype=dtype)
        elif state[name].dtype != dtype:
            state[name] = state[name].to(dtype)
    if not has_master(param, group):
        if state.pop("master", None) is not None:
            _say_dropped()
    elif "master" not in state:
        state["master"] = param.detach().to(torch.float32, copy=True)


class Fit:
    """Remembers which states already fit, so that a step need not check each again.

    Attributes:
        last: the states that were returned last.
        mastered: whether some of them have a master.
    """

    def __init__(self) -> None:
        self.last: list[dict[str, Any]] = []
        self.mastered = False
        self._params: list[Tensor] = []
        self._rest: tuple[Any, ...] = ()
        self._held: list[dict[str, Any]] = []

    def states(
        self,
        held: Mapping[Tensor, dict[str, Any]],
        params: list[Tensor],
        moments: tuple[str, ...],
        group: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Return the states of ``params`` as :func:`begin_state` makes them.

        Args:
            held: an optimizer's ``state``.
        """
        dtypes = [param.dtype for param in params]
        self.mastered = bool(group["master_weights"]) and not SIXTEEN_BIT.isdisjoint(dtypes)
        rest = (dtypes, moments, group["master_weights"], group.get("state_dtype"))
        same = (
            rest == self._rest
            and len(params) == len(self._params)
            and all(map(is_, params, self._params))
        )
        # A tensor's hash is Python: to see that no state was replaced takes a fourth of looking up.
        if not same or len(held) != len(self._held) or not all(map(is_, held.values(), self._held)):
            wanted = moments or self.mastered
            self.last = [held[param] for param in params] if wanted else []
            self._held = list(held.values())
        states = self.last
        if not (
            same
            and all(name in state for name in moments for state in states)
            and not (
                self.mastered
                and any(
                    "master" not in s
                    for p, s in zip(params, states, strict=True)
                    if has_master(p, group)
                )
            )
        ):
            for param in params:
                if states or param in held:
                    begin_state(param, held[param], moments, group)
            self._params, self._rest = params, rest
        return states


def has_master(param: Tensor, group: dict[str, Any]) -> bool:
    """Return whether a parameter has a float32 master copy."""
    return param.dtype in SIXTEEN_BIT and bool(group["master_weights"])


def wanted_dtypes(
    param: Tensor, group: dict[str, Any], moments: Iterable[str]
) -> dict[str, torch.dtype]:
    """Return the types of a parameter's moments, and of its master if it has one."""
    wanted = dict.fromkeys(moments, moment_dtype(param, group))
    return {**wanted, "master": torch.float32} if has_master(param, group) else wanted


def _say_dropped() -> None:
    warnings.warn(
        "the state holds float32 masters, and its parameters are not of 16 bits or keep none: the "
        "run goes on from the parameters as they are",
        stacklevel=4,
    )


def moment_dtype(param: Tensor, group: dict[str, Any]) -> torch.dtype:
    """Return the type of a parameter's moments."""
    dtype = _ops.accumulate_dtype(param.dtype)
    if dtype == torch.float32 and group.get("state_dtype") is not None:
        dtype = group["state_dtype"]
    return dtype


def check_state_dtype(name: str, group: dict[str, Any]) -> None:
    """Refuse moments of a type that the kernels do not know.

    Raises:
        UserError: naming the optimizer ``name`` and the type.
    """
    if group["state_dtype"] not in (None, torch.float32, torch.bfloat16):
        raise UserError(f"{name}: state_dtype={group['state_dtype']}: None, float32 or bfloat16")


def check_state(
    name: str,
    keys: Iterable[str],
    params: list[Tensor],
    group: dict[str, Any],
    states: Mapping[Any, Any],
) -> None:
    """Refuse saved state that the parameters of a group cannot have left.

    Args:
        name: name of the optimizer, for errors.
        keys: entries that have the shape of the parameter.
        params: parameters of the group.
        group: the group as saved, with the numbers of its parameters.
        states: saved state by these numbers.

    Raises:
        UserError: naming the entry.
    """
    for number, param in zip(group["params"], params, strict=True):
        for key in keys:
            value = states.get(number, {}).get(key)
            if value is None:
                continue
            if not isinstance(value, Tensor) or not value.is_floating_point():
                kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"{name}: {key} of parameter {number} is of type {kind}")
            if value.shape != param.shape:
                raise UserError(
                    f"{name}: {key} of parameter {number} has the shape {tuple(value.shape)}, the "
                    f"parameter {tuple(param.shape)}: the state is another model's"
                )


def restore_exactly(
    optimizer: torch.optim.Optimizer,
    state_dict: dict[str, Any],
    dtypes: Callable[[Tensor, dict[str, Any]], dict[str, torch.dtype]] | None = None,
) -> None:
    """Undo what ``load_state_dict`` did to the tensors of ``state_dict``.

    torch casts loaded state to its parameter's type, which rounds float32 moments of 16-bit
    parameters and widens NAdam's float32 product beside float64 ones. This puts the saved types
    back, and gives each tensor of its parameter's shape that parameter's memory order, which fused
    kernels need and files lose.

    Args:
        optimizer: the optimizer that has loaded ``state_dict``.
        dtypes: returns, for a parameter and its group, the types that the named entries must have
            whatever the saved type, ``step`` (a number or 0-d) among them. Other entries keep their
            saved type, and ``step`` stays where torch placed it.
    """
    numbers = (number for group in state_dict["param_groups"] for number in group["params"])
    dropped = False
    for group in optimizer.param_groups:
        for param in group["params"]:
            saved = state_dict["state"].get(next(numbers), {})
            wanted = {} if dtypes is None else dtypes(param, group)
            for key, value in saved.items():
                if key == "step":
                    placed = optimizer.state[param][key]
                    if key in wanted:
                        optimizer.state[param][key] = _count(value, wanted[key], param.device)
                    elif placed is value and isinstance(value, Tensor):
                        optimizer.state[param][key] = value.clone()  # torch lets the two share it
                elif value is None and key in wanted:
                    del optimizer.state[param][key]
                elif not isinstance(value, Tensor):
                    continue
                elif value.shape == param.shape:
                    dtype = wanted.get(key, value.dtype)
                    target = torch.empty_like(param, dtype=dtype, requires_grad=False)
                    optimizer.state[param][key] = target.copy_(value)
                else:
                    optimizer.state[param][key] = value.to(param.device, copy=True)
            if dtypes is not None and "master" in saved and "master" not in wanted:
                del optimizer.state[param]["master"]
                dropped = True
            if not optimizer.state.get(param, True):
                del optimizer.state[param]
    if dropped:
        _say_dropped()


def _count(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a count of steps as a 0-d tensor of its own."""
    return torch.as_tensor(value).detach().to(device, dtype, copy=True).reshape(())


Dtypes = Callable[[Tensor, dict[str, Any]], dict[str, torch.dtype]]


@contextmanager
def exactly(
    optimizer: torch.optim.Optimizer,
    adopt: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    dtypes: Dtypes | None = None,
) -> Iterator[None]:
    """Make ``optimizer.load_state_dict`` bit-exact within a block, by hooks.

    Our hook before the load runs after the user's own. Our hook after the load runs before the
    user's own.

    Args:
        adopt: takes the state dict and returns the one to load.
        dtypes: as in :func:`restore_exactly`.
    """
    loading: list[dict[str, Any]] = []

    def before(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        loading.append(state_dict if adopt is None else adopt(state_dict))
        return loading[-1]

    def after(loaded: torch.optim.Optimizer) -> None:
        restore_exactly(loaded, loading.pop(), dtypes)

    handles = (
        optimizer.register_load_state_dict_pre_hook(before),
        optimizer.register_load_state_dict_post_hook(after, prepend=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
