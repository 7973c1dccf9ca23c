"""What pydantic finds wrong, said in the words of a spec and with the place in its file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from ltbench.errors import LtbenchError, Problem
from ltbench.spec.types import spell
from ltbench.spec.yaml_io import Node

_EXPECTS = {
    "int_type": "expects a whole number",
    "int_from_float": "expects a whole number",
    "float_type": "expects a number",
    "finite_number": "expects a finite number",
    "bool_type": "expects true or false",
    "string_type": "expects text",
    "tuple_type": "expects a list",
    "model_type": "expects a mapping of keys",
    "model_attributes_type": "expects a mapping of keys",
    "dict_type": "expects a mapping of keys",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}
Path = tuple[str | int, ...]


def problem(node: Node, path: Path, message: str, *, key: bool = False, **more: str | None) -> Problem:
    """A problem at the value (or the key) that stands at `path`."""
    where = node.place(path, key=key)
    return Problem(message, where.file, where.line, where.column, **more)


def nearest(word: object, choices: Iterable[str]) -> str | None:
    """The choice that `word` probably meant."""
    found = difflib.get_close_matches(str(word), list(choices), 1)
    return found[0] if found else None


def unknown_key(node: Node, path: Path, what: str, choices: Iterable[str]) -> Problem:
    """`path` ends in a key that `what` does not take."""
    known = sorted(choices)
    return problem(
        node,
        path,
        f"{what} has no key '{path[-1]}'",
        key=True,
        allowed=", ".join(known),
        suggestion=nearest(path[-1], known),
    )


def shorten(value: Any) -> str:
    """A value for a message, at most 80 characters of it."""
    text = repr(value) if isinstance(value, str) else spell(value)
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(error: LtbenchError) -> str:
    """Message and hint of another room's error, as one sentence."""
    words = error.message if error.hint is None else f"{error.message}; {error.hint}"
    return " ".join(words.split())


def tuples(value: Any) -> Any:
    """Lists as tuples all the way down: a strict, frozen model takes nothing else."""
    if isinstance(value, Mapping):
        return {key: tuples(item) for key, item in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def problems_of(
    error: ValidationError, model: type[BaseModel], node: Node, above: Path = (), what: str = "the benchmark"
) -> list[Problem]:
    """Every problem of a failed validation. `above` is the path of the validated value inside `node`, `what` names the whole."""
    found = []
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # nothing is left of a list whose items are all wrong: they are reported one by one
        found.append(_translate(dict(detail), model, node, above, what))
    return found


def _translate(
    detail: Mapping[str, Any], model: type[BaseModel], node: Node, above: Path, what: str
) -> Problem:
    kind, loc, given = detail["type"], tuple(detail["loc"]), detail["input"]
    path = (*above, *loc)
    inside = _name(path[:-1]) or what
    if kind == "extra_forbidden":
        return unknown_key(node, path, inside, _fields(model, loc[:-1]))
    if kind == "missing" and isinstance(path[-1], int):
        return problem(node, path[:-1], f"{inside} has too few values")
    if kind == "missing":
        return problem(node, path[:-1], f"{inside} needs the key '{path[-1]}'", key=True)
    context = detail.get("ctx", {})
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ")
        near = nearest(given, choices.split(", "))
        return problem(
            node, path, f"{_name(path)} is unknown", value=shorten(given), allowed=choices, suggestion=near
        )
    if kind in _BOUNDS:
        bound, word = _BOUNDS[kind]
        return problem(
            node, path, f"{_name(path)} must be {word} {spell(context[bound])}", value=shorten(given)
        )
    if kind == "too_short":
        return problem(node, path, f"{_name(path)} is empty; it needs at least one value")
    if kind == "too_long":
        return problem(
            node, path, f"{_name(path)} expects {context['max_length']} values", value=shorten(given)
        )
    if kind == "value_error":  # a validator of ours: its words go on where the key stops
        return problem(node, path, f"{_name(path)} {context['error']}", value=shorten(given))
    if path[:2] == ("grid", "method") and len(path) == 3:
        return problem(node, path, "a method is a name, or a mapping with a name", value=shorten(given))
    message = _EXPECTS.get(kind, detail["msg"][:1].lower() + detail["msg"][1:])
    return problem(node, path, f"{_name(path)} {message}", value=shorten(given))


def _name(path: Path) -> str:
    """A path as one writes it with --set."""
    return ".".join(str(part) for part in path)


def _fields(model: type[BaseModel], loc: Path) -> list[str]:
    """Keys of the model at `loc` below `model`."""
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        current = _inner(current.model_fields[part].annotation)
    return list(current.model_fields)


def _inner(annotation: Any) -> Any:
    """The model inside `tuple[Model, ...]`, `tuple[Model | None, ...]` or `Model`."""
    arguments = getattr(annotation, "__args__", ())
    return _inner(arguments[0]) if arguments else annotation
