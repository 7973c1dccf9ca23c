"""A mirror as offline runs of Weights & Biases, for `wandb sync` from wherever there is a network and a key."""

from __future__ import annotations

import io
import os
from itertools import groupby
from pathlib import Path
from typing import Any

from ltbench import files
from ltbench.errors import EnvironmentProblem
from ltbench.trackers import Mirror


def run_id(mirror: Mirror) -> str:
    """W&B's id of a run: other content is another run, since W&B only ever appends."""
    return f"{mirror.cell[:8]}{mirror.run[:6]}{mirror.content}"


def write(mirror: Mirror, root: Path, project: str) -> bool:
    """Log a run offline below `root`; False where the same content was logged there before.

    Raises EnvironmentProblem without the package `wandb`.
    """
    note = root / "mirrored" / run_id(mirror)
    if note.is_file():
        return False
    wandb = _package()
    files.make_directory(note.parent)
    os.environ["WANDB_SILENT"] = "true"
    run = wandb.init(
        project=project,
        name=mirror.name,
        id=run_id(mirror),
        group=mirror.cell[:12],
        dir=str(root),
        mode="offline",
        config=dict(mirror.settings),
        settings=wandb.Settings(console="off", x_disable_stats=True),
    )
    try:
        for step, found in _by_step(mirror):
            run.log({each.tag: _value(wandb, each) for each in found}, step=step)
    finally:
        run.finish()
    files.replace(note, b"")  # last: a mirror that was cut short is made again
    return True


def _by_step(mirror: Mirror) -> Any:
    """W&B takes steps in ascending order only."""
    everything = sorted([*mirror.scalars, *mirror.images], key=lambda each: (each.step, each.tag))
    return groupby(everything, key=lambda each: each.step)


def _value(wandb: Any, each: Any) -> Any:
    if not hasattr(each, "png"):
        return each.value
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(each.png), formats=["PNG"]))


def _package() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise EnvironmentProblem(
            f"wandb cannot be imported: {error}", "pip install 'ltbench[trackers]', or only wandb"
        ) from None
    return wandb
