"""Specs put together: extends, parts, --set, --with, exclude and further axes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ltbench.errors import SpecError
from ltbench.spec import load
from ltbench.spec.cells import Cell, expand

BASE = """\
name: base
dataset: {name: digits, imbalance: 0.1}
pipeline: sit
network: SiT-N/2
train: {batch: 24, milestones: [10, 20]}
evaluate: [{protocol: small-data, sampler: euler, steps: 5, guidance: 1.5}]
grid:
  method: [sit, cbdm]
  seed: [0, 1]
"""
PARTS = """\
name: two
extends: base.yaml
parts:
  - name: small
    network: SiT-N/4
    grid: {seed+: [2]}
  - name: noise
    pipeline: ddpm
    network: UNet-16
    dataset: {imbalance: 0.5}
    evaluate: {protocol: small-data, sampler: ddim, steps: 10, guidance: [1.5, 2.0]}
    grid: {method: ddpm, seed: 7}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "two.yaml").write_text(PARTS)
    return tmp_path


def cells(path: Path, **options: list[str]) -> list[Cell]:
    return expand(load(path, **options))


def rows(path: Path, **options: list[str]) -> set[tuple[str, str, int]]:
    return {(cell.part, cell.label, cell.seed) for cell in cells(path, **options)}


def refused(path: Path, **options: list[str]) -> str:
    with pytest.raises(SpecError) as caught:
        cells(path, **options)
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_extends_merges_mappings_and_replaces_lists(folder: Path) -> None:
    found = cells(write(folder, "name: mine\nextends: base.yaml\ntrain: {lr: 1.0}\ngrid: {seed: [5]}\n"))
    assert [(cell.label, cell.seed) for cell in found] == [("sit", 5), ("cbdm", 5)]
    assert found[0].settings["train"]["lr"] == 1.0
    assert found[0].settings["train"]["batch"] == 24


def test_a_key_with_a_plus_appends(folder: Path) -> None:
    path = write(folder, "name: mine\nextends: base.yaml\ngrid: {method+: [{name: cbdm, tau: 2}]}\n")
    assert [c.label for c in cells(path) if c.seed == 0] == ["sit", "cbdm", "cbdm (tau=2.0)"]


def test_appending_to_nothing_is_refused(folder: Path) -> None:
    path = write(folder, "name: mine\nextends: base.yaml\ngrid: {resample+: [0.5]}\n")
    assert f"{path}:3:8: `resample+` appends to a list" in refused(path)


def test_another_data_set_takes_none_of_the_old_parameters(folder: Path) -> None:
    path = write(folder, "name: mine\nextends: base.yaml\nnetwork: SiT-N/8\ndataset: {name: fashion_mnist}\n")
    assert cells(path)[0].settings["dataset"]["imbalance"] == 0.01  # its own default, not 0.1


def test_a_problem_in_the_base_is_placed_in_the_base(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE.replace("batch: 24", "bacth: 24"))
    message = refused(write(folder, "name: mine\nextends: base.yaml\n"))
    assert f"{folder / 'base.yaml'}:5:9: train has no key 'bacth'" in message


@pytest.mark.parametrize("target", ["mine.yaml", "other.yaml"])
def test_extends_in_a_circle_is_refused(folder: Path, target: str) -> None:
    (folder / "other.yaml").write_text("name: other\nextends: mine.yaml\n")
    message = refused(write(folder, f"name: mine\nextends: {target}\n"))
    assert "circle" in message
    assert "mine.yaml -> " in message


def test_extends_of_nothing_is_refused(folder: Path) -> None:
    assert "mine.yaml:2:10: `extends`: there is no file" in refused(
        write(folder, "name: mine\nextends: none.yaml\n")
    )


def test_parts_are_laid_over_the_top(folder: Path) -> None:
    small = {("small", method, seed) for method in ("sit", "cbdm") for seed in (0, 1, 2)}
    assert rows(folder / "two.yaml") == small | {("noise", "ddpm", 7)}
    noise = cells(folder / "two.yaml")[-1]
    assert noise.settings["dataset"]["imbalance"] == 0.5
    assert noise.settings["train"]["dropout"] == 0.1
    assert [e["sampler"] for e in noise.evaluations.values()] == ["ddim", "ddim"]


