"""Trees of one benchmark put together: `extends`, `parts`, `--set` and `--with`, with every value keeping its place.

Mappings are merged key by key, lists and scalars are replaced, and `key+: [...]` appends to the list below. A `dataset` of
another name is replaced as a whole: the parameters of one data set mean nothing to another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ltbench.canonical import digest
from ltbench.errors import Problem, SpecError
from ltbench.spec.yaml_io import Node, Position, dump_yaml, parse_yaml, read_yaml

NAME = re.compile(r"[a-z0-9](?!.*\.\.)[a-z0-9._-]{0,63}")
NAME_RULE = (
    "lower-case letters, digits, '.', '_' and '-', at most 64, beginning with a letter or digit, without '..'"
)
MAX_EXTENDS = 16
OWN_KEYS = ("name", "title", "parts")  # of a benchmark; everything else is shared by its parts


def error_at(where: Position, message: str, **more: str | None) -> SpecError:
    """One problem as an error."""
    return SpecError([Problem(message, where.file, where.line, where.column, **more)])


def read_tree(path: Path, shown: str | None = None, below: tuple[Path, ...] = ()) -> Node:
    """The tree of a file over those it extends. Raises SpecError."""
    root = read_yaml(path, shown)
    if not isinstance(root.value, dict):
        raise error_at(root.where, "a benchmark is a mapping of keys (name, dataset, train, grid ...)")
    base = root.value.pop("extends", None)
    root.keys.pop("extends", None)
    if base is None:
        return merge(None, root)
    chain = (*below, path.resolve())
    if not isinstance(base.value, str):
        raise error_at(base.where, "`extends` expects the path of a YAML file", value=str(base.plain()))
    target = path.parent / base.value
    if target.resolve() in chain or len(chain) > MAX_EXTENDS:
        names = " -> ".join([*(p.name for p in chain), target.name])
        raise error_at(base.where, f"`extends` goes round in a circle: {names}")
    if not target.is_file():
        raise error_at(base.where, f"`extends`: there is no file {target}")
    return merge(read_tree(target, str(target), chain), root)


def merge(base: Node | None, over: Node, key: str = "") -> Node:
    """`over` laid on `base`. Raises SpecError where `key+` finds no list."""
    if not isinstance(over.value, dict):
        return over
    below = (
        base
        if base is not None and isinstance(base.value, dict) and not _other_dataset(key, base, over)
        else None
    )
    values = dict(below.value) if below else {}
    keys = dict(below.keys) if below else {}
    for name, node in over.value.items():
        plain = name.removesuffix("+")
        old = values.get(plain)
        values[plain] = (
            _append(old, node, over.keys[name], plain) if name != plain else merge(old, node, plain)
        )
        keys[plain] = over.keys[name]
    return Node(values, over.where, keys)


def _other_dataset(key: str, base: Node, over: Node) -> bool:
    name = over.value.get("name")
    return key == "dataset" and name is not None and name.plain() != base.value.get("name", name).plain()


def _append(old: Node | None, more: Node, where: Position, key: str) -> Node:
    if old is None or not isinstance(old.value, list):
        raise error_at(where, f"`{key}+` appends to a list, and there is no list `{key}` below it")
    if not isinstance(more.value, list):
        raise error_at(more.where, f"`{key}+` expects a list", value=str(more.plain()))
    return Node([*old.value, *more.value], more.where)


def parts_of(root: Node) -> list[Node]:
    """The trees of a benchmark's parts, each a whole benchmark; one without `parts` is its own only part. Raises SpecError."""
    shared = Node({k: v for k, v in root.value.items() if k not in OWN_KEYS}, root.where, root.keys)
    parts = root.value.get("parts")
    if parts is None:
        return [
            Node(
                {"name": root.value.get("name", Node(None, root.where)), **shared.value},
                root.where,
                root.keys,
            )
        ]
    if not isinstance(parts.value, list) or not parts.value:
        raise error_at(parts.where, "`parts` expects a list of mappings, each with a name")
    for part in parts.value:
        if not isinstance(part.value, dict):
            raise error_at(part.where, "a part is a mapping with a name", value=str(part.plain()))
    return [merge(shared, part) for part in parts.value]


# --- changes from the command line ----------------------------------------------------------------------------------


def apply_changes(
    root: Node, changes: Sequence[str], methods: Sequence[str], measures: Sequence[str] = ()
) -> Node:
    """The tree with `--set KEY=VALUE`, `--with METHOD` and `--add EVALUATION` applied, in that order. Raises SpecError."""
    for change in changes:
        _set(root, change)
    for method in methods:
        _with(root, method)
    for measure in measures:
        _add_measure(root, measure)
    return root


def derived_text(
    root: Node, name: str, changes: Sequence[str], methods: Sequence[str], measures: Sequence[str] = ()
) -> str:
    """The YAML of a changed benchmark, complete in itself, opened by a line that says where it comes from."""
    options = [f"--set {change}" for change in changes] + [f"--with {method}" for method in methods]
    options += [f"--add {measure}" for measure in measures]
    origin = " ".join(" ".join(options).split())
    return f"# {name}, changed by {origin}\n{dump_yaml(root.plain())}"


def derived_name(root: Node, name: str) -> str:
    """A name of its own for a changed benchmark: the old one and 8 digits of what it now holds."""
    rest = {key: node.plain() for key, node in root.value.items() if key not in ("name", "title")}
    return f"{name[:55]}-{digest(rest)[:8]}"


def _value(text: str, origin: Position) -> Node:
    return _placed(parse_yaml(text, origin.file), origin) if text.strip() else Node(None, origin)


