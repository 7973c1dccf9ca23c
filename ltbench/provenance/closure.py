"""Which files of the engine a file draws in by its imports."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from ltbench import plugins, texts
from ltbench.provenance.syntax import import_statements, text_of


def drawn_in(roots: Iterable[Path], without: Iterable[str]) -> set[Path]:
    """The roots and every file of ltbench that they import, directly or not, except below the modules in `without`."""
    banned = {f"ltbench.{name}" for name in without}
    found: set[Path] = set()
    waiting = list(roots)
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        waiting += [
            file
            for module in _imports(path)
            if not any(module == name or module.startswith(name + ".") for name in banned)
            and (file := _file_of(module)) is not None
        ]
    return found


@functools.cache
def _imports(path: Path) -> tuple[str, ...]:
    """Modules of ltbench that a file imports anywhere in it, for its types alone excepted."""
    found: set[str] = set()
    package = _package_of(path)
    for module, level, imported in texts.say(text_of(path), import_statements):
        if level is None:
            found |= set(imported)
            continue
        base = module
        if level:
            base = ".".join([*package[: len(package) - level + 1], *([base] if base else [])])
        # `from a import b` may mean the module a.b or a name of a.
        inner = {f"{base}.{name}" for name in imported if _file_of(f"{base}.{name}")}
        found |= inner if len(inner) == len(imported) else {base, *inner}
    return tuple(sorted(module for module in found if module.partition(".")[0] == "ltbench"))


def _package_of(path: Path) -> list[str]:
    root = plugins.PACKAGE.parent
    return list(path.relative_to(root).parent.parts) if path.is_relative_to(root) else []


@functools.cache
def _file_of(module: str) -> Path | None:
    """The file of a module of ltbench, plugins of methods and datasets included."""
    path = plugins.PACKAGE.parent.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    if (path / "__init__.py").is_file():
        return path / "__init__.py"
    parts = module.split(".")
    if len(parts) == 3 and parts[0] == "ltbench" and parts[1] in plugins.ROOTS:
        files = (folder / f"{parts[2]}.py" for folder in plugins.folders(parts[1]))
        return next((file for file in files if file.is_file()), None)
    return None


CACHED = (_imports, _file_of)