def test_a_shared_mistake_is_reported_once(folder: Path) -> None:
    (folder / "base.yaml").write_text(BASE.replace("batch: 24", "batch: many"))
    assert refused(folder / "two.yaml").count("whole number") == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: noise", "name: small", "two parts are called 'small'"),
        ("name: noise", "name: No", "cannot be a name"),
        ("- name: noise\n", "- title: x\n", "a part needs the key 'name'"),
        ("    network: UNet-16", "    netwrok: UNet-16", "no key 'netwrok'"),
    ],
)
def test_mistakes_in_parts(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "two.yaml").write_text(PARTS.replace(old, new))
    assert message in refused(folder / "two.yaml")


# --- the command line -----------------------------------------------------------------------------------------------


def test_set_reaches_every_part_even_where_it_says_otherwise(folder: Path) -> None:
    found = cells(folder / "two.yaml", changes=["train.batch=12", "grid.seed=[5]", "evaluate.0.steps=20"])
    assert {cell.settings["train"]["batch"] for cell in found} == {12}
    assert {cell.seed for cell in found} == {5}
    (folder / "two.yaml").write_text(PARTS.replace("evaluate: {", "evaluate: [{").replace("2.0]}", "2.0]}]"))
    found = cells(folder / "two.yaml", changes=["evaluate.0.steps=20"])
    assert {e["steps"] for cell in found for e in cell.evaluations.values()} == {20}


def test_set_can_name_one_part(folder: Path) -> None:
    found = cells(folder / "two.yaml", changes=["parts.noise.network=UNet-32"])
    assert {cell.settings["network"] for cell in found} == {"SiT-N/4", "UNet-32"}


def test_set_reaches_a_part_with_another_data_set_and_renames_no_part(folder: Path) -> None:
    text = PARTS.replace("dataset: {imbalance: 0.5}", "dataset: {name: fashion_mnist, resolution: 16}")
    (folder / "two.yaml").write_text(text)
    spec = load(folder / "two.yaml", changes=["dataset.imbalance=0.0098", "train.batch=12", "name=other"])
    assert {cell.settings["dataset"]["imbalance"] for cell in expand(spec)} == {0.0098}
    assert (spec.name, [part.name for part in spec.parts]) == ("other", ["small", "noise"])


def test_with_adds_a_method_to_every_part_once(folder: Path) -> None:
    plain = rows(folder / "two.yaml")
    more = rows(folder / "two.yaml", methods=["dispersive", "sit"])
    assert more - plain == {("small", "dispersive", seed) for seed in (0, 1, 2)} | {
        ("noise", "dispersive", 7),
        ("noise", "sit", 7),
    }
    assert plain < more


def test_a_derived_spec_is_complete_and_makes_the_same_cells(folder: Path) -> None:
    changes, methods = ["train.lr=1e-5", "grid.seed=[0]"], ["{name: ccua, alpha: 1}"]
    spec = load(folder / "two.yaml", changes=changes, methods=methods)
    assert spec.derived is not None
    assert spec.name.startswith("two-")
    assert "--set train.lr=1e-5" in spec.derived.splitlines()[0]
    alone = folder / "elsewhere"
    alone.mkdir()
    (alone / "derived.yaml").write_text(spec.derived)
    again = load(alone / "derived.yaml")
    assert again.name == spec.name
    assert again.derived is None
    assert [cell.id for cell in expand(again)] == [cell.id for cell in expand(spec)]


def test_derived_names_differ_by_content_and_can_be_chosen(folder: Path) -> None:
    names = {load(folder / "two.yaml", changes=[f"train.lr={lr}"]).name for lr in ("1e-5", "0.00001", "1e-3")}
    assert len(names) == 2
    assert load(folder / "two.yaml", changes=["train.lr=1e-5", "name=mine"]).name == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.bacth=3", "--set train.bacth=3: train has no key 'bacth'"),
        ("train.batch", "expects KEY=VALUE"),
        ("train..batch=1", "expects KEY=VALUE"),
        ("=1", "expects KEY=VALUE"),
        ("train.batch=[1", "not YAML"),
        ("train.batch=*x", "alias"),
        ("parts.nose.network=x", "there is no part 'nose'"),
        ("evaluate.7.steps=3", "no index of a list of 1"),
        ("evaluate.0.stepz=3", "did you mean 'steps'"),
        ("name.x=3", "lies inside a single value"),
    ],
)
def test_a_bad_set_says_so(folder: Path, change: str, message: str) -> None:
    assert message in refused(folder / "two.yaml", changes=[change])


