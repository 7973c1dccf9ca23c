"""Names from specs and the command line lead nowhere: refused in words, quickly, and nothing outside the folders is opened."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltbench import files
from ltbench.errors import UsageError
from ltbench.store import Store
from tests import store_faults as faults
from tests.faults import hostile_names
from tests.faults.hostile_names import NAMES
from tests.test_layers import ROOT

pytestmark = pytest.mark.faults
LETTERS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], list[str]]:
    """The root, what every place said to every name, and the calls of the process that opened or made files."""
    root = tmp_path_factory.mktemp("names") / "root"
    for folder in (root, root / "home", root.parent / "outside"):
        folder.mkdir()
    for place in (root.parent / "outside", root / "home"):
        (place / "canary").write_text("not to be opened")
    trace = root.parent / "trace"
    command = [sys.executable, "-m", "tests.faults.hostile_names", str(root)]
    if shutil.which("strace"):
        command = ["strace", "-f", "-qq", "-y", "-e", "trace=%file", "-o", str(trace), *command]
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(root / "home"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    calls = trace.read_text().splitlines() if trace.exists() else []
    return root, [json.loads(line) for line in done.stdout.splitlines()], calls


def test_every_hostile_name_is_refused_in_words_and_quickly(
    asked: tuple[Path, list[dict], list[str]],
) -> None:
    _, lines, _ = asked
    assert len({line["name"] for line in lines}) == len(NAMES) >= 60
    for line in lines:
        name, place, said = line["name"], line["place"], line["said"]
        assert line["seconds"] < 10, line
        if said is None:
            # What a place takes is a plain word, or a name that it never uses for a file.
            assert LETTERS.fullmatch(name), (place, name)
            continue
        kind, message = said
        assert kind in ("SpecError", "UsageError", "LtbenchError", "ValueError"), (place, name, said)
        assert len(message) < 20_000
        assert not re.search("[\x00\x1b\x07\x7f\u202e]", message), f"{place} repeats {name!r}: {message!r}"


def test_no_hostile_name_opens_anything_outside(asked: tuple[Path, list[dict], list[str]]) -> None:
    root, _, calls = asked
    if not calls:
        pytest.skip("NOT TESTED: what hostile names open, for want of strace")
    assert len(calls) > 1000
    for call in calls:
        if re.search(r"(execve|readlink|newfstatat|stat|access)(at)?\d?\(", call):
            continue  # looking at a name gives nothing away
        assert "canary" not in call, call
        assert "/etc/passwd" not in call, call
        if re.search(
            r"O_(CREAT|WRONLY|RDWR|TRUNC)|\b(mkdir|link|symlink|rename|unlink|chmod)(at)?\d?\(", call
        ):
            made = re.findall(r'"([^"]*)"', call)
            assert made, call
            for path in made:
                full = path if path.startswith("/") else str(root / path)
                assert full.startswith(str(root) + "/") or full in (str(root), "/dev/null", "/dev/tty"), call


def test_a_name_that_would_leave_does_leave_without_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store", tmp_path / "scratch")
    with pytest.raises(UsageError, match="cannot be a spec's name"):
        store.put_spec("../../canary", "a: 1")
    monkeypatch.setattr("ltbench.store.core._SPEC", re.compile(".*"))
    with pytest.raises(UsageError, match="cannot be a spec's name"):  # the second rule: no `..`
        store.put_spec("../../canary", "a: 1")
    store.put_spec(f"{tmp_path}/canary", "a: 1")
    assert (tmp_path / "canary.yaml").exists(), "the test would not notice a missing rule"


# --- folders that others may change (F87) --------------------------------------------------------------------------------


def test_a_folder_that_everybody_may_write_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ltbench.cli import stores

    monkeypatch.setenv("LTBENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LTBENCH_SCRATCH", str(tmp_path / "scratch"))
    stores.open_store(write=True)
    assert capfd.readouterr().err == ""
    (tmp_path / "scratch").chmod(0o777)
    stores.open_store(write=True)
    folder = tmp_path / "scratch"
    assert (
        capfd.readouterr().err
        == f"warning: everybody on this machine may write into {folder}: chmod o-w {folder}\n"
    )
    stores.open_store(write=False)
    assert capfd.readouterr().err == "", "only a command that writes warns"


def test_a_folder_of_somebody_else_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.exposure(tmp_path) is None
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    if tmp_path.stat().st_uid != 0:
        assert "belongs to" in str(files.exposure(tmp_path))
        return
    assert files.exposure(tmp_path) is None, "root may do everything anyway"
    os.chown(tmp_path, 1234567, -1)
    assert files.exposure(tmp_path) == (
        f"{tmp_path} belongs to user 1234567, who can change or remove any result in it"
    )
    assert files.exposure(tmp_path / "none") is None
    assert faults.leftovers(tmp_path) == []


def test_names_are_many() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 60
    assert len(hostile_names.SPEC.splitlines()) > 5
