"""`init` in a spec: what a start means, what makes the id of a cell that has one, and what is refused and where."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from ltbench import provenance
from ltbench.errors import Problem, SpecError
from ltbench.plugins import TAKEN
from ltbench.spec import load, schema
from ltbench.spec.cells import Cell, expand
from ltbench.spec.models import Init
from ltbench.spec.starts import check_files

ROOT = Path(__file__).resolve().parents[1]
SHA = "a1" * 32
TEXT = """\
name: mine
dataset: {name: digits, imbalance: 0.1}
pipeline: sit
network: SiT-N/2
train: {batch: 24, local_batch: 12, milestones: [10, 20]}
evaluate: {protocol: small-data, sampler: euler, steps: 5, guidance: 1.5, samples: 100}
TOP
grid:
  method: [sit, METHOD]
  seed: [0, 1]
AXES
"""


def text(*, top: str = "", method: str = "ccua", axes: str = "") -> str:
    made = TEXT.replace("TOP\n", f"{top}\n" if top else "").replace("METHOD", method)
    return made.replace("AXES\n", f"  {axes}\n" if axes else "")


def cells(folder: Path, written: str, **options: Any) -> list[Cell]:
    (folder / "mine.yaml").write_text(written)
    return expand(load(folder / "mine.yaml", **options))


def problems(folder: Path, written: str) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        cells(folder, written)
    return caught.value.problems


def by_label(found: list[Cell], label: str, seed: int = 0) -> Cell:
    return next(cell for cell in found if (cell.label, cell.seed) == (label, seed))


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_and_runs_without_a_start_are_what_they_were():
    """Computed before starts existed."""
    cell = expand(load(ROOT / "benchmarks" / "smoke.yaml"))[0]
    assert cell.id == "42f39a59a46abd25aba2e0cf761b0be8ce2641dc7007ee01a2b5ef62944b2aec"
    assert "init" not in cell.settings
    code = {key: {"digest": "0" * 64} for key in provenance.COMPONENTS}
    # Of settings written here: a recipe that has gained a key gives other runs, as its code does.
    assert provenance.run_id(code, {"method": {"name": "sit"}, "seed": 0}) == "8af7fc137e3d"


def test_a_start_is_in_the_id_by_its_source_and_step(tmp_path):
    plain = cells(tmp_path, text())
    found = cells(tmp_path, text(method="{name: ccua, init: {method: sit, step: 10}}"))
    for seed in (0, 1):
        source, own = by_label(plain, "sit", seed), by_label(found, "ccua (init=sit@10)", seed)
        assert own.identity["init"] == {"cell": source.id, "step": 10}
        assert own.source is not None
        assert (own.source.cell.id, own.source.step) == (source.id, 10)
        assert own.settings["init"]["prior_steps"] == 10
        assert own.settings["init"]["source"] == source.settings
        assert by_label(found, "sit", seed).id == source.id
        assert own.id != by_label(plain, "ccua", seed).id
    other = cells(tmp_path, text(method="{name: ccua, init: {method: sit, step: 20}}"))
    assert by_label(other, "ccua (init=sit@20)").id != by_label(found, "ccua (init=sit@10)").id


def test_the_id_of_a_file_is_its_sum_and_never_its_place(tmp_path):
    def cell(**more: str) -> Cell:
        given = {"checkpoint": "a.pt", "sha256": SHA, "prior_steps": "5", **more}
        init = ", ".join(f"{key}: {value}" for key, value in given.items())
        return cells(tmp_path, text(top=f"init: {{{init}}}"))[0]

    here = cell()
    assert here.identity["init"] == {"sha256": SHA}
    assert here.label == f"sit (init=file {SHA[:8]}@5)"
    assert cell(checkpoint="/elsewhere/b.pth").id == here.id
    assert "a.pt" not in str(here.settings)
    assert cell(prior_steps="7").id == here.id  # a statement about the file, not what is in it
    assert cell(weights="ema", classes="keep", family="null").id == here.id
    changed = {
        cell(weights="model").id,
        cell(classes="mean").id,
        cell(family="repa").id,
        cell(sha256="b2" * 32).id,
    }
    assert len(changed | {here.id}) == 5


def test_top_axis_and_row_say_the_same_thing(tmp_path):
    top = cells(tmp_path, text(top="init: {method: sit, step: 10}"))
    axis = cells(tmp_path, text(axes="init: [none, {method: sit, step: 10}]"))
    row = cells(tmp_path, text(method="{name: ccua, init: {method: sit, step: 10}}"))
    label = "ccua (init=sit@10)"
    assert by_label(top, label).id == by_label(axis, label).id == by_label(row, label).id
    assert len(axis) == 8
    assert by_label(axis, "ccua").id == by_label(cells(tmp_path, text()), "ccua").id
    assert [cell.axes["init"] for cell in axis[:4]] == [None, None, "sit@10", "sit@10"]
    # a plain source is the start of its own continuation: no cycle, for a source begins nowhere unless it says so
    again = by_label(top, "sit (init=sit@10)")
    assert again.source is not None
    assert "init" not in again.source.cell.settings


def test_a_row_wins_over_the_part(tmp_path):
    found = cells(tmp_path, text(top="init: {method: sit, step: 10}", method="{name: ccua, init: none}"))
    assert {cell.label for cell in found} == {"sit (init=sit@10)", "ccua (init=none)"}
    assert by_label(found, "ccua (init=none)").id == by_label(cells(tmp_path, text()), "ccua").id


def test_a_source_may_differ_and_the_label_says_how(tmp_path):
    init = "{method: {name: cbdm, tau: 2.0}, step: 7, resample: 0.1, seed: 5, train: {lr: 0.5}, dataset: {imbalance: 0.5}}"
    found = cells(tmp_path, text(method=f"{{name: ccua, init: {init}}}"))
    said = "cbdm (tau=2.0)@7 (resample=0.1, seed=5, train.lr=0.5, dataset.imbalance=0.5)"
    own = by_label(found, f"ccua (init={said})")
    assert own.source is not None
    settings = own.source.cell.settings
    assert settings["method"]["tau"] == 2.0
    assert (settings["resample"], settings["seed"], settings["train"]["lr"]) == (0.1, 5, 0.5)
    assert settings["dataset"]["imbalance"] == 0.5
    assert own.settings["dataset"]["imbalance"] == 0.1
    assert settings["train"]["batch"] == own.settings["train"]["batch"] == 24


def test_a_source_follows_the_axes_of_its_cell(tmp_path):
    written = text(axes="train.lr: [1e-3, 2e-3]", top="init: {method: sit, step: 10}")
    for cell in cells(tmp_path, written):
        assert cell.source is not None
        assert cell.source.cell.settings["train"]["lr"] == cell.settings["train"]["lr"]
        assert cell.source.cell.seed == cell.seed


def test_starts_of_starts_add_their_steps(tmp_path):
    init = "{method: cbdm, step: 30, init: {method: sit, step: 10}}"
    own = by_label(
        cells(tmp_path, text(method=f"{{name: ccua, init: {init}}}")), "ccua (init=cbdm@30 (init=[sit@10]))"
    )
    assert own.settings["init"]["prior_steps"] == 40


def test_the_published_fine_tuned_cbdm_is_a_row(tmp_path):
    """qym7/CBDM-pytorch: DDPM for 200k steps, then about 100k with labels drawn uniformly; batch 64 before and 48 after."""
    (tmp_path / "mine.yaml").write_text("""
