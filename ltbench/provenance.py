"""What made a result: a digest of the code of each component, the commit, and the versions of the tools.

Code is digested over syntax trees without docstrings, comments and positions, so that only a change of meaning changes a digest,
and name by name, so that a change can be said: "methods/ccua.py: method `CCUA.loss` changed".
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ltbench import plugins, texts
from ltbench.canonical import Digester, digest
from ltbench.spec.networks import network_numbers

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
COMPONENTS = ("trainer", "method", "network", "data")  # what a run's weights depend on
LATENTS = "latents"  # where they train on latents, the code that made these
START = "init"  # and, where they begin at other weights, the code that made and loaded these
# Files and bookkeeping: they carry values to the code below and change none of them.
PLUMBING = (
    "errors",
    "canonical",
    "files",
    "plugins",
    "provenance",
    "plan",
    "protocols",
    "searching",
    "extractors",
    "spec",
    "store",
    "report",
)
PLUMBING += (
    "redact",
    "answers",
    "checkpoint",
    "stages",
    "job",
    "launch",
    "status",
    "cli",
    "shards",
    "sources",
    "vaes",
    "places",
)
ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
)
ENVIRONMENT += (
    "SLURM_JOB_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_PARTITION",
)
PACKAGES = ("ltbench", "torch", "numpy", "safetensors", "torchdiffeq")

Code = dict[str, dict[str, Any]]  # component -> {"digest": 64 hex, "files": {path: {name: 8 hex}}}


def train_code(settings: Mapping[str, Any]) -> Code:
    """Code that decides a run's weights. Raises UsageError when the method or the data set is not there any more.

    Of what was trained elsewhere that is the data set it is compared with, and the network that its weights were put into.
    """
    if "external" in settings:
        network = (
            {"network": _network(settings["network"])} if settings["external"]["kind"] == "checkpoint" else {}
        )
        return {**network, "data": _plugin("datasets", settings["dataset"]["name"])}
    code = {
        "trainer": _trainer(),
        "method": _plugin("methods", settings["method"]["name"]),
        "network": _network(settings["network"]),
        "data": _plugin("datasets", settings["dataset"]["name"]),
    }
    if settings["dataset"].get("latents"):
        code[LATENTS] = latents_code()
    if "init" in settings:
        code[START] = _start(settings["init"])
    return code


def data_code(name: str) -> dict[str, Any]:
    """Digest and files of the code of a data set."""
    return _plugin("datasets", name)


def latents_code() -> dict[str, Any]:
    """Digest and files of the code that turns pixels into cached latents."""
    return _latents()


def evaluation_code() -> Code:
    """Code that decides an evaluation's numbers, given weights and data."""
    return {"evaluation": _evaluation()}


def measuring_code(kind: str) -> dict[str, Any]:
    """Digest and files of the code that makes records of a kind: evaluation, selection or illustration. Pictures need all that
    numbers need, and more: their code may change while every number stays."""
    return _illustration() if kind == "illustration" else evaluation_code()["evaluation"]


def sampling_code() -> str:
    """Digest of the code that turns weights into images."""
    return _images()["digest"]


def extractor_code() -> str:
    """Digest of the code that turns images into features."""
    return _extractor()["digest"]


def run_id(code: Code, settings: Mapping[str, Any], digester: Digester | None = None) -> str:
    """12 hex digits: the directory of runs of these settings by this code. A `digester` spells what many cells share once."""
    parts = {part: code[part]["digest"] for part in (*COMPONENTS, LATENTS, START) if part in code}
    whole = {"code": parts, "settings": dict(settings)}
    return (digest(whole) if digester is None else digester.digest(whole, depth=2))[:12]


def changes(old: Code, new: Code) -> list[str]:
    """What changed between two codes, in sentences; components that only one of them has are left out."""
    said: list[str] = []
    for component in sorted(set(old) & set(new)):
        if old[component]["digest"] == new[component]["digest"]:
            continue
        before, after = old[component].get("files", {}), new[component].get("files", {})
        found = [
            line
            for path in sorted({*before, *after})
            for line in _file_changes(path, before.get(path), after.get(path))
        ]
        said += found or [f"the {component} code changed"]
    return list(dict.fromkeys(said))


def _file_changes(path: str, old: dict[str, str] | None, new: dict[str, str] | None) -> Iterator[str]:
    if old is None or new is None:
        yield f"{path}: {'is new' if old is None else 'is no longer used'}"
        return
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            verb = "added" if name not in old else "removed" if name not in new else "changed"
            kind, _, own = name.partition(" ")
            yield f"{path}: {kind} `{own}` {verb}" if own else f"{path}: {kind} {verb}"


