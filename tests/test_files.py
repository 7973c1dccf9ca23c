"""Atomic files: old or new, never half; errors that say what to do."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltbench import files
from ltbench.errors import EnvironmentProblem
from tests import store_faults as faults


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltbench.files.problems._PAUSES", (0.0, 0.0, 0.0))


def test_write_once_is_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert files.write_once(path, b"first")
    assert not files.write_once(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("link", [True, False])
def test_one_of_many_writers_wins(tmp_path: Path, link: bool) -> None:
    def contend(number: int) -> None:
        for round_ in range(25):
            if files.write_once(tmp_path / f"file{round_}", b"%d" % number, link=link):
                (tmp_path / f"won{round_}.{number}").touch()

    pids = [faults.fork(lambda number=number: contend(number)) for number in range(6)]
    assert [faults.wait(pid) for pid in pids] == [0] * 6
    for round_ in range(25):
        (winner,) = tmp_path.glob(f"won{round_}.*")
        assert (tmp_path / f"file{round_}").read_text() == winner.suffix[1:]


def test_data_is_durable_before_its_name_and_the_name_before_the_answer(tmp_path: Path) -> None:
    with faults.counting() as calls:
        files.write_once(tmp_path / "a", b"x")
    assert calls == ["open", "write", "fsync", "link", "unlink", "open", "fsync"]
    with faults.counting() as calls:
        files.replace(tmp_path / "a", b"y")
    assert calls == ["open", "write", "fsync", "replace", "open", "fsync"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EEXIST])
def test_lost_reply_of_link_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.link

    def link_and_lose_the_reply(source: Path, target: Path) -> None:
        real(source, target)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link_and_lose_the_reply)
    assert files.write_once(tmp_path / "a", b"mine")
    monkeypatch.setattr(os, "link", real)
    assert not files.write_once(tmp_path / "a", b"yours")
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_lost_reply_of_rename_counts_as_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def rename_twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "replace", rename_twice)
    files.replace(tmp_path / "a", b"mine")
    assert (tmp_path / "a").read_bytes() == b"mine"


def test_without_link_the_fallback_is_as_exclusive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))
    assert files.probe(tmp_path) == {"link": False}
    assert files.write_once(tmp_path / "a", b"first")
    assert not files.write_once(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert not faults.leftovers(tmp_path)


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:3]))
    files.write_once(tmp_path / "a", bytes(range(100)))
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


@pytest.mark.parametrize("write", [files.write_once, files.replace])
def test_a_passing_error_is_ridden_out(tmp_path: Path, write: object) -> None:
    assert callable(write)
    total = faults.calls_of(lambda: write(tmp_path / "dry", b"x"))
    for code in (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR):
        for number in range(1, total + 1):
            path = tmp_path / f"{code}.{number}"
            with faults.counting(faults.error(code), number):
                assert write(path, b"x") is not False
            assert path.read_bytes() == b"x"


def test_after_a_failed_fsync_the_data_goes_to_a_new_file(tmp_path: Path) -> None:
    with faults.counting(faults.error(errno.EIO), 1, only=lambda name, _: name == "fsync"):
        handles = []
        real = os.open
        os.open = lambda path, *rest: handles.append(str(path)) or real(path, *rest)
        files.replace(tmp_path / "a", b"x")
    beside = [path for path in handles if ".tmp-" in path]
    assert len(beside) == len(set(beside)) == 2


@pytest.mark.parametrize("write", [files.write_once, files.replace])
def test_a_full_disk_is_an_error_that_teaches_and_leaves_nothing(tmp_path: Path, write: object) -> None:
    assert callable(write)
    total = faults.calls_of(lambda: write(tmp_path / "dry", b"x"), only=faults.writes)
    for code in (errno.ENOSPC, errno.EDQUOT):
        for number in range(1, total):  # the last fsync, of the directory, finds the file already there
            path = tmp_path / f"{code}.{number}"
            strike = faults.error(code)
            with (
                faults.counting(strike, number, lasting=True, only=faults.writes),
                pytest.raises(
                    files.StorageProblem, match=f"{re.escape(str(path))}.* bytes needed, .* free"
                ) as caught,
            ):
                write(path, b"12345")
            assert (caught.value.code, caught.value.needed, caught.value.exit_code) == (code, 5, 4)
            assert "LTBENCH_SCRATCH" in str(caught.value.hint)
            assert not path.exists()
            assert not faults.leftovers(tmp_path)


def test_make_directory_is_durable_and_raceproof(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    pids = [faults.fork(lambda: files.make_directory(deep)) for _ in range(6)]
    assert [faults.wait(pid) for pid in pids] == [0] * 6
    assert deep.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(files.StorageProblem):
        files.make_directory(tmp_path / "file" / "x")
    with pytest.raises(files.StorageProblem):
        files.make_directory(tmp_path / "file")


def test_publish_directory_refuses_a_taken_name(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(FileExistsError):
        files.publish_directory(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "old"
    files.publish_directory(tmp_path / "new", tmp_path / "final")
    assert (tmp_path / "final" / "file").read_text() == "new"


def test_sweep_takes_the_dead_and_leaves_the_living(tmp_path: Path) -> None:
    def die_writing() -> None:
        with faults.counting(faults.kill, 2):
            files.write_once(tmp_path / "a", b"12345678")

    faults.wait(faults.fork(die_writing))
    (dead,) = faults.leftovers(tmp_path)
    assert dead.read_bytes() == b"1234"  # torn, and only under its temporary name
    mine = files.temporary_beside(tmp_path / "a")
    foreign = tmp_path / f".tmp-00000000-{os.getpid() + 1}-0123456789ab"
    for path in (mine, foreign):
        path.touch()
    assert files.sweep(tmp_path) == [dead.name]
    assert files.sweep(tmp_path, sole_owner=True) == [foreign.name]
    assert faults.leftovers(tmp_path) == [mine]


def test_remove_tree_never_leaves_half_a_directory(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").touch()
    total = faults.calls_of(lambda: files.remove_tree(shutil.copytree(folder, tmp_path / "dry")))
    for number in range(1, total + 1):
        target = shutil.copytree(folder, tmp_path / f"t{number}")
        faults.kill_at(lambda target=target: files.remove_tree(target), number)
        assert not target.exists() or (target / "a").exists()


def test_read_regular_refuses_what_could_block_or_mislead(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with open(tmp_path / "huge", "wb") as huge:
        huge.truncate(1 << 30)
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "fifo": "regular",
        "link": "symbolic",
        "huge": "1,073,741,824",
        "folder": "regular",
    }.items():
        with pytest.raises(files.Unreadable, match=reason):
            files.read_regular(tmp_path / name)
    for name in ("fifo", "link", "folder"):
        with pytest.raises(files.Unreadable):
            files.sha256_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        files.read_regular(tmp_path / "absent")


def test_sha256_file_agrees_with_coreutils(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * 999)
    told = subprocess.run(
        ["sha256sum", tmp_path / "a"], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    assert files.sha256_file(tmp_path / "a") == (told, 255744)
    assert files.sha256_bytes((tmp_path / "a").read_bytes()) == told


def test_a_file_size_limit_is_told(tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(files.StorageProblem, match=r"2,000 bytes needed") as caught:
            files.replace(tmp_path / "a", bytes(2000))
        assert caught.value.code == errno.EFBIG
        assert not os.listdir(tmp_path)

    assert faults.wait(faults.fork(limited)) == 0


def test_no_permission_is_told(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)  # not even searchable for others

    def as_nobody() -> None:
        if os.getuid() == 0:
            for folder in (tmp_path, *tmp_path.parents[:3]):  # pytest-xdist has one folder more
                os.chmod(folder, 0o755)
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(EnvironmentProblem, match="Permission denied") as caught:
            files.probe(locked / "store")
        assert "LTBENCH_STORE" in str(caught.value.hint)
        with pytest.raises(EnvironmentProblem, match="Permission denied"):
            files.probe(hidden / "store")

    assert faults.wait(faults.fork(as_nobody)) == 0


READ_ONLY = """
import subprocess, sys
from pathlib import Path
from ltbench.errors import EnvironmentProblem
from tests import store_faults as faults
from ltbench.store import Store
place = Path(sys.argv[1])
def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
mount("ro")
try:
    Store.open(place / "store", place / "scratch")
except EnvironmentProblem as problem:
    assert "Read-only file system" in str(problem) and "LTBENCH_STORE" in str(problem), problem
else:
    raise SystemExit("a read-only store was opened for writing")
mount("nr_inodes=3")
try:
    Store.open(place / "store", place / "scratch")
except EnvironmentProblem as problem:
    assert "no inodes are left (of 3)" in str(problem), problem
else:
    raise SystemExit("a disk without inodes was accepted")
"""


def test_read_only_and_inodeless_disks_are_refused_at_once(tmp_path: Path) -> None:
    faults.in_own_mounts(READ_ONLY, tmp_path)


def test_a_process_that_has_ended_lives_no_more_though_nobody_asked_about_it() -> None:
    """A zombie's half-written file is a leftover: a killed worker of a driver that lives on."""
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not files.pid_exists(child.pid)
    assert files.pid_exists(os.getpid())
    child.wait()
