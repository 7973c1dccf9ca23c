"""Code digests: changed by meaning and by nothing else, told by name, and split by component."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltbench import plugins, provenance
from ltbench.provenance import surroundings, syntax
from ltbench.provenance.changes import changes
from ltbench.spec import networks

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "dataset": {"name": "digits"},
    "network": "SiT-N/4",
    "method": {"name": "ccua", "alpha": 0.05},
    "seed": 0,
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the checkout's code that provenance takes for its own."""
    for folder in ("ltbench", "methods", "datasets"):
        shutil.copytree(
            ROOT / folder,
            tmp_path / folder,
            ignore=shutil.ignore_patterns("__pycache__", "*.npz", "*.safetensors"),
        )
    monkeypatch.setattr(plugins, "PACKAGE", tmp_path / "ltbench")
    monkeypatch.setattr(networks, "NAMES_FILE", tmp_path / "ltbench" / "networks" / "names.py")
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    forget()
    yield tmp_path
    monkeypatch.undo()
    forget()


def forget() -> None:
    provenance.forget()
    sys.modules.pop("ltbench._network_names", None)


def code(**settings: object) -> provenance.Code:
    forget()
    return {**provenance.train_code({**SETTINGS, **settings}), **provenance.evaluation_code()}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


def changed(before: provenance.Code, after: provenance.Code) -> set[str]:
    return {part for part in after if before[part]["digest"] != after[part]["digest"]}


def test_a_comment_a_docstring_and_layout_change_nothing(checkout: Path) -> None:
    before = code()
    for path in sorted(checkout.rglob("*.py")):
        text = path.read_text()
        first = "# a comment\n\n\n" if not text.startswith("#!") else ""
        path.write_text(first + ast.unparse(ast.parse(text)) + "\n\n# the end\n'''text on its own'''\n")
    assert changed(before, code()) == set()


EDITS = {
    "methods/ccua.py": ("self.alpha == 0", "self.alpha == 1", {"method"}, "method `CCUA.loss` changed"),
    "methods/sit.py": ("mean_square(out.pred", "mean_square(2 * out.pred", set(), ""),
    "ltbench/order.py": ("from ", "import math as changed\nfrom ", {"trainer"}, "imports changed"),
    "ltbench/networks/sit.py": ("class ", "EXTRA = 1\n\n\nclass ", {"network"}, "constant `EXTRA` added"),
    "ltbench/networks/unet.py": ("class ", "EXTRA = 1\n\n\nclass ", set(), ""),
    "ltbench/networks/names.py": ('"N": (2, 64, 2)', '"N": (3, 64, 2)', {"network"}, "size `SiT-N/4` changed"),
    "ltbench/datasets/longtail.py": ("import", "import math as changed\nimport", {"data"}, "imports changed"),
    "datasets/digits.py": ("import", "import math as changed\nimport", {"data"}, "datasets/digits.py: imports changed"),
    "datasets/fashion_mnist.py": ("import", "import math as changed\nimport", set(), ""),
    "ltbench/metrics/frechet.py": ("import", "import math as changed\nimport", {"evaluation"}, "imports changed"),
    "ltbench/sampling/flow.py": ("import", "import math as changed\nimport", {"evaluation"}, "imports changed"),
    "ltbench/canonical.py": ("import", "import os\nimport", set(), ""),
    "ltbench/spec/types.py": ("import", "import os\nimport", set(), ""),
}  # fmt: skip


@pytest.mark.parametrize("file", EDITS)
def test_a_change_touches_its_component_and_is_named(checkout: Path, file: str) -> None:
    old, new, components, words = EDITS[file]
    before = code()
    path = checkout / file
    if old == "import":
        text = path.read_text().replace(
            "from __future__ import annotations\n", f"from __future__ import annotations\n{new[:-6]}", 1
        )
        assert text != path.read_text()
        path.write_text(text)
    else:
        edit(path, old, new)
    after = code()
    assert changed(before, after) == components
    said = changes(before, after)
    assert bool(said) == bool(components)
    assert words in "; ".join(said)