def kept_in(folder: Path | None) -> contextlib.AbstractContextManager[None]:
    """In the block, what is in source files is taken from `folder` where their text was seen before; for commands that look."""
    return texts.kept_in(folder, __file__)


def leave(folder: Path | None) -> None:
    """Leave in `folder` what this process has read in source files, and all that records are compared with, for commands that look."""
    if folder is not None:
        for kind in ("evaluation", "illustration"):
            measuring_code(kind)
        texts.leave(folder, __file__)


def reading() -> contextlib.AbstractContextManager[None]:
    """In the block, every file is read anew, though a command looks: for what is kept beside results."""
    forget()
    return kept_in(None)


def forget() -> None:
    """Read every file again at the next call: for tests and for long-lived processes."""
    for cached in (
        _trainer,
        _plugin,
        _network,
        _evaluation,
        _illustration,
        _images,
        _extractor,
        _latents,
        _loader,
        names_of,
        _imports,
        _text,
        _tree,
        _file_of,
        git_state,
    ):
        cached.cache_clear()
    texts.forget()


# --- components -----------------------------------------------------------------------------------------------------


@functools.cache
def _trainer() -> dict[str, Any]:
    return _component(_closure([PACKAGE / "trainer.py"], (*PLUMBING, "networks", "datasets", "metrics")))


@functools.cache
def _evaluation() -> dict[str, Any]:
    roots = [PACKAGE / "evaluate.py", PACKAGE / "groups.py"]
    return _component(_closure(roots, (*PLUMBING, "networks", "datasets", "methods", "trainer")))


@functools.cache
def _illustration() -> dict[str, Any]:
    roots = [PACKAGE / "illustrate.py", PACKAGE / "groups.py"]
    return _component(_closure(roots, (*PLUMBING, "networks", "datasets", "methods", "trainer")))


@functools.cache
def _images() -> dict[str, Any]:
    return _component(
        _closure([PACKAGE / "generate.py"], (*PLUMBING, "networks", "datasets", "methods", "trainer"))
    )


@functools.cache
def _extractor() -> dict[str, Any]:
    return _component(_closure([PACKAGE / "metrics" / "extractor.py"], (*PLUMBING, "metrics.naming")))


@functools.cache
def _latents() -> dict[str, Any]:
    without = (*PLUMBING, "networks", "datasets", "methods", "trainer", "metrics", "collect")
    return _component(_closure([PACKAGE / "latents" / "moments.py"], without))


@functools.cache
def _plugin(kind: str, name: str) -> dict[str, Any]:
    """The plugin's file and the plugins it imports; for a data set also the engine's data code (a method's contract is the
    trainer's)."""
    others = tuple({entry.stem for entry in PACKAGE.iterdir()} - {kind})
    files = _closure([plugins.get(kind, name).path], others)
    if kind == "methods":
        return _component(file for file in files if not file.is_relative_to(PACKAGE))
    return _component({*files, PACKAGE / "datasets" / "__init__.py"})


@functools.cache
def _network(name: str) -> dict[str, Any]:
    """The network's class and what it imports. Of the table of sizes only this name's numbers count: a new size changes nobody."""
    folder = PACKAGE / "networks"
    own = folder / ("sit.py" if name.startswith("SiT") else "unet.py")
    files = {*_closure([own], (*PLUMBING, "methods", "datasets", "metrics")), folder / "__init__.py"}
    table = folder / "names.py"
    component = _named_files(files - {table})
    functions = {key: value for key, value in names_of(table).items() if key.startswith("function")}
    component[_shown(table)] = {**functions, f"size {name}": digest(network_numbers(name))}
    return _digested(component)


def _start(init: Mapping[str, Any]) -> dict[str, Any]:
    """How starting weights are loaded, and the code that trained them where that is ours."""
    own = _loader()
    if "source" not in init:
        return own
    made = train_code(init["source"])
    files = dict(own["files"])
    for part in made.values():
        files |= part["files"]
    digests = {part: entry["digest"] for part, entry in made.items()}
    return {"digest": digest({"own": own["digest"], "source": digests}), "files": files}


@functools.cache
def _loader() -> dict[str, Any]:
    without = (*PLUMBING, "networks", "datasets", "metrics", "methods", "trainer")
    return _component(_closure([PACKAGE / "start.py"], without))


def _component(files: Iterable[Path]) -> dict[str, Any]:
    return _digested(_named_files(files))


def _named_files(files: Iterable[Path]) -> dict[str, dict[str, str]]:
    return {_shown(path): names_of(path) for path in files}


