"""How networks are run: as written, compiled, or replayed as CUDA graphs. It changes speed and rounding, never a cell's identity.

eager     as written
compiled  each block through torch.compile, in place; passes are filled up to a few numbers of rows, so that shapes repeat
graphs    compiled, and forward and backward of a step, or the network while sampling, as CUDA graphs
auto      graphs on a GPU, eager on a CPU
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

KINDS = ("auto", "eager", "compiled", "graphs")


@dataclass(frozen=True)
class Execution:
    """What is done of it. name: "eager", "compiled" or "graphs"."""

    name: str = "eager"

    @property
    def compiled(self) -> bool:
        return self.name != "eager"

    @property
    def graphs(self) -> bool:
        return self.name == "graphs"


PLAIN = Execution()


def resolve(kind: str, device: torch.device) -> Execution:
    """What a setting means on a device: CUDA graphs need CUDA, elsewhere the rest of them is done. Raises ValueError for another word."""
    if kind not in KINDS:
        raise ValueError(f"execution is {', '.join(KINDS)}, not {kind!r}")
    gpu = device.type == "cuda"
    if kind == "auto":
        return Execution("graphs" if gpu else "eager")
    return Execution("compiled" if kind == "graphs" and not gpu else kind)
