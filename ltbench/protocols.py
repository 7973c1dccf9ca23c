"""Evaluation protocols by name, and the extractors that measure; readable without torch.

A protocol says what is compared with what. An evaluation is a protocol at one sampler and one guidance value, on one milestone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ltbench.canonical import digest
from ltbench.errors import LtbenchError

# Evaluations name their extractor: what is known of one without torch can be had here too.
from ltbench.extractors import extractor as extractor
from ltbench.extractors import extractor_family as extractor_family
from ltbench.extractors import extractor_problem as extractor_problem
from ltbench.extractors import extractors as extractors
from ltbench.groups import groups

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
PRECISIONS = ("fp32", "tf32", "bf16")  # of a network's arithmetic
# guidance schedule -> its parameters; None: has no default
SCHEDULES: dict[str, dict[str, float | None]] = {
    "constant": {},
    "linear": {},
    "gamma": {"gamma": 100.0},
    "cosine": {},
    "interval": {"low": 0.0, "high": None},
}


# Everything that can be measured, by kind; what is printed depends on the extractor (metrics/naming.py).
METRICS = (
    *("FD", "sFD", "CS", "KD", "KD-subsets", "precision", "recall", "density", "coverage"),
    *("CT", "copied", "authenticity", "vendi"),
)
UNDIRECTED = ("authenticity", "vendi")  # more is not better: noise is authentic and diverse too
OF_TRAINING = ("CT", "copied", "authenticity")  # compare with the training images too
# Estimators as ltbench.metrics takes them (metrics/estimators.py); a protocol names what differs from the defaults.
SMALL = ("FD", "KD", "precision", "recall", "density", "coverage", "vendi", "CT", "copied", "authenticity")


@dataclass(frozen=True)
class Protocol:
    """Everything that must be equal for two numbers to be comparable, under one name.

    samples: generated images. classes: which are sampled, `all` or one group. labels: `balanced` = image k has class k mod K;
    an evaluation may ask for `uniform` instead, as the released samplers draw them. block: images per padded sampling block, and
    per batch of the extractor. quantise: how [-1, 1] becomes what the extractor sees. extractor: None is the data set's own.
    crop: how non-square reference images were made square. metrics: the columns, in order. estimators: what differs from the
    defaults of the estimators.
    """

    doc: str
    samples: int
    metrics: tuple[str, ...]
    extractor: str | None = None
    classes: str = "all"
    labels: str = "balanced"
    block: int = 100
    quantise: str = "round"
    crop: str = "center"
    estimators: Mapping[str, Any] = field(default_factory=dict)


INCEPTION, INCEPTION_TORCH = "inception-2015-12-05", "inception-2015-12-05-torch"
PROTOCOLS = {
    "small-data": Protocol(
        "balanced generated images against the data set's balanced held-out images, for sets of a few thousand images",
        samples=500,
        metrics=SMALL,
    ),
    # openai/guided-diffusion evaluations/evaluator.py: chunks of 5,000 for IS, k = 3 and at most 10,000 reference images for
    # precision and recall. Their distances are fp16 there; ours are exact, which gives a recall about 0.002 lower.
    "adm-50k": Protocol(
        "as the ADM evaluator: 50,000 images of all classes against the balanced training set, Inception with TF1 resize",
        samples=50_000,
        metrics=("CS", "FD", "sFD", "precision", "recall", "KD", "density", "coverage"),
        extractor=INCEPTION,
        estimators={"inception_score": {"splits": None, "chunk": 5000}, "reference_cap": 10_000},
    ),
    # C-Fun/CCUA sample_ddp_per_class_fid.py: a pipeline of its own, not comparable with the column beside it in the paper.
    "ccua-tail-20k": Protocol(
        "the CCUA paper's FID_tail: 20,000 images of the tail classes against their balanced training images, squashed to square",
        samples=20_000,
        metrics=("FD", "KD"),
        extractor=INCEPTION_TORCH,
        classes="tail",
        crop="squash",
    ),
    # C-Fun/CCUA-DDPM evaluate.py with marcojira/fld: bytes cut, not rounded; strict < and k = 3; KID over 100 subsets.
    "ccua-ddpm-10k": Protocol(
        "the CCUA paper's DDPM tables: 10,000 images against the balanced training set, bytes cut, pytorch-fid's Inception",
        samples=10_000,
        metrics=("FD", "KD-subsets", "KD", "precision", "recall", "density", "coverage"),
        extractor=INCEPTION_TORCH,
        quantise="floor",
        estimators={"boundary": "<"},
    ),
    # qym7/CBDM-pytorch score/both.py: floats that were never rounded, ten splits for IS, k = 5.
    "cbdm-50k": Protocol(
        "as CBDM's and OCLT's own code: 50,000 unrounded images against the balanced training set, pytorch-fid's Inception",
        samples=50_000,
        metrics=("FD", "CS", "precision", "recall", "KD", "density", "coverage"),
        extractor=INCEPTION_TORCH,
        quantise="none",
        estimators={"k": 5, "inception_score": {"splits": 10}},
    ),
}


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
    if sampler in ("ddim-corrected", "ddpm") and steps > DDPM_STEPS:
        return f"the chain has {DDPM_STEPS} steps, and {sampler} can take no more"
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


def coarse_problems(pipeline: str, entry: Mapping[str, Any]) -> list[Wrong]:
    """What is wrong with the sampler of a search's first round in a sound entry."""
    coarse = (entry.get("search") or {}).get("coarse")
    if coarse is None:
        return []
    if all(coarse[key] == entry.get(key) for key in ("sampler", "steps")):
        return [("search.coarse", "is the sampler of the entry: leave coarse out")]
    return [(f"search.coarse.{key}", message) for key, message in sampler_problems(pipeline, coarse)]


