"""`methods NAME`, `methods new NAME` and `methods check NAME|PATH ...`."""

from __future__ import annotations

import ast
import io
import keyword
import os
import shutil
import sys
import textwrap
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltbench.cli.output import clip, dump, out, say
from ltbench.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from ltbench.conformance import Look
    from ltbench.plugins import Plugin

BLANK = "\n\n"
VERBS = ("new", "check")  # words after `methods` that are no method's name


# --- methods new ----------------------------------------------------------------------------------------------------


def new(words: Sequence[str], folder: Path | None) -> None:
    """Write a working method and say what to do next. Raises UsageError for a name that cannot be or is taken."""
    from ltbench import plugins

    if len(words) != 1:
        raise UsageError("methods new takes one name", "e.g. python harness.py methods new mine")
    (name,) = words
    where = plugins.PACKAGE.parent / "methods" if folder is None else folder.expanduser()
    if folder is None and not where.is_dir():
        raise UsageError("there is no methods/ beside the installed package", "say where: --folder DIR")
    path = where / f"{name}.py"
    _refuse(name, path)
    text = _template().read_text().replace("Template", "".join(part.capitalize() for part in name.split("_")))
    try:
        where.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:  # never over a file that appeared meanwhile
            file.write(text)
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be written: {error.strerror}") from error
    found = plugins.find("methods").get(name)
    more = "" if found is not None else f" --plugins {path}"
    out(f"wrote {_near(path)}: a working method, its loss explained; change loss() and the docstring")
    out("next:")
    out(f"  python harness.py methods check {name if found is not None else path}")
    out(f"  python harness.py run quickstart --with {name}{more} --report")


def _template() -> Path:
    """A real method, checked like any other; its class is called Template."""
    from ltbench import plugins

    return plugins.PACKAGE / "conformance" / "suite" / "template.py"


def _refuse(name: str, path: Path) -> None:
    from ltbench import plugins

    shape = "lower-case letters, digits and _, beginning with a letter, at most 64"
    if not plugins.NAME.fullmatch(name):
        near = "".join(c if c.isascii() and c.isalnum() else "_" for c in name.lower()).strip("_0123456789")[
            :64
        ]
        hint = f"e.g. {near}" if plugins.NAME.fullmatch(near) else "e.g. mine"
        raise UsageError(f"'{name}' cannot be a method's name: {shape}", hint)
    if name in VERBS or keyword.iskeyword(name):
        raise UsageError(f"'{name}' is a word of the command line or of Python", f"e.g. {name}_loss")
    if (plugins.PACKAGE / "methods" / f"{name}.py").exists():
        raise UsageError(f"the engine has its own ltbench/methods/{name}.py", f"e.g. {name}_loss")
    other = plugins.find("methods").get(name)
    if other is not None:
        raise UsageError(f"there is a method '{name}' already: {_near(other.path)}", "choose another name")
    if path.exists():
        raise UsageError(f"{_near(path)} exists", "choose another name, or move the file away")


# --- methods check --------------------------------------------------------------------------------------------------


def check(targets: Sequence[str], json: bool) -> None:
    """Run the conformance suite on every target; exit code 1 when something failed."""
    from ltbench import conformance

    if not targets:
        raise UsageError("methods check takes names or paths", "e.g. python harness.py methods check ccua")
    reports = []
    for number, target in enumerate(targets):
        say(f"checking {target} ...")
        report = conformance.check(target)
        reports.append(report)
        if not json:
            out(("\n" if number else "") + report.text(_width()))
    if json:
        dump([report.as_json() for report in reports])
    raise typer.Exit(int(any(report.failures for report in reports)))


# --- methods NAME ---------------------------------------------------------------------------------------------------


def show(name: str, json: bool, no_import: bool) -> None:
    """One method in full: formula, parameters, presets, where it runs, what it costs, its file."""
    from ltbench import plugins

    plugin = plugins.get("methods", name)
    seen = None
    if not no_import:
        from ltbench import conformance

        seen = conformance.look(name)
    meanings = _meanings(plugin)
    if json:
        dump(_record(plugin, meanings, seen))
        return
    module = _module_doc(plugin)
    first, *rest = [doc for doc in dict.fromkeys((plugin.doc, module)) if doc] or ["no docstring"]
    out("\n".join(textwrap.wrap(f"{plugin.name}: {' '.join(first.split(BLANK)[0].split())}", _width())))
    if seen is not None and seen.problem:
        out(f"not usable: {seen.problem}")
    for doc in [*([first] if BLANK in first else []), *rest]:
        out("\n" + "\n".join(_wrapped(doc)))
    _show_parameters(plugin, meanings)
    _show_presets(plugin)
    _show_place(plugin, seen)
    out(f"\nfile: {_near(plugin.path)}")


def _wrapped(doc: str) -> list[str]:
    """A docstring at this width: paragraphs are filled, indented lines (formulas) stay lines of their own."""
    lines: list[str] = []
    paragraph: list[str] = []
    for line in [*doc.splitlines(), ""]:
        if line and not line[0].isspace():
            paragraph.append(line)
            continue
        lines += textwrap.wrap(" ".join(paragraph), _width())
        paragraph = []
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(line, _width(), subsequent_indent=indent + "    ") or [""]
    return lines[:-1]


