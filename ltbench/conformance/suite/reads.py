"""Finds code that would make the host wait for a GPU: numbers read back, and shapes that depend on numbers. Works on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# By the name under which Python asks, whatever the tensor's device makes of it.
CALLS = {
    *(
        "item",
        "tolist",
        "numpy",
        "cpu",
        "equal",
        "allclose",
        "is_nonzero",
        "nonzero",
        "argwhere",
        "masked_select",
    ),
    *("unique", "unique_consecutive", "bincount", "histc", "__array__", "__bool__", "__int__", "__float__"),
    *("__index__", "__complex__", "__contains__", "__repr__", "__format__"),
}
# By the operator that is reached, from Python or from inside torch.
OPERATORS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("unique_dim", "_unique", "_unique2", "unique_consecutive"),
}


class HostRead(Exception):
    """The code under watch waits for the device; the message says through what."""


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in CALLS and any(isinstance(value, Tensor) for value in args):
            raise HostRead(f"{name}() of a tensor")
        if name == "__getitem__" and _has_mask(args[1]):
            raise HostRead("indexing by a mask, whose count is looked for on the device")
        if name == "where" and len(args) == 1:
            raise HostRead("where() of one argument")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in OPERATORS:
            raise HostRead(f"the operator {func}")
        if name == "repeat_interleave" and "output_size" not in (kwargs or {}):
            raise HostRead(f"the operator {func} without output_size")
        # One number written under a mask is a fill, whose shape depends on nothing.
        fill = name.startswith("index_put") and len(args) > 2 and args[2].numel() == 1
        if name.startswith("index") and len(args) > 1 and _has_mask(args[1]) and not fill:
            raise HostRead(f"the operator {func} by a mask")
        return func(*args, **(kwargs or {}))


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple | list) else [index]
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Raise HostRead at the first read of a tensor's numbers, or at the first shape that depends on them."""
    with _Operators(), _Calls():
        yield
