"""Training recipes. A preset names what an official recipe fixes; a key given in the YAML wins over it.

Sources, one column each: willisma/SiT, sihyun-yu/REPA, w86763777/pytorch-ddpm, qym7/CBDM-pytorch, MediaBrain-SJTU/OC_LT, and the
CCUA release (C-Fun/Contrastive-Conditional-Unconditional-Alignment-for-Long-tailed-Diffusion-Model), whose runs are `seed-*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltbench.spec.types import spell

PIPELINES: dict[str, dict[str, Any]] = {
    "sit": {
        "optimizer": "adamw",
        "lr": 1e-4,
        "warmup": 0,
        "clip_norm": None,
        "ema": 0.9999,
        "label_drop": 0.1,
        "label_drop_mode": "sample",
        "dropout": 0.0,
    },
    "ddpm": {
        "optimizer": "adam",
        "lr": 2e-4,
        "warmup": 5000,
        "clip_norm": 1.0,
        "ema": 0.9999,
        "label_drop": 0.1,
        "label_drop_mode": "batch",
        "dropout": 0.1,
    },
}

_SIT = {**PIPELINES["sit"], "betas": (0.9, 0.999), "weight_decay": 0.0, "flip": True, "precision": "tf32"}
_DDPM = {**PIPELINES["ddpm"], "betas": (0.9, 0.999), "weight_decay": 0.0, "flip": True, "precision": "fp32"}

# name -> (pipeline, what it fixes)
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "sit": ("sit", {**_SIT, "batch": 256, "local_batch": 32}),
    # raywang4/DispLoss, the torch tree: SiT's own script.
    "dispersive": ("sit", {**_SIT, "batch": 256, "local_batch": 32}),
    # REPA ran in fp16 with a loss scaler, which the trainer does not have; bf16 needs none.
    "repa": ("sit", {**_SIT, "batch": 256, "clip_norm": 1.0, "precision": "bf16", "flip": False}),
    "seed-sit": ("sit", {**_SIT, "batch": 48, "local_batch": 12}),
    "pytorch-ddpm": ("ddpm", {**_DDPM, "batch": 128, "label_drop": 0.0}),
    # 48 is CBDM's own rows; its plain DDPM rows used 64 (`cbdm-ddpm`).
    "cbdm": ("ddpm", {**_DDPM, "batch": 48}),
    "cbdm-ddpm": ("ddpm", {**_DDPM, "batch": 64}),
    "cbdm-ada": ("ddpm", {**_DDPM, "batch": 48, "augment": "ada", "augment_probability": 0.12}),
    "oclt": ("ddpm", {**_DDPM, "batch": 128}),
    # CIFAR at 32 px.
    "seed-ddpm": ("ddpm", {**_DDPM, "batch": 64}),
    # Tiny ImageNet and Places at 64 px. The paper says 2 GPUs, the released script 4; 64 images per GPU is the paper's.
    "seed-ddpm-64px": ("ddpm", {**_DDPM, "batch": 128, "local_batch": 64}),
}


def deviations(
    preset: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """{key: (value, the recipe's value)} of every setting of `train` in which a recipe is not followed, in the order of `settings`.

    defaults: what holds for keys that the recipe leaves open. A local batch that it leaves open is the whole batch.
    """
    fixed = {**defaults, **PRESETS[preset][1]}
    if fixed.get("local_batch") is None:
        fixed["local_batch"] = settings["batch"]
    pairs = {key: (value, thawed(fixed[key])) for key, value in settings.items()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def thawed(value: Any) -> Any:
    """JSON-able: a tuple as a list."""
    return list(value) if isinstance(value, tuple) else value


def recipe_text(preset: str, differing: Mapping[str, tuple[Any, Any]]) -> str:
    """ "seed-sit", or "seed-sit, but for batch 96 (there 48)"."""
    if not differing:
        return preset
    said = ", ".join(
        f"{key} {spell(value)} (there {spell(fixed)})" for key, (value, fixed) in differing.items()
    )
    return f"{preset}, but for {said}"