def _module_doc(plugin: Plugin) -> str:
    try:
        return ast.get_docstring(ast.parse(plugin.path.read_bytes())) or ""
    except (OSError, ValueError, SyntaxError):
        return ""


def _meanings(plugin: Plugin) -> dict[str, str]:
    """Per parameter the comment that ends its line in the signature, "" without one."""
    try:
        source = plugin.path.read_text()
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (OSError, ValueError, SyntaxError, tokenize.TokenError):
        return {}
    comments = {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == plugin.class_name:
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    args = [*item.args.args, *item.args.kwonlyargs]
                    lines = [arg.lineno for arg in args]
                    found = {a.arg: comments.get(a.lineno, "") for a in args if lines.count(a.lineno) == 1}
    return found


def _show_parameters(plugin: Plugin, meanings: dict[str, str]) -> None:
    from ltbench.spec.types import spell

    if not plugin.parameters:
        out("\nno parameters")
        return
    out("\nparameters:")
    rows = [(p.name, str(p.kind), spell(p.default), meanings.get(p.name, "")) for p in plugin.parameters]
    _columns([("name", "type", "default", "meaning" if any(row[3] for row in rows) else ""), *rows])


def _columns(rows: Sequence[tuple[str, str, str, str]]) -> None:
    """Name, type and default side by side; the meaning on the same line where it fits, else on lines of its own."""
    sizes = [max(len(row[i]) for row in rows) for i in range(3)]
    sizes[1] = min(sizes[1], 30)
    for name, kind, default, meaning in rows:
        kinds = textwrap.wrap(kind, sizes[1]) or [""]
        line = f"  {name:<{sizes[0]}}  {kinds[0]:<{sizes[1]}}  {default:<{sizes[2]}}"
        fits = len(line) + 2 + len(meaning) <= _width()
        out((f"{line}  {meaning}" if fits else line).rstrip())
        pad = " " * (sizes[0] + 4)
        for more in kinds[1:]:
            out(pad + more)
        if not fits:
            for more in textwrap.wrap(meaning, _width() - len(pad)):
                out(pad + more)


def _show_presets(plugin: Plugin) -> None:
    """Every preset by what it sets; presets that set the same are one line, after the pipelines' own defaults."""
    from ltbench.spec.types import spell

    same: dict[str, list[str]] = {}
    for name, values in (plugin.presets or {}).items():
        words = ", ".join(f"{key}={spell(value)}" for key, value in values.items()) or "nothing"
        if all(value == plugin.defaults[key] for key, value in values.items()):
            words += " (the defaults)"
        same.setdefault(words, []).append(name)
    if same:
        out("\npresets, by what they set; sit, ddpm: beneath every cell of that pipeline")
    for words, names in same.items():
        out(
            "\n".join(
                textwrap.wrap(f"  preset {', '.join(names)}: {words}", _width(), subsequent_indent="      ")
            )
        )


def _show_place(plugin: Plugin, seen: Look | None) -> None:
    """Where it runs and what it costs."""
    if seen is None or seen.problem:
        return
    out()
    costs = {cost.pipeline: cost for cost in seen.costs}
    for pipeline, reason in seen.supports.items():
        cost = costs.get(pipeline)
        if reason is not None:
            words = reason.removeprefix("not on this pipeline: ")
            words = f"does not run: {words}"
        elif cost is None:
            words = "runs"
        else:
            own = ", and parameters of its own" if cost.parameters else ""
            passes = "pass" if cost.rows == 1 else "passes"
            words = f"cost {cost.rows:g} network {passes} per image at 10% dropped labels (baseline 1){own}"
        out("\n".join(textwrap.wrap(f"on {pipeline}: {words}", _width(), subsequent_indent="    ")))
    out(f"time relative to the baseline: python harness.py methods check {plugin.name}")


def _record(plugin: Plugin, meanings: dict[str, str], seen: Look | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": plugin.name,
        "file": _near(plugin.path),
        "description": clip(plugin.doc.split("\n\n")[0].replace("\n", " "), 160),
        "doc": plugin.doc,
        "module_doc": _module_doc(plugin),
        "parameters": plugin.defaults,
        "types": {p.name: str(p.kind) for p in plugin.parameters},
        "meanings": {p.name: meanings.get(p.name, "") for p in plugin.parameters},
        "presets": plugin.presets or {},
        "problem": plugin.problem if seen is None else seen.problem,
    }
    if seen is not None and seen.problem is None:
        record["supports"] = seen.supports
        record["cost"] = {c.pipeline: {"rows": c.rows, "parameters": c.parameters} for c in seen.costs}
    return record


def _width() -> int:
    """Columns to write in: the terminal's, at most 110; 100 in a pipe."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return 100
    return max(60, min(110, shutil.get_terminal_size((100, 24)).columns))


def _near(path: Path) -> str:
    """The path as seen from here, if it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
