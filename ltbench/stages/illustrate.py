"""What figures need of a milestone as a record with small files: made where the weights are, drawn anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ltbench import provenance
from ltbench.datasets import Dataset
from ltbench.evaluate import Bench, Milestone, sampling_of
from ltbench.groups import groups
from ltbench.illustrate import FeatureMap, Illustrated, Nearest, Reverse, illustrate, shown_frames
from ltbench.packed import pack
from ltbench.stages.common import Stage, context, present, put, put_tiles
from ltbench.store import Run
from ltbench.store.facts import FACT_LIMIT

HEADERS = 1 << 12  # bytes of an .npz beside its arrays


def illustrate_milestone(
    stage: Stage,
    data: Dataset,
    step: int,
    evaluation: Mapping[str, Any],
    milestone: Milestone,
    bench: Bench,
) -> None:
    """Keep the illustration of a milestone, unless the present code made it already.

    Raises Preempted after a stop, Superseded when another attempt has taken over.
    """
    code = provenance.measuring_code("illustration")["digest"]
    evaluation_id = stage.run.store.put_evaluation(dict(evaluation))
    if present(stage.run, "illustration", step, evaluation_id, code) is not None:
        return
    found = illustrate(stage.settings, evaluation, milestone, data, bench)
    body = {
        **context(stage, data, step),
        "kind": "illustration",
        "milestone": milestone.sha256,
        "evaluation": {"id": evaluation_id, **evaluation},
        "classes": list(data.classes),
        "names": [data.classes[c] for c in evaluation["illustrate"]["classes"]],
        "train_counts": [int(n) for n in data.counts()],
        "groups": groups(data.counts()),
        "facts": facts_of(stage.run, found),
    }
    body["code"] = {**body["code"], "evaluation": code}
    images = sampling_of(stage.settings, evaluation, milestone, data).images_key()
    put(stage, body, evaluation_id, images=images)


def facts_of(run: Run, found: Illustrated) -> dict[str, Any]:
    """Keep the files, and say what is in them."""
    nearest = {"of_generated": found.of_generated, "of_training": found.of_training}
    return {
        "samples": put_tiles(run, found.samples),
        "reference": put_tiles(run, found.reference),
        **{name: _nearest(run, each) for name, each in nearest.items() if each is not None},
        "maps": {str(c): _map(run, each) for c, each in found.maps.items()},
        "reverse": _reverse(run, found.reverse),
    }


def _nearest(run: Run, found: Nearest) -> dict[str, Any]:
    return {
        **put_tiles(run, found.tiles),
        "of": found.of,
        "indices": found.indices.tolist(),
        "distances": found.distances.tolist(),
        "labels": found.labels.tolist(),
    }


def _map(run: Run, found: FeatureMap) -> dict[str, Any]:
    data = pack({"features": found.features, "points": found.points, "kinds": found.kinds})
    return {"file": run.facts.put(data, "npz"), "images": np.bincount(found.kinds, minlength=3).tolist()}


def _reverse(run: Run, found: Reverse) -> dict[str, Any]:
    frames = shown_frames(found.frames, FACT_LIMIT - HEADERS)
    name = run.facts.put(pack({"frames": frames}), "npz")
    return {"file": name, "side": frames.shape[-1], "levels": found.levels, "rows": found.classes}
