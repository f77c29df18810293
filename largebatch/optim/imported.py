"""A user's own optimizer, named in the config as ``optim.name=package.module:callable``.

The name may be of a ``torch.optim.Optimizer`` subclass, or of a function that makes an optimizer
from the config section ``optim`` and the parameter groups.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from largebatch._errors import UserError, nearest, raised
from largebatch._registry import this_folder_last
from largebatch.optim.config import OptimConfig
from largebatch.optim.exact import exact
from largebatch.optim.optimizer import Portable
from largebatch.optim.registry import optimizers, refuse_unused


def build_imported(
    factory: Callable[..., Any], config: OptimConfig, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """Make the optimizer that ``optim.name=package.module:callable`` names.

    A subclass of ``torch.optim.Optimizer`` gets the parameter groups, ``lr``, ``weight_decay`` and
    the entries of ``optim.options`` as keyword arguments. Its own defaults hold for the rest. A
    function gets the whole section and the groups of :func:`param_groups`.

    Raises:
        UserError: the name is not of an optimizer, or its arguments do not fit.
    """
    where = f"optim.name={config.name!r}"
    arguments: tuple[Any, ...] = (config, groups)
    named: dict[str, Any] = {}
    if inspect.isclass(factory):
        if not issubclass(factory, torch.optim.Optimizer):
            raise UserError(f"{where}: a class that is no torch.optim.Optimizer")
        named = _arguments(factory, config, where)
        # Plain lists: a class may look at its parameters before torch takes the names away.
        arguments = ([{**g, "params": [param for _, param in g["params"]]} for g in groups],)
        factory = factory if issubclass(factory, Portable) else exact(factory)
    try:
        inspect.signature(factory).bind(*arguments, **named)
    except TypeError as error:
        given = ", ".join(("the parameter groups", *named)) if named else "optim's section, groups"
        raise UserError(f"{where}: cannot be called with ({given}): {error}") from None
    with _refusing(f"{where}: to make it"):
        built = factory(*arguments, **named)
    if not isinstance(built, torch.optim.Optimizer):
        raise UserError(f"{where}: returned a {type(built).__name__}, not a torch.optim.Optimizer")
    return built


def try_imported(optimizer: torch.optim.Optimizer, config: OptimConfig) -> None:
    """Try an imported optimizer: take one step, then reload its own state as a resume would.

    Does nothing for optimizers that were not imported.

    Args:
        optimizer: its parameters are changed by the step.

    Raises:
        UserError: the step or the reload raised an error.
    """
    if not optimizers.imports(config.name):
        return
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, 1e-3)
    with _refusing(f"optim.name={config.name!r}: a step of it"):
        optimizer.step()
    with _refusing(f"optim.name={config.name!r}: to load its own state_dict"):
        optimizer.load_state_dict(optimizer.state_dict())


def _arguments(kind: type, config: OptimConfig, where: str) -> dict[str, Any]:
    """Return what the config says of the arguments that the class has beside its parameters."""
    parameters = list(inspect.signature(kind).parameters.values())[1:]
    anything = any(each.kind is each.VAR_KEYWORD for each in parameters)
    named = [
        each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]
    takes = optimizers.entry(config.name).facts.takes
    for name in sorted(takes - vars(config).keys()):
        raise UserError(f"{where}: its facts say that it takes optim.{name}, which is no key")
    others = ", ".join(each for each in named if each not in ("lr", "weight_decay", *takes))
    refuse_unused(config, takes, f"; optim.options sets {others}" if others else "")
    if "lr" not in named and not anything:
        raise UserError(f"{where}: has no argument lr, which the schedule sets")
    if config.weight_decay and "weight_decay" not in named and not anything:
        raise UserError(
            f"optim.weight_decay={config.weight_decay}: {where} has no argument weight_decay"
        )
    wanted = {name: getattr(config, name) for name in ("lr", "weight_decay", *sorted(takes))}
    given = {
        name: value
        for name, value in wanted.items()
        if value is not None and (name in named or (anything and name == "lr"))
    }
    if anything and config.weight_decay:
        given["weight_decay"] = config.weight_decay
    for name, value in config.options.items():
        if name in given:
            raise UserError(f"optim.options.{name}={value!r}: set optim.{name} instead")
        if name not in named and not anything:
            allowed = [each for each in named if each not in given]
            raise UserError(
                f"optim.options.{name}={value!r}: {where} takes {', '.join(allowed) or 'none'}"
                f"{nearest(name, allowed)}"
            )
    return {**given, **config.options}


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        with this_folder_last():
            yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} raised {raised(error)}") from error
