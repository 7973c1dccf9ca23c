"""`--smoke`: a benchmark made small, in its own shape, so that all of it runs in about a minute on a CPU.

Every row stays, with its method, its parameters and its taps; so do the training recipe, samplers, protocols and metrics. Small are the
data (a stand-in of the same format), the network (the same blocks, narrow), batches, steps, seeds (the first), guidance values (the
first and last), samples. What would need a download is replaced: extractors by the embedded one, encoders by what a method's
preset `check` says, the VAE by `tiny-vae`, a checkpoint file by a start anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ltbench import plugins
from ltbench.protocols import PROTOCOLS, sampled_classes
from ltbench.spec import choices
from ltbench.spec.networks import network_problem
from ltbench.spec.resolved import Data, Part

Tree = dict[str, Any]

DATASET, EXTRACTOR, VAE = "standin", "fashion-cnn-v1", "tiny-vae"
CLASSES = 12  # at most
RESOLUTION = {
    False: 32,
    True: 64,
}  # by whether a VAE makes an eighth of it: the published U-Net at 64 px takes nine times as long
KEPT = ("imbalance",)  # parameters of a data set that the stand-in has too
NETWORKS = {
    "SiT-S": "SiT-SN",
    "SiT-B": "SiT-SN",
    "SiT-L": "SiT-LN",
    "SiT-XL": "SiT-XLN",
    "UNet-128": "UNet-8",
}
LOCAL_BATCH = 4
STEPS_PER_MILESTONE = 2
SIZES: Tree = {"warmup": 1, "ema": 0.9, "log_every": 1}  # of training, whatever the benchmark says
REPLACED = {*SIZES, "batch", "local_batch", "micro_batch", "preview_every", "milestones"}
SAMPLES = 24  # at least; at least two of a class too
STEPS = {"euler": 4, "heun": 2, "sde-euler": 4, "sde-heun": 4, "ddim": 4, "ddim-corrected": 4, "ddpm": 4}
NAME_LENGTH = 64


def smoke_name(name: str) -> str:
    """NAME-smoke, within the length of a name."""
    return f"{name[: NAME_LENGTH - 6]}-smoke"


def small(name: str, title: str, trees: Sequence[Tree], parts: Sequence[Part]) -> Tree:
    """The spec of a benchmark made small. trees: its parts in their long form, as they were checked; parts: what they came to."""
    made = [_part(tree, part) for tree, part in zip(trees, parts, strict=True)]
    head = {"name": smoke_name(name), "title": f"{title} (smoke test: these numbers mean nothing)"}
    if len(made) == 1 and made[0]["name"] == name:
        return {**made[0], **head}
    return {**head, "parts": made}


def _part(tree: Tree, part: Part) -> Tree:
    data, recipe = next(iter(part.data.values())), next(iter(part.recipes.values()))
    dataset, steps = _dataset(data), _steps(tree)
    resolution = dataset["resolution"] // (8 if "latents" in dataset else 1)
    several = recipe.settings["batch"] > recipe.settings["local_batch"]
    kept = {key: value for key, value in tree["train"].items() if key not in REPLACED}
    train = {**kept, **SIZES, "batch": LOCAL_BATCH * 2, "local_batch": LOCAL_BATCH * (1 if several else 2)}
    made: Tree = {
        "name": tree["name"],
        "dataset": dataset,
        "pipeline": part.pipeline,
        "network": _network(tree["network"], resolution) if "network" in tree else None,
        "train": {**train, "milestones": _milestones(tree, steps)},
        "evaluate": _unique(_evaluate(entry, dataset) for entry in tree.get("evaluate", [])),
        "grid": _grid(tree["grid"], steps, resolution),
    }
    if tree.get("title"):
        made["title"] = tree["title"]
    if (start := _start(tree.get("init"), steps)) is not None:
        made["init"] = start
    if entries := _exclude(tree.get("exclude", []), made["grid"], resolution):
        made["exclude"] = entries
    return {key: value for key, value in made.items() if value is not None}


# --- data and networks ------------------------------------------------------------------------------------------------


def _dataset(data: Data) -> Tree:
    settings = dict(data.settings)
    plugin = plugins.get("datasets", settings["name"])
    own = {key: value for key, value in settings.items() if key in plugin.defaults}
    found: Tree = {
        "name": DATASET,
        "classes": max(3, min(CLASSES, len(data.classes))),
        "channels": choices.build(plugin, own).channels,
        "resolution": RESOLUTION[bool(settings.get("latents"))],
    }
    found |= {key: settings[key] for key in KEPT if settings.get(key) is not None}
    return {**found, "latents": VAE} if settings.get("latents") else found


def _network(name: str, resolution: int) -> str:
    """The narrow network with the blocks of `name`; another patch where its own does not fit."""
    kind, slash, patch = name.partition("/")
    found = f"{NETWORKS.get(kind, kind)}{slash}{patch}"
    return found if network_problem(found, resolution) is None else f"{NETWORKS.get(kind, kind)}/8"


# --- training ---------------------------------------------------------------------------------------------------------


def _steps(tree: Tree) -> dict[int, int]:
    """Every step that the part speaks of -> the small one: 2, 4, 6 ... in their order."""
    spoken = sorted({*tree["train"]["milestones"], *_begun(tree)})
    return {step: STEPS_PER_MILESTONE * (i + 1) for i, step in enumerate(spoken)}


def _begun(tree: Tree) -> set[int]:
    """Steps at which other cells begin."""
    rows = [row.get("init") for row in tree["grid"]["method"]]
    starts = [tree.get("init"), *tree["grid"].get("init", []), *rows]
    return {step for start in starts for step in _started(start)}


def _started(start: Any) -> Iterable[int]:
    while isinstance(start, Mapping):
        if "step" in start:
            yield start["step"]
        start = start.get("init")


def _milestones(tree: Tree, steps: Mapping[int, int]) -> list[int]:
    """The last, and those where other cells begin."""
    own = tree["train"]["milestones"]
    return sorted({steps[step] for step in {own[-1]} | (_begun(tree) & set(own))})


def _method(row: Tree, steps: Mapping[int, int]) -> Tree:
    """A row without its start from a file, and with what its preset `check` says in the place of what needs a download."""
    presets = plugins.get("methods", row["name"]).presets or {}
    made = {**row, **presets.get("check", {})}
    if "init" in row:
        made.pop("init")
        if (start := _start(row["init"], steps)) is not None:
            made["init"] = start
    return made


def _start(start: Any, steps: Mapping[int, int]) -> Tree | None:
    """A start from a cell with its sizes left out; none in the place of a file."""
    if not isinstance(start, Mapping) or "checkpoint" in start:
        return None
    made = dict(start)
    made["step"] = steps[start["step"]]
    made["method"] = _method(start["method"], steps)
    made["train"] = {key: value for key, value in start.get("train", {}).items() if key not in REPLACED}
    made["dataset"] = {key: value for key, value in start.get("dataset", {}).items() if key in KEPT}
    made.pop("seed", None)
    if "init" in start:
        made["init"] = _start(start["init"], steps)
    return {key: value for key, value in made.items() if value not in ({}, None)}


def _grid(grid: Tree, steps: Mapping[int, int], resolution: int) -> Tree:
    made: Tree = {}
    for axis, values in grid.items():
        section, _, key = axis.partition(".")
        if axis == "method":
            made[axis] = _unique(_method(row, steps) for row in values)
        elif axis == "network":
            made[axis] = _unique(_network(name, resolution) for name in values)
        elif axis == "init":
            made[axis] = _unique(_start(start, steps) or "none" for start in values)
        elif axis == "seed":
            made[axis] = values[:1]
        elif key not in REPLACED and (section != "dataset" or key in KEPT):
            made[axis] = ["none" if value is None and axis == "resample" else value for value in values]
    return made


def _exclude(entries: Sequence[Tree], grid: Tree, resolution: int) -> list[Tree]:
    """The exclusions that still speak of axes and values that are left."""
    found = []
    for entry in entries:
        made = dict(entry)
        for axis, wanted in entry.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if axis == "network":
                made[axis] = _unique(_network(name, resolution) for name in values)
            if axis == "seed":
                made[axis] = [value for value in values if value in grid.get("seed", [0])]
        if all(axis in (*grid, "resample", "seed") for axis in made) and made.get("seed") != []:
            found.append(made)
    return found


# --- evaluation -------------------------------------------------------------------------------------------------------


def _evaluate(entry: Tree, dataset: Tree) -> Tree:
    made = {
        key: value for key, value in entry.items() if key not in ("groups", "block", "steps", "atol", "rtol")
    }
    if entry.get("groups") == "shots":
        made["groups"] = "shots"
    sampler = entry["sampler"]
    made |= {"sampler": sampler, "extractor": EXTRACTOR, "samples": _samples(entry, dataset)}
    made["block"] = made["samples"]
    if sampler in STEPS:
        made["steps"] = STEPS[sampler]
    else:
        made |= {"atol": 0.1, "rtol": 0.1}
    if entry.get("guidance") is not None:
        made["guidance"] = _ends(entry["guidance"])
    if (search := entry.get("search")) is not None:
        made["search"] = {
            **search,
            "guidance": _ends(search["guidance"]),
            "samples": made["samples"],
            "keep": 1,
        }
        made["search"].pop("kept_samples", None)
        if (coarse := search.get("coarse")) is not None:
            made["search"]["coarse"] = {**coarse, "steps": 1 if coarse["sampler"] == "heun" else 2}
    if (shown := entry.get("illustrate")) is not None:
        group = shown.get("classes", "tail")
        made["illustrate"] = {
            "classes": group if isinstance(group, str) else "tail",
            "images": 8,
            "neighbours": 3,
        }
    return made


def _samples(entry: Tree, dataset: Tree) -> int:
    """A multiple of the sampled classes: at least SAMPLES, and two of a class."""
    counts = range(dataset["classes"], 0, -1)  # any falling profile has the same thirds
    rule = {"classes": PROTOCOLS[entry["protocol"]].classes}
    classes = len(sampled_classes(rule, counts))
    return classes * max(2, -(-SAMPLES // classes))


def _ends(values: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys([values[0], values[-1]]))


def _unique(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
