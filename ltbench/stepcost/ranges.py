"""Names for the parts of a built trainer that a profiler shows, put on from outside: the trainer and the networks know nothing of it.

For a process that is thrown away afterwards. A block that is compiled is one part, whatever is in it; a step that is replayed from a
CUDA graph calls none of its parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.autograd.profiler import record_function

from ltbench.stepcost.attribution import PREFIX, STEP
from ltbench.trainer import Trainer

DEPTH = 2  # named levels of a network that are told apart: blocks, blocks.mlp
_NUMBER = re.compile(r"(^|\.)\d+")


def name_parts(trainer: Trainer) -> None:
    """Wrap what a step is made of in ranges."""
    objective, drawer = trainer.parts.objective, trainer.parts.drawer
    # On a GPU a thread draws ahead, and the step waits for it.
    _wrap(drawer if trainer.ahead is None else trainer.ahead, "draw", "data: draw")
    _wrap(objective.method, "loss", "method: loss terms")
    for part, module in _modules(objective.network):
        _wrap_module(module, f"network: {part}")
    for part, module in _modules(objective.method):
        _wrap_module(module, f"method: {part}")
    for name in ("clip_grad_norm_", "get_total_norm", "clip_grads_with_norm_"):
        _wrap(nn.utils, name, "gradient norm and clipping")
    _wrap(trainer.ema, "update", "EMA")
    for name in ("add", "close_step"):
        _wrap(trainer.curve, name, "log")
    _wrap(trainer, "advance", STEP)


def _modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name without numbers, module) of the first levels, the root as "between its parts"; nothing below a compiled one."""
    compiled: list[str] = []
    for path, module in root.named_modules():
        if any(path.startswith(above) for above in compiled):
            continue
        if module._compiled_call_impl is not None:
            compiled.append(f"{path}." if path else "")
        name = _NUMBER.sub("", path).lstrip(".")
        if isinstance(module, nn.ModuleList | nn.ModuleDict) or (path and not name):
            continue
        if name.count(".") < DEPTH and not _repeats(root, path):
            yield name or "between its parts", module


def _repeats(root: nn.Module, path: str) -> bool:
    """Whether a numbered module is a piece of a sequence, which is one part."""
    above, _, own = path.rpartition(".")
    return own.isdigit() and isinstance(root.get_submodule(above), nn.Sequential)


def _wrap_module(module: nn.Module, part: str) -> None:
    if module._compiled_call_impl is not None:
        # a range inside what is compiled would break its graph
        module._compiled_call_impl = _ranged(module._compiled_call_impl, part)
    else:
        _wrap(module, "forward", part)


def _wrap(owner: Any, name: str, part: str) -> None:
    """Around a function of one object (a frozen one too) or Python module, where it has it."""
    if (work := getattr(owner, name, None)) is not None:
        vars(owner)[name] = _ranged(work, part)


def _ranged(work: Callable[..., Any], part: str) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        with record_function(PREFIX + part):
            return work(*args, **options)

    return run
