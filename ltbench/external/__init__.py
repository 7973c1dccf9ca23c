"""Weights from somebody else's file for one of our networks: `read_external("cbdm.pt", network)`.

The file is read as data (`reading`), its family is told from its names, and every tensor is put where it belongs (`layouts`).
What does not fit is reported all at once, and nothing is loaded in part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltbench.errors import LtbenchError
from ltbench.external.layouts import (
    FAMILIES,
    FIXED_TOLERANCE,
    LABELS,
    Layout,
    Place,
    State,
    describe,
    layout_of,
    recognise,
)
from ltbench.external.reading import SUFFIXES, Contents, WeightsRefused, plain, read_contents, tensors
from ltbench.networks import Network

__all__ = [
    "FAMILIES",
    "LABELS",
    "SUFFIXES",
    "External",
    "WeightsMismatch",
    "WeightsRefused",
    "read_external",
]

STATES = {"ema": ("ema", "ema_model"), "model": ("model", "net_model", "state_dict")}
ARGUMENTS = ("args",)
STEPS = ("steps", "step")


class WeightsMismatch(LtbenchError):
    """Weights that do not fit the network; the message lists every name that is missing, unexpected or of another shape."""


@dataclass(frozen=True)
class External:
    """Weights under our names, float32 on the CPU.

    sha256: of the file. family: one of FAMILIES. state: the entry of the file that was taken, "" for a bare state dict. step: the
    training step that the file tells, None where it tells none. dropped: names that have no place in ours, by reason.
    """

    sha256: str
    family: str
    state: str
    weights: State
    step: int | None
    dropped: dict[str, list[str]]


def read_external(
    path: Path,
    network: Network,
    *,
    sha256: str | None = None,
    weights: str = "ema",
    family: str | None = None,
    any_classes: bool = False,
) -> External:
    """The weights in `path` for `network`.

    sha256: refuse any other file. weights: "ema" or "model", for files that hold both; a bare state dict is taken as it is.
    family: read it as this one (a REPA file without its projectors looks like SiT's). any_classes: the table of classes may have
    another number of rows or be absent, then it is not among `weights`; the caller settles it.

    Raises WeightsRefused for a file that cannot be read as data, WeightsMismatch with everything that does not fit.
    """
    contents = read_contents(Path(path), sha256)
    entry, state = _state(contents, weights)
    try:
        known = family or recognise(state)
        layout = layout_of(known, network)
    except LtbenchError as error:
        raise WeightsMismatch(f"{path}: {error.message}", error.hint) from error
    arguments = next((plain(contents.value[key]) for key in ARGUMENTS if key in contents.value), None)
    _refuse_arguments(layout, arguments if isinstance(arguments, dict) else {}, path)
    found, dropped = _fit(layout, state, network, path, any_classes)
    step = next((s for key in STEPS if isinstance(s := contents.value.get(key), int)), None)
    return External(contents.sha256, known, entry, found, step, dropped)


def _state(contents: Contents, weights: str) -> tuple[str, State]:
    """(name of the entry, its tensors)."""
    bare = tensors(contents.value)
    if bare is not None:
        return "", bare
    for name in STATES[weights]:
        found = tensors(contents.value.get(name))
        if found is not None:
            return name, found
    wanted = " or ".join(STATES[weights])
    held = ", ".join(sorted(contents.value)) or "nothing"
    other = next(
        (kind for kind, names in STATES.items() if any(name in contents.value for name in names)), None
    )
    hint = f"`weights: {other}` takes the others" if other not in (None, weights) else None
    raise WeightsMismatch(f"{contents.path} has no state dict {wanted}; it holds {held}", hint)


def _refuse_arguments(layout: Layout, arguments: dict[str, Any], path: Path) -> None:
    """A file whose own command line asks for another process than ours would load well and sample noise."""
    wrong = [
        f"{key} {arguments[key]!r} (expected {' or '.join(allowed)})"
        for key, allowed in layout.refuses.items()
        if key in arguments and arguments[key] not in allowed
    ]
    if wrong:
        raise WeightsMismatch(
            f"{path} was trained with {', '.join(wrong)}, which the network here cannot run"
        )


def _fit(
    layout: Layout, state: State, network: Network, path: Path, any_classes: bool
) -> tuple[State, dict[str, list[str]]]:
    """Our tensors by name, and what was dropped. Raises WeightsMismatch."""
    theirs = layout.before(state)
    dropped: dict[str, list[str]] = {}
    for prefix, reason in layout.ignored.items():
        for name in [name for name in theirs if name.startswith(prefix)]:
            dropped.setdefault(reason, []).append(name)
            del theirs[name]
    problems = [*_fixed_problems(layout, theirs), *_problems(layout, theirs, network, any_classes)]
    if problems:
        looks = describe(layout.family, state)
        message = f"{path} ({layout.family}) does not fit the network:\n  " + "\n  ".join(problems)
        raise WeightsMismatch(message, f"the file looks like {looks}" if looks else None)
    parts: dict[str, dict[int, Tensor]] = {}
    for name, place in layout.places.items():
        if name in theirs:
            parts.setdefault(place.name, {})[place.part] = theirs[name].to(torch.float32)
    ours = {
        name: torch.cat([held[part] for part in sorted(held)]).contiguous() for name, held in parts.items()
    }
    return layout.after(ours), dropped


def _fixed_problems(layout: Layout, theirs: State) -> list[str]:
    """Tables that follow from the size; taken out of `theirs`."""
    problems = []
    for name, table in layout.fixed.items():
        given = theirs.pop(name, None)
        if given is None:
            continue
        if given.shape != table.shape:
            problems.append(f"misshapen: {name} is {_shape(given)}, expected {_shape(table)}")
        elif (given.float() - table.cpu()).abs().max() > FIXED_TOLERANCE:
            problems.append(f"other values: {name} is a fixed table, and this one differs from ours")
    return problems


def _problems(layout: Layout, theirs: State, network: Network, any_classes: bool) -> list[str]:
    """Everything that does not fit, in the order of the network, then of the file."""
    own = network.state_dict()
    problems = []
    for name, place in layout.places.items():
        expected = _expected(own[place.name], place)
        loose = any_classes and place.name == LABELS
        if name not in theirs:
            if not loose:
                problems.append(f"missing: {name}, expected {expected}")
            continue
        given = tuple(theirs[name].shape)
        if given[1:] != expected[1:] if loose else given != expected:
            problems.append(f"misshapen: {name} is {_shape(theirs[name])}, expected {expected}")
        elif not theirs[name].is_floating_point() or not bool(theirs[name].isfinite().all()):
            problems.append(
                f"not finite: {name} ({theirs[name].dtype}) holds something else than finite numbers"
            )
    filled = {place.name for place in layout.places.values()}
    problems += [f"missing: nothing in this family fills {name}" for name in own if name not in filled]
    problems += [f"unexpected: {name} {_shape(theirs[name])}" for name in theirs if name not in layout.places]
    return problems


def _expected(ours: Tensor, place: Place) -> tuple[int, ...]:
    return (ours.shape[0] // place.parts, *ours.shape[1:])


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
