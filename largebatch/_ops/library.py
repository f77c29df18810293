"""Load the compiled library and register the operators with references and fake kernels."""

from __future__ import annotations

import functools
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from largebatch._errors import UserError
from largebatch._ops.architectures import without_code
from largebatch._ops.guards import in_place, on_one_device, written

PACKAGE = Path(__file__).parent.parent
LIBRARY = PACKAGE / "_C.abi3.so"
BUILD_RECORD = PACKAGE / "_build.json"
REBUILD = "run pip install -e ."


@dataclass(frozen=True)
class Operator:
    """One operator of ``torch.ops.largebatch``.

    Attributes:
        schema: the schema, as in ``csrc/ops.cpp``; a test checks that both are equal.
        reference: plain PyTorch: the specification, and the fallback where there is no kernel.
        fake: fake kernel (shapes and types without values) for torch.compile.
        host: names of the arguments that are on the CPU, whatever device the others are on.
        is_guarded: whether torch's rules for in-place changes are enforced. Not for operators
            called from threads without Python, nor for communication, to which torch applies none.
    """

    schema: str
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    host: tuple[str, ...] = ()
    is_guarded: bool = True

    @property
    def name(self) -> str:
        """The operator's name, as in its schema."""
        return self.schema.partition("(")[0]


OPERATORS: dict[str, Operator] = {}


def _load() -> str:
    """Load the compiled library as ``LARGEBATCH_OPS`` asks; return why it is absent, or ''."""
    wish = os.environ.get("LARGEBATCH_OPS", "")
    if wish not in ("", "compiled", "reference"):
        raise UserError(f"LARGEBATCH_OPS={wish!r}: choose compiled or reference, or leave it unset")
    if wish == "reference":
        return "LARGEBATCH_OPS=reference"
    reason = str(build_record().get("compiled", f"not built: {REBUILD}"))
    if LIBRARY.exists():
        try:
            torch.ops.load_library(str(LIBRARY))
            return ""
        except OSError as error:
            reason = f"{LIBRARY.name} does not load: {' '.join(str(error).split())}"
    if wish == "compiled":
        raise ImportError(f"LARGEBATCH_OPS=compiled, but the compiled ops are absent: {reason}")
    return reason


def build_record() -> dict[str, Any]:
    """Return the record of the build: the parts that were left out, and why."""
    if not BUILD_RECORD.exists():
        return {}
    return dict(json.loads(BUILD_RECORD.read_text(encoding="utf-8")))


_ABSENT = _load()
_LIBRARY = torch.library.Library("largebatch", "FRAGMENT")


_older = ""  # what the compiled library lacks of this code, once an operator is found to be absent


def register(*operators: Operator) -> None:
    """Define operators missing in the compiled library; add references and fake kernels.

    Raises:
        ImportError: the compiled library has an operator with other arguments.
    """
    global _older
    for operator in operators:
        OPERATORS[operator.name] = operator
        defined = torch._C._jit_get_schemas_for_operator(f"largebatch::{operator.name}")
        if not defined:
            _LIBRARY.define(operator.schema)
            _older = "" if _ABSENT else f"{LIBRARY.name} is older than this code; {REBUILD}"
        elif defined[0] != torch._C.parse_schema(f"largebatch::{operator.schema}"):
            raise ImportError(
                f"{LIBRARY.name} is of another version than this code ({operator.name}); {REBUILD}"
            )
        # Kernels for a device go before this one, which therefore serves all other devices.
        _LIBRARY.impl(operator.name, operator.reference, "CompositeExplicitAutograd")
        overload = getattr(torch.ops.largebatch, operator.name).default
        fake = on_one_device(overload._schema, operator.fake, operator.host)
        torch.library.register_fake(f"largebatch::{operator.name}", fake, lib=_LIBRARY)
        if operator.is_guarded and written(overload._schema):
            guard = in_place(overload)
            _LIBRARY.impl(operator.name, guard, "ADInplaceOrView", with_keyset=True)


_without_code = ""  # why no GPU of this machine gets the kernels, known once CUDA is in use


def serve_gpus_without_code() -> None:
    """Use the reference for CUDA tensors if the library has no code for a GPU of this machine.

    Torch calls this when it first uses CUDA. Without it, a kernel would raise an error.
    """
    global _without_code
    built = build_record().get("architectures", [])
    if _ABSENT or not built:
        return
    gpus = range(torch.cuda.device_count())
    _without_code = without_code(built, map(torch.cuda.get_device_capability, gpus))
    if _without_code:
        for name, operator in OPERATORS.items():
            if _kernel_exists(name, "CUDA"):
                _LIBRARY.impl(name, operator.reference, "CUDA")


def face() -> Literal["compiled", "reference"]:
    """Return which face serves CPU tensors in this process."""
    return "reference" if _ABSENT else "compiled"


def backends() -> dict[str, dict[str, str]]:
    """Return, for each operator, ``{face: "yes" or the reason why it is absent}``."""

    def state(name: str, device: str, reason: str) -> str:
        return "yes" if is_compiled(name, torch.device(device)) else reason

    return {
        name: {
            "reference": "yes",
            "cpu": state(name, "cpu", _ABSENT or _older),
            "cuda": state(name, "cuda", _no_cuda()),
        }
        for name in OPERATORS
    }


def is_compiled(name: str, device: torch.device) -> bool:
    """Return whether operator ``name`` has a compiled kernel for ``device``."""
    if device.type == "cuda" and _without_code:
        return False
    return _kernel_exists(name, device.type.upper())


def _no_cuda() -> str:
    built = str(build_record().get("cuda", "built without CUDA kernels"))
    return _ABSENT or _older or _without_code or built or "has no CUDA kernel"


@functools.cache
def _kernel_exists(name: str, key: str) -> bool:
    return key in ("CPU", "CUDA") and bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"largebatch::{name}", key)
    )


@functools.cache
def _say_once(device_type: str) -> None:
    reason = _no_cuda()
    if reason != "LARGEBATCH_OPS=reference":
        warnings.warn(
            f"largebatch uses its reference ops on {device_type} ({reason}); they are slower",
            stacklevel=3,
        )


def notice(name: str, tensors: Sequence[Tensor]) -> None:
    """Warn once per device that the reference is used, before a call of ``name``."""
    if tensors and not torch.compiler.is_compiling():
        device = tensors[0].device
        if device.type in ("cpu", "cuda") and not is_compiled(name, device):
            _say_once(device.type)
