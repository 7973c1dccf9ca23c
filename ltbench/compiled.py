"""A network made faster in place: blocks compiled one by one, channels innermost, activations made again instead of kept.

None of it changes a name in a state dict or the function computed. Compiled blocks live on the module and not in a copy of it:
`copy.deepcopy` and pickle give a network that is not compiled.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ltbench.errors import UsageError
from ltbench.networks.base import Network, Recomputable, Region

# Counts of rows (six in training, those of a sampler) times sizes of images, with gradients and without: beyond that something
# is compiled again and again, and torch raises, as every region asks for the whole graph.
SHAPES = 64


def compile_blocks(network: Network, *, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile every region of the network in place, for exact shapes; how many there are. Nothing is compiled until it is called.

    A graph break, or more than SHAPES shapes of one region, is an error and not a slow path.
    """
    regions = [module for module in network.modules() if isinstance(module, Region)]
    compile_modules(regions, backend=backend)
    return len(regions)


def compile_modules(modules: Iterable[nn.Module], *, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each module in place, as `compile_blocks` does a network's regions. None of them holds another."""
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, SHAPES)
    inductor: Any = importlib.import_module("torch._inductor.config")
    if hasattr(inductor, "deterministic"):  # not in torch 2.6
        inductor.deterministic = torch.are_deterministic_algorithms_enabled()
    for module in modules:
        kind = (type(module), *(tuple(value.shape) for value in module.parameters()))
        module._compiled_call_impl = partial(_entry(kind, backend), module)


@cache
def _entry(kind: tuple[Any, ...], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function that calls a region, one for all regions of a kind: type and shapes of its weights.

    Torch keeps what it compiled with the code of the function called and tries one after another at every call. Under
    `nn.Module.compile` all modules share one code: in a U-Net of nine kinds of blocks at four shapes a call lost 345 us there,
    with a code per kind 56 us.
    """
    own: Any = FunctionType(_call.__code__.replace(co_name=f"region_{kind[0].__name__}"), _call.__globals__)
    return torch.compile(own, backend=backend, fullgraph=True, dynamic=False)


def _call(region: nn.Module, *inputs: Tensor | None, **named: Tensor | None) -> Any:
    return region._call_impl(*inputs, **named)


def load_compiler(device: torch.device) -> None:
    """Compile something small. The compiler changes a process at its first use (environment, search path, recursion limit, helper
    processes), which must not be taken for a method's doing. Where it fails, the network will too, and say why."""
    with contextlib.suppress(Exception):
        torch.compile(torch.sin)(torch.ones(2, device=device))


def compiler_failed(error: Exception) -> str | None:
    """Why a network could not be compiled, in a line: a compiler is missing, or does not take it. None for another error.

    Ask for a compiled network only: torch's compiler takes a second to load.
    """
    from torch._dynamo.exc import TorchDynamoException

    if not isinstance(error, TorchDynamoException):
        return None
    return " ".join(line.strip() for line in str(error).strip().splitlines()[:2]) or type(error).__name__


def uncompile(network: nn.Module) -> None:
    """Run every part of it as written again."""
    for module in network.modules():
        module._compiled_call_impl = None


def set_layout(network: Network, device: torch.device) -> bool:
    """Lay the convolutions' weights out channels-last where the network asks for it and the device is faster so (CUDA); whether
    it did. Weights move to new memory: call it before anything holds on to them (optimiser, EMA, DDP, a CUDA graph)."""
    wanted = network.channels_last and device.type == "cuda"
    if wanted:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return wanted


def checkpoint_blocks(network: Network) -> int:
    """Keep no activations inside the blocks and make them again in the backward pass, about a third more work; how many blocks.

    Gradients are the same, dropout included: masks are kept. Raises UsageError for a network without blocks.
    """
    blocks = [module for module in network.modules() if isinstance(module, Recomputable)]
    if not blocks:
        raise UsageError(f"{type(network).__name__} has no blocks whose activations could be made again")
    for block in blocks:
        block.recomputed = True
    return len(blocks)
