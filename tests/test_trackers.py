"""`sync`: TensorBoard's own reader finds what the store holds; doing it again writes nothing; no job knows a tracker."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltbench import tiles
from ltbench.errors import EnvironmentProblem
from ltbench.trackers import Mirror, Scalar, mirror_of, tensorboard, wandb
from tests import cli_world
from tests.store_world import evaluation, make
from tests.test_layers import SOURCES, imports

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures
PICTURE = tiles.grid_png(
    np.arange(2 * 3 * 3 * 8 * 8, dtype=np.uint16).reshape(2, 3, 3, 8, 8).astype(np.uint8)
)


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def mirrored(tmp_path) -> Mirror:
    """A run with two milestones, an evaluation, a picture, and a picture that is gone."""
    made = make(tmp_path)
    name = made.facts.put(PICTURE, "png")
    curve = {"step": [10, 20, 30, 40], "loss": [1.0, 0.5, 0.25, 0.125], "grad_norm": [4.0, 3.0, 2.0, 1.0]}
    curve["terms"] = {"denoise": [1.0, 0.5, 0.25, 0.125], "denoise/tail": [None, 0.75, None, 0.5]}
    for step, points in ((20, 2), (40, 4)):
        cut = {key: value[:points] for key, value in curve.items() if key != "terms"}
        cut["terms"] = {key: value[:points] for key, value in curve["terms"].items()}
        facts = {"preview": {"file": name, "tile": 8}, "old": {"file": 16 * "0" + ".png", "tile": 8}}
        body = {"curve": cut, "facts": facts, "settings": {"seed": 0, "method": {"name": "sit"}}}
        made.put_record("train", step, body, {"finished": 1000.0 + step})
    made.put_record("evaluation", 40, evaluation(made.store, 12.5), {"finished": 2000.0})
    found = mirror_of(made, "ccua/../x seed 0")
    assert found is not None
    return found


def test_tensorboards_own_reader_finds_every_number_and_grid(mirrored, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = tmp_path / "tb"
    assert tensorboard.write(mirrored, root)
    (folder,) = list(root.iterdir())
    reader = EventAccumulator(str(folder))
    reader.Reload()
    loss = [(each.step, each.value) for each in reader.Scalars("train/loss")]
    assert loss == [(10, 1.0), (20, 0.5), (30, 0.25), (40, 0.125)]
    assert [(e.step, e.value) for e in reader.Scalars("train/denoise/tail")] == [(20, 0.75), (40, 0.5)]
    metrics = [tag for tag in reader.Tags()["scalars"] if not tag.startswith("train/")]
    assert {tag.rpartition("/")[2] for tag in metrics} == {"head", "tail"}
    assert [e.value for tag in metrics for e in reader.Scalars(tag)] == [12.5, 12.5]
    pictures = reader.Images("train/preview")
    assert [(each.step, each.width, each.height) for each in pictures] == [(20, 24, 16), (40, 24, 16)]
    assert np.array_equal(tiles.read_grid(pictures[0].encoded_image_string, 8), tiles.read_grid(PICTURE, 8))
    assert "settings" in reader.Tags()["tensors"]
    assert len(mirrored.problems) == 2  # the picture that is gone, at both milestones


def test_again_is_nothing_and_more_records_are_one_new_file(mirrored, tmp_path):
    root = tmp_path / "tb"
    assert tensorboard.write(mirrored, root)
    before = tree(root)
    assert not tensorboard.write(mirrored, root)
    assert tree(root) == before
    assert tensorboard.write(replace(mirrored, scalars=[*mirrored.scalars, Scalar("x", 50, 1.0)]), root)
    assert tree(root).keys() == before.keys()


def test_a_name_stays_inside_its_folder(mirrored, tmp_path):
    assert "/" not in tensorboard.folder_of(mirrored)
    assert not tensorboard.folder_of(replace(mirrored, name="../../..")).startswith(".")


class Offline:
    """Stands in for the package: keeps what its API was called with."""

    def __init__(self):
        self.runs, self.logged = [], []

    def init(self, **words):
        self.runs.append(words)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.logged.append("finish")

    def Settings(self, **words):
        return words

    def Image(self, picture):
        return np.asarray(picture)


def test_wandb_is_logged_offline_once_with_ascending_steps(mirrored, tmp_path, monkeypatch):
    api = Offline()
    monkeypatch.setitem(sys.modules, "wandb", api)
    assert wandb.write(mirrored, tmp_path / "w", "little")
    assert not wandb.write(mirrored, tmp_path / "w", "little")
    assert [each["mode"] for each in api.runs] == ["offline"]
    assert [step for step, _ in api.logged[:-1]] == [10, 20, 30, 40]
    assert api.logged[-1] == "finish"
    assert sum(len(values) for _, values in api.logged[:-1]) == len(mirrored.scalars) + len(mirrored.images)
    assert api.runs[0]["config"] == dict(mirrored.settings)
    # Other content is another run: W&B only appends.
    more = replace(mirrored, scalars=[*mirrored.scalars, Scalar("x", 50, 1.0)])
    assert wandb.write(more, tmp_path / "w", "little")
    assert api.runs[1]["id"] != api.runs[0]["id"]


@pytest.mark.parametrize(
    ("module", "write"), [("wandb", wandb.write), ("tensorboard.compat.proto.event_pb2", None)]
)
def test_without_the_package_the_extra_is_named(mirrored, tmp_path, monkeypatch, module, write):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentProblem) as raised:
        tensorboard.write(mirrored, tmp_path / "t") if write is None else write(mirrored, tmp_path / "t", "x")
    assert "ltbench[trackers]" in (raised.value.hint or "")
    assert not [path for path in (tmp_path / "t").rglob("*") if path.is_file()]


def test_nothing_but_the_verb_imports_a_tracker():
    users = {
        name
        for name, path in SOURCES.items()
        if any(each.startswith(("ltbench.trackers", "tensorboard", "wandb")) for each in imports(path))
    }
    assert users == {"ltbench.cli.syncing", "ltbench.trackers.tensorboard", "ltbench.trackers.wandb"}


def test_from_the_command_line(run, cli, here):
    run("--workers", "1")
    before = tree(here / "store")
    code, out, _ = cli("sync", "little.yaml", "--to", "tensorboard")
    assert code == 0
    assert "4 runs written, 0 as they were" in out
    assert "0 runs written, 4 as they were" in cli("sync", "little.yaml", "--to", "tensorboard")[1]
    assert "logdir '" in cli("sync", "little.yaml", "--to", "tensorboard", "--out", "my runs")[1]
    assert tree(here / "store") == before
    code, _, err = cli("sync", "little.yaml", "--to", "mlflow")
    assert code == 2
    assert "tensorboard, wandb" in err
