"""Evaluation protocols by name, and the extractors that measure; readable without torch.

A protocol says what is compared with what. An evaluation is a protocol at one sampler and one guidance value, on one milestone.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltbench.canonical import digest
from ltbench.errors import EnvironmentProblem, UsageError

INDEX = Path(__file__).resolve().parent / "metrics" / "weights" / "index.json"
DDPM_STEPS = 1000
# pipeline -> samplers that integrate its process
SAMPLERS = {
    "sit": ("euler", "heun", "dopri5", "sde-euler", "sde-heun"),
    "ddpm": ("ddim", "ddim-corrected", "ddpm"),
}
NOISY = ("sde-euler", "sde-heun", "ddpm")  # samplers that draw noise at every step
_SDE = {"diffusion": "sigma", "diffusion_norm": 1.0, "last_step": "mean", "last_step_size": 0.04}
# sampler -> its own settings, with the released defaults; an evaluation writes them all out
OPTIONS: dict[str, dict[str, Any]] = {
    "dopri5": {"atol": 1e-6, "rtol": 1e-3},
    "sde-euler": _SDE,
    "sde-heun": _SDE,
}
# guidance schedule -> its parameters; None: has no default
SCHEDULES: dict[str, dict[str, float | None]] = {
    "constant": {},
    "linear": {},
    "gamma": {"gamma": 100.0},
    "cosine": {},
    "interval": {"low": 0.0, "high": None},
}


@dataclass(frozen=True)
class Protocol:
    """samples: generated images, a multiple of the classes. labels: `balanced` = image k has class k % K, exactly.

    block: images per padded sampling block. quantise: how [-1, 1] becomes uint8 before features are taken.
    """

    doc: str
    samples: int
    labels: str = "balanced"
    block: int = 100
    quantise: str = "round"


PROTOCOLS = {
    "small-data": Protocol(
        "balanced generated images against the data set's balanced held-out images, for sets of a few thousand images",
        samples=500,
    )
}


@functools.cache
def extractors() -> dict[str, dict[str, Any]]:
    """The shipped feature extractors: name -> {"file", "sha256", "datasets", "dim", ...}. Raises EnvironmentProblem."""
    try:
        return json.loads(INDEX.read_text())
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"{INDEX}: cannot read the list of extractors: {error}",
            "restore it from the repository (git checkout -- ltbench/metrics/weights)",
        ) from None


def extractor(name: str) -> dict[str, str]:
    """`{"name", "sha256"}` of a shipped extractor, as evaluations hold it. Raises UsageError for an unknown name."""
    known = extractors()
    if name not in known:
        raise UsageError(f"unknown extractor '{name}'", f"there are {', '.join(sorted(known)) or 'none'}")
    return {"name": name, "sha256": known[name]["sha256"]}


_FAMILIES = (
    "dinov3",
    "dinov2",
    "dino",
    "siglip",
    "clip",
    "mae",
    "beit",
    "eva",
    "jepa",
    "efficientnet",
    "inception",
)


def extractor_family(name: str) -> str:
    """What kind of network an extractor or an encoder is: "dinov2" for timm:vit_base_patch14_dinov2.lvd142m. Never raises.

    A name that says nothing of how it was trained gives its architecture ("resnet" for timm:resnet50.a1_in1k).
    """
    bare = name.partition("#")[0].partition("@")[0].removeprefix("timm:")
    if bare == "lite0":
        return "efficientnet"
    known = next((word for word in _FAMILIES if word in bare), None)
    start = re.match("[a-z]+", bare)
    return known or (start.group() if start else bare)


def evaluation_id(evaluation: dict[str, Any]) -> str:
    """12 hex digits of what an evaluation is: equal ids mean comparable numbers."""
    return digest(evaluation)[:12]


Wrong = tuple[str, str]
"""The key of an entry of `evaluate` that is wrong, and why."""


def check_steps(pipeline: str, sampler: str, steps: int | None) -> str | None:
    """What is wrong with a sampler's number of steps in a pipeline, or None."""
    found = sampler_problems(pipeline, {"sampler": sampler, "steps": steps})
    return found[0][1] if found else None


def sampler_problems(pipeline: str, entry: Mapping[str, Any]) -> list[Wrong]:
    """What is wrong with an entry's sampler, its steps and its own settings. A key that holds None counts as not given."""
    sampler, steps = entry["sampler"], entry.get("steps")
    everywhere = [name for names in SAMPLERS.values() for name in names]
    if sampler not in everywhere:
        return [("sampler", f"unknown sampler '{sampler}'; samplers are {', '.join(everywhere)}")]
    if sampler not in SAMPLERS[pipeline]:
        own = ", ".join(SAMPLERS[pipeline])
        message = f"sampler '{sampler}' does not belong to pipeline '{pipeline}'; its samplers are {own}"
        return [("sampler", message)]
    wrong = [("steps", message)] if (message := _steps_problem(sampler, steps)) else []
    for key in sorted({key for options in OPTIONS.values() for key in options}):
        if entry.get(key) is not None and key not in OPTIONS.get(sampler, {}):
            owners = ", ".join(name for name, options in OPTIONS.items() if key in options)
            wrong.append((key, f"sampler '{sampler}' takes no {key}; it belongs to {owners}"))
    return wrong + (_last_step_problems(sampler, entry) if entry.get("last_step") == "none" else [])