name: cbdm
dataset: {name: fashion_mnist, imbalance: 0.01, resolution: 32}
pipeline: ddpm
network: UNet-128
train: {preset: cbdm, milestones: [100000, 300000]}
grid:
  method:
    - cbdm
    - {name: cbdm, preset: finetune, init: {method: ddpm, step: 200000, train: {batch: 64}}}
""")
    scratch, tuned = expand(load(tmp_path / "mine.yaml"))
    assert tuned.label == "cbdm (preset=finetune, init=ddpm@200000 (train.batch=64))"
    assert tuned.settings["method"]["prior"] == "uniform"
    assert tuned.source is not None
    assert (tuned.source.cell.settings["method"], tuned.source.cell.settings["train"]["batch"]) == (
        {"name": "ddpm"},
        64,
    )
    assert tuned.settings["train"] == scratch.settings["train"]
    assert tuned.settings["init"]["prior_steps"] == 200_000


def test_exclusions_know_the_axis(tmp_path):
    written = text(axes="init: [none, {method: sit, step: 10}]") + "exclude: [{method: sit, init: sit@10}]\n"
    assert {cell.label for cell in cells(tmp_path, written)} == {"sit", "ccua", "ccua (init=sit@10)"}


def test_set_changes_a_start(tmp_path):
    changed = cells(tmp_path, text(), changes=["init={method: sit, step: 10}"])
    assert {cell.label for cell in changed} == {"sit (init=sit@10)", "ccua (init=sit@10)"}


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "said", "at"),
    [
        ("{method: sit, step: 10, network: SiT-S/2}", "cannot name another network", "network"),
        ("{method: sti, step: 10}", "unknown method 'sti'", "sti"),
        ("{method: {name: cbdm, taau: 1}, step: 10}", "has no parameter 'taau'", "taau"),
        ("{method: sit, stepp: 10}", "has no key 'stepp'", "stepp"),
        ("{method: sit}", "an init from a cell needs step", "{"),
        ("{step: 10}", "needs method; one from a file needs checkpoint, sha256 and prior_steps", "{"),
        ("{method: sit, step: 0}", "step must be at least 1", "0}"),
        ("{method: sit, step: 10, sha256: aa}", "sha256 expects the 64 hexadecimal", "aa"),
        (
            f"{{method: sit, step: 10, sha256: {SHA}}}",
            "starts from a cell, and sha256 is of a file",
            "sha256",
        ),
        (
            f"{{checkpoint: a.pt, sha256: {SHA}, prior_steps: 1, seed: 2}}",
            "starts from a file, and seed is of a cell",
            "seed",
        ),
        (f"{{checkpoint: a.pt, sha256: {SHA}}}", "an init from a file needs prior_steps", "{"),
        ("{checkpoint: a.pt, prior_steps: 1}", "an init from a file needs sha256", "{"),
        (f"{{checkpoint: a.ckpt, sha256: {SHA}, prior_steps: 1}}", "this is no weights file", "a.ckpt"),
        ("{method: sit, step: 10, classes: kepe}", "classes is unknown", "kepe"),
        ("{method: sit, step: 10, train: {lr: fast}}", "train.lr expects a number", "fast"),
        (
            "{method: sit, step: 10, train: {milestones: [1]}}",
            "init.train cannot set milestones",
            "milestones",
        ),
        (
            "{method: sit, step: 10, train: {batch: 25}}",
            "init.train: local_batch 12 does not divide batch 25",
            "{batch",
        ),
        (
            "{method: sit, step: 10, dataset: {imbalanced: 1.0}}",
            "has no parameter 'imbalanced'",
            "imbalanced",
        ),
        (
            "{method: sit, step: 10, dataset: {name: fashion_mnist, imbalance: 0.01, resolution: 16}}",
            "classes: keep needs the classes of the source (10) to be those of the cell (10)",
            "{method",
        ),
        ("{method: sit, step: 10, init: {method: sit}}", "an init from a cell needs step", "{method: sit}}"),
        ("7", "init expects none or a mapping", "7"),
        ("{method: sit, step: 15}", "step 15 is no milestone of sit, a cell of this benchmark", "15"),
    ],
)
@pytest.mark.parametrize("place", ["top", "axis", "row"])
def test_every_mistake_has_its_place(tmp_path, init, said, at, place):
    written = {
        "top": text(top=f"init: {init}"),
        "axis": text(axes=f"init: [none, {init}]"),
        "row": text(method=f"{{name: ccua, init: {init}}}"),
    }[place]
    if place == "top" and "15" in init:
        written = text(
            top=f"init: {init}", method="{name: sit, init: none}"
        )  # the source is in the benchmark
    found = problems(tmp_path, written)
    assert len(found) == 1, [str(each) for each in found]
    assert said in found[0].message
    lines = written.splitlines()
    line = next(i for i, each in enumerate(lines, start=1) if init in each)
    column = lines[line - 1].index(init) + init.index(at) + 1
    assert (found[0].line, found[0].column) == (line, column)


def test_a_start_is_said_once(tmp_path):
    both = text(axes="init: [none, {method: sit, step: 10}]", method="{name: ccua, init: none}")
    assert "say it in one of the two places" in problems(tmp_path, both)[0].message
    twice = text(axes="init: [{method: sit, step: 10}, {method: sit, step: 10}]")
    assert "holds 'sit@10' twice" in problems(tmp_path, twice)[0].message
    rows = text(
        method="{name: ccua, init: {method: sit, step: 10}}, {name: ccua, init: {method: sit, step: 10}}"
    )
    assert "the same cells twice" in problems(tmp_path, rows)[0].message
    assert "needs at least one value" in problems(tmp_path, text(axes="init: []"))[0].message


def test_a_hyper_parameter_cannot_be_called_init():
    assert "init" in TAKEN


def test_files_are_checked_with_their_place(tmp_path, monkeypatch):
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    found = cells(tmp_path, text(top=f"init: {{checkpoint: w.pt, sha256: {SHA}, prior_steps: 1}}"))
    line = next(
        i for i, each in enumerate(text(top="init: {checkpoint: w.pt}").splitlines(), 1) if "w.pt" in each
    )
    with pytest.raises(SpecError) as caught:
        check_files(found)
    (missing,) = caught.value.problems
    assert (missing.line, missing.column) == (line, 20)
    assert "there is no such file" in missing.message
    (tmp_path / "data" / "w.pt").write_bytes(b"other")
    with pytest.raises(SpecError, match=re.escape(hashlib.sha256(b"other").hexdigest())):
        check_files(found)
    right = hashlib.sha256(b"other").hexdigest()
    check_files(
        cells(tmp_path, text(top=f"init: {{checkpoint: w.pt, sha256: {right.upper()}, prior_steps: 1}}"))
    )


def test_the_schema_knows_starts():
    made = schema()
    plain, mapping = made["$defs"]["Init"]["anyOf"]
    assert plain == {"enum": ["none", None]}
    assert set(mapping["properties"]) == set(Init.model_fields)
    assert mapping["additionalProperties"] is False
    reference = {"$ref": "#/$defs/Init"}
    assert (
        made["properties"]["init"] == made["properties"]["parts"]["items"]["properties"]["init"] == reference
    )
    assert made["$defs"]["Grid"]["properties"]["init"]["anyOf"][0] == reference
    assert made["$defs"]["MethodRow"]["anyOf"][1]["properties"]["init"] == reference


def test_the_example_can_be_planned():
    found = expand(load(ROOT / "benchmarks" / "finetune.yaml"))
    assert {cell.label for cell in found} == {"ddpm", "cbdm", "cbdm (preset=finetune, init=ddpm@400)"}
    ids = {cell.id for cell in found}
    assert all(cell.source.cell.id in ids for cell in found if cell.source)
