"""Answers whether cells can run, without training: `supports`, and the construction of the method with its encoders.

    python -m ltbench.questions SECONDS < QUESTIONS

reads one JSON line {"key", "settings", "vae"} per question (vae: the folder of the VAE where a spec names one), imports torch once, forks for each, and prints one JSON line
{"key", "kind", "reason"} per answer on a copy of stdout that no plugin sees. A question takes SECONDS at most.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltbench import vaes
from ltbench.answers import Answer
from ltbench.children import in_fork
from ltbench.datasets import build_dataset
from ltbench.diffusion import process_for
from ltbench.draws import resident
from ltbench.errors import EnvironmentProblem
from ltbench.methods import Unsupported, load_method
from ltbench.networks import build_network
from ltbench.order import Order
from ltbench.parts import Recipe, task_of


def main(argv: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    with torch.device("meta"):  # imports that torch puts off, 2 s of them: here, not in every fork
        build_network("UNet-16", channels=1, resolution=16, classes=2)
    seconds = float(argv[0])
    for asked in map(json.loads, sys.stdin.read().splitlines()):
        if asked.get("vae"):
            vaes.remember(asked["settings"]["dataset"][vaes.KEY], Path(asked["vae"]))
        code, found = in_fork(lambda asked=asked: asdict(answer(asked["settings"])), seconds)
        if found is None:
            how = f"did not end within {seconds:g} s" if code is None else "ended the process"
            found = asdict(Answer("broken", f"asking it whether it can run {how}"))
        answers.write(json.dumps({"key": asked["key"], **found}) + "\n")
        answers.flush()


def answer(settings: Mapping[str, Any]) -> Answer:
    """Build what `build_parts` builds, with the network's shapes alone and without reading an image."""
    method = {name: value for name, value in settings["method"].items() if name != "name"}
    try:
        task = _task(settings)
        cls = load_method(settings["method"]["name"])
        if reason := cls.supports(task):
            return Answer("unsupported", _line(reason))
        cls(task, **method)
    except Unsupported as reason:
        return Answer("unsupported", _line(reason))
    except EnvironmentProblem as reason:
        return Answer("impossible", _line(reason))
    except BaseException as error:  # SystemExit of a plugin included
        return Answer("broken", _line(f"{type(error).__name__}: {error}"))
    return Answer("yes")


def _task(settings: Mapping[str, Any]) -> Any:
    recipe = Recipe(**{**settings["train"], "betas": tuple(settings["train"]["betas"])})
    data = build_dataset(settings["dataset"])
    labels = np.repeat(np.arange(len(data.classes)), data.counts())
    order = Order(labels, len(data.classes), seed=0, batch=recipe.batch, resample=settings["resample"])
    channels, resolution, _ = vaes.network_shape(settings["dataset"], data.channels, data.resolution)
    with torch.device("meta"):
        network = build_network(
            settings["network"],
            channels=channels,
            resolution=resolution,
            classes=len(data.classes),
            dropout=recipe.dropout,
        )
    unread = resident(torch.empty(0), torch.from_numpy(labels))
    return task_of(settings, recipe, process_for(settings["pipeline"]), network, order, unread)


def _line(reason: object) -> str:
    return "; ".join(" ".join(line.split()) for line in str(reason).splitlines() if line.strip())


if __name__ == "__main__":
    main(sys.argv[1:])
