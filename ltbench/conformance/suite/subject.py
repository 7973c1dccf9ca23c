"""The plugin under test on one pipeline, and how a check says that it failed or does not apply."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ltbench.conformance.suite import toy
from ltbench.methods import Method, Objective, load_method
from ltbench.parts import Parts
from ltbench.plugins import Plugin


class Failed(Exception):
    """A check that the plugin does not pass; the message says why in one line."""


class DoesNotApply(Exception):
    """A check that says nothing about this plugin; the message says why in one line."""


def require(condition: bool | Tensor, why: str) -> None:
    """Raise Failed with `why` unless the condition holds."""
    if not condition:
        raise Failed(why)


@dataclass(frozen=True)
class Subject:
    """A plugin on a pipeline ("" for checks of the file alone). Everything is built anew on each call."""

    plugin: Plugin
    pipeline: str

    @cached_property
    def cls(self) -> type[Method]:
        """The plugin's class; imports the file."""
        return load_method(self.plugin.name)

    @property
    def presets(self) -> Mapping[str, dict[str, Any]]:
        return self.plugin.presets or {}

    @property
    def options(self) -> dict[str, Any]:
        """Parameters of a row that names none (the preset named like the pipeline), small and offline (preset `check`)."""
        return {**self.presets.get(self.pipeline, {}), **self.presets.get("check", {})}

    @property
    def is_baseline(self) -> bool:
        return self.plugin.name == self.pipeline

    def parts(self, options: dict[str, Any] | None = None, **changes: Any) -> Parts:
        """Network, method and data of a tiny cell; `changes` go to `toy.parts`."""
        return toy.parts(self.pipeline, self.cls, self.options if options is None else options, **changes)

    def baseline(self, **changes: Any) -> Parts:
        """The same cell with the pipeline's plain objective."""
        return toy.parts(self.pipeline, load_method(self.pipeline), {}, **changes)

    def terms(self, **changes: Any) -> dict[str, Tensor]:
        """The terms of one batch."""
        built = self.parts(**changes)
        return built.objective(toy.draw(built))


def last_line(error: BaseException, file: str) -> str:
    """` (mine.py, line 12)`, where the file has a part in the error, else nothing."""
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({os.path.basename(file)}, line {own[-1]})" if own else ""


def backward(objective: Objective, terms: Mapping[str, Tensor]) -> None:
    """The trainer's own sum of means, differentiated."""
    torch.stack([term.mean() for term in terms.values()]).sum().backward()


def gradient(objective: Objective) -> Tensor:
    """Every gradient as one vector."""
    return torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])


def close(a: Tensor, b: Tensor) -> str | None:
    """None when two gradients agree to float32 accuracy, else how far they are apart."""
    if a.shape != b.shape:
        return f"{a.numel()} and {b.numel()} gradients"
    gap = (a - b).abs() - 1e-4 * b.abs()
    return (
        None if bool((gap <= 1e-6).all()) else f"gradients differ by up to {float((a - b).abs().max()):.1e}"
    )
