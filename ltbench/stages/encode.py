"""Encode the training images of a data set, once for all cells that train on their latents."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from ltbench import sources, vaes
from ltbench.collect import Preempted
from ltbench.datasets import Dataset
from ltbench.draws import Latents
from ltbench.errors import EnvironmentProblem, LtbenchError
from ltbench.latents.codec import load_codec
from ltbench.latents.moments import Encoding, Moments, moments_of
from ltbench.places import place
from ltbench.stages.common import Stage


def encode(stage: Stage, data: Dataset, key: str) -> dict[str, Any]:
    """Make the latents that trainings of this data set wait for; what is there already is checked and kept."""
    if key != sources.latents_key(stage.settings["dataset"]):
        raise LtbenchError(
            "the data set or the code that encodes it changed since this job was planned",
            "Run the same command again.",
        )
    try:
        _moments(stage, data)
    except Preempted:
        return {"outcome": "preempted"}
    return {"outcome": "done"}


def latents_of(stage: Stage, data: Dataset) -> Latents | None:
    """What a cell trains on, where it trains on latents: found, or made here where no job of its own did.

    Of several ranks the leader makes what is missing, and the others find it. Raises Preempted after a stop.
    """
    if vaes.named(stage.settings["dataset"]) is None:
        return None
    stopped, moments = False, None
    if stage.ranks.leads:
        try:
            moments = _moments(stage, data)
        except Preempted:
            stopped = True
    if stage.ranks.tell(stopped):
        raise Preempted
    moments = moments or _moments(stage, data)
    codec = load_codec(moments.vae["name"], stage.device)
    pairs = [array.reshape(-1, *array.shape[2:]) for array in moments.arrays]
    return Latents(place(pairs, stage.device, stage.notice), codec.scale, codec.shift)


def _moments(stage: Stage, data: Dataset) -> Moments:
    """The moments of the training images, in the scratch folder."""
    dataset, images = stage.settings["dataset"], data.train()
    name = vaes.named(dataset)
    assert name is not None, "asked for latents"
    if problem := vaes.problem(name):
        raise EnvironmentProblem(problem)
    last = [time.monotonic()]

    def progress(done: int) -> None:
        if done < len(images) and time.monotonic() - last[0] < 0.5:
            return
        last[0] = time.monotonic()
        state = {
            "step": done,
            "total": len(images),
            "loss": None,
            "images_per_s": done / (time.time() - stage.started),
        }
        stage.claim.beat(**state)
        stage.emit({"type": "progress", "cell": stage.run.cell, "stage": "encode", **state})

    how = Encoding(
        root=sources.latents_root(stage.run.store.scratch),
        codec=partial(load_codec, name, stage.device),
        progress=progress,
        notice=stage.notice,
        stop=stage.stop,
    )
    return moments_of(images.images, data.sha256(), dataset, str(stage.device), how)
