"""Compiled networks: the numbers and names of plain ones, and one graph per block and count of rows."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, Unsupported
from torch._dynamo.utils import counters

from ltbench.checkpoint import newest_checkpoint, save_checkpoint
from ltbench.compiled import checkpoint_blocks, compile_blocks, set_layout
from ltbench.errors import UsageError
from ltbench.networks import Network
from ltbench.networks.base import Region
from ltbench.networks.dropout import dropout_streams
from ltbench.networks.names import UNET_SIZES, UNetSize
from ltbench.networks.unet import NormSwish
from ltbench.trainer import Trainer
from tests import toy
from tests.nets import batch, build, streams

torch.set_num_threads(1)
# dynamo looks at the gradient of every input and hides this warning from people, but not from a filter that raises
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

BACKEND = "aot_eager"  # all of torch.compile but the writing of kernels
SIZES = {
    "sit": {},
    "ddpm": {"local_batch": 12, "label_drop_mode": "batch"},
}  # as published: labels of a U-Net drop together
STEPS = 20
seen: set[tuple[str, int]] = set()  # (network, rows) that this process has compiled


@pytest.fixture(autouse=True)
def tiny_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A U-Net of five blocks of three kinds, which compiles in seconds."""
    monkeypatch.setitem(UNET_SIZES, "UNet-4", UNetSize(4, (1,), 1, (0,)))
    monkeypatch.setitem(toy.NETWORKS, "ddpm", "UNet-4")


def loop(pipeline: str, method: dict[str, Any], *, compiled: bool) -> Trainer:
    made = toy.parts(pipeline, method, dropout=0.1, **SIZES[pipeline])
    if compiled:
        made.task = made.objective.method.task = dataclasses.replace(made.task, fixed_rows=True)
        compile_blocks(made.objective.network, backend=BACKEND)
    return Trainer(made, 12, 1)


