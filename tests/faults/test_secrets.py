"""Planted secrets get into no file of the store, the scratch folder, logs and reports, and into no output (F86)."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from ltbench import redact
from ltbench.errors import SpecError
from ltbench.spec.yaml_io import parse_yaml
from tests.faults import LONG, forked, secret_world
from tests.faults.grid import House

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
POOL = ("--workers", "2", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.set_num_threads(1)
    House(tmp_path_factory.mktemp("warm") / "grid").run_here()  # imports that torch puts off, before any fork


@pytest.fixture
def spill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """A house whose environment is full of secrets and whose methods print them."""
    house = House(tmp_path / "house")
    (house.place / "here" / "grid.yaml").write_text(secret_world.SPEC)
    for name, value in secret_world.plant(tmp_path / "planted", house.place / "home").items():
        monkeypatch.setenv(name, value)
    for known in (redact._known, redact._considered, redact._files_read):
        known.clear()
    return house


def go(house: House, *words: str) -> int:
    code = forked.wait(forked.driver(words, house.place), 600)
    assert code is not None, house.tail()
    return code


def leaks(house: House) -> dict[str, list[str]]:
    """canary -> files that hold it; the spec itself, which its author wrote, and HOME are left out."""
    found: dict[str, list[str]] = {}
    for path in sorted(house.place.rglob("*")):
        shown = str(path.relative_to(house.place))
        if path.is_file() and not shown.startswith(("home/", "here/grid.yaml")):
            data = path.read_bytes()
            for canary in secret_world.EVERY:
                if canary.encode() in data:
                    found.setdefault(canary, []).append(shown)
    return found


def test_no_planted_secret_reaches_a_file_or_the_output(spill: House) -> None:
    assert go(spill, "run", "grid.yaml", *POOL) == 1
    for words in (["status", "grid.yaml"], ["report", "grid.yaml"], ["plan", "grid.yaml", "--all", "--json"]):
        assert go(spill, *words) in (0, 1), spill.tail()
    failed = [path.read_text() for path in spill.place.glob("store/**/failed/*.json")]
    logs = [path.read_text() for path in spill.place.glob("scratch/logs/*/*.log")]
    assert len(failed) == 3
    assert all(redact.MARK in text for text in failed), "each failure's text had something to hide"
    assert any("HF_TOKEN = [hidden]" in text for text in logs), "a log says which variable it was"
    assert len(list(spill.place.glob("store/**/records/evaluation-*"))) == 1, (
        "the harmless cell has its record"
    )
    assert "FAILED   raises seed 0" in (spill.place / "said").read_text()
    assert leaks(spill) == {}


GUARDS = {
    "store/**/failed/*": ("ltbench.store.failures",),
    "scratch/logs/**/*.log": ("ltbench.launch.process",),
    "said": ("ltbench.cli.output", "ltbench.job"),  # either is enough
}


class _Blind(redact.Stream):
    clean = clean_all = staticmethod(lambda value: value)
    Stream = property(lambda self: _Raw)


class _Raw(redact.Stream):
    def feed(self, data: bytes) -> bytes:
        return data


@pytest.mark.parametrize("where", GUARDS if LONG else ["store/**/failed/*"])
def test_without_its_guard_it_leaks(spill: House, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    for module in GUARDS[where]:
        monkeypatch.setattr(importlib.import_module(module), "redact", _Blind())
    go(spill, "run", "grid.yaml", *POOL)
    files = {str(path.relative_to(spill.place)) for path in spill.place.glob(where)}
    leaking = {file for found in leaks(spill).values() for file in found}
    assert leaking & files, f"nothing of {where} leaks without its guard: {leaking}"


@pytest.mark.parametrize("text", [*secret_world.SHAPES[:6], f"a: {{HF_TOKEN: {'x' * 12}}}"])
def test_a_spec_with_a_secret_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(SpecError, match=r"f:1.*looks like a password or a token") as caught:
        parse_yaml(text if text.startswith("a:") else f"a: {text!r}", "f")
    assert "canary" not in str(caught.value)
    assert parse_yaml(f"# {text}\na: 1", "f").plain() == {"a": 1}, "a comment is kept nowhere"


@pytest.mark.parametrize(
    "text",
    [
        "loss term 'denoise' is nan at step 7; tokens: 196, token_grid=(14, 14), null_token: embedding",
        "GIT_AUTHOR_NAME=somebody TOKENIZERS_PARALLELISM=whatever HF_TOKEN_PATH",
        "https://github.com/a/b?page=12 ssh://git@host/a sha256 6726825d0123456789abcdef",
        "python harness.py run table1 --filter method=ccua --set train.batch=32",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert redact.clean(text) == text


def test_a_secret_cut_in_two_by_a_buffer_is_still_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "canary-across")
    key = "-----BEGIN PRIVATE KEY-----\ncanary-line\n-----END PRIVATE KEY-----"
    data = (f"{'z' * 8000} canary-across {key}{'q' * 20_000}\nlast canary-across").encode()
    for size in (1, 7, 100, 4096, 8191, 9000):
        stream = redact.Stream()
        out = b"".join(stream.feed(data[at : at + size]) for at in range(0, len(data), size))
        out += stream.flush()
        assert b"canary" not in out
        assert out.endswith(b"last [hidden]")
