"""What a device is assumed to do where nothing was measured on it. Every figure made from these says so."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Datasheet rates of dense products in 10^12 operations a second: (fp32, tf32, bf16). What is not there runs as fp32.
PEAKS: tuple[tuple[str, tuple[float, float, float]], ...] = (
    ("b200|gb200", (75, 1100, 2250)),
    ("h200|h100|h800|gh200", (67, 495, 989)),
    ("a100|a800", (19.5, 156, 312)),
    ("l40", (91, 183, 362)),
    ("6000 ada|ada", (91, 182, 364)),
    ("a6000", (38.7, 77, 155)),
    ("4090", (82.6, 82.6, 165)),
    ("3090", (35.6, 35.6, 71)),
    ("a40", (37.4, 75, 150)),
    ("v100", (15.7, 15.7, 15.7)),
    ("2080|t4", (8.1, 8.1, 8.1)),
)
UNKNOWN = (20.0, 40.0, 80.0)
SHARE = 0.2  # of the peak: published diffusion training reaches 4 to 25%
CPU_THREAD = 8e9  # operations a second, one thread
LAUNCH = 25e-6  # seconds that a layer of the network takes at least on a GPU, forward and backward, however small it is


@dataclass(frozen=True)
class Rate:
    """Operations a second, and how the number came about, for people. launch: least seconds per layer of a training step."""

    operations: float
    words: str
    launch: float = 0.0


def assumed(device: str, precision: str, threads: int = 1) -> Rate:
    """The rate of a device by its name: "NVIDIA A100-SXM4-80GB", "a100", "cpu (16 cores)"."""
    if device.lower().startswith("cpu"):
        rate = CPU_THREAD * threads
        return Rate(rate, f"{rate / 1e9:g} GFLOP/s assumed for {threads} CPU thread{'s' * (threads > 1)}")
    known = next((peaks for name, peaks in PEAKS if re.search(name, device, re.IGNORECASE)), None)
    peak = (known or UNKNOWN)[("fp32", "tf32", "bf16").index(precision)]
    what = device if known else f"{device}, a GPU not known here"
    words = f"{SHARE:.0%} of {peak:g} TFLOP/s ({precision}) assumed for {what}"
    return Rate(SHARE * peak * 1e12, words, LAUNCH)
