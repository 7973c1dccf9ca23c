"""T1: a training step of ours against the official loop's, from latents that were encoded before and with its online VAE.

The same data, noise, times and labels give both the same losses over 20 steps; then the loop draws for itself, as it does, and ours
draws as it does. tiny-vae stands for Stable Diffusion's where that is not here: its row then says what the VAE is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from official import Fed, Loop, batches, from_moments  # beside this file
from torch import Tensor
from turns import agree, in_turns, most_apart
from worlds import SCALE, World, twin

from ltbench import vaes
from ltbench.latents.codec import BATCH, Codec, load_codec
from ltbench.trainer import Trainer

STEPS = 20  # that are compared
PATIENCE = 5.0  # seconds of turns: near 1, a ratio needs many
SMALL = ("SiT-N/4", "SiT-T/2")
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2}
GOALS = {"fp32": 1.0, "bf16": 1.3}  # the loop's time over ours, on a CPU
CPU_SIZES = {
    "SiT-T/2, 16x16, batch 8": World("SiT-T/2", "sit", (4, 16, 16), 8, 8, latents=True),
    "SiT-S/8, 32x32, batch 8": World("SiT-S/8", "sit", (4, 32, 32), 8, 8, latents=True),
}
TINY = {"SiT-N/4, 8x8, batch 4": World("SiT-N/4", "sit", (4, 8, 8), 4, 4, images=64, latents=True)}


def measure(
    device: torch.device, sizes: dict[str, World] | None = None, turns: int = 3, times: int = 1
) -> dict[str, Any]:
    """Per size and precision: how far the losses are apart, milliseconds of both, and the loop's time over ours."""
    found: dict[str, Any] = {}
    budget = PATIENCE if sizes is None else 0.0
    for name, world in (sizes or CPU_SIZES).items():
        found[name] = {"fp32": _row(world, "fp32", device, turns, times, budget)}
        if reason := no_bf16(device):
            found[name]["bf16"] = {"left_out": reason}
        else:
            found[name]["bf16"] = _row(world, "bf16", device, turns, times, budget)
    return found


def _row(
    world: World, precision: str, device: torch.device, turns: int, times: int, budget: float
) -> dict[str, Any]:
    # The large ones are as slow as what they take to agree: a fifth of the steps.
    apart = trace_apart(world, precision, device, STEPS if world.network in SMALL else STEPS // 5)
    ours = world.trainer("sit", device, precision=precision)
    loop = loop_of(world, ours, device)
    sides = {"ours": ours.advance, "official": loop.step}
    told = in_turns(sides, device, turns=turns, times=times, warm=2, budget=budget)
    ours.close()
    return {
        **told.told(),
        "trace_apart": apart,
        "goal": told.goal("official", "ours", at_least=GOALS[precision]),
    }


def loop_of(world: World, ours: Trainer, device: torch.device) -> Loop:
    """The official loop on a copy of our network at its present weights, reading the same latents from the host."""
    network = twin(ours.parts.objective.network)
    moments, labels = world.moments()[::2], ours.parts.drawer.data.labels.cpu()
    return Loop(
        network,
        lambda x, t, y: network(x, t, y)[0],
        batches(moments, labels, world.batch),
        from_moments,
        null=network.null_label,
        device=device,
        scale=SCALE,
    )


def fed(trainer: Trainer, step: int) -> Fed:
    """What our engine draws for a step."""
    drawer = trainer.parts.drawer
    draw = drawer.draw(step, range(drawer.order.batch // drawer.local_batch))
    return Fed(draw.x0, draw.eps, draw.t, draw.y_in)


def tolerance_of(precision: str, device: torch.device) -> float:
    """Relative, of the loss. A GPU's kernels add up in another order from one call to the next, and Adam makes the most of it."""
    return max(TOLERANCES[precision], 0.0 if device.type == "cpu" else 1e-4)


def trace_apart(world: World, precision: str, device: torch.device, steps: int = STEPS) -> float:
    """Largest relative difference of the two losses, and of EMA weights after the last step. Raises AssertionError above tolerance."""
    ours = world.trainer("sit", device, precision=precision, log_every=1)
    loop = loop_of(world, ours, device)
    gaps = []
    for step in range(1, steps + 1):
        point = ours.advance()
        assert point is not None, "every step closes a window"
        theirs = loop.step(fed(ours, step))
        gaps.append(abs(point["loss"] / theirs - 1))
    ours.close()
    average = dict(loop.ema.named_parameters())
    shadow: dict[str, Tensor] = dict(ours.ema.shadow)
    assert average.keys() <= shadow.keys(), "the same parameters have an average"
    agree("EMA weights", max(most_apart(shadow[name], p) for name, p in average.items()), 1e-4)
    return agree("loss trace", max(gaps), tolerance_of(precision, device))


# --- with the VAE in the loop ---------------------------------------------------------------------------------------

VAE_WORLD = World("SiT-T/2", "sit", (4, 8, 8), 8, 8, images=64, latents=True)


def online(
    device: torch.device, world: World = VAE_WORLD, name: str = "tiny-vae", turns: int = 5, times: int = 2
) -> dict[str, Any]:
    """Our step from moments that were encoded before against the loop that encodes its batch of pictures at every step."""
    if reason := vaes.problem(name):
        return {"left_out": reason}
    codec, side = load_codec(name, device), world.shape[1] * vaes.vae(name).factor
    pixels = np.random.default_rng(2).integers(0, 256, (world.images, 3, side, side), np.uint8)
    rows = torch.from_numpy(pixels)
    trainer = world.trainer("sit", device, moments=_encoded(codec, rows))
    network = twin(trainer.parts.objective.network)

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = codec.moments(x).unbind(1)
        return mean, deviation

    drawer = trainer.parts.drawer
    kept, again = (
        drawer.data.images.rows.take(torch.arange(0, 16, 2)).float(),
        codec.moments(rows[:8].to(device)),
    )
    apart = agree("moments", most_apart(kept, again), 4e-3)  # they were kept in float16
    loop = Loop(
        network,
        lambda x, t, y: network(x, t, y)[0],
        batches(rows, drawer.data.labels.cpu(), world.batch),
        encode,
        null=network.null_label,
        device=device,
        scale=SCALE,
    )
    told = in_turns({"ours": trainer.advance, "official": loop.step}, device, turns=turns, times=times)
    trainer.close()
    bound = told.goal("official", "ours", at_least=1.0)
    return {"vae": name, "pixels": side, **told.told(), "moments_apart": apart, "goal": bound}


def _encoded(codec: Codec, rows: Tensor) -> Tensor:
    """(2 n, 2, C, h, w) float16, every picture and its mirror image, as the encode stage keeps them."""
    both = torch.stack([rows, rows.flip(3)], 1).flatten(0, 1)
    found = [codec.moments(part.to(codec.model.device)).half() for part in both.split(BATCH)]
    return torch.cat(found)


def no_bf16(device: torch.device) -> str | None:
    """Why bf16 is not measured on a device; None where it has instructions for it."""
    if device.type == "cuda":
        return None if torch.cuda.is_bf16_supported() else f"{torch.cuda.get_device_name(device)} has no bf16"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "cannot tell whether this CPU has bf16 instructions"
    has = "avx512_bf16" in flags or "amx_bf16" in flags
    return None if has else "this CPU has no bf16 instructions: torch would emulate them"
