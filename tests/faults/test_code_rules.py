"""Rules that no line of the engine may break, read from the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_layers import PACKAGE, PLUGINS, ROOT

SOURCES = [*sorted(PACKAGE.rglob("*.py")), *PLUGINS]
OWN_READER = PACKAGE / "datasets" / "unpickle.py"  # reads CIFAR's pickles with a table of what may be named
UNSAFE = (
    "pickle.load",
    "pickle.loads",
    "cPickle.load",
    "dill.load",
    "cloudpickle.load",
    "joblib.load",
    "marshal.loads",
    "eval",
    "exec",
)


def calls(path: Path) -> Iterator[tuple[int, str, dict[str, ast.expr]]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield (
                node.lineno,
                ast.unparse(node.func),
                {word.arg: word.value for word in node.keywords if word.arg},
            )


def freely_unpickled(path: Path) -> list[str]:
    """Calls that could run what a file holds."""
    found = []
    for line, name, words in calls(path):
        where = f"{path.relative_to(path.parents[len(path.parts) - 2])}:{line}: {name}"
        loads = name in ("torch.load", "np.load", "numpy.load")
        safe = {"torch.load": ("weights_only", True)}.get(name, ("allow_pickle", False))
        if name in UNSAFE or (
            loads
            and ast.unparse(words.get(safe[0], ast.Constant(safe[1] if name != "torch.load" else None)))
            != str(safe[1])
        ):
            found.append(where)
    return found


def test_nothing_is_unpickled_freely() -> None:
    assert [line for path in SOURCES if path != OWN_READER for line in freely_unpickled(path)] == []


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "pickle.loads(b)",
        "eval(x)",
    ],
)
def test_what_would_be_is_noticed(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(text)
    assert len(freely_unpickled(tmp_path / "a.py")) == 1
    (tmp_path / "a.py").write_text(
        "torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\nmodel.eval()"
    )
    assert freely_unpickled(tmp_path / "a.py") == []


def handlers(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.Lambda | None]]:
    """(what signal.signal is given, its definition in the same file)."""
    tree = ast.parse(path.read_text())
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "signal.signal":
            given = node.args[1]
            name = ast.unparse(given)
            yield name, given if isinstance(given, ast.Lambda) else functions.get(name.rpartition(".")[2])


def test_signal_handlers_only_take_note() -> None:
    """A handler that saves, logs or takes a lock can interrupt the very call that it makes (reliability: #21406)."""
    seen = 0
    for path in SOURCES:
        for name, function in handlers(path):
            if function is None:
                assert name in ("handler", "signal.SIG_IGN", "signal.SIG_DFL"), (
                    f"{path}: {name} is defined elsewhere"
                )
                continue
            made = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
            assert set(made) <= {"signal.Signals"}, (
                f"{path.relative_to(ROOT)}: the handler {name} calls {made}"
            )
            seen += 1
    assert seen >= 2