def _placed(node: Node, where: Position) -> Node:
    """The same tree, said to come from the command line."""
    if isinstance(node.value, dict):
        return Node(
            {k: _placed(v, where) for k, v in node.value.items()}, where, dict.fromkeys(node.value, where)
        )
    return Node(
        [_placed(v, where) for v in node.value] if isinstance(node.value, list) else node.value, where
    )


def _set(root: Node, change: str) -> None:
    key, equals, text = change.partition("=")
    origin = Position(f"--set {change}")
    path = _path(key.strip())
    if not equals or not all(path):
        raise error_at(origin, "expects KEY=VALUE, e.g. --set train.batch=32")
    value = _value(text, origin)
    parts = root.value.get("parts", Node([], origin)).value
    if path[0] == "parts" and len(path) > 2:
        _assign(_part(parts, path[1], origin), path[2:], value, origin)
        return
    # A part that says otherwise would hide the change, so it is changed there too.
    inside = [] if path[0] in OWN_KEYS else [part for part in parts if _hides(part, path)]
    for part in inside:
        _assign(part, path, value, origin)
    if not inside or path[0] in root.value:
        _assign(root, path, value, origin)


def _path(key: str) -> list[str]:
    """Keys between dots; an axis of the grid is one key, dots and all."""
    head, dot, axis = key.partition("grid.")
    return (
        [*[k for k in head.split(".") if k], "grid", axis]
        if dot and (not head or head.endswith("."))
        else key.split(".")
    )


def _hides(part: Node, path: Sequence[str]) -> bool:
    """Whether what the part says would win over the same path at the top: the value itself, a list or another data set on the way."""
    node: Node | None = part
    for depth, key in enumerate(path):
        if not isinstance(node.value, dict) or (depth == 1 and path[0] == "dataset" and "name" in node.value):
            return True
        plain = key.removesuffix("+")
        if f"{plain}+" in node.value:
            return True
        node = node.value.get(plain)
        if node is None:
            return False
    return True


def _part(parts: list[Node], key: str, origin: Position) -> Node:
    names = [str(part.plain().get("name")) for part in parts]
    if key.isdecimal() and int(key) < len(parts):
        return parts[int(key)]
    if key in names:
        return parts[names.index(key)]
    raise error_at(
        origin, f"there is no part '{key}'", allowed=", ".join(names) or "this benchmark has no parts"
    )


def _assign(node: Node, path: Sequence[str], value: Node, origin: Position) -> None:
    key, *rest = path
    if isinstance(node.value, list):
        if not key.isdecimal() or int(key) >= len(node.value):
            raise error_at(origin, f"'{key}' is no index of a list of {len(node.value)}")
        if rest:
            _assign(node.value[int(key)], rest, value, origin)
        else:
            node.value[int(key)] = value
        return
    if not isinstance(node.value, dict):
        raise error_at(origin, f"'{key}' lies inside a single value", value=str(node.plain()))
    if rest:
        if key not in node.value:
            node.value[key], node.keys[key] = Node({}, origin), origin
        _assign(node.value[key], rest, value, origin)
        return
    plain = key.removesuffix("+")
    node.value.pop(f"{plain}+", None)
    node.value[plain] = _append(node.value.get(plain), value, origin, plain) if key != plain else value
    node.keys[plain] = origin


def _with(root: Node, method: str) -> None:
    origin = Position(f"--with {method}")
    value = _value(method, origin)
    holders = [root, *root.value.get("parts", Node([], origin)).value]
    lists = [grid for holder in holders if (grid := holder.find(("grid",))) is not None and _method_key(grid)]
    if not lists:
        raise error_at(origin, "the benchmark has no grid.method to add to")
    for grid in lists:
        key = _method_key(grid)
        old = grid.value[key]
        items = old.value if isinstance(old.value, list) else [old]
        if value.plain() not in [_short(item.plain()) for item in items]:
            grid.value[key] = Node([*items, value], old.where)


def _add_measure(root: Node, text: str) -> None:
    """To every list of evaluations, each of its entries once more with the keys of `text` in place of its own."""
    origin = Position(f"--add {text}")
    more = _value(text if text.lstrip().startswith("{") else f"{{{text}}}", origin)
    if not isinstance(more.value, dict) or any(item.value is None for item in more.value.values()):
        message = "expects keys of an evaluation, e.g. --add 'metrics: [vendi]' or --add 'groups: shots'"
        raise error_at(origin, message)
    holders = [root, *root.value.get("parts", Node([], origin)).value]
    lists = [
        (holder, key)
        for holder in holders
        if isinstance(holder.value, dict)
        for key in ("evaluate", "evaluate+")
        if key in holder.value
    ]
    if not lists:
        raise error_at(origin, "the benchmark has no evaluation to vary; --set evaluate=[{...}] gives it one")
    for holder, key in lists:
        old = holder.value[key]
        entries = old.value if isinstance(old.value, list) else [old]
        varied = [
            merge(_making_room(entry, more), more) for entry in entries if isinstance(entry.value, dict)
        ]
        holder.value[key] = Node([*entries, *varied], old.where)


def _making_room(entry: Node, more: Node) -> Node:
    """The entry without what a key of `more` stands in place of: a search finds the guidance that is else given."""
    gone = {other for key, other in (("guidance", "search"), ("search", "guidance")) if key in more.value}
    return Node({k: v for k, v in entry.value.items() if k not in gone}, entry.where, entry.keys)


def _method_key(grid: Node) -> str:
    """`method`, `method+` or "", whichever the grid has."""
    return next(
        (key for key in ("method", "method+") if isinstance(grid.value, dict) and key in grid.value), ""
    )


def _short(item: object) -> object:
    """A method without parameters by its name alone."""
    return item["name"] if isinstance(item, dict) and list(item) == ["name"] else item