def _digested(files: dict[str, dict[str, str]]) -> dict[str, Any]:
    short = {
        path: {name: full[:8] for name, full in sorted(names.items())}
        for path, names in sorted(files.items())
    }
    return {"digest": digest(files), "files": short}


def _shown(path: Path) -> str:
    """A path that is equal on every machine: from the checkout, or kind and name for a plugin that lies elsewhere."""
    if path.is_relative_to(PACKAGE):
        return path.relative_to(ROOT).as_posix()
    kind = "datasets" if plugins.read(path, "methods") is None else "methods"
    return f"{kind}/{path.name}"


# --- imports --------------------------------------------------------------------------------------------------------


def _closure(roots: Iterable[Path], without: Iterable[str]) -> set[Path]:
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
    for module, level, imported in texts.say(_text(path), _import_statements):
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


def _import_statements(source: bytes) -> list[tuple[str, int | None, list[str]]]:
    """(module, level, names) of each statement; `import a, b` has no module and no level."""
    found: list[tuple[str, int | None, list[str]]] = []
    for node in _running(_tree(source)):
        if isinstance(node, ast.Import):
            found.append(("", None, [alias.name for alias in node.names]))
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", node.level, [alias.name for alias in node.names]))
    return found


@functools.cache
def _text(path: Path) -> bytes:
    return path.read_bytes()


@functools.cache
def _tree(text: bytes) -> ast.Module:
    return ast.parse(text)


def _package_of(path: Path) -> list[str]:
    if path.is_relative_to(ROOT):
        return list(path.relative_to(ROOT).parent.parts)
    return []


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


@functools.cache
def _file_of(module: str) -> Path | None:
    """The file of a module of ltbench, plugins of methods and datasets included."""
    path = ROOT.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    if (path / "__init__.py").is_file():
        return path / "__init__.py"
    parts = module.split(".")
    if len(parts) == 3 and parts[0] == "ltbench" and parts[1] in plugins.ROOTS:
        files = (folder / f"{parts[2]}.py" for folder in plugins.folders(parts[1]))
        return next((file for file in files if file.is_file()), None)
    return None


# --- fingerprints ---------------------------------------------------------------------------------------------------


@functools.cache
def names_of(path: Path) -> dict[str, str]:
    """sha256 of each top-level thing of a file: {"function spread": hex, "method CCUA.loss": hex, "imports": hex, ...}."""
    return texts.say(_text(path), _names_in)


def _names_in(source: bytes) -> dict[str, str]:
    texts: dict[str, list[str]] = {}
    order: list[str] = []
    imported: set[str] = set()
    for node in _tree(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= _import_words(node)
        elif not _is_text(node) and not (
            isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        ):
            for name, text in _pieces(node):
                if name == "constant __all__":
                    continue  # a list of exports makes no number
                texts.setdefault(name, []).append(text)
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    order.append(name)
    if imported:
        texts["imports"] = sorted(imported)
    if len(order) > 1:
        texts["order of statements"] = order
    return {
        name: hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
        for name, parts in texts.items()
    }


def _import_words(node: ast.Import | ast.ImportFrom) -> set[str]:
    start = f"from {'.' * node.level}{node.module or ''} " if isinstance(node, ast.ImportFrom) else ""
    return {f"{start}import {alias.name} as {alias.asname or alias.name}" for alias in node.names} - {
        "from __future__ import annotations as annotations"
    }


def _says_cost(item: ast.stmt) -> bool:
    """Whether it is `single_pass`, which tells what a method costs and makes no number."""
    return isinstance(item, ast.AnnAssign) and ast.unparse(item.target) == "single_pass"


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


# --- surroundings ---------------------------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """{"commit", "dirty", "remote", "versions", "environment"}: circumstances for a record's envelope."""
    return {
        **git_state(),
        "versions": versions(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on, without importing them."""
    from importlib import metadata  # takes as long to import as all of a look's own modules

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_state() -> dict[str, Any]:
    """{"commit": 40 hex or None, "dirty": changed tracked files, or None outside git, "remote": without credentials}.

    Of a snapshot: as it was where and when that was made.
    """
    if (taken := plugins.snapshot()) is not None:
        return taken["git"]
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    remote = _git("remote", "get-url", "origin")
    return {
        "commit": commit or None,
        "dirty": None if status is None or not commit else bool(status),
        "remote": clean_remote(remote) if remote else None,
    }


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words],
            capture_output=True,
            text=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def clean_remote(url: str) -> str:
    """A remote's address without user, password, query and fragment."""
    url = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, separator, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
