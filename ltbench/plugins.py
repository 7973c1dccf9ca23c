"""Method and data set files: where they lie, and what they say about themselves, read from the syntax tree without importing.

A plugin is one file with one class that descends from Method or Dataset; its name is the file's stem. Files lie in the checkout's
`methods/` and `datasets/`, in the folders and files that LTBENCH_PLUGINS names, and behind entry points of the groups
`ltbench.methods` and `ltbench.datasets`.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.errors import UsageError
from ltbench.spec.types import Kind, TypeProblem, read_annotation, spell

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PACKAGE = Path(__file__).resolve().parent
ROOTS = {"methods": "Method", "datasets": "Dataset"}  # kind -> class that its plugins descend from
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
VARIABLE = "LTBENCH_PLUGINS"
SNAPSHOT = "snapshot.json"  # beside the package: this is a copy that a grid was submitted with
TAKEN = ("name", "preset", "init")  # words of the spec, so no hyper-parameter may have them


@dataclass(frozen=True)
class Parameter:
    """One keyword argument of a plugin's `__init__`."""

    name: str
    kind: Kind
    default: Any

    def __str__(self) -> str:
        return f"{self.name}={spell(self.default)}"


@dataclass(frozen=True)
class Plugin:
    """What a plugin file says about itself. With `problem` set, the file is unusable and that is why.

    single_pass: as a method declares it (`Method.single_pass`). runs: passes in the longest call of `self.run` in the file.
    """

    name: str
    kind: str
    path: Path
    class_name: str = ""
    doc: str = ""
    presets: dict[str, dict[str, Any]] | None = None
    parameters: tuple[Parameter, ...] = ()
    single_pass: list[dict[str, Any]] | None = None
    runs: int = 1
    problem: str | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """Every parameter with its default."""
        return {parameter.name: parameter.default for parameter in self.parameters}

    def takes(self) -> str:
        """One line for messages: `takes tau=1.0, gamma=0.25`."""
        return "takes " + (", ".join(map(str, self.parameters)) or "no parameters")


class _Unusable(Exception):
    """Why a file cannot be a plugin."""


def folders(kind: str) -> tuple[Path, ...]:
    """Folders whose files are importable as `ltbench.<kind>.NAME`, in order; kind is "methods" or "datasets"."""
    found = dict.fromkeys(path if path.is_dir() else path.parent for path, _ in _sources(kind))
    return tuple(found)


def use(paths: Sequence[str | Path]) -> None:
    """Add plugin folders or files (`--plugins`) for this process and its children. Raises UsageError for one that is not there."""
    for path in map(Path, paths):
        if not path.exists():
            raise UsageError(f"--plugins {path}: there is no such file or folder")
    old = [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
    new = [str(Path(path).resolve()) for path in paths]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys(old + new))
    for kind in ROOTS:
        package = sys.modules.get(f"ltbench.{kind}")
        if package is not None:
            package.__path__.extend(str(f) for f in folders(kind) if str(f) not in package.__path__)


def find(kind: str) -> dict[str, Plugin]:
    """Every plugin of a kind by name, sorted, unusable ones included. Raises UsageError when two files have one name."""
    return dict(sorted(_by_name(_files(kind), kind).items()))


def named(kind: str, name: str) -> Plugin | None:
    """What `find` has under a name; of the other files only those are read that may have one name."""
    files = list(_files(kind))
    count = Counter(path.stem for path in files)
    return _by_name((path for path in files if path.stem == name or count[path.stem] > 1), kind).get(name)


def _by_name(files: Iterable[Path], kind: str) -> dict[str, Plugin]:
    found: dict[str, Plugin] = {}
    for path in files:
        plugin = read(path, kind)
        if plugin is None:
            continue
        other = found.get(plugin.name)
        if other is not None:
            raise UsageError(
                f"two {kind} are called '{plugin.name}': {other.path} and {plugin.path}",
                "rename one of the files",
            )
        found[plugin.name] = plugin
    return found


def get(kind: str, name: str) -> Plugin:
    """One usable plugin. Raises UsageError with a suggestion, or with the reason why the file is unusable."""
    plugin = named(kind, name)
    if plugin is None:
        usable = [other for other, found in find(kind).items() if found.problem is None]
        near = difflib.get_close_matches(name, usable, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(usable)}"
        raise UsageError(f"unknown {kind[:-1]} '{name}'", hint)
    if plugin.problem is not None:
        raise UsageError(f"{plugin.path}: {plugin.problem}")
    return plugin


def snapshot() -> dict[str, Any] | None:
    """What ltbench/launch/slurm/snapshot.py says about the copy that this program runs from; None in a checkout."""
    path = PACKAGE.parent / SNAPSHOT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


# --- where files lie ------------------------------------------------------------------------------------------------


