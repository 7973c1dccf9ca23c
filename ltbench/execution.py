"""How networks are run: as written, compiled, or replayed as CUDA graphs. It changes speed and rounding, never a cell's identity.

eager     as written
compiled  each block through torch.compile, in place; passes are filled up to a few numbers of rows, so that shapes repeat
graphs    compiled, and forward and backward of a step, or the network while sampling, as CUDA graphs
auto      graphs on a GPU, eager on a CPU
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
NOT_RUN = "none"


@dataclass(frozen=True)
class Executed:
    """How a network was really run. name: of an `Execution`, "graphs of eager blocks" where nothing compiles, "none" where it was
    not asked, as by an evaluation whose images were there. fallback: why it is less than was meant, "" where it is not. recompute:
    activations were made again."""

    name: str = NOT_RUN
    fallback: str = ""
    recompute: bool = False

    def told(self) -> dict[str, Any]:
        """For a record's envelope."""
        why = {"execution_fallback": self.fallback} if self.fallback else {}
        return {"execution": self.name, **why, **({"recompute": True} if self.recompute else {})}


def executed(compiled: bool, graphs: bool, *why: str | None, recompute: bool = False) -> Executed:
    """What is left where something was not to be had. why: the reasons, None and "" for none."""
    plain = "compiled" if compiled else "eager"
    name = ("graphs" if compiled else "graphs of eager blocks") if graphs else plain
    return Executed(name, "; ".join(filter(None, why)), recompute)


def resolve(kind: str, device: torch.device) -> Execution:
    """What a setting means on a device: CUDA graphs need CUDA, elsewhere the rest of them is done. Raises ValueError for another word."""
    if kind not in KINDS:
        raise ValueError(f"execution is {', '.join(KINDS)}, not {kind!r}")
    gpu = device.type == "cuda"
    if kind == "auto":
        return Execution("graphs" if gpu else "eager")
    return Execution("compiled" if kind == "graphs" and not gpu else kind)
