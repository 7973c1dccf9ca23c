"""What the published code computes and how it names its weights, stated again over plain dicts of tensors.

Sources of names, shapes and forward passes: willisma/SiT:models.py, sihyun-yu/REPA:models/sit.py, qym7/CBDM-pytorch:model/model.py
(w86763777/pytorch-ddpm:model.py without label_embedding). Sources of the files' top level: their train.py and main.py.
Deliberately written another way than ltbench.networks: one function per pass, float64 on request, no module.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


class Maker:
    """Random tensors by name."""

    def __init__(self, seed: int) -> None:
        self.rng = torch.Generator().manual_seed(seed)
        self.state: State = {}

    def add(self, name: str, *shape: int, bias: bool = True) -> None:
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        self.state[f"{name}.weight"] = torch.randn(shape, generator=self.rng) * fan**-0.5
        if bias:
            self.state[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=self.rng)


# --- transformers ---------------------------------------------------------------------------------------------------


def position_table(side: int, width: int) -> Tensor:
    """(1, side^2, width): MAE's table, element by element."""
    table = torch.zeros(side, side, width, dtype=torch.float64)
    quarter = width // 4
    for row in range(side):
        for column in range(side):
            for k in range(quarter):
                omega = 10000.0 ** -(k / quarter)
                table[row, column, k] = math.sin(column * omega)
                table[row, column, quarter + k] = math.cos(column * omega)
                table[row, column, 2 * quarter + k] = math.sin(row * omega)
                table[row, column, 3 * quarter + k] = math.cos(row * omega)
    return table.reshape(1, side * side, width).float()