KEPT = {
    "ltbench/metrics/frechet.py": set(),
    "ltbench/metrics/measure.py": set(),
    "ltbench/metrics/naming.py": set(),
    "ltbench/extractors.py": set(),  # names and places; what a name stands for is in the identity and the files below
    "ltbench/metrics/extractor.py": {"extractor"},
    "ltbench/metrics/classifier.py": {"extractor"},
    "ltbench/metrics/inception.py": {"extractor"},
    "ltbench/metrics/pretrained.py": {"extractor"},
    "ltbench/encoders.py": {"extractor"},
    "ltbench/sampling/flow.py": {"sampling"},
    "ltbench/generate.py": {"sampling"},
}


@pytest.mark.parametrize("file", KEPT)
def test_features_outlive_a_changed_metric_and_nothing_else(checkout: Path, file: str) -> None:
    """The cache of features is keyed by these two digests; a changed metric makes evaluations stale, not features."""

    def digests() -> dict[str, str]:
        provenance.forget()
        return {"sampling": provenance.sampling_code(), "extractor": provenance.extractor_code()}

    before, evaluation = digests(), provenance.evaluation_code()["evaluation"]["digest"]
    path = checkout / file
    path.write_text(path.read_text() + "\n# a comment\n")
    assert digests() == before
    path.write_text(path.read_text() + "\nEXTRA = 1\n")
    after = digests()
    assert {key for key in after if after[key] != before[key]} == KEPT[file]
    stale = provenance.evaluation_code()["evaluation"]["digest"] != evaluation
    assert stale == (file != "ltbench/extractors.py")


def test_a_size_for_somebody_else_changes_nobody(checkout: Path) -> None:
    before = code()
    edit(checkout / "ltbench/networks/names.py", '"N": (2, 64, 2)', '"N": (2, 64, 2), "Q": (1, 8, 1)')
    edit(checkout / "ltbench/networks/names.py", "UNetSize(16, (1, 2, 2)", "UNetSize(8, (1, 2, 2)")
    assert changed(before, code()) == set()


def test_a_removed_name_and_a_new_file_are_told(checkout: Path) -> None:
    before = code()
    (checkout / "ltbench" / "newly.py").write_text("def f():\n    return 1\n")
    path = checkout / "ltbench" / "parts.py"
    path.write_text(
        path.read_text().replace("from ltbench import seeds", "from ltbench import newly, seeds", 1)
    )
    said = changes(before, code())
    assert "ltbench/newly.py: is new" in said
    assert "ltbench/parts.py: imports changed" in said


def test_a_function_is_named_as_a_function() -> None:
    old = {"method": {"digest": "a", "files": {"methods/ccua.py": {"function spread": "1", "imports": "2"}}}}
    new = {"method": {"digest": "b", "files": {"methods/ccua.py": {"function spread": "3", "imports": "2"}}}}
    assert changes(old, new) == ["methods/ccua.py: function `spread` changed"]
    assert changes(old, old) == []


def test_imports_for_types_alone_do_not_count(checkout: Path) -> None:
    before = code()
    path = checkout / "ltbench" / "trainer.py"
    text = path.read_text()
    head = "from __future__ import annotations\n"
    extra = "from typing import TYPE_CHECKING\n"
    guarded = "if TYPE_CHECKING:\n    from ltbench.sampling import sample\n"
    path.write_text(text.replace(head, head + extra, 1) + guarded)
    after = code()
    assert changes(before, after) == ["ltbench/trainer.py: imports changed"]  # TYPE_CHECKING itself
    assert "ltbench/sampling/__init__.py" not in after["trainer"]["files"]


