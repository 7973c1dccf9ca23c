"""Rows are the same bytes wherever they are: on the device, in mapped files, in a copy on the node."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ltbench.draws import Ahead, Latents, Pixels, TrainingSet
from ltbench.errors import UsageError
from ltbench.places import Held, Mapped, Rows, copy_once, on_device, place, staged
from ltbench.trainer import Trainer
from tests.latent_world import CPU, bits
from tests.toy import Toy, parts


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LTBENCH_LOCAL", "LTBENCH_RESIDENT"):
        monkeypatch.delenv(name, raising=False)


def mapped_parts(folder: Path, array: np.ndarray, *cuts: int) -> list[np.ndarray]:
    """The array in files, cut before these rows, each a read-only memory map."""
    found = []
    for number, part in enumerate(np.split(array, cuts)):
        path = folder / f"part-{number}.npy"
        np.save(path, part)
        found.append(np.load(path, mmap_mode="r"))
    return found


def everywhere(folder: Path, array: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> dict[str, Rows]:
    """The same rows on the device, in one and in several mapped files, and in copies of these."""
    (folder / "one").mkdir()
    (folder / "many").mkdir()
    one = mapped_parts(folder / "one", array)
    many = mapped_parts(folder / "many", array, 7, 8, 30)
    found: dict[str, Rows] = {
        "device": Held(on_device(many, CPU)),
        "memory": place([array], CPU),
        "file": place(one, CPU),
        "files": place(many, CPU),
    }
    monkeypatch.setenv("LTBENCH_LOCAL", str(folder / "node"))
    return {**found, "copy": place(one, CPU), "copies": place(many, CPU)}


def test_rows_are_bitwise_equal_in_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).standard_normal((41, 2, 3)).astype(np.float16)
    found = everywhere(tmp_path, array, monkeypatch)
    index = np.random.default_rng(1).integers(0, 41, 100)
    assert {name: bits(rows, index) for name, rows in found.items()} == dict.fromkeys(
        found, array[index].tobytes()
    )
    assert {rows.row for rows in found.values()} == {(2, 3)}
    assert isinstance(found["copies"], Mapped)
    assert {str(part.filename) for part in found["copies"].arrays} <= {
        str(path) for path in (tmp_path / "node" / "ltbench").iterdir()
    }, "read from the node's own files"


@pytest.mark.parametrize("kind", ["pixels", "latents"])
def test_draws_are_bitwise_equal_in_every_place(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same images, flips, order and samples, under resampling and with a reference batch."""
    import dataclasses

    images = Toy().train()
    array = images.images
    if kind == "latents":
        array = np.random.default_rng(0).random((2 * len(images), 2, 4, 8, 8)).astype(np.float16)
    drawn = {}
    drawer = dataclasses.replace(parts("sit", "sit", resample=0.1).drawer, reference=True)
    for name, rows in everywhere(tmp_path, array, monkeypatch).items():
        source = Pixels(rows) if kind == "pixels" else Latents(rows, 0.5, 0.1)
        pixels = None if kind == "pixels" else Held(torch.from_numpy(images.images))
        own = dataclasses.replace(drawer, data=TrainingSet(source, drawer.data.labels, pixels), pixels=True)
        draws = [own.draw(step, [0, 1, 2]) for step in (1, 2, 9)]
        assert all(draw.pixels is not None and draw.reference is not None for draw in draws)
        drawn[name] = [
            tensor.numpy().tobytes()
            for draw in draws
            for tensor in (draw.x0, draw.xt, draw.y, draw.flipped, draw.index, draw.pixels, draw.reference.x0)
        ]
    assert all(each == drawn["device"] for each in drawn.values())


def test_a_copy_is_made_once_and_again_when_the_file_changes(tmp_path: Path) -> None:
    source = tmp_path / "data.bin"
    source.write_bytes(b"first")
    copy = copy_once(source, tmp_path / "node")
    assert copy.read_bytes() == b"first"
    made = copy.stat().st_mtime_ns
    assert copy_once(source, tmp_path / "node") == copy
    assert copy.stat().st_mtime_ns == made
    source.write_bytes(b"secnd")
    os.utime(source, ns=(1, 1))
    other = copy_once(source, tmp_path / "node")
    assert other != copy
    assert other.read_bytes() == b"secnd"