def sit_state(
    *,
    depth: int,
    width: int,
    patch: int,
    channels: int,
    size: int,
    classes: int,
    sigma: bool = True,
    seed: int = 0,
) -> State:
    """A state dict of willisma/SiT; `sigma`: learn_sigma, the default there."""
    make = Maker(seed)
    make.state["pos_embed"] = position_table(size // patch, width)
    make.add("x_embedder.proj", width, channels, patch, patch)
    make.add("t_embedder.mlp.0", width, 256)
    make.add("t_embedder.mlp.2", width, width)
    make.add("y_embedder.embedding_table", classes + 1, width, bias=False)
    for i in range(depth):
        make.add(f"blocks.{i}.attn.qkv", 3 * width, width)
        make.add(f"blocks.{i}.attn.proj", width, width)
        make.add(f"blocks.{i}.mlp.fc1", 4 * width, width)
        make.add(f"blocks.{i}.mlp.fc2", width, 4 * width)
        make.add(f"blocks.{i}.adaLN_modulation.1", 6 * width, width)
    make.add("final_layer.linear", patch * patch * channels * (2 if sigma else 1), width)
    make.add("final_layer.adaLN_modulation.1", 2 * width, width)
    return make.state


def repa_state(
    *, z_dims: tuple[int, ...] = (24, 16), projector: int = 32, width: int, seed: int = 0, **size: Any
) -> State:
    """A state dict of sihyun-yu/REPA: no sigma, one projector per encoder."""
    state = sit_state(width=width, sigma=False, seed=seed, **size)
    make = Maker(seed + 1)
    for i, dim in enumerate(z_dims):
        for place, (outside, inside) in zip(
            (0, 2, 4), ((projector, width), (projector, projector), (dim, projector)), strict=True
        ):
            make.add(f"projectors.{i}.{place}", outside, inside)
    return state | make.state


def linear(w: State, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def plain_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def sit_forward(w: State, x: Tensor, t: Tensor, y: Tensor, *, heads: int, patch: int) -> Tensor:
    """SiT.forward in evaluation mode: x (B, C, H, W), t (B,), y (B,) -> (B, C, H, W), the second half of a sigma head dropped."""
    channels, size = x.shape[1], x.shape[2]
    side, width = size // patch, len(w["x_embedder.proj.bias"])
    cut = (
        x.reshape(len(x), channels, side, patch, side, patch)
        .permute(0, 2, 4, 1, 3, 5)
        .flatten(3)
        .flatten(1, 2)
    )
    h = cut @ w["x_embedder.proj.weight"].flatten(1).T + w["x_embedder.proj.bias"] + w["pos_embed"]
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=x.dtype) / 128)
    angles = t[:, None] * frequencies
    condition = linear(w, "t_embedder.mlp.0", torch.cat([torch.cos(angles), torch.sin(angles)], 1))
    condition = linear(w, "t_embedder.mlp.2", F.silu(condition)) + w["y_embedder.embedding_table.weight"][y]
    for i in range(sum(name.endswith("attn.qkv.bias") for name in w)):
        name = f"blocks.{i}"
        parts = linear(w, f"{name}.adaLN_modulation.1", F.silu(condition))[:, None].split(width, 2)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
        h = h + gate * attend(w, f"{name}.attn", plain_norm(h) * (1 + scale) + shift, heads)
        inner = F.gelu(
            linear(w, f"{name}.mlp.fc1", plain_norm(h) * (1 + scale_mlp) + shift_mlp), approximate="tanh"
        )
        h = h + gate_mlp * linear(w, f"{name}.mlp.fc2", inner)
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", F.silu(condition))[:, None].split(width, 2)
    out = linear(w, "final_layer.linear", plain_norm(h) * (1 + scale) + shift)
    made = out.shape[-1] // patch**2
    image = torch.zeros(len(x), made, size, size, dtype=x.dtype)
    for token in range(side * side):
        row, column = divmod(token, side)
        tile = out[:, token].reshape(len(x), patch, patch, made).permute(0, 3, 1, 2)
        image[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = tile
    return image[:, :channels]


def attend(w: State, name: str, x: Tensor, heads: int) -> Tensor:
    width = x.shape[-1] // heads
    mixed = []
    q, k, v = linear(w, f"{name}.qkv", x).chunk(3, dim=-1)
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(width)
        mixed.append(scores.softmax(-1) @ v[..., own])
    return linear(w, f"{name}.proj", torch.cat(mixed, -1))


# --- U-Nets ---------------------------------------------------------------------------------------------------------


def unet_plan(
    multipliers: tuple[int, ...], attention: tuple[int, ...], count: int
) -> dict[str, list[tuple[str, int, int, bool]]]:
    """(kind, width in, width out, attention) of every entry of downblocks, middleblocks, upblocks, in units of the base width."""
    down, skips, width = [], [1], 1
    for level, wide in enumerate(multipliers):
        for _ in range(count):
            down.append(("res", width, wide, level in attention))
            width = wide
            skips.append(width)
        if level < len(multipliers) - 1:
            down.append(("down", width, width, False))
            skips.append(width)
    middle = [("res", width, width, True), ("res", width, width, False)]
    up = []
    for level in reversed(range(len(multipliers))):
        for _ in range(count + 1):
            up.append(("res", width + skips.pop(), multipliers[level], level in attention))
            width = multipliers[level]
        if level:
            up.append(("up", width, width, False))
    return {"downblocks": down, "middleblocks": middle, "upblocks": up}


def unet_state(
    *,
    base: int,
    multipliers: tuple[int, ...],
    attention: tuple[int, ...],
    count: int,
    channels: int,
    classes: int | None,
    augmented: bool = False,
    seed: int = 0,
) -> State:
    """A state dict of CBDM's U-Net; classes None: unconditional, as pytorch-ddpm's."""
    make = Maker(seed)
    wide = 4 * base
    exponent = torch.arange(0, base, 2) / base * math.log(10000)
    angles = torch.arange(1000).float()[:, None] * torch.exp(-exponent)
    make.state["time_embedding.timembedding.0.weight"] = torch.stack(
        [angles.sin(), angles.cos()], -1
    ).reshape(1000, base)
    make.add("time_embedding.timembedding.1", wide, base)
    make.add("time_embedding.timembedding.3", wide, wide)
    if classes is not None:
        make.add("label_embedding", classes, wide, bias=False)
    if augmented:
        make.add("augm_embedding", wide, 9, bias=False)
    make.add("head", base, channels, 3, 3)
    for part, entries in unet_plan(multipliers, attention, count).items():
        for i, (kind, inside, outside, attends) in enumerate(entries):
            name, inside, outside = f"{part}.{i}", inside * base, outside * base
            if kind != "res":
                make.add(f"{name}.main", outside, inside, 3, 3)
                continue
            make.add(f"{name}.block1.0", inside)
            make.add(f"{name}.block1.2", outside, inside, 3, 3)
            make.add(f"{name}.temb_proj.1", outside, wide)
            make.add(f"{name}.block2.0", outside)
            make.add(f"{name}.block2.3", outside, outside, 3, 3)
            if inside != outside:
                make.add(f"{name}.shortcut", outside, inside, 1, 1)
            if attends:
                make.add(f"{name}.attn.group_norm", outside)
                for own in ("proj_q", "proj_k", "proj_v", "proj"):
                    make.add(f"{name}.attn.{own}", outside, outside, 1, 1)
    make.add("tail.0", base)
    make.add("tail.2", channels, base, 3, 3)
    return make.state


def convolve(w: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = w[f"{name}.weight"]
    return F.conv2d(x, weight, w[f"{name}.bias"], stride, padding=weight.shape[-1] // 2)


def swish_norm(w: State, name: str, x: Tensor, groups: int, swish: bool = True) -> Tensor:
    grouped = x.reshape(len(x), groups, -1)
    grouped = (grouped - grouped.mean(2, keepdim=True)) / (
        grouped.var(2, keepdim=True, correction=0) + 1e-5
    ).sqrt()
    out = grouped.reshape(x.shape) * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]
    return out * torch.sigmoid(out) if swish else out


def res_block(w: State, name: str, x: Tensor, embedding: Tensor, groups: int) -> Tensor:
    h = convolve(w, f"{name}.block1.2", swish_norm(w, f"{name}.block1.0", x, groups))
    h = h + linear(w, f"{name}.temb_proj.1", F.silu(embedding))[:, :, None, None]
    h = convolve(w, f"{name}.block2.3", swish_norm(w, f"{name}.block2.0", h, groups))
    h = h + (convolve(w, f"{name}.shortcut", x) if f"{name}.shortcut.weight" in w else x)
    if f"{name}.attn.proj.weight" not in w:
        return h
    normed = swish_norm(w, f"{name}.attn.group_norm", h, groups, swish=False)
    q, k, v = (convolve(w, f"{name}.attn.proj_{own}", normed).flatten(2) for own in "qkv")  # (B, D, H W)
    weights = (torch.einsum("bdi,bdj->bij", q, k) / math.sqrt(q.shape[1])).softmax(-1)
    mixed = torch.einsum("bij,bdj->bdi", weights, v).reshape(h.shape)
    return h + convolve(w, f"{name}.attn.proj", mixed)


def unet_forward(w: State, x: Tensor, t: Tensor, y: Tensor | None, *, groups: int) -> Tensor:
    """UNet.forward in evaluation mode; y None is the unconditional pass."""
    h = w["time_embedding.timembedding.0.weight"][t]
    h = linear(w, "time_embedding.timembedding.3", F.silu(linear(w, "time_embedding.timembedding.1", h)))
    embedding = h if y is None else h + w["label_embedding.weight"][y]
    h = convolve(w, "head", x)
    kept = [h]
    for i in range(blocks_of(w, "downblocks")):
        name = f"downblocks.{i}"
        down = f"{name}.main.weight" in w
        h = convolve(w, f"{name}.main", h, 2) if down else res_block(w, name, h, embedding, groups)
        kept.append(h)
    for i in range(blocks_of(w, "middleblocks")):
        h = res_block(w, f"middleblocks.{i}", h, embedding, groups)
    for i in range(blocks_of(w, "upblocks")):
        name = f"upblocks.{i}"
        if f"{name}.main.weight" in w:
            h = convolve(w, f"{name}.main", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
        else:
            h = res_block(w, name, torch.cat([h, kept.pop()], 1), embedding, groups)
    return convolve(w, "tail.2", swish_norm(w, "tail.0", h, groups))


def blocks_of(w: State, part: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in w if name.startswith(f"{part}."))


# --- files ----------------------------------------------------------------------------------------------------------


def sit_file(ema: State, model: State, **args: Any) -> dict[str, Any]:
    """As train.py of willisma/SiT, DispLoss and CCUA-SiT save it; with `steps` it is REPA's."""
    steps = {"steps": args.pop("steps")} if "steps" in args else {}
    given = {
        "model": "SiT-S/2",
        "global_seed": 0,
        "path_type": "Linear",
        "prediction": "velocity",
        "ckpt": None,
        "wandb": False,
    }
    opt = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}},
        "param_groups": [{"lr": 1e-4, "params": [0]}],
    }
    return {"model": model, "ema": ema, "opt": opt, "args": argparse.Namespace(**{**given, **args}), **steps}


def cbdm_file(ema: State, model: State, step: int = 200_000) -> dict[str, Any]:
    """As main.py of pytorch-ddpm, CBDM, OC_LT and CCUA-DDPM save it."""
    sched = {
        "base_lrs": [2e-4],
        "last_epoch": step + 1,
        "_step_count": step + 2,
        "_last_lr": [2e-4],
        "lr_lambdas": [None],
    }
    return {
        "net_model": model,
        "ema_model": ema,
        "sched": sched,
        "optim": {"state": {}, "param_groups": [{"lr": 2e-4, "params": [0]}]},
        "step": step,
        "fixed_x_T": torch.zeros(2, 3, 32, 32),
    }
