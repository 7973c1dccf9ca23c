"""Decoding a data set once: in parallel processes, in blocks, into one array that is mapped ever after.

Everything is made beside, in `NAME-KEY/.making-PART.FORM/`, and renamed when it is whole. A journal there names the blocks whose bytes
are on disk, so that whoever was killed goes on with the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ltbench import files
from ltbench.canonical import canonical_json
from ltbench.datasets.decode import Decoder
from ltbench.datasets.photos import Photos
from ltbench.datasets.pictures import Pictures
from ltbench.datasets.prepared import (
    FORMAT,
    PARTS,
    RULES,
    Place,
    describe_places,
    read_manifest,
    stream_sha256,
    verify,
)
from ltbench.datasets.streamed import usable_cores
from ltbench.errors import EnvironmentProblem, UsageError

BLOCK_BYTES = 16 << 20  # of pixels that are decoded, written and noted down at a time
SHOWN = 5  # unreadable images that a message names

Progress = Callable[[int, int | None], None]


class NotUsable(EnvironmentProblem):
    """Images that cannot be decoded, all of them; every other block is done and kept."""


@dataclass(frozen=True)
class _Block:
    number: int
    first: int  # row
    pictures: Pictures


def prepare(
    data: Photos,
    pixels: Collection[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> dict[str, Path]:
    """{part: its folder} of all parts of a data set, made where they are not there yet and verified where they are.

    pixels: parts that become arrays, by default the training images, and all of a small set; the others become lists of where their
    images lie. workers: processes, all usable cores by
    default. progress(images done, images in all) is called as blocks end. Raises EnvironmentProblem for a source that is not as
    published, NotUsable, and StorageProblem for a full disk; what is done stays done, and the same call goes on from there.
    """
    pixels = pixels or (("train",) if data.needs_preparing else PARTS)
    if unknown := set(pixels) - set(PARTS):
        raise UsageError(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    place, home = data.place, data.place.folder()
    if home is None:
        raise EnvironmentProblem(
            "LTBENCH_DATA is not set: nothing says where data lies", "set it, or give --root DIR"
        )
    forms = {part: "pixels" if part in pixels else "files" for part in PARTS}
    there = {part: _existing(place, part, form) for part, form in forms.items()}
    done = {part: folder for part, folder in there.items() if folder}
    if done:
        notice(f"prepared already: {', '.join(done)}; checking every byte")
    for folder in done.values():
        verify(folder)
    try:
        source = data.source()
    except EnvironmentProblem:
        if len(done) == len(PARTS):  # nobody needs the source any more
            return done
        raise
    files.make_directory(home)
    with _alone(home):
        notice(f"looking at {', '.join(map(str, dict.fromkeys(source)))}")
        looked = data.look()
        for part in [part for part, folder in done.items() if _outdated(folder, looked[part])]:
            notice(f"{done[part]}: its source has other images now, or lies elsewhere; preparing it again")
            files.remove_tree(done.pop(part))
        more = workers or usable_cores(), progress, notice
        return {part: done.get(part) or _make(data, part, forms[part], looked, *more) for part in PARTS}


def _existing(place: Place, part: str, form: str) -> Path | None:
    """Pixels serve whoever asks for a list."""
    return place.part(part, "pixels") or (place.part(part, "files") if form == "files" else None)


def _outdated(folder: Path, pictures: Pictures) -> bool:
    """Whether a part is of other images than the source has now, or lists them where they no longer lie."""
    manifest = read_manifest(folder)
    moved = manifest["form"] == "files" and manifest["places"] != describe_places(pictures)
    return moved or manifest["source"] != pictures.identity()


def _make(
    data: Photos,
    part: str,
    form: str,
    looked: dict[str, Pictures],
    workers: int,
    progress: Progress | None,
    notice: Callable[[str], None],
) -> Path:
    place, pictures = data.place, looked[part]
    home = place.folder()
    assert home is not None, "prepare has asked"
    making, final = home / f".making-{part}.{form}", home / f"{part}.{form}"
    facts = {
        "format": FORMAT,
        "rules": RULES,
        "name": place.name,
        "part": part,
        "form": form,
        "parameters": dict(place.parameters),
        "decoder": place.decoder.facts(),
        "images": len(pictures),
        "classes": list(data.classes),
        "counts": np.bincount(pictures.labels, minlength=len(data.classes)).tolist(),
        "source": pictures.identity(),
        "places": describe_places(pictures),
        "versions": versions(),
    }
    _take_up(making, facts, notice)
    if form == "pixels":
        sha256 = _pixels(making, pictures, place.decoder, workers, progress, notice)
    else:
        sha256 = stream_sha256(pictures, place.decoder)
        arrays: dict[str, Any] = pictures.arrays()
        _save(making / "files.npz", lambda stream: np.savez(stream, **arrays))
    return _publish(making, final, {**facts, "sha256": sha256})


def versions() -> dict[str, str]:
    """What pixels depend on beside our code: Pillow and the JPEG library that it was built with."""
    from PIL import features

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": importlib.metadata.version("pillow"),
        "jpeg": str(features.version("jpg")),
        "turbo": str(bool(features.check_feature("libjpeg_turbo"))),
    }


# --- taking up and publishing --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process prepares one data set. Where the file system has no locks, two would write the same bytes."""
    with open(home / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EnvironmentProblem(
                f"{home}: another process is preparing it", "wait for it, then run the same command again"
            ) from None
        except OSError:
            pass
        yield


def _take_up(making: Path, facts: dict[str, Any], notice: Callable[[str], None]) -> None:
    """Go on with what was begun if it is of the same images and the same code, else begin again."""
    plan, content = making / "plan.json", canonical_json(facts)
    if making.is_dir() and plan.is_file() and plan.read_bytes() == content:
        return
    if making.is_dir():
        notice(f"{making} is of other images or another version: beginning again")
        shutil.rmtree(making, ignore_errors=True)
    files.make_directory(making)
    files.replace(plan, content)


def _publish(making: Path, final: Path, manifest: dict[str, Any]) -> Path:
    for name in ("plan.json", "journal"):
        (making / name).unlink(missing_ok=True)
    sums = {
        path.name: files.sha256_file(path)
        for path in sorted(making.iterdir())
        if path.name != "manifest.json"
    }
    manifest["files"] = {name: {"sha256": found, "bytes": size} for name, (found, size) in sums.items()}
    files.replace(making / "manifest.json", json.dumps(manifest, indent=1).encode())
    try:
        files.publish_directory(making, final)
    except FileExistsError:  # damaged, or half-removed by hand: no manifest there
        files.remove_tree(final)
        files.publish_directory(making, final)
    return final


def _save(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    try:
        with open(path, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise files.StorageProblem(path, error) from error


# --- pixels ------------------------------------------------------------------------------------------------------------


def _pixels(
    making: Path,
    pictures: Pictures,
    decoder: Decoder,
    workers: int,
    progress: Progress | None,
    notice: Callable[[str], None],
) -> str:
    """Decode what is missing into `images.npy`; `Images.sha256` of the whole."""
    shape = (len(pictures), decoder.channels, decoder.resolution, decoder.resolution)
    path, row = making / "images.npy", int(np.prod(shape[1:]))
    notice(f"{len(pictures):,} images to decode, {len(pictures) * row:,} bytes to write to {making}")
    offset = _lay_out(path, shape)
    step = max(1, BLOCK_BYTES // row)
    done = _journal(making / "journal", path, offset, step * row)
    starts = range(0, len(pictures), step)
    todo = [
        _Block(number, first, pictures.take(np.arange(first, min(first + step, len(pictures)))))
        for number, first in enumerate(starts)
        if number not in done
    ]
    if done:
        notice(f"going on where it stopped: {len(done)} of {len(starts)} blocks are there")
    _decode_all(todo, making, path, offset, row, decoder, workers, _counter(progress, todo, len(pictures)))
    for name, array in (("labels", pictures.labels), ("index", pictures.index)):
        _save(making / f"{name}.npy", lambda stream, array=array: np.save(stream, array))
    return _sha256(path, offset, shape, pictures.labels)


def _counter(progress: Progress | None, todo: list[_Block], total: int) -> Callable[[int], None]:
    state = [total - sum(len(block.pictures) for block in todo)]

    def count(more: int) -> None:
        state[0] += more
        if progress is not None:
            progress(state[0], total)

    count(0)
    return count


def _lay_out(path: Path, shape: tuple[int, ...]) -> int:
    """Reserve the whole file, so that a disk too small is told now; where its pixels begin."""
    if not path.exists():
        try:
            with open(path, "xb") as stream:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
                offset = stream.tell()
                stream.flush()
                _reserve(stream.fileno(), offset + int(np.prod(shape)))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise files.StorageProblem(path, error, int(np.prod(shape))) from error
    return path.stat().st_size - int(np.prod(shape))


def _reserve(handle: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:  # macOS
        os.truncate(handle, size)


def _journal(journal: Path, path: Path, offset: int, size: int) -> set[int]:
    """Numbers of the blocks that the journal has and whose bytes are the ones that it names."""
    if not journal.is_file():
        return set()
    found = set()
    with open(path, "rb") as stream:
        for line in journal.read_text().splitlines():
            number, _, rest = line.partition(" ")
            if not number.isdigit() or len(rest) != 64:
                continue  # the line at which the power went
            stream.seek(offset + int(number) * size)
            if hashlib.sha256(stream.read(size)).hexdigest() == rest:
                found.add(int(number))
    return found


def _decode_all(
    todo: list[_Block],
    making: Path,
    path: Path,
    offset: int,
    row: int,
    decoder: Decoder,
    workers: int,
    count: Callable[[int], None],
) -> None:
    bad: list[str] = []
    blocks = {block.number: len(block.pictures) for block in todo}
    with open(making / "journal", "a") as journal:
        for number, sha256, problems in _results(todo, path, offset, row, decoder, workers):
            bad += problems
            if not problems:
                journal.write(f"{number} {sha256}\n")
                journal.flush()
                os.fsync(journal.fileno())
            count(blocks[number])
    if bad:
        shown = "\n".join(bad[:SHOWN]) + (f"\nand {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")
        raise NotUsable(
            f"{len(bad)} {'image' if len(bad) == 1 else 'images'} cannot be used\n{shown}",
            "get these images again (an archive: download it again), then run the same command: the others are done",
        )


def _results(
    todo: list[_Block], path: Path, offset: int, row: int, decoder: Decoder, workers: int
) -> Iterator[tuple[int, str, list[str]]]:
    """What `decode_block` gives of each block, as they end. With one worker, in this process."""
    jobs = iter((block, path, offset, row, decoder) for block in todo)
    if workers == 1 or len(todo) <= 1:
        yield from (decode_block(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    pool = ProcessPoolExecutor(
        min(workers, len(todo)), mp_context=context, initializer=_die_with, initargs=(os.getpid(),)
    )
    try:
        waiting: set[Future[tuple[int, str, list[str]]]] = set()
        for job in jobs:
            waiting.add(pool.submit(decode_block, *job))
            if len(waiting) >= 2 * workers:
                ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ended)
        for future in waiting:
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def decode_block(
    block: _Block, path: Path, offset: int, row: int, decoder: Decoder
) -> tuple[int, str, list[str]]:
    """Decode a block and write it durably to its place; (number, sha256 of its pixels, what cannot be used)."""
    pictures, bad = block.pictures, []
    made = np.empty((len(pictures), row), np.uint8)
    for i in range(len(pictures)):
        try:
            made[i] = decoder(pictures.read(i), pictures.where(i)).reshape(-1)
        except EnvironmentProblem as problem:
            bad.append(problem.message)
    if bad:
        return block.number, "", bad
    data = made.tobytes()
    try:
        with open(path, "r+b", buffering=0) as stream:
            stream.seek(offset + block.first * row)
            rest = memoryview(data)
            while rest:
                rest = rest[stream.write(rest) :]
            os.fsync(stream.fileno())
    except OSError as error:
        raise files.StorageProblem(path, error, len(data)) from error
    return block.number, hashlib.sha256(data).hexdigest(), []


def _sha256(path: Path, offset: int, shape: tuple[int, ...], labels: np.ndarray) -> str:
    """As `Images.sha256` has it, in bounded memory."""
    found = hashlib.sha256(repr(shape).encode())
    with open(path, "rb") as stream:
        stream.seek(offset)
        while data := stream.read(BLOCK_BYTES):
            found.update(data)
    found.update(labels.astype("<i8").tobytes())
    return found.hexdigest()


def _die_with(parent: int) -> None:
    """A worker whose parent was killed would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