def _sources(kind: str) -> Iterator[tuple[Path, bool]]:
    """(folder or file, whether it holds plugins of this kind only)."""
    own = PACKAGE.parent / kind
    if own.is_dir():
        yield own, True
    for entry in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        path = Path(entry).expanduser().resolve()
        if path.is_dir() and any((path / other).is_dir() for other in ROOTS):
            if (path / kind).is_dir():
                yield path / kind, True
        elif path.exists():
            yield path, False
    for path in entry_points(kind):
        yield path, True


@functools.cache
def entry_points(kind: str) -> tuple[Path, ...]:
    """Files of installed packages that register under `ltbench.<kind>`, found without importing them; a snapshot has its own
    copies."""
    if snapshot() is not None:
        return ()
    found = []
    for point in _registered()[kind]:
        top, *inner = point.value.partition(":")[0].strip().split(".")
        spec = importlib.util.find_spec(top)
        if spec is None or spec.origin is None:
            continue
        file = Path(spec.origin).parent.joinpath(*inner).with_suffix(".py") if inner else Path(spec.origin)
        if file.is_file():
            found.append(file.resolve())
    return tuple(found)


@functools.cache
def _registered() -> dict[str, tuple[EntryPoint, ...]]:
    """What installed packages register, by kind; each package's file is read once."""
    from importlib import metadata  # takes as long to import as all of a look's own modules

    points = metadata.entry_points()
    return {kind: tuple(points.select(group=f"ltbench.{kind}")) for kind in ROOTS}


def _files(kind: str) -> Iterator[Path]:
    seen: set[Path] = set()
    for source, _ in _sources(kind):
        for path in sorted(source.glob("*.py")) if source.is_dir() else [source]:
            if path not in seen and not path.name.startswith("_"):
                seen.add(path)
                yield path


# --- what a file says -----------------------------------------------------------------------------------------------


def read(path: Path, kind: str) -> Plugin | None:
    """The plugin in one file; None if the file holds a plugin of the other kind."""
    try:
        stat = path.stat()
    except OSError as error:
        return Plugin(path.stem, kind, path, problem=f"cannot be read: {error.strerror}")
    return _read(path, kind, (stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=4096)
def _read(path: Path, kind: str, stamp: tuple[int, int]) -> Plugin | None:
    del stamp  # part of the cache's key: an edited file is read again
    blank = Plugin(path.stem, kind, path)
    try:
        _check_name(path, kind)
        tree = _parse(path)
        here = _descendants(tree, kind)
        if not here:
            other = next(iter(set(ROOTS) - {kind}))
            if _descendants(tree, other):
                return None
            raise _Unusable(f"holds no class that descends from {ROOTS[kind]}")
        if len(here) > 1:
            names = ", ".join(node.name for node in here)
            raise _Unusable(f"holds {len(here)} {kind} ({names}): one file holds one")
        (node,) = here
        doc = (ast.get_docstring(node) or ast.get_docstring(tree) or "").strip()
        plugin = replace(blank, class_name=node.name, doc=doc)
        parameters = _parameters(_init(tree, node, kind), kind)
        single_pass = None if kind != "methods" else _single_pass(node, parameters)
        told = {"presets": _presets(node, parameters), "single_pass": single_pass, "runs": _runs(tree)}
        return replace(plugin, parameters=parameters, **told)
    except _Unusable as error:
        return replace(blank, problem=str(error))


def _check_name(path: Path, kind: str) -> None:
    if not NAME.fullmatch(path.stem):
        raise _Unusable("a plugin's file name is lower-case letters, digits and _, beginning with a letter")
    if (PACKAGE / kind / path.name).exists():
        raise _Unusable(f"the engine has its own ltbench/{kind}/{path.name}: choose another file name")


@functools.lru_cache(maxsize=4096)
def _parse_text(text: str) -> ast.Module:
    return ast.parse(text)


def _parse(path: Path) -> ast.Module:
    try:
        return _parse_text(path.read_bytes().decode("utf-8"))
    except SyntaxError as error:
        raise _Unusable(f"line {error.lineno}: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise _Unusable(f"cannot be read: {error}") from None


def _classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _descendants(tree: ast.Module, kind: str) -> list[ast.ClassDef]:
    """Classes of the file that descend from the kind's root and that no other class of the file descends from."""
    classes = _classes(tree)
    found = [node for node in classes.values() if _line(tree, node, kind)]
    bases = {ast.unparse(base) for node in found for base in node.bases}
    return [node for node in found if node.name not in bases and not node.name.startswith("_")]


def _line(
    tree: ast.Module, node: ast.ClassDef, kind: str, depth: int = 0
) -> list[tuple[ast.Module, ast.ClassDef]]:
    """The class and its ancestors below the root, nearest first, each with its file's tree; [] if the root is not reached."""
    if depth > 8:
        return []
    for base in node.bases:
        name = ast.unparse(base)
        origin, original = _imported(tree, name)
        if original.rpartition(".")[2] == ROOTS[kind] and name not in _classes(tree):
            return [(tree, node)]
        home = tree if name in _classes(tree) else _engine_module(origin)
        parent = None if home is None else _classes(home).get(original)
        if home is not None and parent is not None and parent is not node:
            above = _line(home, parent, kind, depth + 1)
            if above:
                return [(tree, node), *above]
    return []


def _imported(tree: ast.Module, name: str) -> tuple[str, str]:
    """(module, original name) of a name that the file imports; ("", name) of another."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module, alias.name
    return "", name


def _engine_module(module: str) -> ast.Module | None:
    """The tree of a module of ltbench itself, for plugins whose base class is one of the engine's."""
    if module.partition(".")[0] != "ltbench":
        return None
    path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    return _parse(path) if path.is_file() else None


def _init(tree: ast.Module, node: ast.ClassDef, kind: str) -> ast.FunctionDef | None:
    """The nearest `__init__` of the class and its ancestors below the root."""
    for _, cls in _line(tree, node, kind):
        for item in cls.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return item
    return None


def _parameters(init: ast.FunctionDef | None, kind: str) -> tuple[Parameter, ...]:
    if init is None:
        return ()
    args = init.args
    if args.vararg or args.kwarg:
        raise _Unusable(
            "`__init__` takes * or ** arguments: name each hyper-parameter, with its type and default"
        )
    plain = [*args.posonlyargs, *args.args]
    padding: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults))
    pairs = list(zip(plain, [*padding, *args.defaults], strict=True))[1 + (kind == "methods") :]
    pairs += list(zip(args.kwonlyargs, args.kw_defaults, strict=True))
    return tuple(_parameter(arg, default) for arg, default in pairs)


