"""Read arrays from a pickle without calling anything that the pickle names.

A pickle runs code by naming a callable. numpy's own reconstructors are unsafe too, since they
accept any type and any bytes as a pointer. So no name in a pickle is looked up. Calls are recorded
as they are written, and those that describe an array of integers are built from their bytes. (In
protocol 2, the bytes themselves are text to be encoded.)
"""

from __future__ import annotations

import math
import pickle
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
_TYPES = ("u1", "i4", "i8")


def read_pickle(file: BinaryIO) -> dict[Any, Any]:
    """Read a pickled dictionary whose values are plain objects or arrays of integers.

    Args:
        file: open for reading. Strings of Python 2 are read as bytes.

    Raises:
        pickle.UnpicklingError, or any other error of the reader on a damaged pickle.
    """
    content = _Reader(file, encoding="bytes").load()
    if not isinstance(content, dict):
        raise pickle.UnpicklingError("no dictionary")
    return {
        key: _array(value) if isinstance(value, _Call) else value for key, value in content.items()
    }


class _Call:
    """Something a pickle names, and the arguments and the state it gives to that."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...] = ()) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = ()

    def __call__(self, *arguments: Any) -> _Call | bytes:
        return _encoded(*arguments) if self.name == "encode" else _Call(self.name, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


# The reader written in Python: its memo is a dictionary, where that of the reader in C is a list as
# long as the file says.
class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> _Call:
        """Stand in for the class, or raise `pickle.UnpicklingError`."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")
        return _Call(name)


def _array(call: _Call) -> NDArray[Any]:
    """Build the array that a call of ``_reconstruct`` and its state describe."""
    try:
        _, shape, kind, fortran, content = call.state
        code, order = _text(kind.arguments[0]), _text(kind.state[1])
        if call.name != "_reconstruct" or kind.name != "dtype" or type(content) is not bytes:
            raise ValueError("no bytes of an array")
        if code not in _TYPES:
            raise ValueError(f"type {code}, not one of {', '.join(_TYPES)}")
        kept = np.dtype((">" if order == ">" else "<") + code)
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("no sizes of an array")
        if math.prod(shape) * kept.itemsize != len(content):
            raise ValueError(f"{len(content)} bytes for the shape {shape}")
        array: NDArray[Any] = np.frombuffer(content, kept)
        return array.reshape(shape, order="F" if fortran else "C")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise pickle.UnpicklingError(f"not an array of integers: {error!r}") from None


def _encoded(text: Any, encoding: Any) -> bytes:
    """Turn text into bytes, as protocol 2 writes them."""
    if type(text) is not str or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"{encoding!r} is not how bytes are written")
    return text.encode("latin1")


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)
