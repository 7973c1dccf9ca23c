"""A spec's file to a `Spec`: compose, check every part against the models and the plugins, and report all problems at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ltbench.errors import Problem, SpecError
from ltbench.spec.compose import (
    NAME,
    NAME_RULE,
    apply_changes,
    derived_name,
    derived_text,
    merge,
    parts_of,
    read_tree,
)
from ltbench.spec.part import PartReader
from ltbench.spec.problems import problem, shorten
from ltbench.spec.resolved import Part, Spec
from ltbench.spec.short_forms import normalise
from ltbench.spec.smoke import small
from ltbench.spec.starts import step_problems
from ltbench.spec.yaml_io import Node, Position, dump_yaml, parse_yaml

MAX_CELLS = 100_000


def load_spec(
    path: Path,
    *,
    changes: Sequence[str] = (),
    methods: Sequence[str] = (),
    measures: Sequence[str] = (),
    smoke: bool = False,
) -> Spec:
    """See `ltbench.spec.load`."""
    root = apply_changes(read_tree(path), changes, methods, measures)
    nodes, parts = _read(root)
    name, derived = root.value["name"].value, None
    if changes or methods or measures:
        if not any(change.startswith("name=") for change in changes):
            origin = root.value["name"].where
            root.value["name"] = Node(derived_name(root, name), origin)
        derived = derived_text(root, name, changes, methods, measures)
    title = root.value.get("title", Node("", Position(str(path)))).value
    found = Spec(root.value["name"].value, title or name, str(path), tuple(parts), derived)
    return _made_small(found, nodes) if smoke else found


def _read(root: Node) -> tuple[list[Node], list[Part]]:
    """The parts of a whole tree: their trees in the long form, and what they come to. Raises SpecError."""
    problems = _check_names(root)
    nodes = [normalise(part) for part in parts_of(root)]
    problems += _too_many(root, nodes)
    if any("cells" in problem.message for problem in problems):
        raise SpecError(problems)
    parts: list[Part] = []
    for node in nodes:
        reader = PartReader(node)
        part = reader.read()
        problems += reader.problems
        if part is not None:
            parts.append(part)
    problems = problems or step_problems(parts)
    if problems:
        raise SpecError(_in_order(problems))
    return nodes, parts


def _made_small(spec: Spec, nodes: Sequence[Node]) -> Spec:
    """The benchmark of `--smoke`, read from its own text like any other."""
    tree = small(spec.name, spec.title, [node.plain() for node in nodes], spec.parts)
    text = f"# {spec.name}, made small by --smoke: stand-in data, narrow networks, a few steps. Its numbers mean nothing.\n"
    text += dump_yaml(tree)
    _, parts = _read(merge(None, parse_yaml(text, f"{spec.file} --smoke")))
    return Spec(tree["name"], tree["title"], spec.file, tuple(parts), text)


def _check_names(root: Node) -> list[Problem]:
    """Names of the benchmark and its parts: they become file names, so one rule decides."""
    problems = []
    if "name" not in root.value:
        problems.append(problem(root, (), "the benchmark needs the key 'name'"))
    title = root.value.get("title")
    if title is not None and not isinstance(title.value, str):
        problems.append(problem(root, ("title",), "title expects text", value=shorten(title.plain())))
    parts = root.value.get("parts")
    holders: list[tuple[str | int, ...]] = [()]
    if parts is not None and isinstance(parts.value, list):
        holders += [("parts", i) for i in range(len(parts.value))]
    seen: dict[str, int] = {}
    for holder in holders:
        node = root.find((*holder, "name"))
        if node is None:
            if holder:
                problems.append(problem(root, holder, "a part needs the key 'name'"))
        elif not isinstance(node.value, str) or not NAME.fullmatch(node.value):
            given = shorten(node.plain())
            problems.append(
                problem(root, (*holder, "name"), "this cannot be a name", value=given, allowed=NAME_RULE)
            )
        elif holder and seen.setdefault(node.value, node.where.line or 0) != (node.where.line or 0):
            problems.append(problem(root, (*holder, "name"), f"two parts are called '{node.value}'"))
    return problems


def _too_many(root: Node, nodes: Sequence[Node]) -> list[Problem]:
    """The size of the grid, before anything is multiplied out."""
    total = 0
    for node in nodes:
        grid = node.find(("grid",))
        if grid is not None and isinstance(grid.value, dict):
            total += math.prod(
                len(axis.value) if isinstance(axis.value, list) else 1 for axis in grid.value.values()
            )
    if total <= MAX_CELLS:
        return []
    return [
        problem(root, ("grid",), f"the grid has {total} cells; at most {MAX_CELLS} are allowed", key=True)
    ]


def _in_order(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem once (shared keys are checked for every part), in the order of the file."""
    unique = list(dict.fromkeys(problems))
    return sorted(unique, key=lambda p: (p.file or "", p.line or 0, p.column or 0))
