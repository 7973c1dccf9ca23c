"""The code that a grid was submitted with, kept until its jobs start.

SCRATCH/snapshots/HASH holds copies of the package, of `methods/` and `datasets/`, of every further plugin, and the specs; with
that folder first on PYTHONPATH a job runs what was there at submission, whatever the checkout has become meanwhile. Digests of
code (ltbench/provenance/) do not depend on the place, so records are the checkout's own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ltbench import files, plugins
from ltbench.canonical import digest
from ltbench.errors import EnvironmentProblem
from ltbench.provenance import surroundings
from ltbench.store import sealed

FOLDER = "snapshots"  # below the scratch root
BESIDE = ("harness.py", "benchmarks")  # of a checkout: what a job needs to plan again
LIMIT = 256 * 1024 * 1024  # bytes; a plugin folder above it is a folder of data
# A spec may name files from where it was submitted; a job starts elsewhere.
PLACES = ("LTBENCH_DATA", "LTBENCH_WEIGHTS")


def take(scratch: Path) -> Path:
    """The folder with copies of the present code below `scratch`, made unless it is there; absolute.

    A program that runs from a snapshot is its own. Raises EnvironmentProblem for a disk that refuses it, or for more than
    256 MiB of plugins.
    """
    if plugins.snapshot() is not None:
        return plugins.PACKAGE.parent
    sources = dict(_sources())
    _refuse_much(sources.values())
    contents = {target: source.read_bytes() for target, source in sources.items()}
    git = surroundings.git_state()
    shown = {str(target): files.sha256_bytes(data) for target, data in contents.items()}
    name = digest({"files": shown, "git": git})[:16]
    place = Path(scratch).absolute() / FOLDER / name
    if not place.is_dir():
        about = {"format": sealed.FORMAT, "hash": name, "git": git, "checkout": str(plugins.PACKAGE.parent)}
        _write({**contents, Path(plugins.SNAPSHOT): sealed.seal(about)}, place)
    with contextlib.suppress(OSError):
        os.utime(place)  # `gc` takes it for in use though its submission is not written yet
    return place


def environment(place: Path, scratch: Path) -> dict[str, str]:
    """What a job's environment must say so that it runs the code of `place`: absolute paths, further plugins in order."""
    extra = sorted((place / "plugins").iterdir()) if (place / "plugins").is_dir() else []
    # What the submitter had on the path stays behind it: a site's own packages may come that way.
    behind = [os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    found = {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(place), *behind])),
        plugins.VARIABLE: os.pathsep.join(map(str, extra)),
        "LTBENCH_SCRATCH": str(Path(scratch).absolute()),
    }
    for variable in PLACES:
        if parts := [part for part in os.environ.get(variable, "").split(os.pathsep) if part]:
            found[variable] = os.pathsep.join(os.path.abspath(os.path.expanduser(part)) for part in parts)
    return found


def _sources() -> Iterator[tuple[Path, Path]]:
    """(place in the snapshot, file to copy), each place once."""
    root = plugins.PACKAGE.parent
    for path in _below(plugins.PACKAGE):
        yield path.relative_to(root), path
    for kind in plugins.ROOTS:
        for path in _plugin_files(root / kind):
            yield path.relative_to(root), path
    for name in BESIDE:
        for path in _below(root / name) if (root / name).is_dir() else [root / name]:
            if path.is_file():
                yield path.relative_to(root), path
    for number, entry in enumerate(_further()):
        yield from _copied_plugin(Path("plugins", f"{number:03d}"), entry)


def _further() -> Iterator[Path]:
    """Plugins that lie elsewhere: what LTBENCH_PLUGINS names, then the files of installed packages."""
    own = {plugins.PACKAGE.parent / kind for kind in plugins.ROOTS}
    for entry in filter(None, os.environ.get(plugins.VARIABLE, "").split(os.pathsep)):
        path = Path(entry).expanduser().resolve()
        if path.exists() and path not in own:
            yield path
    for kind in plugins.ROOTS:
        yield from plugins.entry_points(kind)


def _copied_plugin(target: Path, entry: Path) -> Iterator[tuple[Path, Path]]:
    """An entry of LTBENCH_PLUGINS in the shape it has: a file, a folder of plugins, or one with a folder per kind."""
    if entry.is_file():
        yield target / entry.name, entry
    elif kinds := [kind for kind in plugins.ROOTS if (entry / kind).is_dir()]:
        for kind in kinds:
            for path in _plugin_files(entry / kind):
                yield target / path.relative_to(entry), path
    else:
        for path in _plugin_files(entry):
            yield target / path.relative_to(entry), path


def _plugin_files(folder: Path) -> Iterator[Path]:
    """Files of a plugin folder, and the packages in it: what else lies there is no code."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_file():
            yield path
        elif (path / "__init__.py").is_file():
            yield from _below(path)


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inside)
        if path.is_file() and not hidden:
            yield path


def _refuse_much(sources: Iterable[Path]) -> None:
    sizes = {source: source.stat().st_size for source in sources}
    if (total := sum(sizes.values())) > LIMIT:
        raise EnvironmentProblem(
            f"the code and its plugins are {total / 2**20:,.0f} MiB, the largest file {max(sizes, key=lambda s: sizes[s])}; "
            f"a grid is submitted with a copy of at most {LIMIT / 2**20:,.0f} MiB",
            f"name plugin files in {plugins.VARIABLE}, not a folder that holds data as well",
        )


def _write(contents: Mapping[Path, bytes], place: Path) -> None:
    """Write beside and rename: a job never sees half a snapshot, and of two submissions at once either may win.

    Not fsynced one by one: a job digests the code that it runs, so a file that a power loss emptied is refused by it.
    """
    files.make_directory(place.parent)
    files.sweep(place.parent)
    beside = files.temporary_beside(place)
    try:
        for target, data in contents.items():
            (beside / target).parent.mkdir(parents=True, exist_ok=True)
            (beside / target).write_bytes(data)
        files.publish_directory(beside, place)
    except FileExistsError:
        pass
    except OSError as error:
        raise files.StorageProblem(place, error, sum(map(len, contents.values()))) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
