"""JSON schema of a spec, with the methods, data sets and presets that are here: completion and checks while typing."""

from __future__ import annotations

from typing import Any

from ltbench import plugins, vaes
from ltbench.plugins import Plugin
from ltbench.protocols import PROTOCOLS, SCHEDULES, extractors
from ltbench.spec import models
from ltbench.spec.compose import NAME
from ltbench.spec.networks import network_names
from ltbench.spec.presets import PRESETS
from ltbench.spec.types import Kind

Schema = dict[str, Any]
_LATENTS = {"anyOf": [{"enum": [*vaes.KNOWN, "none", None]}, {"type": "string"}]}
_PLAIN = {"bool": "boolean", "int": "integer", "float": "number", "str": "string", "None": "null"}


def spec_schema() -> Schema:
    """The schema (JSON Schema 2020-12). A key with `+` appends to a list, so such keys are let through."""
    part = models.Part.model_json_schema()
    defs = part["$defs"]
    for unused in ("Method", "Dataset"):
        del defs[unused]
    defs["Init"] = _init()
    methods, datasets = _usable("methods"), _usable("datasets")
    defs["MethodRow"] = {"anyOf": [{"enum": [p.name for p in methods]}, *(_object(p) for p in methods)]}
    defs["DatasetChoice"] = {"anyOf": [*(_object(p) for p in datasets), _partial_dataset(datasets)]}
    _narrow(defs)
    shared = {**part["properties"], "dataset": {"$ref": "#/$defs/DatasetChoice"}}
    shared["network"] = {"type": "string", "examples": network_names()}
    shared["name"] = {"type": "string", "pattern": f"^{NAME.pattern}$"}
    shared["evaluate"] = _one_or_many({"$ref": "#/$defs/Evaluate"})
    shared["init"] = {"$ref": "#/$defs/Init"}
    shared["exclude"] = _one_or_many({"type": "object"})
    parts = {"type": "array", "minItems": 1, "items": _object_of(shared, ["name"])}
    top = {**shared, "extends": {"type": "string"}, "parts": parts}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ltbench benchmark"}
    return {**head, **_object_of(top, ["name"]), "$defs": defs}


def _usable(kind: str) -> list[Plugin]:
    return [plugin for plugin in plugins.find(kind).values() if plugin.problem is None]


def _narrow(defs: Schema) -> None:
    """Names that exist, and the short forms that a spec may use. Keys that a base or the top level may hold are not required."""
    train, evaluate, grid = defs["Train"], defs["Evaluate"], defs["Grid"]
    train["properties"]["preset"] = {"enum": [*PRESETS, None]}
    train["properties"]["milestones"] = _one_or_many({"type": "integer", "minimum": 1})
    evaluate["properties"]["protocol"] = {"enum": list(PROTOCOLS)}
    hashed = {"type": "string", "pattern": "^timm:[^@#]+#[0-9a-fA-F]{8,64}$"}
    evaluate["properties"]["extractor"] = {"anyOf": [{"enum": [*extractors(), None]}, hashed]}
    evaluate["properties"]["guidance"] = _one_or_many({"type": "number", "minimum": 0})
    evaluate["properties"]["schedule"] = {
        "anyOf": [{"enum": list(SCHEDULES)}, evaluate["properties"]["schedule"]]
    }
    grid["properties"]["method"] = _one_or_many({"$ref": "#/$defs/MethodRow"})
    grid["properties"]["init"] = _one_or_many({"$ref": "#/$defs/Init"})
    share = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    grid["properties"]["resample"] = _one_or_many(
        {"anyOf": [{"enum": ["none", None]}, share, {"$ref": "#/$defs/Resample"}]}
    )
    grid["properties"]["seed"] = _one_or_many({"type": "integer", "minimum": 0, "maximum": 2**32 - 1})
    grid["properties"]["network"] = _one_or_many({"type": "string"})
    keys = "|".join(["preset", *models.SETTINGS])
    grid["patternProperties"] = {
        f"^train\\.({keys})$": {},
        r"^dataset\.[a-z0-9_]+$": {},
        r"\+$": {"type": "array"},
    }
    grid["additionalProperties"] = False
    train["patternProperties"] = {r"\+$": {"type": "array"}}
    train.pop("required", None)
    grid.pop("required", None)


def _init() -> Schema:
    """none, or where weights begin."""
    found = models.Init.model_json_schema()
    found.pop("$defs")
    properties = found["properties"]
    properties["method"] = {"$ref": "#/$defs/MethodRow"}
    properties["resample"] = {"anyOf": [{"const": "none"}, properties["resample"]]}
    properties["train"] = {"$ref": "#/$defs/Train"}
    properties["dataset"] = {"type": "object"}
    properties["init"] = {"$ref": "#/$defs/Init"}
    return {"anyOf": [{"enum": ["none", None]}, found]}


def _one_or_many(item: Schema) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item}]}


def _object_of(properties: Schema, required: list[str]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "patternProperties": {r"\+$": {"type": "array"}},
        "additionalProperties": False,
    }


def _object(plugin: Plugin) -> Schema:
    """A mapping that names the plugin and sets its parameters."""
    properties: Schema = {"name": {"const": plugin.name}}
    if plugin.kind == "methods":
        properties["preset"] = {"enum": [*(plugin.presets or {}), None]}
        properties["init"] = {"$ref": "#/$defs/Init"}
    for parameter in plugin.parameters:
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        properties[parameter.name] = {**_kind(parameter.kind), "default": default}
    if plugin.kind == "datasets":
        properties.setdefault(vaes.KEY, _LATENTS)
    found = {"type": "object", "properties": properties, "required": ["name"], "additionalProperties": False}
    return {**found, "description": plugin.doc.split("\n\n")[0]}


def _partial_dataset(datasets: list[Plugin]) -> Schema:
    """Parameters alone: a part, or a spec that extends another, need not repeat the name."""
    merged: Schema = {vaes.KEY: {"anyOf": [_LATENTS]}}
    for plugin in datasets:
        for parameter in plugin.parameters:
            merged.setdefault(parameter.name, {"anyOf": []})["anyOf"].append(_kind(parameter.kind))
    return {"type": "object", "properties": merged, "additionalProperties": False}


def _kind(kind: Kind) -> Schema:
    if kind.name == "union":
        return {"anyOf": [_kind(member) for member in kind.members]}
    if kind.name == "literal":
        return {"enum": list(kind.values)}
    if kind.name == "tuple":
        if kind.repeated:
            return {"type": "array", "items": _kind(kind.members[0])}
        size = len(kind.members)
        return {
            "type": "array",
            "prefixItems": [_kind(m) for m in kind.members],
            "minItems": size,
            "maxItems": size,
        }
    return {"type": _PLAIN[kind.name]}
