"""A finished report is remembered with everything that it was made from, and told again while none of that has changed.

Derived and local: entries lie in LTBENCH_CACHE (default $XDG_CACHE_HOME/ltbench, else ~/.cache/ltbench; empty: none is kept), and
may be deleted at any time. An entry is named by the command, the folder and the variables it depends on, and lists every file that
was opened and every folder that was listed while the report was made, with size, times and inode as they were before. One
difference, one file more or less, or a damaged entry, and the report is made anew from the store's files.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltbench.caches import root

# Few and light: a report that is told again is told before the command line is imported.

Mark = list[int] | None  # of a file or folder; None where there is nothing

PACKAGE = Path(__file__).resolve().parents[1]
FORMAT = 2  # of entries; another is another name
SETTLED = (
    2.0  # seconds: what changed less long ago could change again within one tick of the file system's clock
)
ENTRIES = 32  # at most; the oldest go first
_VARIABLES = ("LTBENCH_", "COLUMNS", "LINES", "TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "LANG", "LC_")
_OWN = ("LTBENCH_CACHES",)  # set by `ltbench.caches`, which moves no report
_SYSTEM = ("/proc/", "/dev/n", "/dev/u", "/dev/t", "/sys/d", "/sys/f")
# Opened to be written, or a folder whose names are made durable: nothing is read. Whoever lists a folder says so.
_UNREAD = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_DIRECTORY


def mark(path: str) -> Mark:
    """What changes when a file's content or a folder's names do."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    if stat.S_ISDIR(found.st_mode):
        return [0, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def name() -> str:
    """The entry of this command, here, on this screen. To be asked before the flags are acted on, which changes the environment."""
    variables = {k: v for k, v in os.environ.items() if k.startswith(_VARIABLES) and k not in _OWN}
    screen = [os.get_terminal_size().columns if sys.stdout.isatty() else 0, sys.stdout.isatty()]
    program = [FORMAT, str(PACKAGE), sys.version, sys.prefix, sys.path]
    text = json.dumps([sys.argv[1:], os.getcwd(), variables, screen, program], sort_keys=True)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _surroundings() -> list[str]:
    """What a report depends on without opening it: modules that are loaded already, and whatever is installed."""
    return [*map(str, sorted(PACKAGE.rglob("*.py"))), *(path for path in sys.path if path)]


# --- telling again --------------------------------------------------------------------------------------------------


def recall(named: str | None = None) -> bool:
    """Tell the remembered report of this command: print it and write its files. False where there is none that still holds.

    `named`: its `name()`, where it was asked for earlier.
    """
    folder = root()
    if folder is None:
        return False
    try:
        entry = _opened((folder / f"report-{named or name()}.json").read_bytes())
        if any(mark(path) != known for path, known in entry["marks"].items()):
            return False
        files = {path: base64.b64decode(text) for path, text in entry["files"].items()}
        stdout, stderr = str(entry["stdout"]), str(entry["stderr"])
    except (OSError, KeyError, ValueError, AttributeError, TypeError):
        return False
    for path, data in files.items():
        _write_again(Path(path), data)
    sys.stdout.write(stdout)
    sys.stderr.write(stderr)
    return True


def _write_again(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        from ltbench.files import make_directory, replace

        make_directory(path.parent)
        replace(path, data)


def _closed(entry: dict[str, Any]) -> bytes:
    """A line with the digest of what follows: a seal that is checked without importing the store."""
    text = json.dumps(entry).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def _opened(data: bytes) -> dict[str, Any]:
    seal, _, text = data.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != seal:
        raise ValueError("does not match its digest")
    return json.loads(text)


# --- remembering ----------------------------------------------------------------------------------------------------


@dataclass
class Memory:
    """What a report reads and says while it is made. `keep` turns it into an entry."""

    name: str
    marks: dict[str, Mark]
    begun: float
    stdout: io.StringIO = field(default_factory=io.StringIO)
    stderr: io.StringIO = field(default_factory=io.StringIO)
    own: str = ""  # where what we derive lies, which decides nothing

    def __post_init__(self) -> None:
        self.own = f"{os.path.abspath(root() or os.devnull)}/"

    def saw(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event. The mark is taken before the file is read, so a change meanwhile is a change."""
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _UNREAD:
                return
        elif event in (
            "os.listdir",
            "os.scandir",
            "ltbench.read",
        ):  # the last one is of `ltbench.store.values`
            (path,) = arguments
            path = "." if path is None else path
        else:
            return
        if isinstance(path, str | bytes | os.PathLike):
            named = _absolute(os.fsdecode(path))
            # Sources are marked, so what is compiled from them is not.
            if (
                named not in self.marks
                and not named.endswith((".pyc", "__pycache__"))
                and named[:6] not in _SYSTEM
                and not named.startswith(self.own)
            ):
                self.marks[named] = mark(named)
                if (
                    os.path.basename(named) == "records"
                ):  # a fact may be looked for without being opened or listed
                    run = os.path.dirname(named)
                    self.also(run, f"{run}/facts", f"{run}/failed", f"{run}/claims")

    def also(self, *paths: str | Path) -> None:
        """Files and folders that decide something by being there or not."""
        for path in paths:
            named = _absolute(str(path))
            if named not in self.marks:
                self.marks[named] = mark(named)

    def keep(self, files: list[Path]) -> None:
        """Remember the report with the files that it wrote. A disk that refuses costs only the speed."""
        folder = root()
        own = {str(path.absolute()) for path in files} | {str(path.absolute().parent) for path in files}
        marks = {path: known for path, known in self.marks.items() if path not in own}
        young = (self.begun - SETTLED) * 1e9
        if folder is None or any(known and max(known[1], known[2]) > young for known in marks.values()):
            return
        entry = {
            "marks": marks,
            "files": {str(path.absolute()): base64.b64encode(path.read_bytes()).decode() for path in files},
            "stdout": self.stdout.getvalue(),
            "stderr": self.stderr.getvalue(),
        }
        from ltbench.errors import LtbenchError
        from ltbench.files import make_directory, replace

        with contextlib.suppress(LtbenchError, OSError, ValueError):
            make_directory(folder)
            replace(folder / f"report-{self.name}.json", _closed(entry), durable=False)
            _forget_oldest(folder)


def _absolute(path: str) -> str:
    """`os.path.abspath`, which takes longer than the rest for the many paths that are it already."""
    known = path[:1] == "/" and path[-1:] != "/" and "//" not in path and "/." not in path
    return path if known else os.path.abspath(path)


def _forget_oldest(folder: Path) -> None:
    entries = sorted(folder.glob("report-*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    for path in entries[:-ENTRIES]:
        path.unlink(missing_ok=True)


_LISTENING: list[
    Memory
] = []  # to audit events; a hook cannot be taken away again, so there is one that listens to this
_HOOKED: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for memory in _LISTENING:
        memory.saw(event, arguments)


@contextlib.contextmanager
def remembering(named: str) -> Iterator[Memory]:
    """Watch what is read and said until the end of the block, for the entry `named`."""
    memory = Memory(named, {path: mark(path) for path in _surroundings()}, time.time())
    if not _HOOKED:
        sys.addaudithook(_hook)
        _HOOKED.append(True)
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Both(stdout, memory.stdout), _Both(stderr, memory.stderr)  # pyright: ignore[reportAttributeAccessIssue]
    _LISTENING.append(memory)
    try:
        yield memory
    finally:
        _LISTENING.remove(memory)
        sys.stdout, sys.stderr = stdout, stderr


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """What is said on stderr until the end of the block is of this moment, and not told again."""
    kept = sys.stderr
    sys.stderr = kept.stream if isinstance(kept, _Both) else kept
    try:
        yield
    finally:
        sys.stderr = kept


class _Both:
    """A stream that also keeps what is written to it, and is the stream in everything else."""

    def __init__(self, stream: Any, copy: io.StringIO) -> None:
        self.stream, self._copy = stream, copy

    def write(self, text: str) -> int:
        self._copy.write(text)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
