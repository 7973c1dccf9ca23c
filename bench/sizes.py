"""What is measured on a GPU, and what issue 8 asks of one H200 there."""

from __future__ import annotations

import dataclasses

from worlds import World  # beside this file

LATENT = (4, 32, 32)


def _sit(size: str, batch: int) -> World:
    return World(
        f"SiT-{size}/2", "sit", LATENT, batch, min(batch, 48), latents=True, classes=1000, images=2048
    )


WORLDS = {
    "S/2 b48": _sit("S", 48),
    "B/2 b48": _sit("B", 48),
    "B/2 b256": dataclasses.replace(_sit("B", 256), local_batch=256),
    "XL/2 b256": dataclasses.replace(_sit("XL", 256), local_batch=64, micro_batch=128),
    "U-Net 32 b64": World("UNet-128", "ddpm", (3, 32, 32), 64, 64, classes=100, images=2048),
    "U-Net 64 b128": World("UNet-128", "ddpm", (3, 64, 64), 128, 128, classes=200, images=1024),
}
TINY_SIT = World("SiT-N/4", "sit", (4, 8, 8), 4, 4, images=64, latents=True)
TINY_UNET = World("UNet-16", "ddpm", (3, 8, 8), 4, 4, images=64)
# What issue 8 asks of one H200: of the steps or images per second, or of the share of the matrix rate.
TRAIN_GOALS = {
    "S/2 b48": ("steps_per_s", 150.0),
    "U-Net 32 b64": ("steps_per_s", 100.0),
    "B/2 b48": ("steps_per_s", 45.0),
    "B/2 b256": ("images_per_s", 2300.0),
    "XL/2 b256": ("images_per_s", 450.0),
    "U-Net 64 b128": ("steps_per_s", 11.0),
}
SAMPLING_GOAL = 0.4  # of the matrix rate
