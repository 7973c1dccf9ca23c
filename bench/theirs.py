"""The other side from the user's own checkout of SiT, REPA or CBDM (`--ref-repo PATH`): their network, loss and sampler, imported.

What a checkout is is read from its files. Its training script cannot be imported (it parses a command line, joins a process group),
so around their loss runs our rendering of their loop. Their freshly made network is stirred and saved, and ours reads that file as it
reads any released one: both sides start at the same function.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import sampling  # beside this file
import steps
import torch
import unets
from official import Loop, UNetLoop, batches, from_moments
from torch import Tensor, nn
from turns import agree, in_turns, most_apart
from worlds import SCALE, World, stir

from ltbench.errors import UsageError
from ltbench.external import read_external
from ltbench.generate import initial_noise, step_noise
from ltbench.networks import Network
from ltbench.networks.names import SiTSize, UNetSize, network_size

# kind -> files that its checkout has
FILES = {
    "sit": ("models.py", "transport/transport.py"),
    "repa": ("models/sit.py", "samplers.py"),
    "cbdm": ("diffusion.py", "model/model.py"),
}
WORLDS = {
    "sit": World("SiT-T/2", "sit", (4, 16, 16), 8, 8, latents=True),
    "repa": World("SiT-T/2", "sit", (4, 16, 16), 8, 8, latents=True, classes=1000, images=1024),
    # The released U-Net has 32 groups whatever its width, as ours at its published size.
    "cbdm": World("UNet-128", "ddpm", (3, 8, 8), 4, 4, images=64),
}
STEPS = 20


def kind_of(repo: Path) -> str:
    """sit, repa or cbdm. Raises UsageError for a folder that is none of them."""
    for kind, files in FILES.items():
        if all((repo / file).is_file() for file in files):
            return kind
    told = "; ".join(f"{kind}: {', '.join(files)}" for kind, files in FILES.items())
    raise UsageError(f"{repo} is no checkout of SiT, REPA or CBDM", f"they hold {told}")


def measure(
    what: str, repo: str, device: torch.device, turns: int = 3, world: World | None = None, count: int = STEPS
) -> dict[str, Any] | None:
    """The case "train", "sample" or "unet" against this checkout; None where it has none. count: steps that are compared."""
    folder = Path(repo).expanduser().resolve()
    kind = kind_of(folder)
    case = {
        ("train", "sit"): _sit_train,
        ("sample", "sit"): _sit_sample,
        ("sample", "repa"): _repa_sample,
        ("unet", "cbdm"): _cbdm_train,
    }.get((what, kind))
    if case is None:
        return None
    with importing(folder):
        return {"checkout": kind, **case(world or WORLDS[kind], device, turns, count)}


@contextmanager
def importing(folder: Path) -> Iterator[None]:
    """Their modules by their own names, for a while: `models` is another thing in every checkout."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            module = sys.modules[name]  # a folder without __init__.py has no file, but a path
            places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
            if any(str(place).startswith(str(folder)) for place in places):
                del sys.modules[name]


def equal_weights(theirs: nn.Module, ours: Network, family: str) -> dict[str, Tensor]:
    """Our names for the weights of their network, through a file, as released weights come."""
    stir(theirs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "theirs.pt")
        torch.save({name: value.cpu() for name, value in theirs.state_dict().items()}, path)
        return read_external(path, ours, family=family).weights


# --- SiT --------------------------------------------------------------------------------------------------------------


def _sit_model(world: World, device: torch.device) -> Any:
    models, size = importlib.import_module("models"), network_size(world.network, world.shape[1])
    assert isinstance(size, SiTSize), "a SiT on the sit pipeline"
    return models.SiT(
        input_size=world.shape[1],
        patch_size=size.patch,
        in_channels=world.shape[0],
        hidden_size=size.width,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=world.classes,
    ).to(device)


def _transport() -> Any:
    return importlib.import_module("transport").create_transport("Linear", "velocity", None, None, None)