@pytest.mark.parametrize(("name", "pipeline", "options"), toy.variants())
def test_compiled_steps_are_eager_ones_and_nothing_is_compiled_twice(
    name: str, pipeline: str, options: dict[str, Any]
) -> None:
    """Losses of every method while its kept rows vary, dropout included; then weights, and an EMA that has moved."""
    method = {**toy.small(name, pipeline), **options}
    eager, fast = (loop(pipeline, method, compiled=compiled) for compiled in (False, True))
    network, start = fast.parts.objective.network, copy.deepcopy(fast.ema.shadow)
    rows: set[tuple[str, int]] = set()
    network.register_forward_pre_hook(lambda module, args: rows.add((pipeline, len(args[0]))))
    before = counters["stats"]["unique_graphs"]
    for step in range(STEPS):
        if step == 6 and len(rows) == 1:
            break  # one pass: nothing varies
        plain, ours = eager.advance(), fast.advance()
        assert plain is not None
        assert ours is not None
        assert ours["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert not counters["graph_break"]
    assert len(rows) <= 6
    regions = sum(isinstance(module, Region) for module in network.modules())
    assert counters["stats"]["unique_graphs"] - before <= regions * len(rows - seen)
    seen.update(rows)
    # Adam makes a step of full size of a gradient that is all rounding: weights are compared as a whole.
    moved, apart = (
        sum(float((to[key] - value).square().sum()) for key, value in eager.ema.shadow.items())
        for to in (start, fast.ema.shadow)
    )
    assert apart < 1e-2 * moved


def gradients(network: Network, rows: int = 12) -> list[Tensor]:
    """Output, a feature and all gradients of a forward with dropout."""
    x, t, y = batch(network, rows=rows)
    network.zero_grad()
    with dropout_streams(streams(1, 2)):
        out, (feature,) = network(x, t, y, [next(iter(network.tap_widths))])
    (out.square().mean() + feature.square().mean()).backward()
    return [out.detach(), feature.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


def close(ours: list[Tensor], plain: list[Tensor]) -> None:
    assert len(ours) == len(plain)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings(
    "ignore:A saved_tensors_hooks context:FutureWarning"
)  # how this test counts what is kept
@pytest.mark.parametrize("name", ["SiT-N/4", "UNet-4"])
def test_activations_made_again_give_the_same_gradients(name: str) -> None:
    """Masks are drawn once: a stream has moved on when the backward pass comes."""
    plain, made = (build(name, filled=True, dropout=0.3) for _ in range(2))
    assert checkpoint_blocks(made) == {"SiT-N/4": 2, "UNet-4": 5}[name]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        ours = gradients(made)
    close(ours, gradients(plain))
    again, kept = sum(kept), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        gradients(plain)
    assert again < sum(kept)
    made.eval()
    with torch.no_grad():
        x, t, y = batch(made)
        assert torch.equal(made(x, t, y)[0], plain.eval()(x, t, y)[0])


def test_compiled_blocks_keep_names_masks_and_copies_plain() -> None:
    plain, made = (build("SiT-N/4", filled=True, dropout=0.3) for _ in range(2))
    checkpoint_blocks(made)
    assert compile_blocks(made, backend=BACKEND) == 3
    assert list(made.state_dict()) == list(plain.state_dict())
    assert copy.deepcopy(made).blocks[0]._compiled_call_impl is None  # type: ignore[index,union-attr]
    before = counters["stats"]["unique_graphs"]
    close(gradients(made), gradients(plain))
    assert counters["stats"]["unique_graphs"] > before


def test_compiled_blocks_are_deterministic_where_the_process_is() -> None:
    config: Any = importlib.import_module("torch._inductor.config")
    before = torch.get_deterministic_debug_mode()
    try:
        for mode in ("warn", "default"):
            torch.set_deterministic_debug_mode(mode)
            compile_blocks(build("SiT-N/4"), backend="eager")
            assert config.deterministic == (mode == "warn")
    finally:
        torch.set_deterministic_debug_mode(before)


def test_an_eager_job_loads_no_compiler() -> None:
    """Nor scikit-learn for its digits: two seconds each, in every process of a grid."""
    code = """
import sys
from ltbench.datasets import build_dataset
from ltbench.job import set_precision
set_precision("fp32")
build_dataset({"name": "digits"}).train()
print([name for name in ("torch._dynamo", "torch._inductor", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[]\n", done.stderr


class Breaking(Region):
    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1


def test_a_graph_break_and_one_shape_too_many_are_errors() -> None:
    broken: Any = nn.Sequential(Breaking())
    compile_blocks(broken, backend="eager")
    with pytest.raises(Unsupported):
        broken(torch.ones(1))
    many: Any = nn.Sequential(NormSwish(1, 3))
    compile_blocks(many, backend="eager")
    config: Any = torch._dynamo.config
    with config.patch(recompile_limit=2):  # pytest's patch would leave the setting hidden behind itself
        many(torch.ones(1, 3, 2, 2))
        many(torch.ones(2, 3, 2, 2))
        with pytest.raises(FailOnRecompileLimitHit):
            many(torch.ones(3, 3, 2, 2))
    with pytest.raises(UsageError, match="no blocks"):
        checkpoint_blocks(many)


def test_channels_last_changes_no_value() -> None:
    """The layout is asked for a GPU and looked at here."""
    plain, made = (build("UNet-4", filled=True, dropout=0.3) for _ in range(2))
    assert not set_layout(made, torch.device("cpu"))
    assert not set_layout(build("SiT-N/4"), torch.device("cuda"))
    assert set_layout(made, torch.device("cuda"))
    assert made.get_parameter("inlet.weight").is_contiguous(memory_format=torch.channels_last)
    close(gradients(made), gradients(plain))


def test_a_channels_last_run_is_saved_and_continued_like_any_other(tmp_path: Path) -> None:
    """A checkpoint knows no layouts: weights and moments take that of the run that reads it."""

    def fresh() -> Trainer:
        made = toy.parts("ddpm", "ddpm")
        assert set_layout(made.objective.network, torch.device("cuda"))
        return Trainer(made, 12, 1)

    through, after = fresh(), fresh()
    through.advance()
    save_checkpoint(tmp_path, 1, *through.state(), cell="0" * 64, run="0" * 12, attempt=1)
    found = newest_checkpoint(tmp_path, cell="0" * 64, run="0" * 12)
    assert found is not None
    after.load(found.tensors, found.state)
    assert after.named["network.inlet.weight"].is_contiguous(memory_format=torch.channels_last)
    for run in (through, after):
        run.advance()
    for kind, tensors in through.state()[0].items():
        for key, value in tensors.items():
            assert torch.equal(after.state()[0][kind][key], value), (kind, key)
