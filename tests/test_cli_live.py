"""Processes that run at the same time, die, or sit at a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from tests import cli_world
from tests.cli_world import ROOT, fake

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures

COMMAND = [sys.executable, str(ROOT / "harness.py"), "run", "little.yaml", "--job", "cli_jobs:run_job"]


def start(*words, **options):
    return subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def records(here):
    """name -> bytes of every record body in the store."""
    return {p.name: json.loads(p.read_bytes())["body"] for p in (here / "store").rglob("records/*.json")}


def begun(here, count=1):
    """Wait until that many stages were claimed."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if len(list((here / "store").rglob("claims/*.json"))) >= count:
            return True
        time.sleep(0.02)
    return False


def test_two_runs_at_once_share_the_work(here, monkeypatch):
    """The second does every other cell, then says who has the first one, and takes nothing twice."""
    fake(monkeypatch, "sit:0=gate")
    first = start("--workers", "1")
    assert begun(here)
    second = start("--workers", "1")
    heard = []
    while not heard or " waiting " not in heard[-1]:
        heard.append(second.stderr.readline())
        assert heard[-1], "the second ended without waiting"
    assert re.search(r"waiting  sit seed 0, train: running on \S+ \(attempt 1, pid \d+", heard[-1])
    (here / "gate").touch()
    (_, said), (_, other) = first.communicate(timeout=300), second.communicate(timeout=300)
    assert (first.returncode, second.returncode) == (0, 0), said + other
    assert len(records(here)) == 16
    claims = [path.name for path in (here / "store").rglob("claims/train.*.json")]
    assert sorted(claims)[:4] == ["train.1.json"] * 4, "each was trained by whoever came first"
    assert not list((here / "store").rglob("failed/*.json"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_driver_leaves_what_the_same_command_finishes(here, run, monkeypatch, number):
    fake(monkeypatch, "pause=0.05,ccua:1=late")  # it cannot be over when it is to die
    driver = start("--workers", "2")
    assert begun(here, 2)
    time.sleep(0.3)
    driver.send_signal(number)
    _, err = driver.communicate(timeout=300)
    if number == signal.SIGTERM:
        assert driver.returncode == 128 + signal.SIGTERM
        assert "the same command continues: python harness.py run little.yaml" in err
    before = records(here)
    fake(monkeypatch, "")
    assert run()[0] == 0
    after = records(here)
    assert len(after) == 16
    assert before.items() <= after.items()


def at_terminal(words, here, awaited, columns=80):
    """Run in a pseudo-terminal of 80 columns, open the gate once `awaited` is seen there; all that appeared, and the exit code."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(columns), LINES="24")
        os.execv(words[0], words)
    seen, end = b"", time.monotonic() + 300
    while time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                data = os.read(fd, 65536)
            except OSError:
                break  # the other side is closed
            if not data:
                break
            seen += data
            if re.search(awaited, plain(seen)):
                (here / "gate").touch()
    os.close(fd)
    return seen, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def plain(seen):
    """What a terminal got, without its control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode(errors="replace"))


def test_a_terminal_sees_bars_and_the_summary(here, monkeypatch):
    fake(monkeypatch, "pause=0.05,sit:0=late,ccua:1=nan")
    bar = r"sit seed 0 train +━.* \d+/40 +loss 0\.\d+ +640 img/s"
    seen, code = at_terminal([*COMMAND, "--workers", "2"], here, awaited=bar)
    text = plain(seen)
    assert code == 1
    assert re.search(bar, text)
    assert re.search(r"all stages +.*\d+/13", text)
    assert "FAILED   ccua seed 1, train: nan" in text
    assert "4 cells of little: 3 done, 1 failed" in text
    assert "Traceback" not in text
    assert max(len(line) for line in re.split(r"[\r\n]+", text)) <= 80