def guidance_problems(entry: Mapping[str, Any]) -> list[Wrong]:
    """What is wrong with an entry's guidance, its schedule and its labels; `labels: null` is unconditional sampling."""
    keys = ("guidance", "search", "schedule", "guidance_channels")
    guided = [key for key in keys if entry.get(key) is not None]
    if entry["labels"] is None:
        return [(key, f"sampling without labels is not guided: leave {key} out") for key in guided]
    if "search" in guided and "guidance" in guided:
        return [("search", "finds the guidance: leave guidance out")]
    if not {"guidance", "search"} & set(guided):
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


def sampled_in(evaluation: Mapping[str, Any], trained_in: str | None) -> str:
    """The precision in which an evaluation samples a network that was trained in `trained_in` (None: elsewhere).

    An evaluation that names none goes by the training for TF32 alone: bf16 loses digits, and is asked for where they are lost.
    """
    return evaluation.get("precision") or ("tf32" if trained_in == "tf32" else "fp32")


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


def class_groups(evaluation: Mapping[str, Any], counts: Sequence[int]) -> dict[str, list[int]]:
    """Groups that an evaluation measures beside `all`: those of its `groups` rule, or only the group that was sampled.

    `thirds` (the default) are head, body and tail; `shots` are many (> 100 training images), medium (20 to 100) and few (< 20),
    the open long-tailed recognition benchmark's (Liu et al., arXiv 1904.05160); a mapping is taken as it is.
    Raises LtbenchError for a rule that leaves no class, or names one that does not exist.
    """
    found = _groups(evaluation.get("groups") or "thirds", counts)
    only = evaluation.get("classes", "all")
    if only == "all":
        return found
    if only not in found:
        raise LtbenchError(f"no group is called '{only}'; there are {', '.join(found)}")
    return {only: found[only]}


def _groups(rule: str | Mapping[str, Sequence[int]], counts: Sequence[int]) -> dict[str, list[int]]:
    if rule == "thirds":
        return groups(counts)
    if rule == "shots":
        ranked = sorted(range(len(counts)), key=lambda k: (-counts[k], k))
        many, few = [k for k in ranked if counts[k] > 100], [k for k in ranked if counts[k] < 20]
        medium = [k for k in ranked if 20 <= counts[k] <= 100]
        return {name: ids for name, ids in (("many", many), ("medium", medium), ("few", few)) if ids}
    if isinstance(rule, str):
        raise LtbenchError(f"no rule of groups is called '{rule}'; there are thirds and shots")
    if bad := sorted({k for ids in rule.values() for k in ids if not 0 <= k < len(counts)}):
        raise LtbenchError(f"groups name class {bad[0]}; the classes are 0 to {len(counts) - 1}")
    return {name: list(ids) for name, ids in rule.items()}


def sampled_classes(evaluation: Mapping[str, Any], counts: Sequence[int]) -> list[int]:
    """Ids of the classes that are sampled, sorted."""
    if evaluation.get("classes", "all") == "all":
        return list(range(len(counts)))
    return sorted(k for ids in class_groups(evaluation, counts).values() for k in ids)


def at_guidance(evaluation: Mapping[str, Any], w: float, **changes: Any) -> dict[str, Any]:
    """The evaluation at one guidance value, its schedule and channels written out as far as they change anything there.

    Of a search it is one of the evaluations that the search makes; `changes` are then its round's samples and seed.
    """
    left_out = {"search", "schedule", "guidance_channels"}
    rest = {key: value for key, value in evaluation.items() if key not in left_out}
    return {**rest, **changes, "guidance": float(w), **guidance_options(evaluation, float(w))}


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
    if "precision" in options:
        text += f" in {options['precision']}"
    if evaluation.get("labels", "balanced") is None:
        return f"{text}, unconditional"
    if "search" in options:
        tried, coarse = options["search"]["guidance"], options["search"].get("coarse")
        first = f", first by {coarse['sampler']} {coarse['steps']} steps" if coarse else ""
        return f"{text}, guidance searched in {', '.join(f'{w:g}' for w in tried)}{first}"
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