def test_a_bad_with_says_so(folder: Path) -> None:
    assert "--with cbmd: unknown method 'cbmd'" in refused(folder / "two.yaml", methods=["cbmd"])


# --- exclusions and axes --------------------------------------------------------------------------------------------


def test_exclude_drops_what_matches_all_of_its_keys(folder: Path) -> None:
    text = "name: mine\nextends: base.yaml\ngrid: {resample: [none, 0.5]}\n"
    text += "exclude: [{method: cbdm, resample: 0.5}, {seed: 1, resample: none}]\n"
    found = {
        (c.settings["method"]["name"], c.settings["resample"], c.seed) for c in cells(write(folder, text))
    }
    full = {(m, r, s) for m in ("sit", "cbdm") for r in (None, 0.5) for s in (0, 1)}
    assert found == {
        (m, r, s) for m, r, s in full if not (m == "cbdm" and r == 0.5) and not (s == 1 and r is None)
    }


def test_further_axes_multiply_and_show_in_the_label(folder: Path) -> None:
    text = "name: mine\nextends: base.yaml\n"
    text += "grid: {seed: 0, method: sit, train.betas: [[0.9, 0.99], [0.5, 0.9]], dataset.imbalance: [0.1, 0.5], network: [SiT-N/2]}\n"
    found = cells(write(folder, text))
    assert [cell.settings["train"]["betas"] for cell in found] == [[0.9, 0.99], [0.5, 0.9]] * 2
    assert [cell.settings["dataset"]["imbalance"] for cell in found] == [0.1, 0.1, 0.5, 0.5]
    assert found[0].label == "sit (imbalance=0.1, betas=[0.9, 0.99])"
    assert len({cell.id for cell in found}) == 4


def test_resampling_shows_in_the_label(folder: Path) -> None:
    path = write(
        folder, "name: mine\nextends: base.yaml\ngrid: {method: [{name: cbdm, tau: 2}], resample: 0.1}\n"
    )
    assert cells(path)[0].label == "cbdm (tau=2.0, resample=0.1)"


def test_everything_excluded_is_refused(folder: Path) -> None:
    path = write(folder, "name: mine\nextends: base.yaml\nexclude: [{method: [sit, cbdm]}]\n")
    assert "no cell is left" in refused(path)


def test_the_released_remainder_is_a_cell_of_its_own_and_plain_factors_keep_their_ids(folder: Path) -> None:
    text = "name: mine\nextends: base.yaml\ngrid: {method: [sit], seed: 0, resample: %s}\n"
    rounded = "[none, 0.1, {factor: 0.1, remainder: last}]"
    plain, factor, last = cells(write(folder, text % rounded))
    assert [c.settings["resample"] for c in (plain, factor, last)] == [
        None,
        0.1,
        {"factor": 0.1, "remainder": "last"},
    ]
    assert last.identity["resample"] == {"factor": 0.1, "remainder": "last"}
    assert factor.identity["resample"] == 0.1
    assert last.label == "sit (resample={factor: 0.1, remainder: last})"
    for spelling in ("[{factor: 0.1}]", "[{factor: 0.1, remainder: largest}]", "0.1"):
        (same,) = cells(write(folder, text % spelling))
        assert (same.id, same.label) == (factor.id, factor.label)
    (whole,) = cells(write(folder, text % "1"))
    assert whole.identity["resample"] == 1.0
    assert isinstance(whole.identity["resample"], float)
    text += "exclude: [{resample: {factor: 0.1, remainder: last}}]\n"
    assert len(cells(write(folder, text % rounded))) == 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{factor: 0.0, remainder: last}", "above 0"),
        ("{factor: 0.1, remainder: lst}", "did you mean 'last'"),
        ("{factor: 0.1, rest: last}", "has no key 'rest'"),
        ("{remainder: last}", "needs the key 'factor'"),
        ("[0.1, {factor: 0.1}]", "holds 0.1 twice"),
        ("half", "expects a number"),
        ("{factor: half, remainder: last}", "expects a number"),
    ],
)
def test_a_resampling_that_is_none_is_refused(folder: Path, value: str, words: str) -> None:
    path = write(folder, f"name: mine\nextends: base.yaml\ngrid: {{method: [sit], resample: {value}}}\n")
    assert words in refused(path)
