"""The contract of a training method: how one noised batch becomes a loss. Everything else belongs to the engine.

A method is one file in the top-level folder `methods/`, with one class that descends from `Method`. The keyword arguments of
its `__init__` after `task` are its hyper-parameters: the YAML's keys, their defaults and their types (bool, int, float, str,
Literal, tuple or None of these). A plugin imports this module, torch and the standard library, and nothing else of ltbench.

Shape letters: B batch, C channels, H W, N tokens, D width, K classes, g local batch, G = B / g.
"""

from __future__ import annotations

import importlib

from ltbench import plugins
from ltbench.methods.contract import (
    WATCHED,
    ContractBroken,
    Draw,
    FrozenEncoder,
    Method,
    NetOut,
    Network,
    Objective,
    Pass,
    Reference,
    Rng,
    Task,
    Unsupported,
    fixed_rows,
    kept_rows,
)
from ltbench.methods.maths import dispersion, info_nce, mean_square

# A plugin is the ordinary module ltbench.methods.NAME: it pickles, and works under fork, spawn and forkserver.
__path__.extend(str(folder) for folder in plugins.folders("methods"))

__all__ = [
    "WATCHED",
    "ContractBroken",
    "Draw",
    "FrozenEncoder",
    "Method",
    "NetOut",
    "Network",
    "Objective",
    "Pass",
    "Reference",
    "Rng",
    "Task",
    "Unsupported",
    "dispersion",
    "fixed_rows",
    "info_nce",
    "kept_rows",
    "load_method",
    "mean_square",
]


def load_method(name: str) -> type[Method]:
    """The class in methods/NAME.py. Raises UsageError for an unknown name or unusable file, else whatever its import raises."""
    plugin = plugins.get("methods", name)
    return getattr(importlib.import_module(f"{__name__}.{name}"), plugin.class_name)