def _parameter(arg: ast.arg, default: ast.expr | None) -> Parameter:
    if arg.arg in TAKEN:
        raise _Unusable(f"parameter `{arg.arg}`: the word has a meaning in specs; choose another name")
    if arg.annotation is None:
        raise _Unusable(f"parameter `{arg.arg}` has no type: annotate it, e.g. `{arg.arg}: float = 1.0`")
    if default is None:
        raise _Unusable(f"parameter `{arg.arg}` has no default: a row without parameters must run")
    try:
        kind = read_annotation(arg.annotation)
        return Parameter(arg.arg, kind, kind.accept(_literal(default, f"the default of `{arg.arg}`")))
    except TypeProblem as problem:
        raise _Unusable(f"parameter `{arg.arg}`: {problem} (default {ast.unparse(default)})") from None


def _literal(node: ast.expr, what: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _Unusable(
            f"{what} is `{ast.unparse(node)}`: write a literal, so that it can be read without running the file"
        ) from None


def _presets(node: ast.ClassDef, parameters: tuple[Parameter, ...]) -> dict[str, dict[str, Any]]:
    value = _attribute(node, "presets")
    return {} if value is None else _checked_presets(_literal(value, "`presets`"), parameters)


def _attribute(node: ast.ClassDef, name: str) -> ast.expr | None:
    """What a class's body gives to a name."""
    for item in node.body:
        targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return getattr(item, "value", None)
    return None


def _single_pass(node: ast.ClassDef, parameters: tuple[Parameter, ...]) -> list[dict[str, Any]] | None:
    value = _attribute(node, "single_pass")
    found = None if value is None else _literal(value, "`single_pass`")
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise _Unusable("`single_pass` must be a list of dicts: [{parameter: value}]")
    names = {parameter.name for parameter in parameters}
    for key in (key for each in found for key in each if key not in names):
        raise _Unusable(f"`single_pass` names `{key}`, which `__init__` does not take")
    return found


def _runs(tree: ast.Module) -> int:
    """Passes in the longest `self.run(net, draw, *passes)` of a file; a list that is spread counts as two."""
    calls = [
        node.args[2:]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "run"
    ]
    return max((len(c) + sum(isinstance(a, ast.Starred) for a in c) for c in calls), default=1)


def _checked_presets(presets: Any, parameters: tuple[Parameter, ...]) -> dict[str, dict[str, Any]]:
    by_name = {parameter.name: parameter for parameter in parameters}
    if not isinstance(presets, dict) or not all(isinstance(preset, dict) for preset in presets.values()):
        raise _Unusable("`presets` must be a dict of dicts: {name: {parameter: value}}")
    for name, preset in presets.items():
        for key, value in preset.items():
            if key not in by_name:
                raise _Unusable(f"preset '{name}' sets `{key}`, which `__init__` does not take")
            try:
                preset[key] = by_name[key].kind.accept(value)
            except TypeProblem as problem:
                raise _Unusable(f"preset '{name}': `{key}` {problem}, got {spell(value)}") from None
    return presets
