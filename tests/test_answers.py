"""What cannot run is said before anything starts, once, and is n/a in the plan, the board and the report without a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ltbench import derived, provenance, spec
from ltbench.answers import Answer, Answers
from ltbench.cli import asking
from ltbench.questions import answer
from ltbench.spec.cells import Cell, expand
from ltbench.store import Store
from tests import cli_world
from tests.cli_world import ROOT, SPEC, TESTS

cli, here = cli_world.cli, cli_world.here  # fixtures

RARE = """
import os
import time
from ltbench.methods import Method


class Rare(Method):
    \"\"\"Does what it is told.\"\"\"

    def __init__(self, task, *, how: str = "fine") -> None:
        super().__init__(task)
        if how == "hang":
            time.sleep(60)
        if how == "exit":
            os._exit(3)
        if how == "raise":
            raise KeyError("no such thing")

    @classmethod
    def supports(cls, task):
        print("noise on stdout")
        return "needs two classes at least" if len(task.class_counts) != 10 else None

    def loss(self, net, draw):
        (out,) = self.run(net, draw, draw.y_in)
        return {"denoise": (out.pred - draw.target).square().mean()}
"""


@pytest.fixture
def asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A benchmark of which two rows cannot run, with asking on and no network."""
    monkeypatch.setenv("LTBENCH_ASK", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{TESTS}")
    path = here / "little.yaml"
    path.write_text(SPEC.replace("[sit, ccua]", "[sit, ddpm, repa]"))
    return here


class Child:
    """Counts what the child process is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[str]] = []
        plain = asking.ask

        def ask(module: str, words: Any, text: str, seconds: float) -> Any:
            self.asked.append([json.loads(line)["settings"]["method"]["name"] for line in text.splitlines()])
            return plain(module, words, text, seconds)

        monkeypatch.setattr(asking, "ask", ask)


def test_an_answer_is_kept_under_the_code_that_gave_it(
    here: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in the memory of source files that a plan looks into."""
    keys: list[str] = []

    def ask(module: str, words: Any, text: str, seconds: float) -> Any:
        keys[:] = [json.loads(line)["key"] for line in text.splitlines()]
        return [], "was not asked"

    monkeypatch.setattr(asking, "ask", ask)
    monkeypatch.setenv("LTBENCH_ASK", "1")
    monkeypatch.setenv("LTBENCH_CACHE", str(here / "cache"))
    assert cli("plan", "little.yaml")[0] == 0
    true = list(keys)
    (path,) = (here / "cache").glob("code-*.json")
    derived.write(path, {key: type(said)() for key, said in derived.read(path).items()})
    provenance.forget()
    assert cli("plan", "little.yaml")[0] == 0
    provenance.forget()
    assert keys == true != []


def test_plan_and_run_say_it_before_they_start_and_ask_once(
    asked: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Child(monkeypatch)
    code, out, err = cli("plan", "little.yaml", "--json")
    assert code == 0
    assert child.asked == [["sit", "ddpm", "repa"]], "each question once, whatever the number of seeds"
    assert err.count("ddpm on sit: n/a: the baseline of the ddpm pipeline; sit is the one here") == 1
    (line,) = [
        line
        for line in err.splitlines()
        if line.startswith("repa on sit: cannot run here: encoder 'timm:vit_base")
    ]
    assert "name a file" in line
    plan = json.loads(out)
    assert plan["counts"] == {"new": 4, "n/a": 2}
    assert plan["to_do"]["trainings"] == 4
    assert {cell["reason"][:16] for cell in plan["cells"] if "repa" in cell["label"]} == {"cannot run here:"}

    cli("plan", "little.yaml")
    assert len(child.asked) == 1, "answers are kept"

    code, out, err = cli("run", "little.yaml", "--job", "cli_jobs:run_job")
    assert child.asked[1:] == [["repa"]], "what the machine lacked may be there now"
    assert err.index("ddpm on sit: n/a") < err.index("2 cells, ") < err.index("done     ")
    assert "6 cells of little: 2 done, 2 n/a, 2 impossible here" in out
    assert code == 4
    assert not list((asked / "store").rglob("failed/*"))
    _, out, _ = cli("report", "little.yaml", "--format", "csv", "--out", str(asked / "first"))
    assert "cannot run here" in out

    # A copy of the store alone knows what is n/a, and not what another machine lacked.
    monkeypatch.setenv("LTBENCH_SCRATCH", str(asked / "elsewhere"))
    _, out, _ = cli("plan", "little.yaml", "--no-ask", "--json")
    reasons = {cell["reason"] for cell in json.loads(out)["cells"] if cell["state"] != "partial"}
    assert any("sit is the one here" in reason for reason in reasons)
    assert not any("cannot run here" in reason for reason in reasons)

    _, out, _ = cli("status", "little.yaml", "--json")
    rows = json.loads(out)
    rows = rows["cells"] if isinstance(rows, dict) else rows
    assert {row["state"] for row in rows if row["label"] == "ddpm"} == {"n/a"}
    _, out, err = cli("report", "little.yaml", "--format", "md")
    table = (asked / "reports/build/little").rglob("*.md")
    text = "".join(path.read_text() for path in table)
    assert "n/a" in text
    assert "sit is the one here" in text


def test_no_ask_asks_nothing_and_tries_what_was_impossible(
    asked: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = Child(monkeypatch)
    code, _, err = cli("plan", "little.yaml", "--no-ask")
    assert (code, child.asked, "cannot run" in err) == (0, [], False)
    for cell in expand(spec.load(asked / "little.yaml")):
        answers = Answers(house(asked))
        answers.keep(answers.key(cell.settings), Answer("impossible", "no such file"))
    code, out, _ = cli("run", "little.yaml", "--no-ask", "--job", "cli_jobs:run_job")
    assert (code, child.asked) == (0, [])
    assert "6 cells of little: 6 done" in out


def house(folder: Path) -> Store:
    return Store.open(folder / "store", folder / "scratch")


def cells(folder: Path, methods: str, **changes: str) -> list[Cell]:
    text = SPEC.replace("[sit, ccua]", methods)
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "other.yaml").write_text(text)
    return expand(spec.load(folder / "other.yaml"))


def test_an_answer_belongs_to_settings_and_code(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(house(here))
    one, two = cells(here, "[ccua]")  # two seeds
    other = cells(here, "[{name: ccua, gamma: 0.3}]")[0]
    answers.keep(answers.key(one.settings), Answer("unsupported", "because"))
    again = Answers(house(here))
    assert again.of(two.settings) == Answer("unsupported", "because")
    assert again.of(other.settings) is None
    code = provenance.train_code(one.settings)
    changed = {**code, "method": {**code["method"], "digest": "0" * 64}}
    monkeypatch.setattr("ltbench.provenance.train_code", lambda settings: changed)
    assert Answers(house(here)).of(one.settings) is None


def test_kept_tokens_of_augmented_images_are_refused_before_anything_starts(here: Path) -> None:
    """The table says n/a with the remedy; no run is made that could only fail."""
    rows = "[{name: repa, encoder: random, hidden: 8, cache: true}]"
    for augment, kind in (("ada", "unsupported"), ("none", "yes")):
        cell = cells(here, rows, **{"train: {": f"train: {{augment: {augment}, "})[0]
        found = answer(cell.settings)
        assert found.kind == kind, found
    cell = cells(here, rows, **{"train: {": "train: {augment: ada, "})[0]
    assert answer(cell.settings).reason == (
        "encoder 'random' cannot keep its tokens: under augment: ada no image is seen twice alike; say cache: false"
    )


def test_a_damaged_answer_is_asked_again(here: Path) -> None:
    answers = Answers(house(here))
    (one, _) = cells(here, "[ccua]")
    answers.keep(answers.key(one.settings), Answer("yes"))
    (file,) = (here / "store/derived/answers").iterdir()
    file.write_text('{"kind": ')
    assert Answers(house(here)).of(one.settings) is None


def test_a_plugin_that_hangs_exits_or_raises_costs_its_own_answer(here: Path) -> None:
    folder = here / "plugins" / "methods"
    folder.mkdir(parents=True)
    (folder / "rare.py").write_text(RARE)
    settings = cells(here, "[sit]")[0].settings
    lines = [
        json.dumps({"key": how, "settings": {**settings, "method": {"name": "rare", "how": how}}})
        for how in ("hang", "exit", "raise", "fine")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "ltbench.questions", "6"],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"PYTHONPATH": str(ROOT), "LTBENCH_PLUGINS": str(folder.parent), "OMP_NUM_THREADS": "1"},
    )
    said = {line["key"]: (line["kind"], line["reason"]) for line in map(json.loads, done.stdout.splitlines())}
    assert said == {
        "hang": ("broken", "asking it whether it can run did not end within 6 s"),
        "exit": ("broken", "asking it whether it can run ended the process"),
        "raise": ("broken", "KeyError: 'no such thing'"),
        "fine": ("yes", ""),
    }
