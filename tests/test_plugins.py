"""Plugin files read without importing: what is found where, and what is said of a file that cannot be used."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from ltbench import plugins
from ltbench.errors import UsageError
from ltbench.spec.types import Kind, TypeProblem

GOOD = '''"""About the file."""
from typing import Literal
from ltbench.methods import Method, Task

class Mine(Method):
    """What it does.

    More."""
    presets = {"paper": {"weight": 2, "sizes": (1, 2)}}
    def __init__(self, task: Task, *, weight: float = 1, kind: Literal["a", "b"] = "a", sizes: tuple[int, ...] = (),
                 limit: int | None = None, on: bool = False) -> None: ...
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    return tmp_path


def test_a_dropped_file_is_found_and_described(folder: Path) -> None:
    (folder / "mine.py").write_text(GOOD)
    found = plugins.find("methods")["mine"]
    assert found.problem is None
    assert (found.class_name, found.doc.splitlines()[0]) == ("Mine", "What it does.")
    assert found.defaults == {"weight": 1.0, "kind": "a", "sizes": (), "limit": None, "on": False}
    assert found.takes() == "takes weight=1.0, kind=a, sizes=[], limit=null, on=false"
    assert found.presets == {"paper": {"weight": 2.0, "sizes": (1, 2)}}
    assert "mine" not in plugins.find("datasets")
    assert list(plugins.find("methods")) == sorted(plugins.find("methods"))


@pytest.mark.parametrize("kind", ["methods", "datasets"])
def test_the_tree_says_what_inspect_says(kind: str) -> None:
    import importlib

    for plugin in plugins.find(kind).values():
        assert plugin.problem is None, plugin
        cls = getattr(importlib.import_module(f"ltbench.{kind}.{plugin.name}"), plugin.class_name)
        real = list(inspect.signature(cls.__init__).parameters.values())[1 + (kind == "methods") :]
        base = "Method" if kind == "methods" else "Dataset"
        own = any("__init__" in vars(c) for c in cls.__mro__[: [c.__name__ for c in cls.__mro__].index(base)])
        wanted = {p.name: p.default for p in real} if own else {}
        assert plugin.defaults == wanted
        if own:
            hints = typing.get_type_hints(cls.__init__)
            for parameter in plugin.parameters:
                literal = typing.get_origin(hints[parameter.name]) is typing.Literal
                assert (parameter.kind.name == "literal") == literal
        assert (plugin.presets or {}) == getattr(cls, "presets", {})


BROKEN = {
    "does not parse": ("class (", "line 1: "),
    "is not UTF-8": (b"\xff\xfe", "cannot be read"),
    "holds no method": ("x = 1", "holds no class that descends from Method"),
    "holds two": (GOOD + "class Other(Method): ...\n", "holds 2 methods (Mine, Other)"),
    "no type": (GOOD.replace("weight: float = 1", "weight = 1"), "`weight` has no type"),
    "no default": (GOOD.replace("float = 1", "float"), "`weight` has no default"),
    "a wrong default": (GOOD.replace("float = 1", "float = 'x'"), "`weight`: expects a number (default 'x')"),
    "a computed default": (GOOD.replace("float = 1", "float = 1 / f(3)"), "write a literal"),
    "a strange type": (GOOD.replace("weight: float", "weight: dict"), "`dict` is none of"),
    "a taken word": (GOOD.replace("weight: float", "preset: float"), "`preset`: the word has a meaning"),
    "** arguments": (GOOD.replace("on: bool = False", "**more"), "takes * or ** arguments"),
    "an unknown preset key": (GOOD.replace('"weight": 2', '"weihgt": 2'), "sets `weihgt`"),
    "a wrong preset value": (
        GOOD.replace('"weight": 2', '"weight": "x"'),
        "`weight` expects a number, got x",
    ),
    "a computed preset": (GOOD.replace('{"paper"', 'dict() or {"paper"'), "write a literal"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_an_unusable_file_is_one_entry_with_its_reason(folder: Path, what: str) -> None:
    text, reason = BROKEN[what]
    (folder / "mine.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = plugins.find("methods")
    assert found["mine"].problem is not None
    assert reason in found["mine"].problem
    assert "\n" not in found["mine"].problem
    assert found["sit"].problem is None
    with pytest.raises(UsageError, match=r"mine\.py"):
        plugins.get("methods", "mine")


@pytest.mark.parametrize("name", ["Mine.py", "my-method.py", "2fast.py", "contract.py"])
def test_a_file_name_that_cannot_be_a_plugin_says_why(folder: Path, name: str) -> None:
    (folder / name).write_text(GOOD)
    problem = plugins.find("methods")[name.removesuffix(".py")].problem
    assert problem is not None
    assert "file name" in problem


def test_two_files_of_one_name_are_an_error_that_names_both(folder: Path) -> None:
    (folder / "ccua.py").write_text(GOOD)
    with pytest.raises(UsageError) as caught:
        plugins.find("methods")
    assert str(folder / "ccua.py") in str(caught.value)
    assert str(plugins.PACKAGE.parent / "methods" / "ccua.py") in str(caught.value)


def test_the_same_folder_twice_is_no_conflict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine.py").write_text(GOOD)
    monkeypatch.setenv(plugins.VARIABLE, f"{folder}:{folder}:{folder / 'mine.py'}")
    assert plugins.find("methods")["mine"].problem is None


def test_subfolders_and_single_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack" / "methods").mkdir(parents=True)
    (tmp_path / "pack" / "methods" / "inside.py").write_text(GOOD)
    (tmp_path / "pack" / "not_a_plugin.py").write_text("x = 1")
    (tmp_path / "single.py").write_text(GOOD)
    (tmp_path / "beside.py").write_text("x = 1")
    (tmp_path / "_hidden.py").write_text("x = 1")
    monkeypatch.setenv(plugins.VARIABLE, f"{tmp_path / 'pack'}:{tmp_path / 'single.py'}")
    assert {"inside", "single"} <= set(plugins.find("methods"))
    assert not {"not_a_plugin", "beside", "_hidden"} & set(plugins.find("methods"))
    assert tmp_path / "pack" / "methods" in plugins.folders("methods")
    assert tmp_path in plugins.folders("methods")


def test_a_data_set_beside_a_method_is_no_broken_method(folder: Path) -> None:
    (folder / "thing.py").write_text("from ltbench.datasets import Dataset\nclass Thing(Dataset): ...\n")
    assert "thing" in plugins.find("datasets")
    assert "thing" not in plugins.find("methods")


def test_the_class_may_descend_through_a_base_of_its_own(folder: Path) -> None:
    text = GOOD.replace("class Mine", "class _Base") + "class Mine(_Base): ...\n"
    (folder / "mine.py").write_text(text)
    found = plugins.find("methods")["mine"]
    assert (found.class_name, found.problem) == ("Mine", None)
    assert "weight" in found.defaults


def test_an_edited_file_is_read_again(folder: Path) -> None:
    (folder / "mine.py").write_text(GOOD)
    assert plugins.find("methods")["mine"].defaults["weight"] == 1.0
    (folder / "mine.py").write_text(GOOD.replace("float = 1", "float = 25"))
    assert plugins.find("methods")["mine"].defaults["weight"] == 25.0


def test_asking_for_one_plugin_reads_its_file_and_what_clashes(folder: Path, monkeypatch) -> None:
    read, real = [], plugins.read
    monkeypatch.setattr(plugins, "read", lambda path, kind: (read.append(path.stem), real(path, kind))[1])
    assert plugins.named("methods", "nobody") is None
    assert plugins.named("methods", "sit") == plugins.get("methods", "sit")
    assert read == ["sit", "sit"]
    (folder / "ccua.py").write_text(GOOD)
    with pytest.raises(UsageError, match="two methods are called 'ccua'"):
        plugins.named("methods", "sit")


def test_an_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'ccua'"):
        plugins.get("methods", "cuca")


def test_use_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        plugins.use([tmp_path / "none"])


def test_a_dropped_method_is_importable_here_and_in_children(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from ltbench.datasets import Dataset\nclass Mine(Dataset): ...\n")
    code = (
        "import sys, subprocess\nfrom ltbench import plugins\nimport ltbench.datasets\n"
        f"plugins.use([{str(tmp_path)!r}])\nimport ltbench.datasets.mine as here\nassert 'torch' not in sys.modules\n"
        "print(here.__name__, flush=True)\n"
        "subprocess.run([sys.executable, '-c', 'import ltbench.datasets.mine as m; print(m.__file__)'], check=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ltbench.datasets.mine", str(tmp_path / "mine.py")]


def test_an_entry_point_is_found_without_importing_its_package(tmp_path: Path) -> None:
    package = tmp_path / "site"
    (package / "theirs").mkdir(parents=True)
    (package / "theirs" / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "theirs" / "outsider.py").write_text(GOOD)
    info = package / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ltbench.methods]\noutsider = theirs.outsider:Mine\n")
    code = f"import sys; sys.path.insert(0, {str(package)!r})\nfrom ltbench import plugins\nprint(plugins.get('methods', 'outsider').path)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(package / "theirs" / "outsider.py")


# --- types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Kind("int"), [(3, 3)], [True, 3.0, "3", None]),
        (Kind("float"), [(3, 3.0), (0.5, 0.5)], [True, "3", None, float("nan"), float("inf")]),
        (Kind("bool"), [(True, True)], [1, "true", None]),
        (Kind("literal", values=("a", 1, None)), [("a", "a"), (1, 1), (None, None)], [True, 1.0, "b"]),
        (Kind("union", (Kind("int"), Kind("float"))), [(3, 3), (3.5, 3.5)], ["3"]),
        (Kind("union", (Kind("float"), Kind("None"))), [(None, None), (3, 3.0)], ["x"]),
        (Kind("tuple", (Kind("int"),), repeated=True), [([1, 2], (1, 2)), ([], ())], [[1.5], 1, "12"]),
        (Kind("tuple", (Kind("float"), Kind("str"))), [([1, "a"], (1.0, "a"))], [[1], [1, "a", 2]]),
    ],
)
def test_values_are_taken_or_refused_by_type(kind: Kind, good: list, bad: list) -> None:
    for value, wanted in good:
        found = kind.accept(value)
        assert found == wanted
        assert type(found) is type(wanted)
    for value in bad:
        with pytest.raises(TypeProblem):
            kind.accept(value)
