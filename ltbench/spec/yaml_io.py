"""Strict YAML: a tree in which every key and value knows its place. Syntax is PyYAML's, meaning is YAML 1.2's core schema.

Closed traps: duplicate keys, anchors and aliases (and their bombs), tags, merge keys, tabs as indentation, NUL, byte order marks,
several documents, NaN and infinities, `1e-4` as text, `010` as 8, `no` as false, `24:00:00` as 86400.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ltbench import redact
from ltbench.errors import Problem, SpecError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 100_000
MAX_DIGITS = 64

_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_QUOTES = ("'", '"', "|", ">")  # a plain scalar has style None or "", depending on the parser
_CONTROL = re.compile(
    "[^\t\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)  # not printable, says YAML
_COMMENT = re.compile(r"(^|\s)#.*")
_SECRET = (
    "this looks like a password or a token: what a spec holds is kept with its results and shared, "
    "so put it into the environment"
)
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
# libyaml's parser where it is compiled in; both give the same events and marks.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Position:
    """A place in a file; lines and columns count from 1. A value given on the command line has no line."""

    file: str
    line: int | None = None
    column: int | None = None


@dataclass
class Node:
    """A value with its place. `value` is a dict of nodes, a list of nodes, or a scalar; `keys` holds the places of the dict's keys."""

    value: Any
    where: Position
    keys: dict[str, Position] = field(default_factory=dict)

    def plain(self) -> Any:
        """The value as plain dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: item.plain() for key, item in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value

    def find(self, path: tuple[str | int, ...]) -> Node | None:
        """The node at a path of keys and list indices, or None."""
        node: Node | None = self
        for part in path:
            if node is None:
                return None
            if isinstance(node.value, dict):
                node = node.value.get(part)
            elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
            else:
                return None
        return node

    def place(self, path: tuple[str | int, ...], *, key: bool = False) -> Position:
        """Where the value at `path` is (its key if `key`), or the nearest thing above it that is written down."""
        if key and path:
            parent = self.find(path[:-1])
            if parent is not None and path[-1] in parent.keys:
                return parent.keys[path[-1]]  # pyright: ignore[reportArgumentType]
        while (node := self.find(path)) is None:
            path = path[:-1]
        return node.where


def read_yaml(path: Path, shown: str | None = None) -> Node:
    """The tree of a file. Raises SpecError, also for a file that cannot be read."""
    shown = shown or str(path)
    try:
        with path.open("rb") as file:
            return parse_yaml(file.read(MAX_BYTES + 1), shown)  # a byte too many is refused there
    except OSError as error:
        raise _error(f"cannot be read: {error.strerror}", shown) from None


def parse_yaml(data: bytes | str, file: str) -> Node:
    """The tree of a text; an empty document is an empty mapping. Raises SpecError."""
    text = _decode(data, file)
    suspicious = redact.looks_secret(text)
    if suspicious:
        _refuse_secret_lines(text, file)
    builder = _Builder(file, suspicious)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (None, None)
        problem = str(error.problem or error.context)
        if (
            "nesting depth" in problem
        ):  # PyYAML 6.0.4 and later give up on their own, before our limit is asked
            raise _error(f"is nested deeper than {MAX_DEPTH} levels", file, line, column) from None
        raise _error(f"not YAML: {problem}", file, line, column) from None
    except yaml.YAMLError as error:
        raise _error(f"not YAML: {' '.join(str(error).split())}", file) from None
    if builder.problems:
        raise SpecError(builder.problems)
    return builder.root or Node({}, Position(file, 1, 1))


def _error(
    message: str, file: str, line: int | None = None, column: int | None = None, **more: str
) -> SpecError:
    return SpecError([Problem(message, file, line, column, **more)])


def _refuse_secret_lines(text: str, file: str) -> None:
    """Comments are kept nowhere, so they may say anything."""
    for number, line in enumerate(text.split("\n"), 1):
        if redact.looks_secret(_COMMENT.sub("", line)):
            raise _error(_SECRET, file, number)


def _decode(data: bytes | str, file: str) -> str:
    raw = data.encode() if isinstance(data, str) else data
    if len(raw) > MAX_BYTES:
        raise _error(f"the text is larger than {MAX_BYTES} bytes", file)
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise _error("begins with a byte order mark; save the file as UTF-8 without it", file, 1, 1)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error("is not UTF-8", file, raw.count(b"\n", 0, error.start) + 1) from None
    for number, line in enumerate(text.split("\n"), 1):
        indent = line[: len(line) - len(line.lstrip())]
        if "\t" in indent and line.strip():
            raise _error("a tab is used as indentation; use spaces", file, number, indent.index("\t") + 1)
        if found := _CONTROL.search(line):
            name = "NUL" if found[0] == "\0" else f"control character {ord(found[0]):#04x}"
            raise _error(f"holds a {name}", file, number, found.start() + 1)
    return text


class _Builder:
    """Events to nodes with a stack of its own: no recursion, so that depth is a limit we set and not a crash."""

    def __init__(self, file: str, suspicious: bool = False) -> None:
        self.file = file
        self.suspicious = suspicious
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._stack: list[tuple[Node, list[tuple[str, Position] | None]]] = []
        self._count = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        """Use one event. Raises SpecError for what a spec may not hold at all."""
        where = self._where(event)
        if isinstance(event, yaml.DocumentStartEvent):
            self._start_document(event, where)
        elif isinstance(event, yaml.AliasEvent):
            self._refuse(f"an alias (*{event.anchor}) is not allowed; write the value out", where)
        elif isinstance(event, yaml.NodeEvent):
            self._node(event, where)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._stack.pop()

    def _where(self, event: yaml.Event) -> Position:
        return Position(self.file, event.start_mark.line + 1, event.start_mark.column + 1)

    def _refuse(self, message: str, where: Position) -> None:
        raise _error(message, self.file, where.line, where.column)

    def _start_document(self, event: yaml.DocumentStartEvent, where: Position) -> None:
        self._documents += 1
        if self._documents > 1:
            self._refuse("a second document (---) begins here; a spec is one document", where)
        if event.version or event.tags:
            self._refuse("a % directive is not allowed", where)

    def _node(self, event: yaml.NodeEvent, where: Position) -> None:
        self._count += 1
        if event.anchor:
            self._refuse(f"an anchor (&{event.anchor}) is not allowed; write the value out", where)
        if tag := getattr(event, "tag", None):
            self._refuse(f"a tag ({_short_tag(tag)}) is not allowed", where)
        if self._count > MAX_NODES:
            self._refuse(f"holds more than {MAX_NODES} values", where)
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event, where)
            return
        if len(self._stack) >= MAX_DEPTH:
            self._refuse(f"is nested deeper than {MAX_DEPTH} levels", where)
        node = Node({} if isinstance(event, yaml.MappingStartEvent) else [], where)
        self._attach(node, is_key=None)
        self._stack.append((node, [None]))

    def _scalar(self, event: yaml.ScalarEvent, where: Position) -> None:
        quoted = event.style in _QUOTES
        if self.suspicious and redact.looks_secret(event.value):
            self._refuse(_SECRET, where)
        if self._stack and isinstance(self._stack[-1][0].value, dict) and self._stack[-1][1][0] is None:
            if event.value == "<<" and not quoted:
                self._refuse("a merge key (<<) is not allowed; use `extends:`", where)
            self._attach(Node(event.value, where), is_key=event.value)
            return
        value = event.value if quoted else self._resolve(event.value, where)
        self._attach(Node(value, where), is_key=None)

    def _resolve(self, text: str, where: Position) -> Any:
        try:
            return scalar(text)
        except ValueError as error:
            self.problems.append(Problem(str(error), self.file, where.line, where.column, text[:MAX_DIGITS]))
            return None

    def _attach(self, node: Node, is_key: str | None) -> None:
        if not self._stack:
            self.root = node
            return
        parent, pending = self._stack[-1]
        if isinstance(parent.value, list):
            parent.value.append(node)
        elif is_key is not None:
            if is_key in parent.value:
                first = parent.keys[is_key]
                self.problems.append(
                    Problem(
                        f"key '{is_key}' is given twice (first on line {first.line})",
                        self.file,
                        node.where.line,
                        node.where.column,
                    )
                )
            pending[0] = (is_key, node.where)
        elif pending[0] is None:
            self._refuse("a list or a mapping is used as a key; keys are text", node.where)
        else:
            key, place = pending[0]
            pending[0] = None
            parent.value[key], parent.keys[key] = node, place


def _short_tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!", 1)


def scalar(text: str) -> Any:
    """An unquoted scalar by the core schema of YAML 1.2. Raises ValueError for NaN, infinities and endless numbers."""
    if text in _WORDS:
        return _WORDS[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("NaN and infinities are not allowed")
    whole = _INT.fullmatch(text) or _OCTAL.fullmatch(text) or _HEX.fullmatch(text)
    if not whole and not _FLOAT.fullmatch(text):
        return text
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has at most {MAX_DIGITS} characters")
    if whole:
        return int(text) if _INT.fullmatch(text) else int(text, 0)
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("the number is too large")
    return number


# --- writing --------------------------------------------------------------------------------------------------------


class _Dumper(yaml.SafeDumper):
    """Quotes whatever the two YAML versions read differently."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    bare = (
        _PLAIN.fullmatch(text)
        and text not in _WORDS
        and text.lower() not in ("yes", "no", "on", "off", "y", "n")
    )
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if bare else '"')


def _write_float(dumper: yaml.SafeDumper, number: float) -> yaml.ScalarNode:
    text = repr(number)
    if "." not in text and "e" in text:
        text = text.replace("e", ".0e")  # 1e-05 is a number here, but text for a reader of YAML 1.1
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(float, _write_float)


def dump_yaml(data: Any) -> str:
    """Plain data as YAML text that `parse_yaml` reads back as the same data. Raises ValueError for NaN and infinities."""
    for number in _scalars(data):
        if isinstance(number, float) and not math.isfinite(number):
            raise ValueError(f"a spec cannot hold the number {number!r}")
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None
    )


def _scalars(data: Any) -> Iterator[Any]:
    if isinstance(data, dict | list | tuple):
        for item in data.values() if isinstance(data, dict) else data:
            yield from _scalars(item)
    else:
        yield data
