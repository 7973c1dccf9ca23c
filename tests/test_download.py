"""Downloads: whatever a server does, the file is right or it is not there, and what had arrived is used."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ltbench import download
from ltbench.download import Asset, fetch
from ltbench.errors import EnvironmentProblem
from ltbench.files import StorageProblem
from tests.file_server import Behaviour, serving

CONTENT = hashlib.shake_128(b"a file").digest(3 << 20)
NOW = (0.0, 0.0)


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def asset(url: str, folder: Path, **more) -> Asset:
    known = {"bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    return Asset("a file", url, folder / "data" / "file.bin", "MIT", **{**known, **more})


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "data").iterdir())


def test_a_file_is_fetched_checked_and_named_and_then_found(tmp_path):
    seen = []
    with serving(how := Behaviour(CONTENT)) as url:
        wanted = asset(url, tmp_path)
        got = fetch(wanted, lambda done, total: seen.append((done, total)))
        again = fetch(wanted)
    assert wanted.place.read_bytes() == CONTENT
    assert (got.bytes, got.downloaded, again.downloaded) == (len(CONTENT), len(CONTENT), 0)
    assert got.sha256 == again.sha256 == wanted.sha256
    assert len(how.asked) == 1
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert left(tmp_path) == ["file.bin"]


def test_what_is_printed_before(tmp_path):
    line = asset("http://host/x", tmp_path).describe()
    for part in ("a file", f"{len(CONTENT):,} bytes", "http://host/x", "licence MIT", "sha256 "):
        assert part in line
    bare = asset("http://host/x", tmp_path, bytes=None, sha256="").describe()
    assert "size not known" in bare
    assert "checksum not known" in bare


@pytest.mark.parametrize("tag", ['"one"', None])
def test_a_server_that_cuts_is_asked_for_the_rest(tmp_path, tag):
    with serving(how := Behaviour(CONTENT, tag=tag, cuts=[1_000_000, 500_000])) as url:
        got = fetch(asset(url, tmp_path), pauses=NOW)
    assert got.path.read_bytes() == CONTENT
    assert how.asked == [None, "bytes=1000000-", "bytes=1500000-"]
    assert got.downloaded == len(CONTENT), "no byte came twice"


def test_a_stopped_download_goes_on_in_another_process(tmp_path):
    with serving(how := Behaviour(CONTENT, cuts=[1_000_000, 0, 0])) as url:
        with pytest.raises(EnvironmentProblem, match="1,000,000 bytes are kept") as caught:
            fetch(asset(url, tmp_path), pauses=(0.0,))
        assert "run the same command again" in str(caught.value.hint)
        assert left(tmp_path) == ["file.bin.part", "file.bin.part.json"]
        how.cuts.clear()
        got = fetch(asset(url, tmp_path), pauses=NOW)
    assert how.asked[-1] == "bytes=1000000-"
    assert got.path.read_bytes() == CONTENT
    assert got.downloaded == len(CONTENT) - 1_000_000


def test_without_checksum_and_mark_nothing_is_put_together(tmp_path):
    with serving(how := Behaviour(CONTENT, tag=None, cuts=[1_000_000, 0])) as url:
        bare = asset(url, tmp_path, sha256="", bytes=None)
        with pytest.raises(EnvironmentProblem):
            fetch(bare, pauses=())
        how.cuts.clear()
        how.content = CONTENT[::-1]
        assert fetch(bare, pauses=NOW).path.read_bytes() == CONTENT[::-1]
    assert how.asked[-1] is None


@pytest.mark.parametrize("ranges", ["ignored", "shifted"])
def test_a_server_that_lies_about_ranges_costs_a_fresh_start(tmp_path, ranges):
    with serving(how := Behaviour(CONTENT, ranges=ranges, cuts=[1_000_000])) as url:
        got = fetch(asset(url, tmp_path), pauses=NOW)
    assert got.path.read_bytes() == CONTENT
    assert how.asked[1] == "bytes=1000000-"


@pytest.mark.parametrize("tag", ['"two"', None])
def test_content_that_changes_in_between_is_never_mixed(tmp_path, tag):
    """With a mark the server says so; without one the checksum does, and the whole file is asked for once more."""
    with serving(how := Behaviour(b"x" * len(CONTENT), tag=tag and '"one"', cuts=[1_000_000, 0])) as url:
        with pytest.raises(EnvironmentProblem):
            fetch(asset(url, tmp_path), pauses=())
        how.content, how.tag, how.cuts = CONTENT, tag, []
        got = fetch(asset(url, tmp_path), pauses=NOW)
    assert got.path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "known", "message"),
    [
        (CONTENT[:-1], {}, "expected 3,145,728: it is another file"),
        (CONTENT[::-1], {}, "sha256 is"),
        (CONTENT[::-1], {"sha256": "", "md5": hashlib.md5(CONTENT).hexdigest()}, "md5 is"),
    ],
)
def test_other_bytes_never_get_the_name(tmp_path, content, known, message):
    with serving(how := Behaviour(content)) as url, pytest.raises(EnvironmentProblem, match=message):
        fetch(asset(url, tmp_path, **known), pauses=NOW)
    assert left(tmp_path) == []
    assert len(how.asked) == 1


def test_a_file_in_place_that_is_another_is_named_and_kept(tmp_path):
    wanted = asset("http://127.0.0.1:9/x", tmp_path)
    wanted.place.parent.mkdir()
    wanted.place.write_bytes(CONTENT[::-1])
    with pytest.raises(EnvironmentProblem, match=r"file\.bin: sha256 is .* damaged, or another file"):
        fetch(wanted)
    assert wanted.place.read_bytes() == CONTENT[::-1]


def test_a_bad_address_a_dead_host_and_a_wall_in_front(tmp_path):
    with serving(Behaviour(CONTENT, status=404)) as url:
        with pytest.raises(EnvironmentProblem, match="answers 404 Not Found") as caught:
            fetch(asset(url, tmp_path), pauses=NOW)
        assert "put it at" in str(caught.value.hint)
        assert left(tmp_path) == []
    with pytest.raises(EnvironmentProblem, match="cannot be downloaded from") as caught:
        fetch(asset(url, tmp_path), pauses=(0.0,))
    assert "where there is a network" in str(caught.value.hint)
    with pytest.raises(EnvironmentProblem, match="not downloaded by programs: get it at there"):
        fetch(replace(asset(url, tmp_path), ask="there"))


def test_a_busy_server_is_asked_again(tmp_path, monkeypatch):
    how = Behaviour(CONTENT, status=503)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: setattr(how, "status", 200))
    with serving(how) as url:
        assert fetch(asset(url, tmp_path)).path.read_bytes() == CONTENT


def test_a_disk_too_small_is_told_before_and_a_full_one_keeps_what_came(tmp_path, monkeypatch):
    with serving(Behaviour(CONTENT)) as url:
        usage = download.shutil.disk_usage(tmp_path)._replace(free=1000)
        with monkeypatch.context() as patch:
            patch.setattr(download.shutil, "disk_usage", lambda path: usage)
            with pytest.raises(EnvironmentProblem, match="3,145,728 bytes are missing, 1,000 are free"):
                fetch(asset(url, tmp_path))

        def full(handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(download.os, "fsync", full)
            with pytest.raises(StorageProblem, match=r"file\.bin\.part"):
                fetch(asset(url, tmp_path), pauses=NOW)
        assert fetch(asset(url, tmp_path)).path.read_bytes() == CONTENT


def test_a_length_that_is_not_told_is_checked_by_the_sum(tmp_path):
    with serving(Behaviour(CONTENT, lengths=False)) as url:
        assert fetch(asset(url, tmp_path), pauses=NOW).bytes == len(CONTENT)


def test_two_processes_do_not_write_one_part(tmp_path):
    with serving(Behaviour(CONTENT)) as url:
        wanted = asset(url, tmp_path)
        wanted.place.parent.mkdir()
        with (
            download._alone(wanted.place.with_name("file.bin.part")),
            pytest.raises(EnvironmentProblem, match="another process is downloading"),
        ):
            fetch(wanted)
        assert fetch(wanted).path.read_bytes() == CONTENT
