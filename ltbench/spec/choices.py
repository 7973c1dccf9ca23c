"""What a spec's choices come to: a method's, a data set's and a recipe's settings, from signature, presets and YAML."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from ltbench import plugins, vaes
from ltbench.errors import LtbenchError, Problem, UsageError
from ltbench.plugins import Plugin
from ltbench.protocols import PROTOCOLS, at_guidance, class_groups, extractor, sampler_options
from ltbench.spec import models
from ltbench.spec.presets import PIPELINES, PRESETS, deviations
from ltbench.spec.problems import Path, nearest, one_line, problem, problems_of, shorten, tuples
from ltbench.spec.resolved import Data, MethodRow, Recipe
from ltbench.spec.types import TypeProblem, spell
from ltbench.spec.yaml_io import Node

NOUNS = {"methods": "method", "datasets": "data set"}


def frozen(value: Any) -> Any:
    """Hashable: lists as tuples."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def thawed(value: Any) -> Any:
    """JSON-able: tuples as lists."""
    return list(map(thawed, value)) if isinstance(value, list | tuple) else value


def changed(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What differs from the defaults; 1 and true are different."""
    return {k: v for k, v in values.items() if (type(v), v) != (type(defaults[k]), defaults[k])}


def variants(
    axes: Mapping[str, tuple[Any, ...]], prefix: str
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """(values of the axes under `prefix`, what they change) for every combination; one empty combination without such axes."""
    names = [axis for axis in axes if axis.startswith(prefix)]
    for values in itertools.product(*(axes[name] for name in names)):
        yield values, {name.removeprefix(prefix): value for name, value in zip(names, values, strict=True)}


# --- plugins --------------------------------------------------------------------------------------------------------


def plugin_of(kind: str, name: Node | None) -> Plugin | None:
    """The usable plugin of that name, or None."""
    found = plugins.named(kind, name.value) if name is not None and isinstance(name.value, str) else None
    return None if found is None or found.problem else found


def plugin_at(kind: str, item: Node) -> tuple[Plugin | None, list[Problem]]:
    """The plugin that the mapping `item` names, or the problem with its name."""
    name = item.value.get("name")
    if name is None or not isinstance(name.value, str):
        return None, []  # the model has said so
    plugin = plugins.named(kind, name.value)
    if plugin is None:
        usable = [other for other, found in plugins.find(kind).items() if found.problem is None]
        message = f"unknown {NOUNS[kind]} '{name.value}'"
        near = nearest(name.value, usable)
        return None, [problem(item, ("name",), message, allowed=", ".join(usable), suggestion=near)]
    if plugin.problem is not None:
        message = f"{NOUNS[kind]} '{plugin.name}' cannot be used: {plugin.path}: {plugin.problem}"
        return None, [problem(item, ("name",), message)]
    return plugin, []


def parameters(plugin: Plugin, item: Node, noun: str) -> tuple[dict[str, Any], list[Problem]]:
    """The parameters that `item` sets, converted, and what is wrong with them."""
    known = {parameter.name: parameter for parameter in plugin.parameters}
    given, problems = {}, []
    for key, node in item.value.items():
        if key == "name" or (key in ("preset", "init") and plugin.kind == "methods"):
            continue
        if key == vaes.KEY and plugin.kind == "datasets" and key not in known:
            value, wrong = _latents(item, node)
            given |= {} if wrong else {key: value}
            problems += wrong
            continue
        if key not in known:
            message = f"{noun} '{plugin.name}' has no parameter '{key}'; it {plugin.takes()}"
            problems.append(problem(item, (key,), message, key=True, suggestion=nearest(key, known)))
            continue
        try:
            given[key] = known[key].kind.accept(node.plain())
        except TypeProblem as error:
            message = f"{noun} '{plugin.name}': {key} {error}"
            near = nearest(node.plain(), map(str, known[key].kind.values))
            problems.append(problem(item, (key,), message, value=shorten(node.plain()), suggestion=near))
    return given, problems


def _latents(item: Node, node: Node) -> tuple[str | None, list[Problem]]:
    """A data set's `latents`: none, or the VAE whose latents the network works on instead of pixels."""
    value = node.plain()
    if value in (None, "none"):
        return None, []
    if not isinstance(value, str):
        return None, [problem(item, (vaes.KEY,), "latents expects the name of a VAE", value=shorten(value))]
    try:
        vaes.resolve(value)
    except LtbenchError as error:
        near = nearest(value, list(vaes.KNOWN))
        return None, [problem(item, (vaes.KEY,), one_line(error), suggestion=near)]
    return value, []


def method_row(item: Node, pipeline: str | None) -> tuple[MethodRow | None, list[Problem]]:
    """A row of the grid: signature < the pipeline's entry in `presets` < the named preset < the YAML."""
    if not isinstance(item.value, dict):
        return None, []  # the model has said so
    plugin, problems = plugin_at("methods", item)
    if plugin is None:
        return None, problems
    given, problems = parameters(plugin, item, "method")
    preset, more = _preset(plugin, item)
    if problems or more:
        return None, problems + more
    presets = plugin.presets or {}
    values = {**plugin.defaults, **presets.get(pipeline or "", {}), **presets.get(preset or "", {}), **given}
    said = ([f"preset={preset}"] if preset else []) + [
        f"{key}={spell(value)}" for key, value in given.items()
    ]
    label = f"{plugin.name} ({', '.join(said)})" if said else plugin.name
    settings = {"name": plugin.name, **{key: thawed(value) for key, value in values.items()}}
    differing = {key: thawed(value) for key, value in changed(values, plugin.defaults).items()}
    return MethodRow(plugin.name, label, settings, {"name": plugin.name, **differing}), []


def _preset(plugin: Plugin, item: Node) -> tuple[str | None, list[Problem]]:
    node = item.value.get("preset")
    if node is None or node.value is None:
        return None, []
    known = plugin.presets or {}
    if node.value in known:
        return node.value, []
    message = f"method '{plugin.name}' has no preset {shorten(node.plain())}"
    allowed = ", ".join(known) or "none"
    return None, [problem(item, ("preset",), message, allowed=allowed, suggestion=nearest(node.value, known))]


def read_data(plugin: Plugin, given: dict[str, Any]) -> Data:
    """The data set with its counts. Raises LtbenchError for values it refuses, a class left empty, or a file that fails."""
    given = dict(given)
    latents, folder = vaes.resolve(given.pop(vaes.KEY)) if given.get(vaes.KEY) else (None, None)
    given.pop(vaes.KEY, None)
    settings = {"name": plugin.name, **{k: thawed(v) for k, v in {**plugin.defaults, **given}.items()}}
    identity = {
        "name": plugin.name,
        **{k: thawed(v) for k, v in changed({**plugin.defaults, **given}, plugin.defaults).items()},
    }
    try:
        built = build(plugin, {**plugin.defaults, **given})
        counts = tuple(int(count) for count in built.counts())
        classes = tuple(built.classes)
    except LtbenchError:
        raise
    except Exception as error:  # a plugin may raise anything; the spec's error names it
        raise UsageError(f"data set '{plugin.name}' fails: {type(error).__name__}: {error}") from error
    if 0 in counts:
        raise UsageError(_empty(plugin, {**plugin.defaults, **given}, classes, counts))
    coded = {} if latents is None else {vaes.KEY: latents}
    if latents is not None:
        _require_rgb(plugin.name, latents, built.channels, built.resolution)
    return Data(
        {**settings, **coded},
        {**identity, **coded},
        classes,
        counts,
        built.resolution,
        type(built).extractor,
        built.reference_id,
        built.missing() or (vaes.problem(latents) if latents else None),
        vaes.network_shape(coded, built.channels, built.resolution)[1],
        folder,
    )


def _require_rgb(name: str, latents: str, channels: int, resolution: int) -> None:
    """Raise UsageError for images that a VAE does not take."""
    factor = vaes.vae(latents).factor
    if channels != 3:
        raise UsageError(f"latents: '{latents}' codes RGB images; data set '{name}' has {channels} channel")
    if resolution % factor:
        raise UsageError(
            f"latents: '{latents}' makes one latent of {factor} x {factor} pixels, which do not divide the resolution {resolution}"
        )


def build(plugin: Plugin, values: dict[str, Any]) -> Any:
    """The plugin's object. Imported here: NumPy is needed from this point on, and not before."""
    module = importlib.import_module(f"ltbench.datasets.{plugin.name}")
    return getattr(module, plugin.class_name)(**values)


def _empty(plugin: Plugin, values: dict[str, Any], classes: tuple[str, ...], counts: tuple[int, ...]) -> str:
    """Names the classes without an image and, where the data set has an imbalance, the smallest that fills them."""
    names = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    message = f"data set '{plugin.name}' has no training image of {shown}"
    if not isinstance(values.get("imbalance"), float):
        return message
    return f"imbalance {spell(values['imbalance'])}: {message}{_remedy(plugin, values)}"


def _remedy(plugin: Plugin, values: dict[str, Any]) -> str:
    def fills(units: int) -> bool:
        try:
            return min(build(plugin, {**values, "imbalance": units / 1e4}).counts()) > 0
        except LtbenchError:
            return False

    low, high = 0, 10_000
    if not fills(high):
        return ""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fills(middle) else (middle, high)
    return f"; the smallest imbalance that fills every class is {high / 1e4!r}"


def resampling(value: Any) -> Any:
    """A resampling in its one spelling: None, a factor, or a mapping where the remainder is not the largest's."""
    if not isinstance(value, dict) or "factor" not in value:
        return value
    if value.get("remainder", "largest") == "largest":
        return value["factor"]
    return {"factor": float(value["factor"]), "remainder": value["remainder"]} if _sound(value) else value


def _sound(value: dict[str, Any]) -> bool:
    return isinstance(value["factor"], int | float) and set(value) == {"factor", "remainder"}


# --- training -------------------------------------------------------------------------------------------------------


def recipe(part: Node, pipeline: str, overrides: dict[str, Any]) -> tuple[Recipe | None, list[Problem]]:
    """Train model < pipeline < preset < YAML < axes of the grid, and whether the sizes fit each other."""
    section = part.find(("train",))
    assert section is not None, "the model has asked for it"
    given = {**tuples(section.plain()), **overrides}
    preset = given.pop("preset", None)
    if preset is not None and (preset not in PRESETS or PRESETS[preset][0] != pipeline):
        return None, [_preset_problem(part, pipeline, preset, overrides)]
    fixed = PRESETS[preset][1] if preset else {}
    values = {**PIPELINES[pipeline], **fixed, **given}
    try:
        train = models.Train.model_validate(values)
    except ValidationError as error:
        return None, problems_of(error, models.Train, part, ("train",))
    problems = _sizes(part, train, {key: f"preset {preset}" for key in fixed if key not in given})
    problems += _augment(part, train)
    if train.batch is None:
        return None, problems
    settings = {key: thawed(getattr(train, key)) for key in models.SETTINGS}
    settings["local_batch"] = train.local_batch or train.batch
    defaults = {key: thawed(models.Train.model_fields[key].default) for key in models.SETTINGS}
    identity = changed(settings, {**defaults, "batch": None, "local_batch": train.batch})
    options = {key: getattr(train, key) for key in models.OPTIONS}
    differing = deviations(preset, settings, defaults) if preset else {}
    return Recipe(settings, identity, train.milestones, options, preset, differing), problems


def _augment(part: Node, train: models.Train) -> list[Problem]:
    """What `augment` settles by itself cannot be settled otherwise."""
    probability = models.Train.model_fields["augment_probability"].default
    if train.augment == "none":
        key, message = "augment_probability", "augment_probability is one of augment: ada"
        wrong = train.augment_probability != probability
    else:
        key, message = "flip", f"augment: {train.augment} mirrors half of the images itself: flip stays true"
        wrong = not train.flip
    if not wrong:
        return []
    path: Path = next((p for p in (("train", key), ("grid", f"train.{key}")) if part.find(p)), ("train",))
    return [problem(part, path, message, key=True)]


def _preset_problem(part: Node, pipeline: str, preset: str, overrides: dict[str, Any]) -> Problem:
    fitting = [name for name, (home, _) in PRESETS.items() if home == pipeline]
    path: Path = ("train", "preset")
    if "preset" in overrides:
        axis = part.find(("grid", "train.preset"))
        path = ("grid", "train.preset", axis.plain().index(preset) if axis else 0)
    message = f"unknown training preset '{preset}'"
    if preset in PRESETS:
        message = (
            f"training preset '{preset}' is a recipe of pipeline {PRESETS[preset][0]}, and this is {pipeline}"
        )
    return problem(part, path, message, allowed=", ".join(fitting), suggestion=nearest(preset, fitting))


def _sizes(part: Node, train: models.Train, origins: dict[str, str]) -> list[Problem]:
    """Milestones rise; micro-batch, local batch and batch divide each other."""
    found = []

    def add(key: str, message: str, **more: str | None) -> None:
        origin = f" ({key} is from {origins[key]})" if key in origins else ""
        path = ("train", key) if part.find(("train", key)) else ("train",)
        found.append(problem(part, path, message + origin, key=len(path) == 1, **more))

    rising = sorted(set(train.milestones))
    if list(train.milestones) != rising:
        add(
            "milestones",
            "milestones must rise, each named once",
            value=spell(train.milestones),
            allowed=spell(rising),
        )
    batch, local, micro = train.batch, train.local_batch, train.micro_batch
    if batch is None:
        presets = ", ".join(f"{name} ({fixed['batch']})" for name, (_, fixed) in PRESETS.items())
        add("batch", f"train needs a batch (images per step), or a preset that sets it: {presets}")
        return found
    local = local or batch
    if batch % local:
        add("local_batch", f"local_batch {local} does not divide batch {batch}")
    elif micro is not None and (batch % micro or micro % local):
        fitting = [str(n) for n in micro_batches(batch, local)]
        message = (
            f"micro_batch {micro} is not a whole number of local batches ({local}) that divides batch {batch}"
        )
        add("micro_batch", message, allowed=", ".join(fitting[:12]))
    return found


def micro_batches(batch: int, local: int) -> list[int]:
    """How many images one forward may hold: whole local batches that divide the batch."""
    return [n for n in range(local, batch + 1, local) if batch % n == 0]


# --- evaluation -----------------------------------------------------------------------------------------------------


def evaluations(entry: models.Evaluate, data: Data) -> list[dict[str, Any]]:
    """The evaluations of one sound entry, one per guidance value, as the store keeps them; one without labels has guidance 0.

    A search is one description; what it measures has descriptions of its own (protocols.at_guidance).
    """
    protocol, given = PROTOCOLS[entry.protocol], entry.model_dump()
    fixed = {
        "protocol": entry.protocol,
        "samples": entry.samples or protocol.samples,
        "classes": protocol.classes,
        "labels": entry.labels,
        "sampler": entry.sampler,
        "steps": entry.steps,
        "block": entry.block or protocol.block,
        "seed": entry.seed,
        "quantise": protocol.quantise,
        "extractor": extractor(entry.extractor or protocol.extractor or data.extractor),
        "reference": data.reference,
        "crop": protocol.crop,
        "metrics": list(entry.metrics or protocol.metrics),
        "estimators": dict(protocol.estimators),
        **({} if entry.groups == "thirds" else {"groups": thawed_groups(entry.groups)}),
        **({} if entry.precision is None else {"precision": entry.precision}),
        **sampler_options(given),
    }
    if entry.illustrate is not None:
        fixed |= illustrated(entry.illustrate, data)
    if entry.search is not None:
        # what is not asked for is left out: the searches of before these keys keep their ids
        how = {key: thawed(value) for key, value in entry.search.model_dump(exclude_none=True).items()}
        return [{**fixed, "guidance": None, "search": how, **given_guidance(given)}]
    return [at_guidance({**fixed, **given_guidance(given)}, w) for w in entry.guidance or (0.0,)]


def illustrated(how: models.Illustrate, data: Data) -> dict[str, Any]:
    """What an illustration has in its description instead of what numbers need. Its classes are ids, most frequent first."""
    ids = shown_ids(how, data)
    return {
        "samples": how.images * len(ids),
        "classes": "shown",
        "groups": {"shown": sorted(ids)},
        "labels": "balanced",
        "metrics": [],
        "estimators": {},
        "illustrate": {"classes": ids, "images": how.images, "neighbours": how.neighbours},
    }


def shown_ids(how: models.Illustrate, data: Data) -> list[int]:
    """Ids of the classes that are illustrated. Raises LtbenchError for one that does not exist or is named twice."""
    if isinstance(how.classes, str):
        ranked = class_groups({}, data.counts)[how.classes]
        return ranked[-how.most :]
    ids = [_class_id(name, data.classes) for name in how.classes]
    if not ids or len(ids) > 8 or len(set(ids)) < len(ids):
        raise LtbenchError("one to eight different classes can be illustrated at a time")
    return ids


def _class_id(name: str | int, classes: tuple[str, ...]) -> int:
    if name in classes:
        return classes.index(str(name))
    if isinstance(name, int) and 0 <= name < len(classes):
        return name
    near = nearest(str(name), classes)
    hint = (
        f"did you mean '{near}'?" if near else f"classes are names, or numbers from 0 to {len(classes) - 1}"
    )
    raise LtbenchError(f"there is no class '{name}'", hint)


def given_guidance(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of guidance that an entry names beside its values."""
    return {key: given[key] for key in ("schedule", "guidance_channels") if given[key] is not None}


def thawed_groups(rule: str | dict[str, tuple[int, ...]]) -> str | dict[str, list[int]]:
    """JSON-able."""
    return rule if isinstance(rule, str) else {name: list(ids) for name, ids in rule.items()}
