"""Reading the pickles that old data sets are published in, without running what they say.

A pickle is a program: loading one can call anything that can be imported. Here the few names that an array of bytes is made of are
inert stand-ins that keep what they are given, and every other name is refused. Nothing of NumPy is built from the file's words.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ltbench.errors import EnvironmentProblem

BYTE = ("u1", "|u1", b"u1", b"|u1")  # how a pickle spells uint8


class _Refused(Exception):
    """A name that a pickle of plain data does not hold."""


class _Array:
    """Stands in for an array and for what makes one: keeps the state, which is checked before it is looked at."""

    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """Read-only uint8. Raises ValueError for any other type and for a length that is not its shape's."""
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _Dtype) or dtype.code not in BYTE:
            raise ValueError(f"an array holds {getattr(dtype, 'code', dtype)!r}, not unsigned bytes")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Stands in for a dtype: keeps its code."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


class _Bytes:
    """How Python 3 writes bytes into a pickle that Python 2 can read: text and the name of its encoding, latin1."""

    def __new__(cls, text: str, *_: Any) -> Any:
        return text.encode("latin-1")


STAND_INS = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    "_codecs.encode": _Bytes,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in STAND_INS:
            raise _Refused(name)
        # A class of its own each time: a pickle may also set attributes, and does so on this one only.
        return type(global_name, (STAND_INS[name],), {})


def unpickle(data: bytes, path: Path | str) -> dict[str, Any]:
    """The dictionary in a pickle of plain data: text keys; uint8 arrays (read-only), bytes, text, numbers, lists and dictionaries.

    `path` is for messages. Keys that Python 2 wrote as bytes are read as latin-1. Raises EnvironmentProblem, naming the file, for
    a pickle that asks for anything else to be imported, and for one that is damaged or holds something else.
    """
    remedy = "replace it with a fresh copy from where the set was obtained"
    try:
        found = _Reader(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not a dictionary")
        return {_text(key): v.array() if isinstance(v, _Array) else v for key, v in found.items()}
    except _Refused as refused:
        raise EnvironmentProblem(
            f"{path}: refused: this pickle wants to import {refused}, which no file of images needs; nothing of it was run",
            f"do not open it with another program; {remedy}",
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        what = f"{type(error).__name__}: {error}"
        raise EnvironmentProblem(f"{path}: not a usable pickle: {what}", remedy) from None


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)
