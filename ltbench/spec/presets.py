"""Training recipes. A preset names what an official recipe fixes; a key given in the YAML wins over it.

Sources, one column each: willisma/SiT, sihyun-yu/REPA, w86763777/pytorch-ddpm, qym7/CBDM-pytorch, MediaBrain-SJTU/OC_LT, and the
CCUA release (C-Fun/Contrastive-Conditional-Unconditional-Alignment-for-Long-tailed-Diffusion-Model), whose runs are `seed-*`.
"""

from __future__ import annotations

from typing import Any

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
    # REPA ran in fp16 with a loss scaler, which the trainer does not have; bf16 needs none.
    "repa": ("sit", {**_SIT, "batch": 256, "clip_norm": 1.0, "precision": "bf16", "flip": False}),
    "seed-sit": ("sit", {**_SIT, "batch": 48, "local_batch": 12}),
    "pytorch-ddpm": ("ddpm", {**_DDPM, "batch": 128, "label_drop": 0.0}),
    # 48 is CBDM's own rows; its plain DDPM rows used 64.
    "cbdm": ("ddpm", {**_DDPM, "batch": 48}),
    "cbdm-ada": ("ddpm", {**_DDPM, "batch": 48, "augment": "ada", "augment_probability": 0.12}),
    "oclt": ("ddpm", {**_DDPM, "batch": 128}),
    # CIFAR; the Tiny ImageNet and Places runs used 128.
    "seed-ddpm": ("ddpm", {**_DDPM, "batch": 64}),
}
