"""Check that a checkpoint's whole state fits this run, before any part is restored.

Checksums show that a checkpoint is as it was written, not that it was written by a run like this
one. State that does not fit would be cast silently, or would end the run many steps later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch.engine import Engine
from largebatch.optim.state import moment_dtype
from largebatch.probes import Panel
from largebatch.probes import tensors as form
from largebatch.record import is_number

# Of torch's optimizers and ours: what is one number for a parameter, and what is a row or a column.
SCALARS = ("step", "mu_product", "eta", "mu")
FACTORS = ("row_var", "col_var")


def misfit(what: str, reason: str) -> UserError:
    """Return the error for the part ``what`` of a checkpoint's state."""
    return UserError(f"the checkpoint does not fit this run: {what}: {reason}")


def check_position(found: Any, fresh: Mapping[str, Any], total: int) -> dict[str, Any]:
    """Return the position; missing entries are taken from ``fresh``, the position of a new run.

    Args:
        total: samples in the run.
    """
    if not isinstance(found, dict):
        raise misfit("position", f"{_short(found)} is no mapping")
    for key in found:
        if key not in fresh:
            raise misfit("position", f"{_short(key)} is none of {', '.join(fresh)}")
    position = {**fresh, **found}
    for key, value in position.items():
        like = fresh[key]
        if like is None:
            fits = value is None or isinstance(value, dict)
        elif isinstance(like, (bool, str, list, dict)):
            fits = type(value) is type(like)
        else:
            fits = is_number(value) and value >= 0 and isinstance(value, (int, type(like)))
        if not fits:
            raise misfit(f"position.{key}", f"{_short(value)} is no such thing")
    for key, value in (position.get("last") or {}).items():
        figures = value if isinstance(value, list) else [value]  # a list: of the held-out parts
        if key != "split" and not all(isinstance(each, (int, float)) for each in figures):
            raise misfit(f"position.last.{_short(key)}", f"{_short(value)} is no number")
    for key, most in (("samples", total), ("evaluated", position["samples"])):
        if position[key] > most:
            raise misfit(f"position.{key}", f"{position[key]:,} of {most:,} samples")
    return position


def check_tensors(what: str, found: Any, own: Mapping[str, Any]) -> None:
    """Require that ``found`` has the names of ``own``, each with the same shape and type."""
    try:
        form.check_tensors(found, own)
    except ValueError as error:
        raise misfit(what, str(error)) from None


def check_optimizer(found: Any, engine: Engine) -> None:
    """Require the optimizer's groups, and state that fits the form of each parameter."""
    if not isinstance(found, dict) or not {"state", "param_groups"} <= set(found):
        raise misfit("optimizer", f"{_short(found)} has no state and param_groups")
    groups, entries = found["param_groups"], found["state"]
    if not isinstance(groups, list) or not all(
        isinstance(group, dict)
        and isinstance(group.get("params"), list)
        and all(isinstance(number, int) for number in group["params"])
        for group in groups
    ):
        raise misfit("optimizer", "param_groups is no list of groups")
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise misfit("optimizer", "state is no mapping of numbers to entries")
    own = engine.optimizer.param_groups
    if engine.flattens:  # of flat partitions: the engine divides what is loaded
        return
    sizes, own_sizes = ([len(group["params"]) for group in each] for each in (groups, own))
    if sizes != own_sizes:
        raise misfit("optimizer", f"groups of {sizes} parameters, here {own_sizes}")
    for group, mine in zip(groups, own, strict=True):
        for key in set(group) & set(mine) - {"params"}:
            if not _alike(group[key], mine[key]):
                raise misfit(f"optimizer {key}", f"{_short(group[key])}, here {_short(mine[key])}")
    kind = type(getattr(engine.optimizer, "optimizer", engine.optimizer)).__module__
    known = kind.startswith(("torch.optim.", "largebatch."))
    place = {
        number: (param, mine)
        for group, mine in zip(groups, own, strict=True)
        for number, param in zip(group["params"], mine["params"], strict=True)
    }
    for number, entry in entries.items():
        if number not in place:
            raise misfit("optimizer", f"state of parameter {_short(number)}, which is in no group")
        for key, value in entry.items() if known else ():
            if value is not None:
                _check_entry(f"optimizer {key} of parameter {number}", key, value, *place[number])