def test_a_plugin_keeps_its_digest_wherever_it_lies(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code()
    (checkout / "far" / "methods").mkdir(parents=True)
    shutil.move(checkout / "methods" / "ccua.py", checkout / "far" / "methods" / "ccua.py")
    monkeypatch.setenv(plugins.VARIABLE, str(checkout / "far"))
    after = code()
    assert after["method"] == before["method"]
    assert list(after["method"]["files"]) == ["methods/ccua.py"]


def test_a_run_is_its_code_and_its_settings() -> None:
    train = provenance.train_code(SETTINGS)
    run = provenance.run_id(train, SETTINGS)
    assert len(run) == 12
    assert run == provenance.run_id(
        {**train, "evaluation": {"digest": "x"}}, dict(reversed(SETTINGS.items()))
    )
    assert run != provenance.run_id({**train, "method": {"digest": "x"}}, SETTINGS)
    assert run != provenance.run_id(train, {**SETTINGS, "seed": 1})


def test_digests_do_not_depend_on_the_process() -> None:
    script = (
        "import json\nfrom ltbench import provenance as p\n"
        f"print(json.dumps([p.train_code({SETTINGS!r}), p.evaluation_code()], sort_keys=True))"
    )
    outputs = set()
    for seed in ("0", "1"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        outputs.add(
            subprocess.run(
                [sys.executable, "-c", script], capture_output=True, check=True, env=env, cwd=ROOT
            ).stdout
        )
    assert len(outputs) == 1


def test_no_component_follows_imports_into_another() -> None:
    found = {**provenance.train_code(SETTINGS), **provenance.evaluation_code()}
    assert {"ltbench/trainer.py", "ltbench/parts.py"} <= set(found["trainer"]["files"])
    assert "ltbench/evaluate.py" in found["evaluation"]["files"]
    assert not any("networks" in path or "datasets" in path for path in found["trainer"]["files"])
    assert list(found["method"]["files"]) == ["methods/ccua.py"]
    assert all("networks" in path for path in found["network"]["files"])
    assert all("datasets" in path for path in found["data"]["files"])


SNIPPET = '''
"""Doc."""
@dec
async def f(a, /, b: int = 1, *c, d=None, **e) -> "x":
    """Doc."""
    async with g() as h: await h
    return [x for x in c if x] or {**e} or f"{a!r:>{b}} {'q'}" or (lambda: (yield))
class C(B, metaclass=M):
    x: int = 0
    def m(self): return super().m() if self.x else b"\\xff" + 1j * 1e400
match f:
    case {"a": [1, *_], **r} | C(x=0) if r: pass
try: y = z[1:2, ..., ::3]
except* (E, F) as g: raise g from None
else: del y
'''


def test_one_spelling_of_a_tree_for_every_python() -> None:
    spelled = syntax.spell_tree(ast.parse(SNIPPET))
    assert spelled == syntax.spell_tree(ast.parse(SNIPPET.replace("Doc.", "Other.").replace("\n\n", "\n")))
    import hashlib

    # Pinned: a Python that spells this otherwise would call every stored result stale.
    assert hashlib.sha256(spelled.encode()).hexdigest()[:16] == "7a93a399819d0e26"


def plainly(node: object) -> str:
    """As `spell_tree`, field by field as `ast` lists them."""
    if isinstance(node, list):
        return "[" + ",".join(plainly(item) for item in node if not syntax._is_text(item)) + "]"
    if isinstance(node, ast.Constant) or not isinstance(node, ast.AST):
        return repr(getattr(node, "value", node))
    if isinstance(node, ast.JoinedStr):
        node = ast.JoinedStr(syntax._joined(node.values))
    said = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
    own = [f"{name}={plainly(value)}" for name, value in said if name not in syntax._SKIPPED]
    return f"{type(node).__name__}({','.join(own)})"


def test_every_file_is_spelled_field_by_field() -> None:
    paths = [path for folder in ("ltbench", "methods", "datasets") for path in (ROOT / folder).glob("*.py")]
    for path in paths:
        tree = ast.parse(path.read_bytes())
        assert syntax.spell_tree(tree) == plainly(tree), path


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://user:token@host.org/a/b.git", "https://host.org/a/b.git"),
        ("https://host.org/a/b.git?token=x#y", "https://host.org/a/b.git"),
        ("git@host.org:a/b.git", "host.org:a/b.git"),
        ("ssh://git@host.org:22/a", "ssh://host.org:22/a"),
        ("/srv/git/a", "/srv/git/a"),
        ("https://us%40er:p%40ss@host.org/a@b", "https://host.org/a@b"),
    ],
)
def test_remotes_lose_their_credentials(url: str, clean: str) -> None:
    assert surroundings.clean_remote(url) == clean


def test_only_listed_variables_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTBENCH_SECRET_TOKEN", "canary")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    found = surroundings.environment()
    assert "canary" not in repr(found)
    assert found["environment"]["SLURM_JOB_ID"] == "17"
    assert found["versions"]["python"].startswith(f"{sys.version_info.major}.")
    assert {"commit", "dirty", "remote"} <= set(found)