def test_a_cut_copy_is_made_again(tmp_path: Path) -> None:
    source = tmp_path / "data.bin"
    source.write_bytes(b"whole")
    copy_once(source, tmp_path / "node").write_bytes(b"who")
    assert copy_once(source, tmp_path / "node").read_bytes() == b"whole"


def _copying(source: str, node: str, queue) -> None:
    copies = []
    from ltbench import places

    original = places._copy

    def counted(*where: Path) -> None:
        copies.append(1)
        original(*where)

    places._copy = counted
    path = copy_once(Path(source), Path(node))
    queue.put((len(copies), path.stat().st_size))


def test_processes_of_a_node_share_one_copy(tmp_path: Path) -> None:
    source = tmp_path / "data.bin"
    source.write_bytes(os.urandom(40 << 20))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    running = [
        context.Process(target=_copying, args=(str(source), str(tmp_path / "node"), queue)) for _ in range(4)
    ]
    for process in running:
        process.start()
    found = [queue.get(timeout=300) for _ in running]
    for process in running:
        process.join()
    assert sum(copies for copies, _ in found) == 1
    assert {size for _, size in found} == {40 << 20}
    assert [path.name for path in (tmp_path / "node").glob(".tmp-*")] == []


def test_a_node_without_room_is_said_and_the_files_are_read_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (array,) = mapped_parts(tmp_path, np.arange(12).reshape(4, 3))
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("LTBENCH_LOCAL", str(blocked))
    told: list[str] = []
    assert staged(array, told.append) is array
    assert "no copy on the node's disk" in told[0]


def test_only_whole_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of a map says the offset of the whole: it is read where it is."""
    (array,) = mapped_parts(tmp_path, np.arange(24).reshape(4, 6))
    monkeypatch.setenv("LTBENCH_LOCAL", str(tmp_path / "node"))
    half = array[2:]
    assert staged(half) is half
    again = staged(array.reshape(8, 3))
    assert again.filename != array.filename
    assert np.array_equal(again, np.arange(24).reshape(8, 3))


@pytest.mark.parametrize("text", ["half", "1.5", "-1", "nan"])
def test_a_share_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTBENCH_RESIDENT", text)
    with pytest.raises(UsageError, match="LTBENCH_RESIDENT"):
        place([np.zeros((2, 2))], CPU)


@pytest.mark.parametrize(("free", "held"), [(10_000, True), (1_500, False)])
def test_arrays_sit_on_a_device_up_to_their_share(
    free: int, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's `meta` standing in for a GPU: half of the free memory, 800 bytes wanted."""
    monkeypatch.setattr("ltbench.places.free_memory", lambda device: free)
    array = np.zeros((100, 2), np.float32)
    assert isinstance(place([array], torch.device("meta")), Held) == held
    monkeypatch.setenv("LTBENCH_RESIDENT", "0")
    assert isinstance(place([array], torch.device("meta")), Mapped)


def test_draws_made_ahead_by_threads_are_the_same() -> None:
    """In order, over again as after a step that was not finite, and out of order."""
    drawer = parts("sit", "sit", resample=0.1).drawer
    before = threading.active_count()
    ahead = Ahead(drawer)
    asked = [(1, range(2)), (1, range(2, 3)), (2, range(2)), (2, range(2)), (7, range(2, 3))]
    for number, (step, shards) in enumerate(asked):
        found = ahead.draw(
            step, shards, asked[min(number + 1, len(asked) - 1)] if number != 2 else (3, shards)
        )
        wanted = drawer.draw(step, shards)
        for name in ("x0", "eps", "xt", "target", "t", "y_in", "index", "flipped"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), (number, name)
    ahead.close()
    assert threading.active_count() == before, "a thread left behind would be taken for a method's"


def test_training_ahead_equals_training() -> None:
    found = []
    for early in (False, True):
        trainer = Trainer(parts("sit", "ccua"), 4, 1)
        if early:
            trainer.ahead = Ahead(trainer.parts.drawer)
        for _ in range(3):
            trainer.advance()
        trainer.close()
        found.append(torch.cat([p.flatten() for p in trainer.parts.objective.parameters()]))
    assert torch.equal(*found)
