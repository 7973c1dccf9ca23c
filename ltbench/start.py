"""The weights a cell begins at, when they are not its own initialisation: another cell's milestone, or somebody else's file.

What passes is the network's EMA weights and nothing else: the network and its EMA both begin there, the optimiser, the method's own
parameters, the step and every random stream begin anew (qym7/CBDM-pytorch:main.py fine-tunes in the same way). The table of classes
is kept; or every class begins at the mean of the old classes, or at its initialisation. A null row is always kept where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltbench import provenance
from ltbench.checkpoint import load_milestone, weights_sha256
from ltbench.errors import LtbenchError
from ltbench.external import LABELS, OPTIONAL, read_external
from ltbench.networks import Network
from ltbench.store import Store
from ltbench.trainer import Trainer

Weights = dict[str, Tensor]


class StartProblem(LtbenchError):
    """The weights that a cell is to begin at are not there, not the ones meant, or do not fit."""


def start(trainer: Trainer, init: Mapping[str, Any], store: Store, place: str | None) -> None:
    """Put the weights that `init` (of a cell's settings) names into a fresh trainer.

    place: the run of the source cell (None: the present code's), or the path of the file. Raises StartProblem.
    """
    network = trainer.parts.objective.network
    try:
        if "source" in init:
            weights, origin = _from_cell(init, store, place)
        else:
            weights, origin = _from_file(init, network, place)
        weights = settle(weights, network, init["classes"])
    except StartProblem:
        raise
    except LtbenchError as error:
        raise StartProblem(f"the starting weights cannot be had: {error.message}", error.hint) from error
    origin |= {
        "classes": init["classes"],
        "prior_steps": init["prior_steps"],
        "weights": weights_sha256(weights),
    }
    trainer.start(weights, origin)


def _from_cell(init: Mapping[str, Any], store: Store, run: str | None) -> tuple[Weights, dict[str, Any]]:
    if run is None:
        run = provenance.run_id(provenance.train_code(init["source"]), init["source"])
    weights, info = load_milestone(store.run(init["cell"], run).milestones, init["step"])
    return weights, {"cell": init["cell"], "run": run, "step": init["step"], "sha256": info["sha256"]}


def _from_file(init: Mapping[str, Any], network: Network, path: str | None) -> tuple[Weights, dict[str, Any]]:
    if path is None:
        raise StartProblem(f"the cell begins at the file of sha256 {init['sha256']}, and no place was told")
    keep = init["classes"] == "keep"
    found = read_external(
        Path(path),
        network,
        sha256=init["sha256"],
        weights=init["weights"],
        family=init["family"],
        any_classes=not keep,
    )
    # a released loop counts from 0 and saves within the step: its count is one less than the updates
    if found.step is not None and abs(found.step - init["prior_steps"]) > 1:
        raise StartProblem(
            f"{path} says that it is of step {found.step}, and prior_steps is {init['prior_steps']}"
        )
    return found.weights, {"sha256": found.sha256, "family": found.family, "state": found.state}


def settle(weights: Mapping[str, Tensor], network: Network, rule: str) -> Weights:
    """`weights` with their table of classes settled for `network` by `rule`: keep, mean or fresh. Raises StartProblem."""
    own = network.state_dict()
    found = dict(weights)
    if rule != "keep":
        found[LABELS] = _table(found.get(LABELS), own[LABELS].cpu(), network.classes, rule)
    found = {name: tensor for name, tensor in found.items() if name in own or not name.startswith(OPTIONAL)}
    found |= {name: own[name].cpu() for name in own if name.startswith(OPTIONAL) and name not in found}
    problems = [
        f"{name}: {_shape(found.get(name))}, and the network has {_shape(own.get(name))}"
        for name in sorted({*found, *own})
        if _shape(found.get(name)) != _shape(own.get(name))
    ]
    if problems:
        hint = (
            "`classes: mean` or `classes: fresh` starts with other classes."
            if LABELS in problems[0]
            else None
        )
        raise StartProblem("the starting weights do not fit the network:\n  " + "\n  ".join(problems), hint)
    return found


def _table(old: Tensor | None, fresh: Tensor, classes: int, rule: str) -> Tensor:
    """(K, D) or, with a null row, (K + 1, D)."""
    nulls = len(fresh) - classes
    if old is None:
        if rule == "mean":
            raise StartProblem(
                "classes: mean needs a table of classes, and the weights have none", "Use classes: fresh."
            )
        return fresh.clone()
    rows, null = old[: len(old) - nulls], old[len(old) - nulls :]
    if rule == "mean":
        mean = rows.double().mean(0, keepdim=True).to(rows.dtype)
        return torch.cat([mean.expand(classes, -1), null])
    return torch.cat([fresh[:classes], null])


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))
