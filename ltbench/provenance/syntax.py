"""What the text of a source file says: the modules that it imports, and a digest of each name in it.

Digests are of syntax trees without docstrings, comments and positions, so that only a change of meaning changes one.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltbench import texts


@functools.cache
def text_of(path: Path) -> bytes:
    """A file as it was when it was first asked for."""
    return path.read_bytes()


@functools.cache
def parsed(text: bytes) -> ast.Module:
    """The tree of a source text. Raises SyntaxError."""
    return ast.parse(text)


@functools.cache
def names_of(path: Path) -> dict[str, str]:
    """sha256 of each top-level thing of a file: {"function spread": hex, "method CCUA.loss": hex, "imports": hex, ...}."""
    return texts.say(text_of(path), digests)


def digests(source: bytes) -> dict[str, str]:
    """`names_of` the file with this text."""
    found: dict[str, list[str]] = {}
    order: list[str] = []
    imported: set[str] = set()
    for node in parsed(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= _import_words(node)
        elif not _is_text(node) and not (
            isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        ):
            for name, text in _pieces(node):
                if name == "constant __all__":
                    continue  # a list of exports makes no number
                found.setdefault(name, []).append(text)
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    order.append(name)
    if imported:
        found["imports"] = sorted(imported)
    if len(order) > 1:
        found["order of statements"] = order
    return {
        name: hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
        for name, parts in found.items()
    }


def _import_words(node: ast.Import | ast.ImportFrom) -> set[str]:
    start = f"from {'.' * node.level}{node.module or ''} " if isinstance(node, ast.ImportFrom) else ""
    return {f"{start}import {alias.name} as {alias.asname or alias.name}" for alias in node.names} - {
        "from __future__ import annotations as annotations"
    }


def _pieces(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """(name, text) of a statement; a class is its head and each of its methods."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        yield f"function {node.name}", spell_tree(node)
    elif isinstance(node, ast.ClassDef):
        methods = [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
        head = [item for item in node.body if item not in methods and not _says_cost(item)]
        parts = [*node.bases, *node.keywords, *node.decorator_list, *head]
        yield f"class {node.name}", " ".join(spell_tree(part) for part in parts if not _is_text(part))
        for item in methods:
            yield f"method {node.name}.{item.name}", spell_tree(item)
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield f"constant {', '.join(map(ast.unparse, targets))}", spell_tree(node)
    else:
        yield "statements", spell_tree(node)


def _says_cost(item: ast.stmt) -> bool:
    """Whether it is `single_pass`, which tells what a method costs and makes no number."""
    return isinstance(item, ast.AnnAssign) and ast.unparse(item.target) == "single_pass"


_SKIPPED = frozenset({"ctx", "type_comment", "kind", "type_ignores"})


@functools.cache
def _spelled_fields(kind: type[ast.AST]) -> tuple[str, ...]:
    return tuple(name for name in kind._fields if name not in _SKIPPED)


def spell_tree(node: Any) -> str:
    """A syntax tree as text that no Python version spells differently: class names and non-empty fields, no docstrings."""
    kind = type(node)  # asked first for what is commonest: a component has a hundred thousand nodes
    if kind is ast.Constant:
        return repr(node.value)
    if kind is list:
        return "[" + ",".join([spell_tree(item) for item in node if not _is_text(item)]) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    given = {"values": _joined(node.values)} if isinstance(node, ast.JoinedStr) else node.__dict__
    fields = [
        f"{name}={spell_tree(value)}"
        for name in _spelled_fields(kind)
        if (value := given.get(name)) is not None and value != []
    ]
    return f"{kind.__name__}({','.join(fields)})"


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """Pieces of an f-string with neighbouring texts as one and empty ones gone: Python 3.12 cuts them in its own way."""
    found: list[ast.expr] = []
    for value in values:
        last = found[-1] if found else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            found[-1] = ast.Constant(str(last.value) + str(value.value))
        elif not (isinstance(value, ast.Constant) and value.value == ""):
            found.append(value)
    return found


def _is_text(node: Any) -> bool:
    """A docstring, or any other text that stands alone as a statement: it does nothing."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def import_statements(source: bytes) -> list[tuple[str, int | None, list[str]]]:
    """(module, level, names) of each statement; `import a, b` has no module and no level."""
    found: list[tuple[str, int | None, list[str]]] = []
    for node in _running(parsed(source)):
        if isinstance(node, ast.Import):
            found.append(("", None, [alias.name for alias in node.names]))
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level, [alias.name for alias in node.names]))
    return found


def _running(node: ast.AST) -> Iterator[ast.stmt]:
    """Every statement below, `if TYPE_CHECKING:` left out; expressions, which hold no import, are not gone through."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        children = getattr(node, field, None)
        for child in children if isinstance(children, list) else ():
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                continue
            if isinstance(child, ast.stmt):
                yield child
            yield from _running(child)


CACHED = (names_of, text_of, parsed)
