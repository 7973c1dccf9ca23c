"""Network names for specs, without torch."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ltbench.errors import LtbenchError

NAMES_FILE = Path(__file__).resolve().parents[1] / "networks" / "names.py"
_KEY = "ltbench._network_names"


def _names() -> Any:
    """ltbench/networks/names.py by its path: the package around it imports torch, which no spec needs."""
    if _KEY not in sys.modules:
        module_spec = importlib.util.spec_from_file_location(_KEY, NAMES_FILE)
        assert module_spec is not None, f"{NAMES_FILE} is a Python file"
        assert module_spec.loader is not None, f"{NAMES_FILE} is a Python file"
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[_KEY] = module  # dataclasses look their module up while it runs
        module_spec.loader.exec_module(module)
    return sys.modules[_KEY]


def network_size(name: str, resolution: int) -> Any:
    """`ltbench.networks.names.network_size`: a SiTSize or a UNetSize. Raises UsageError where the name does not fit."""
    return _names().network_size(name, resolution)


def network_problem(name: str, resolution: int) -> str | None:
    """Why a network of that name cannot take square images of `resolution` pixels, or None."""
    try:
        network_size(name, resolution)
    except LtbenchError as error:
        return error.message if error.hint is None else f"{error.message}; {error.hint}"
    return None


def network_names(like: str = "SiT-T/8") -> list[str]:
    """Every network name, transformers with the patch size of `like`."""
    patch = like.partition("/")[2] or "8"
    return [name.replace("/P", f"/{patch}") for name in _names().NETWORK_NAMES]


def network_numbers(name: str) -> dict[str, Any]:
    """Depth, width and so on behind a name. Raises UsageError for an unknown one."""
    fitting = int(name.partition("/")[2] or 1024)  # a resolution that the name surely accepts
    return dataclasses.asdict(network_size(name, fitting))