def _steps_problem(sampler: str, steps: int | None) -> str | None:
    if sampler == "dopri5":
        return None if steps is None else "dopri5 chooses its own steps, by atol and rtol: leave steps out"
    if steps is None:
        return f"sampler '{sampler}' needs the key 'steps'"
    if steps < 1:
        return f"steps is {steps}; it is a whole number from 1 up"
    if sampler == "ddim" and (steps < 2 or DDPM_STEPS % steps):
        fitting = ", ".join(str(n) for n in range(2, DDPM_STEPS + 1) if DDPM_STEPS % n == 0)
        return f"ddim takes a number of steps that divides {DDPM_STEPS}: {fitting}"
    if sampler == "ddim-corrected" and steps > DDPM_STEPS:
        return f"the chain has {DDPM_STEPS} steps, and ddim-corrected can take no more"
    if sampler == "ddpm" and steps != DDPM_STEPS:
        return f"ddpm takes every step of the chain: steps is {DDPM_STEPS}"
    if sampler in ("sde-euler", "sde-heun") and steps < 2:
        return f"{sampler} counts the points of its grid, as released, and needs 2"
    return None


def _last_step_problems(sampler: str, entry: Mapping[str, Any]) -> list[Wrong]:
    wrong = []
    if entry.get("last_step_size") is not None:
        wrong.append(("last_step_size", "there is no last step to have a size: leave last_step_size out"))
    if sampler == "sde-heun":
        message = "sde-heun would ask for the score at s = 1, which is 0/0 there: take mean, euler or tweedie"
        wrong.append(("last_step", message))
    return wrong


def guidance_problems(entry: Mapping[str, Any]) -> list[Wrong]:
    """What is wrong with an entry's guidance, its schedule and its labels; `labels: null` is unconditional sampling."""
    guided = [key for key in ("guidance", "schedule", "guidance_channels") if entry.get(key) is not None]
    if entry["labels"] is None:
        return [(key, f"sampling without labels is not guided: leave {key} out") for key in guided]
    if "guidance" not in guided:
        return [("", "needs the key 'guidance' (1 samples without guidance), or labels: null")]
    schedule = entry.get("schedule")
    return [] if schedule is None else _schedule_problems(schedule)


def _schedule_problems(schedule: Mapping[str, Any]) -> list[Wrong]:
    name = schedule["name"]
    taken = SCHEDULES[name]
    given = {key: value for key, value in schedule.items() if key != "name" and value is not None}
    wrong = [
        (f"schedule.{key}", f"schedule '{name}' takes {', '.join(taken) or 'no parameters'}, not {key}")
        for key in given
        if key not in taken
    ]
    values = {**taken, **given}
    wrong += [("schedule", f"schedule '{name}' needs {key}") for key in taken if values[key] is None]
    if wrong:
        return wrong
    if name == "interval" and not values["low"] < values["high"]:
        return [("schedule", f"the interval from {values['low']:g} to {values['high']:g} is empty")]
    same = (name == "interval" and (values["low"], values["high"]) == (0, 1)) or values.get("gamma") == 1
    return [("schedule", "this schedule is constant guidance: leave it out")] if same else []


def sampler_options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler's own settings of a sound entry, every default written out."""
    options = {**OPTIONS.get(entry["sampler"], {})}
    options |= {key: entry[key] for key in options if entry.get(key) is not None}
    return {**options, "last_step_size": None} if options.get("last_step") == "none" else options


def guidance_options(entry: Mapping[str, Any], w: float) -> dict[str, Any]:
    """`schedule` and `guidance_channels` of a sound entry as far as they change anything at w: evaluations that sample the same
    images have one id, and constant guidance of all channels has the id it had before there was anything else."""
    found: dict[str, Any] = {}
    schedule = entry.get("schedule")
    if schedule is not None and schedule["name"] != "constant":
        name = schedule["name"]
        values = {**SCHEDULES[name], **{k: v for k, v in schedule.items() if v is not None}}
        idle = w == (1 if name in ("interval", "cosine") else 0)
        found = {} if idle else {"schedule": {k: v if k == "name" else float(v) for k, v in values.items()}}
    channels = entry.get("guidance_channels")
    if channels is not None and (found or w != 1):
        found["guidance_channels"] = channels
    return found


def sampling_text(evaluation: Mapping[str, Any]) -> str:
    """How an evaluation samples, in words: "euler 20 steps, guidance 1.5"; what is not a default is named."""
    sampler, options = evaluation["sampler"], {**evaluation}
    text = sampler if options.get("steps") is None else f"{sampler} {options['steps']} steps"
    if sampler == "dopri5":
        block = f"steps shared by blocks of {options['block']}"
        text += f" (atol {options['atol']:g}, rtol {options['rtol']:g}, {block})"
    if "diffusion" in options:
        norm = "" if options["diffusion_norm"] == 1 else f" x {options['diffusion_norm']:g}"
        size = "" if options["last_step_size"] is None else f" of {options['last_step_size']:g}"
        text += f" (diffusion {options['diffusion']}{norm}, last step {options['last_step']}{size})"
    if evaluation.get("labels", "balanced") is None:
        return f"{text}, unconditional"
    channels = options.get("guidance_channels")
    on = "" if channels is None else f" on the first {channels} channels"
    if options.get("guidance") is None:  # a table in which every row has its own
        return f"{text}, chosen guidance{on}{_schedule_text(options.get('schedule'))}"
    return f"{text}, guidance {options['guidance']:g}{on}{_schedule_text(options.get('schedule'))}"


def _schedule_text(schedule: Mapping[str, Any] | None) -> str:
    match schedule:
        case None:
            return ""
        case {"name": "interval", "low": low, "high": high}:
            return f" for noise levels {low:g} to {high:g}"
        case {"name": "gamma", "gamma": gamma}:
            return f", gamma schedule ({gamma:g})"
    return f", {schedule['name']} schedule"
