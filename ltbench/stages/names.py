"""How a stage is spelled. It is text, so that it travels in a JSON line and in a job script alike; no torch here.

train:280,560                    train to step 560 and keep milestones at both
evaluate:560:1a2b3c4d5e6f        evaluate the milestone at 560 by the stored description 1a2b3c4d5e6f
sample:560:1a2b3c4d5e6f:0/4      make the first of four shares of that evaluation's images
reference:1a2b3c4d5e6f           look at the real images that it compares with
encode:0123456789abcdef0123      make the latents of the data set under that key
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from ltbench.errors import LtbenchError

_STAGE = re.compile(
    r"train:(?P<steps>\d+(,\d+)*)"
    r"|evaluate:(?P<step>\d+):(?P<evaluation>\w+)"
    r"|sample:(?P<at>\d+):(?P<of>\w+):(?P<part>\d+)/(?P<parts>\d+)"
    r"|reference:(?P<real>\w+)"
    r"|encode:(?P<latents>\w+)"
)


@dataclass(frozen=True)
class Named:
    """A stage taken apart. steps: milestones, rising; evaluation: its id; part, parts: of `sample`; key: of latents."""

    kind: str
    steps: tuple[int, ...] = ()
    evaluation: str = ""
    part: int = 0
    parts: int = 1
    key: str = ""


@functools.lru_cache(maxsize=65536)  # a grid of thousands of cells has few different stages
def parse(stage: str) -> Named:
    """Raises LtbenchError for a text that is no stage."""
    match = _STAGE.fullmatch(stage)
    if match is None:
        raise LtbenchError(
            f"'{stage}' is not a stage",
            "a stage reads train:STEP[,STEP...], evaluate:STEP:EVALUATION, sample:STEP:EVALUATION:PART/PARTS "
            "reference:EVALUATION or encode:KEY",
        )
    kind = stage.partition(":")[0]
    if kind == "train":
        return Named(kind, tuple(map(int, match["steps"].split(","))))
    if kind == "evaluate":
        return Named(kind, (int(match["step"]),), match["evaluation"])
    if kind == "sample":
        return Named(kind, (int(match["at"]),), match["of"], int(match["part"]), int(match["parts"]))
    if kind == "encode":
        return Named(kind, key=match["latents"])
    return Named(kind, (), match["real"])


def milestones(stage: str) -> tuple[int, ...]:
    """The steps named in a stage: `train:280,560` -> (280, 560); `evaluate:560:...` -> (560,); `reference:...` -> ()."""
    return parse(stage).steps


def trained(stage: str) -> tuple[int, ...]:
    """The milestones that a training stage makes; none for another."""
    return milestones(stage) if stage.startswith("train:") else ()


def stage_name(stage: str) -> str:
    """The stage's name in the store: `train`, `evaluate-000000560-1a2b3c4d5e6f`, `sample-000000560-1a2b3c4d5e6f-0of4` ..."""
    named = parse(stage)
    if named.kind == "train":
        return "train"
    if named.kind == "reference":
        return f"reference-{named.evaluation}"
    if named.kind == "encode":
        return f"encode-{named.key}"
    share = f"-{named.part}of{named.parts}" if named.kind == "sample" else ""
    return f"{named.kind}-{named.steps[0]:09d}-{named.evaluation}{share}"