class TheirLoop(Loop):
    """The loop around their `transport.training_losses`, which is handed noise and clock instead of drawing them."""

    transport: Any

    def loss(self, data: Tensor, noise: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.transport.sample = lambda given: (t, noise, given)
        return self.transport.training_losses(self.model, data, {"y": y})["loss"].mean()


def _sit_train(world: World, device: torch.device, turns: int, count: int) -> dict[str, Any]:
    theirs = _sit_model(world, device)
    theirs.y_embedder.dropout_prob = 0.0  # labels come dropped
    ours = world.trainer("sit", device, log_every=1)
    ours.start(equal_weights(theirs, ours.parts.objective.network, "sit"), {})
    rows, labels = world.moments()[::2], ours.parts.drawer.data.labels.cpu()
    loader, null = batches(rows, labels, world.batch), world.classes
    loop = TheirLoop(theirs, theirs, loader, from_moments, null=null, device=device, scale=SCALE)
    loop.transport = _transport()
    apart = _trace(ours, loop, count)
    told = in_turns({"ours": ours.advance, "theirs": loop.step}, device, turns=turns, times=2)
    ours.close()
    return {**told.told(), "trace_apart": apart, "goal": told.goal("theirs", "ours", at_least=1.0)}


def _trace(ours: Any, loop: Any, count: int) -> float:
    gaps = []
    for step in range(1, count + 1):
        point = ours.advance()
        assert point is not None, "every step closes a window"
        gaps.append(abs(point["loss"] / loop.step(steps.fed(ours, step)) - 1))
    return agree("loss trace", max(gaps), 1e-5)


def _sit_sample(world: World, device: torch.device, turns: int, count: int) -> dict[str, Any]:
    theirs = _sit_model(world, device).eval()
    network = world.fresh(device)
    network.load_state_dict(equal_weights(theirs, network, "sit"))
    sampler = importlib.import_module("transport").Sampler(_transport())
    draw = sampler.sample_sde(
        sampling_method="Euler",
        diffusion_form="sigma",
        diffusion_norm=1.0,
        last_step="Mean",
        last_step_size=0.04,
        num_steps=count,
    )
    labels = torch.arange(world.batch, device=device) % world.classes
    both = torch.cat([labels, torch.full_like(labels, network.null_label)])

    def official() -> Tensor:
        start = initial_noise(0, range(world.batch), world.shape).to(device)
        start = torch.cat([start, start])
        with torch.no_grad():
            found = draw(start, theirs.forward_with_cfg, y=both, cfg_scale=sampling.GUIDANCE)
        return found[-1][: world.batch]

    return _sampled(world, network, device, turns, count, official, "torch.randn", double=True, bound=1.9)


def _sampled(
    world: World,
    network: Network,
    device: torch.device,
    turns: int,
    count: int,
    official: Callable[[], Tensor],
    source: str,
    *,
    double: bool,
    bound: float | None,
    **more: Any,
) -> dict[str, Any]:
    """Images on the same noise, given in place of torch's function `source`, to both halves of a doubled batch; then in turns."""
    evaluation = sampling.evaluation_of(world, count, **more)
    fresh = step_noise(0, range(world.batch), world.shape, device)

    def given(*anything: Any, **options: Any) -> Tensor:
        noise = fresh()
        return torch.cat([noise, noise]) if double else noise.double()

    with mock.patch(source, given):
        fed = official()
    mine = sampling.ours_of(world, network, evaluation, device)
    apart = agree("images", most_apart(mine, fed), 1e-3)
    sides = {"ours": lambda: sampling.ours_of(world, network, evaluation, device), "theirs": official}
    told = in_turns(sides, device, turns=turns)
    found = {**told.told(), "steps": count, "apart": apart}
    return found if bound is None else {**found, "goal": told.goal("theirs", "ours", at_least=bound)}


# --- REPA -------------------------------------------------------------------------------------------------------------


def _repa_sample(world: World, device: torch.device, turns: int, count: int) -> dict[str, Any]:
    """Their sampler asks once per step, as ours: only the rest differs. Their null label is 1000 whatever the classes."""
    models, size = importlib.import_module("models.sit"), network_size(world.network, world.shape[1])
    assert isinstance(size, SiTSize), "a SiT on the sit pipeline"
    theirs = models.SiT(
        input_size=world.shape[1],
        patch_size=size.patch,
        in_channels=world.shape[0],
        hidden_size=size.width,
        decoder_hidden_size=size.width,
        encoder_depth=1,
        depth=size.depth,
        num_heads=size.heads,
        num_classes=world.classes,
        z_dims=[16],
        projector_dim=32,
        fused_attn=True,
        qk_norm=False,
    )
    theirs = theirs.to(device).eval()
    network = world.fresh(device)
    network.load_state_dict(equal_weights(theirs, network, "repa"))
    run = importlib.import_module("samplers").euler_maruyama_sampler
    labels = torch.arange(world.batch, device=device) % world.classes

    def official() -> Tensor:
        start = initial_noise(0, range(world.batch), world.shape).to(device)
        return run(theirs, start, labels, num_steps=count, cfg_scale=sampling.GUIDANCE)

    return _sampled(
        world,
        network,
        device,
        turns,
        count,
        official,
        "torch.randn_like",
        double=False,
        bound=None,
        guidance_channels=None,
    )


# --- CBDM -------------------------------------------------------------------------------------------------------------


class TheirUNetLoop(UNetLoop):
    """The loop around their `GaussianDiffusionTrainer`, which is handed noise and clock instead of drawing them."""

    trainer: Any

    def loss(self, x: Tensor, eps: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        clock: Any = lambda *size, **options: t  # noqa: E731
        noise: Any = lambda like: eps  # noqa: E731
        with mock.patch("torch.randint", clock), mock.patch("torch.randn_like", noise):
            return self.trainer(x, y)[0].mean()


def _cbdm_train(world: World, device: torch.device, turns: int, count: int) -> dict[str, Any]:
    size = network_size(world.network, world.shape[1])
    assert isinstance(size, UNetSize), "a U-Net on the ddpm pipeline"
    theirs = importlib.import_module("model.model").UNet(
        T=1000,
        ch=size.channels,
        ch_mult=list(size.multipliers),
        attn=list(size.attention),
        num_res_blocks=size.blocks,
        dropout=0.0,
        cond=True,
        augm=False,
        num_class=world.classes,
    )
    theirs = theirs.to(device)
    ours = world.trainer("ddpm", device, log_every=1, label_drop=0.0)
    ours.start(equal_weights(theirs, ours.parts.objective.network, "ddpm"), {})
    made = importlib.import_module("diffusion").GaussianDiffusionTrainer(
        theirs, 1e-4, 0.02, 1000, None, world.classes, False, False, 1.0, None, False
    )
    plain = unets.loop_of(world, ours, device)
    loop = TheirUNetLoop(theirs, theirs, plain.loader, device=device)
    loop.trainer = made.to(device)
    apart = _trace(ours, loop, min(count, STEPS // 4))  # a large network for a CPU
    told = in_turns({"ours": ours.advance, "theirs": loop.step}, device, turns=turns)
    ours.close()
    return {**told.told(), "trace_apart": apart, "goal": told.goal("theirs", "ours", at_least=1.0)}