def check_scaler(found: Any, own: dict[str, Any] | None) -> None:
    """Require the numbers of a loss scaler, if both this run and the checkpoint have one."""
    if found is not None and not isinstance(found, dict):
        raise misfit("scaler", f"{_short(found)} is no mapping")
    if own and found:
        for key in own:
            if not is_number(found.get(key)) or found[key] < 0:
                raise misfit(f"scaler {key}", f"{_short(found.get(key))} is no number from 0")


def check_exchange(found: Any) -> None:
    """Require a bucket size and the grid that it was measured on, or nothing."""
    if found is None:
        return
    if not isinstance(found, dict) or "topology" not in found:
        raise misfit("exchange", f"{_short(found)} has no bucket_mb and topology")
    if not is_number(found.get("bucket_mb")) or found["bucket_mb"] <= 0:
        raise misfit("exchange", f"bucket_mb={_short(found.get('bucket_mb'))}")


def check_instruments(states: Any, panel: Panel) -> None:
    """Require that each instrument's state fits it; some instruments may begin anew."""
    if not isinstance(states, dict):
        raise misfit("instruments", f"{_short(states)} is no mapping of names to states")
    for instrument in panel:
        name = instrument.name
        if name not in states and instrument.resumes:
            raise misfit(name, "is missing")
        if name in states:
            try:
                instrument.check(states[name])
            except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
                raise misfit(name, str(error)) from None


def check_ranks(found: Any, ranks: int, own: Tensor | None) -> None:
    """Require the running statistics of every rank, (ranks, numbers), or none."""
    if found is None:
        return
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise misfit("ranks", f"{_short(found)} is no tensor of (ranks, numbers)")
    if len(found) == ranks:
        if own is None:
            raise misfit("ranks", "this model has no running statistics")
        _check_tensor("ranks", found[0], own.shape, {own.dtype})


def _check_entry(what: str, key: str, value: Any, param: Tensor, group: dict[str, Any]) -> None:
    if key in SCALARS:
        if not (is_number(value) or (isinstance(value, Tensor) and value.numel() == 1)):
            raise misfit(what, f"{_short(value)} is no number")
        return
    shape = param.shape
    if key in FACTORS and isinstance(value, Tensor) and value.ndim == param.ndim:
        pairs = zip(value.shape, shape, strict=True)
        shape = torch.Size(n if n == 1 else full for n, full in pairs)
    dtypes = {torch.float32} if key == "master" else {param.dtype, moment_dtype(param, group)}
    _check_tensor(what, value, shape, dtypes)


def _check_tensor(what: str, found: Any, shape: torch.Size, dtypes: set[torch.dtype]) -> None:
    if not isinstance(found, Tensor):
        raise misfit(what, f"{_short(found)} is no tensor")
    if found.shape != shape:
        raise misfit(what, f"shape {tuple(found.shape)}, here {tuple(shape)}")
    if found.dtype not in dtypes:
        here = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise misfit(what, f"{str(found.dtype).removeprefix('torch.')}, here {here}")


def _alike(found: Any, own: Any) -> bool:
    """Whether a setting of a group could be this one with another value."""
    if found is None or own is None or isinstance(own, Tensor):
        return True
    if isinstance(own, (list, tuple)):
        return isinstance(found, (list, tuple)) and all(map(_alike, found, own))
    if isinstance(own, (bool, int, float)):
        return isinstance(found, (bool, int, float))
    return isinstance(found, type(own))


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
