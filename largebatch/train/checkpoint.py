"""Checkpoints: a folder of safetensors and JSON, complete or absent, never pickled.

``checkpoints/samples-000000051200/`` holds three files: ``state.safetensors`` (every tensor, named
by its path in the state, e.g. ``model/fc.weight``), ``state.json`` (everything else; a tensor is
``{"tensor": name}``) and ``checksums.json`` (SHA-256 of both). The folder is written under a
temporary name, synced to disk and renamed, so a folder of the final name is complete.

There are two formats. In format 2, a number that JSON cannot hold is written as ``{"float":
"nan"}``. A checkpoint named by `checkpoint.at` lies beside the others, as ``at-10ep``. It shares
its files with the checkpoint of the same sample, and is never removed.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from largebatch._errors import RunFailure, UserError
from largebatch.record import (
    NotRegular,
    confirm_owned,
    json_text,
    open_regular,
    parse_json,
    read_file,
    write_atomically,
)

FORMAT = 2
TENSORS, REST, CHECKSUMS = "state.safetensors", "state.json", "checksums.json"
PARTIAL = ".partial-"  # heads the names of folders that are being written or removed
REPLACED = f"{PARTIAL}replaced-"  # and of whole ones, until another has taken their place
NAMED = "at-"  # heads the names of those that stay


class DamagedCheckpoint(UserError):
    """A folder with other content than :func:`save` wrote; reading it again will not help."""


def flatten(state: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Separate a nested state into JSON and named tensors; :func:`unflatten` is the inverse.

    Dicts may have keys of str or int (optimizers number their parameters); lists, tuples, numbers,
    strings, booleans and None keep their type.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {"tensor": path}
        if isinstance(value, dict):
            return {"dict": [[key, walk(v, f"{path}/{key}")] for key, v in value.items()]}
        if isinstance(value, (list, tuple)):
            items = [walk(v, f"{path}/{i}") for i, v in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        assert value is None or isinstance(value, (bool, int, float, str)), (path, type(value))
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": str(value)}
        return value

    return walk(state, name), tensors


def unflatten(rest: Any, tensor: Callable[[str], Any]) -> Any:
    """Rebuild the nested state from the JSON part of :func:`flatten` and its tensors.

    Args:
        tensor: function from a name to its tensor.
    """
    if isinstance(rest, list):
        return [unflatten(item, tensor) for item in rest]
    if not isinstance(rest, dict):
        return rest
    ((kind, value),) = rest.items()
    if kind == "tensor":
        return tensor(value)
    if kind == "tuple":
        return tuple(unflatten(item, tensor) for item in value)
    if kind == "float":
        return float(value)
    if kind != "dict":
        raise ValueError(f"a value of kind {kind!r}")
    return {key: unflatten(item, tensor) for key, item in value}


def save(
    folder: Path, samples: int, state: dict[str, Any], keep: int, names: Sequence[str] = ()
) -> Path:
    """Write ``state`` as the checkpoint of ``samples`` and remove all but the ``keep`` newest.

    If the process is killed at any moment, either the previous checkpoint or the new one is
    complete and will be found.

    Args:
        names: further folders for this checkpoint, beginning with `NAMED`, which are never removed.
            They are made first, so that a run resumed from this checkpoint has them.

    Raises:
        RunFailure: the disk is full, the folder cannot be written, or another process has taken
            over the run directory. Older checkpoints are kept.
    """
    from safetensors.torch import save_file

    confirm_owned(folder.parent)
    target = folder / f"samples-{samples:012d}"
    partial = folder / f"{PARTIAL}{target.name}"
    rest, tensors = flatten(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        partial.mkdir()
        text = json_text({"format": FORMAT, "samples": samples, "state": rest})
        (partial / REST).write_text(text, encoding="utf-8")
        # safetensors takes neither shared nor strided memory; a clone has neither.
        unshared = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        save_file(unshared, partial / TENSORS)
        shutil.copymode(partial / REST, partial / TENSORS)  # which safetensors makes private
        sums = {name: _sha256(partial / name) for name in (TENSORS, REST)}
        (partial / CHECKSUMS).write_text(json_text(sums), encoding="utf-8")
        for name in (TENSORS, REST, CHECKSUMS):
            _sync(partial / name)
        _sync(partial)
        for name in names:
            _name(partial, folder / name)
        if target.exists():  # saved again at the same sample
            target.rename(folder / f"{REPLACED}{target.name}")
        partial.rename(target)
        _sync(folder)
        for old in _newest_first(folder)[keep:]:
            old.rename(folder / f"{PARTIAL}removed-{_samples(old)}")
        _sweep(folder)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, OSError) and "os error" not in str(error).lower():
            raise
        raise RunFailure(
            f"the checkpoint at {samples} samples could not be written to {folder}: {error}; the"
            f" last good one is {latest_name(folder)}; free space or mend the folder, then run the"
            " same command again"
        ) from error
    return target


def position_of(path: Path) -> dict[str, Any]:
    """Return the position in the run of a checkpoint, without reading its tensors.

    Raises:
        DamagedCheckpoint: the checkpoint has no position.
    """
    try:
        state = unflatten(parse_json(read_file(path / REST), exact=True)["state"], lambda _: None)
        position: dict[str, Any] = dict(state["position"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged or is none: {error!r}") from None
    return position


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Returns:
        The state given to :func:`save`, with all tensors on the CPU.

    Raises:
        DamagedCheckpoint: the folder is not a checkpoint or is damaged.
        UserError: the checkpoint has a newer format.
        RunFailure: a file cannot be read now; the checkpoint itself may be good.
    """
    from safetensors import SafetensorError, safe_open

    try:
        sums = parse_json(read_file(path / CHECKSUMS))
        for name in (TENSORS, REST):
            if _sha256(path / name) != sums[name]:
                raise DamagedCheckpoint(f"checkpoint {path}: {name} does not match its checksum")
        whole = parse_json(read_file(path / REST), exact=True)
        if not isinstance(whole["format"], int) or whole["format"] < 1:
            raise ValueError("its format is no number from 1")
        if whole["format"] > FORMAT:
            raise UserError(
                f"checkpoint {path}: format {whole['format']} is newer than {FORMAT}, the newest"
                " that this largebatch reads; update it"
            )
        with safe_open(path / TENSORS, "pt") as file:
            names: list[str] = []
            unflatten(whole["state"], names.append)
            if sorted(names) != sorted(file.keys()):
                raise ValueError(f"{TENSORS} and {REST} differ in what tensors there are")
            state = unflatten(whole["state"], file.get_tensor)
        if not isinstance(state, dict):
            raise ValueError("its state is no mapping")
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError, NotRegular) as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged or is none: {error}") from error
    except OSError as error:
        raise RunFailure(
            f"checkpoint {path} cannot be read: {error}; nothing was changed: mend that and run the"
            " same command again, or move that folder away to go on from an older checkpoint"
        ) from error
    except (
        *(ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError),
        SafetensorError,
    ) as error:
        raise DamagedCheckpoint(f"checkpoint {path} is damaged or is none: {error!r}") from error
    return state


