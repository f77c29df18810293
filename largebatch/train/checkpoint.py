"""Checkpoints: a folder of safetensors and JSON, complete or absent, never pickled.

``checkpoints/samples-000000051200/`` holds ``state.safetensors`` (every tensor, named by its path
in the state, e.g. ``model/fc.weight``), ``state.json`` (everything else, tensors standing as
``{"tensor": name}``) and ``checksums.json`` (SHA-256 of both). It is written under a temporary
name, synced to disk and renamed, so a folder of the final name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from largebatch._errors import RunFailure, UserError
from largebatch.record import write_atomically

FORMAT = 1
TENSORS, REST, CHECKSUMS = "state.safetensors", "state.json", "checksums.json"


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
        return value

    return walk(state, name), tensors


def unflatten(rest: Any, tensors: dict[str, Tensor]) -> Any:
    """Put the tensors back into what :func:`flatten` returned."""
    if isinstance(rest, list):
        return [unflatten(item, tensors) for item in rest]
    if not isinstance(rest, dict):
        return rest
    if "tensor" in rest:
        return tensors[rest["tensor"]]
    if "tuple" in rest:
        return tuple(unflatten(item, tensors) for item in rest["tuple"])
    return {key: unflatten(item, tensors) for key, item in rest["dict"]}


def save(folder: Path, samples: int, state: dict[str, Any], keep: int) -> Path:
    """Write ``state`` as the checkpoint of ``samples`` and remove all but the ``keep`` newest.

    Raises:
        RunFailure: the disk is full or the folder cannot be written; older checkpoints stand.
    """
    from safetensors.torch import save_file

    target = folder / f"samples-{samples:012d}"
    partial = folder / f".partial-{target.name}"
    rest, tensors = flatten(state)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".partial-*"):
            shutil.rmtree(left_over)
        partial.mkdir()
        # safetensors takes neither shared nor strided memory; a clone has neither.
        unshared = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        save_file(unshared, partial / TENSORS)
        text = json.dumps({"format": FORMAT, "samples": samples, "state": rest})
        (partial / REST).write_text(text, encoding="utf-8")
        sums = {name: _sha256(partial / name) for name in (TENSORS, REST)}
        (partial / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
        for name in (TENSORS, REST, CHECKSUMS):
            _sync(partial / name)
        if target.exists():  # saved again at the same sample: the old one goes last
            replaced = target.rename(folder / f".partial-replaced-{target.name}")
            partial.rename(target)
            shutil.rmtree(replaced)
        else:
            partial.rename(target)
        _sync(folder)
        for old in _newest_first(folder)[keep:]:
            shutil.rmtree(old)
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


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Returns:
        the state given to :func:`save`, all tensors on the CPU.

    Raises:
        UserError: the folder is no checkpoint, is damaged, or is of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        sums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        for name in (TENSORS, REST):
            if _sha256(path / name) != sums[name]:
                raise UserError(f"checkpoint {path}: {name} does not match its checksum")
        rest = json.loads((path / REST).read_text(encoding="utf-8"))
        if rest["format"] > FORMAT:
            raise UserError(f"checkpoint {path}: format {rest['format']} is newer than {FORMAT}")
        tensors = load_file(path / TENSORS)
        state: dict[str, Any] = unflatten(rest["state"], tensors)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"checkpoint {path} is damaged or is none: {error!r}") from error
    return state


def newest_valid(folder: Path, report: Callable[[str], None], set_aside: bool = True) -> str | None:
    """Return the newest valid checkpoint's path; a damaged one is reported and passed over.

    Set aside, under ``damaged-...``, it neither counts among those kept nor is met again.
    """
    for path in _newest_first(folder):
        try:
            load(path)
            return str(path)
        except UserError as error:
            report(f"passed over: {error}")
            if set_aside:
                path.rename(path.with_name(f"damaged-{path.name}-{time.time_ns()}"))
    return None


def latest_name(folder: Path) -> str:
    """Return the newest checkpoint's name, or ``none``."""
    newest = _newest_first(folder)
    return newest[0].name if newest else "none"


def _newest_first(folder: Path) -> list[Path]:
    found = [p for p in _entries(folder) if re.fullmatch(r"samples-\d+", p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True)


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
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
    """Write weights and buffers as one safetensors file, whole or not at all.

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
    """Read what :func:`save_weights` wrote.

    Raises:
        UserError: the file is damaged or absent.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: no readable safetensors file ({error})") from None
