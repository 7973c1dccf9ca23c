"""Types of hyper-parameters, read from annotations without running them: bool, int, float, str, Literal, tuple, None, unions."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAMES = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "None": "null"}


class TypeProblem(ValueError):
    """An annotation that is not one of the allowed kinds, or a value that is not of a type."""


@dataclass(frozen=True)
class Kind:
    """One type. `name` is bool, int, float, str, None, literal, tuple or union.

    members: the union's alternatives, or the tuple's elements. values: the literal's values. repeated: `tuple[X, ...]`.
    """

    name: str
    members: tuple[Kind, ...] = ()
    values: tuple[Any, ...] = ()
    repeated: bool = False

    def __str__(self) -> str:
        if self.name == "union":
            return " or ".join(map(str, self.members))
        if self.name == "literal":
            return " | ".join(map(spell, self.values))
        if self.name == "tuple":
            inside = f"each {self.members[0]}" if self.repeated else ", ".join(map(str, self.members))
            return f"a list ({inside})"
        return NAMES[self.name]

    def accept(self, value: Any) -> Any:
        """`value` as this type (3 becomes 3.0 for a float, a list becomes a tuple). Raises TypeProblem."""
        found = self._match(value)
        if found is None:
            raise TypeProblem(f"expects {self}")
        return found[0]

    def _match(self, value: Any) -> tuple[Any] | None:
        """The converted value in a 1-tuple, or None: null is a value like others."""
        match self.name:
            case "union":
                # The exact type first, so that `int | float` keeps 3 whole.
                ordered = sorted(self.members, key=lambda member: not member.exact(value))
                return next(
                    (found for member in ordered if (found := member._match(value)) is not None), None
                )
            case "literal":
                return next(
                    ((choice,) for choice in self.values if choice == value and type(choice) is type(value)),
                    None,
                )
            case "tuple":
                return self._match_tuple(value)
            case "float" if self._is_number(value):
                return (float(value),) if math.isfinite(value) else None
        return (value,) if self.exact(value) else None

    def _match_tuple(self, value: Any) -> tuple[Any] | None:
        if not isinstance(value, list | tuple):
            return None
        kinds = self.members * len(value) if self.repeated else self.members
        if len(kinds) != len(value):
            return None
        found = [kind._match(item) for kind, item in zip(kinds, value, strict=True)]
        return None if None in found else (tuple(item[0] for item in found if item is not None),)

    @staticmethod
    def _is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    def exact(self, value: Any) -> bool:
        """Whether `value` is of this type as it stands; unions, literals and tuples say False."""
        plain = {"bool": bool, "int": int, "float": float, "str": str, "None": type(None)}.get(self.name)
        return plain is not None and type(value) is plain


def spell(value: Any) -> str:
    """A value as one writes it in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(spell, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {spell(item)}" for key, item in value.items()) + "}"
    return str(value)


def read_annotation(node: ast.expr) -> Kind:
    """The Kind of an annotation's syntax tree. Raises TypeProblem with the annotation's text for anything else."""
    if isinstance(node, ast.Constant):
        if node.value is None:
            return Kind("None")
        if isinstance(node.value, str):
            return read_annotation(_parse(node.value))
    if isinstance(node, ast.Name) and node.id in NAMES:
        return Kind(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union(read_annotation(node.left), read_annotation(node.right))
    if isinstance(node, ast.Subscript):
        return _subscript(node)
    raise TypeProblem(
        f"the type `{ast.unparse(node)}` is none of bool, int, float, str, Literal, tuple, None"
    )


def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError:
        raise TypeProblem(f"the type {text!r} does not parse") from None


def _union(*kinds: Kind) -> Kind:
    flat = [member for kind in kinds for member in (kind.members if kind.name == "union" else (kind,))]
    return flat[0] if len(flat) == 1 else Kind("union", members=tuple(flat))


def _subscript(node: ast.Subscript) -> Kind:
    head = ast.unparse(node.value).rpartition(".")[2]
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if head == "Literal":
        return Kind("literal", values=tuple(_literal(item) for item in items))
    if head == "Optional" and len(items) == 1:
        return _union(read_annotation(items[0]), Kind("None"))
    if head == "Union":
        return _union(*map(read_annotation, items))
    if head in ("tuple", "Tuple"):
        last = items[-1]
        repeated = len(items) == 2 and isinstance(last, ast.Constant) and last.value is ...
        return Kind("tuple", tuple(map(read_annotation, items[:1] if repeated else items)), repeated=repeated)
    raise TypeProblem(
        f"the type `{ast.unparse(node)}` is none of bool, int, float, str, Literal, tuple, None"
    )


def _literal(node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = ...
    if value is not None and not isinstance(value, bool | int | str):
        raise TypeProblem(
            f"`Literal[{ast.unparse(node)}]` holds something else than text, a whole number, true, false or null"
        )
    return value