def newest_valid(folder: Path, report: Callable[[str], None], set_aside: bool = True) -> str | None:
    """Return the path of the newest valid checkpoint; damaged ones are reported and skipped.

    With ``set_aside``, a damaged checkpoint is renamed to ``damaged-...``. Then it no longer counts
    among the kept ones and is not tried again. This is done only if there is a valid checkpoint.

    Raises:
        RunFailure: a file cannot be read now; the checkpoint itself may be good. Nothing is
            renamed.
    """
    damaged = []
    for path in _newest_first(folder):
        try:
            load(path)
        except DamagedCheckpoint as error:
            report(f"passed over: {error}")
            damaged.append(path)
            continue
        for one in damaged if set_aside else ():
            one.rename(folder / f"damaged-samples-{_samples(one):012d}-{time.time_ns()}")
        return str(path)
    return None


def any_there(folder: Path) -> bool:
    """Return whether a folder holds checkpoints, damaged ones included."""
    damaged = any(path.name.startswith("damaged-") for path in _entries(folder))
    return damaged or bool(_newest_first(folder))


def named(folder: Path) -> dict[str, int]:
    """Return the valid named checkpoints (`checkpoint.at`), each with the samples at its save."""
    paths = [path for path in _entries(folder) if path.name.startswith(NAMED) and path.is_dir()]
    found: dict[str, int] = {}
    for path in paths:
        with suppress(DamagedCheckpoint, KeyError):
            found[path.name] = int(position_of(path)["samples"])
    return dict(sorted(found.items(), key=lambda each: (each[1], each[0])))


def latest_name(folder: Path) -> str:
    """Return the name of the newest checkpoint, or ``none``."""
    newest = _newest_first(folder)
    return newest[0].name if newest else "none"


def _name(whole: Path, target: Path) -> None:
    """Let a complete checkpoint lie in another folder too; its files are shared, not copied."""
    partial = target.with_name(f"{PARTIAL}{target.name}")
    partial.mkdir()
    for file in whole.iterdir():
        try:
            os.link(file, partial / file.name)
        except OSError:  # a file system without links, or a full disk, which the copy reports
            shutil.copy(file, partial / file.name)
            _sync(partial / file.name)
    _sync(partial)
    if target.exists():  # passed again after a kill
        target.rename(target.with_name(f"{PARTIAL}removed-{target.name}"))
    partial.rename(target)


def _newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints, those among them that a killed :func:`save` had just renamed."""
    found = {_samples(path): path for path in _entries(folder) if path.name.startswith(REPLACED)}
    found |= {_samples(path): path for path in _entries(folder) if path.name.startswith("samples-")}
    found.pop(-1, None)
    return [found[samples] for samples in sorted(found, reverse=True)]


def _samples(path: Path) -> int:
    """Return the samples that a checkpoint's folder is named by, -1 if it is none."""
    named = re.fullmatch(rf"(?:{re.escape(REPLACED)})?samples-(\d{{1,18}})", path.name)
    return int(named[1]) if named and path.is_dir() else -1


def _sweep(folder: Path) -> None:
    """Remove what saves have left over, but no checkpoint that still counts."""
    counting = set(_newest_first(folder))
    for left_over in set(folder.glob(f"{PARTIAL}*")) - counting:
        shutil.rmtree(left_over)


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Force a file's or folder's content to the disk: a rename alone survives no power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def weights_sha256(state: dict[str, Tensor]) -> str:
    """Return the SHA-256 over all tensors' bytes in state_dict order."""
    digest = hashlib.sha256()
    for tensor in state.values():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def save_weights(path: Path, state: dict[str, Tensor]) -> None:
    """Write weights and buffers as one safetensors file, complete or not at all.

    Raises:
        RunFailure: the disk is full or the folder cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
    try:
        write_atomically(path, save(tensors))
    except OSError as error:
        raise RunFailure(f"{path} could not be written: {error}") from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a file written by :func:`save_weights`.

    Raises:
        UserError: the file is damaged or absent.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with open_regular(path):  # a pipe would be waited for
            return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: no readable safetensors file ({error})") from None
