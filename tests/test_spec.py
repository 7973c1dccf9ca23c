"""From text to cells: what is refused and where, what makes a cell, and what does not."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from ltbench import plugins
from ltbench.canonical import digest
from ltbench.errors import Problem, SpecError
from ltbench.networks.names import NETWORK_NAMES
from ltbench.protocols import SAMPLERS, check_steps
from ltbench.spec import load, schema
from ltbench.spec.cells import Cell, expand
from ltbench.spec.models import OPTIONS, SETTINGS, Train
from ltbench.spec.networks import network_names
from ltbench.spec.presets import PRESETS

ROOT = Path(__file__).resolve().parents[1]
GOOD = """\
name: mine
title: A title
dataset: {name: digits, imbalance: 0.1}
pipeline: sit
network: SiT-N/2
train:
  batch: 24
  local_batch: 12
  milestones: [10, 20]
evaluate:
  - {protocol: small-data, sampler: euler, steps: 5, guidance: [1.5, 3.0], samples: 100}
grid:
  method: [sit, {name: cbdm, tau: 0.5}]
  seed: [0, 1]
"""


def cells(tmp_path: Path, text: str, **options: list[str]) -> list[Cell]:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return expand(load(path, **options))


def problems(tmp_path: Path, text: str, **options: list[str]) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        cells(tmp_path, text, **options)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_a_good_spec_is_the_product_of_its_axes(tmp_path: Path) -> None:
    found = cells(tmp_path, GOOD)
    assert [(cell.label, cell.seed) for cell in found] == [
        ("sit", 0), ("sit", 1), ("cbdm (tau=0.5)", 0), ("cbdm (tau=0.5)", 1)
    ]  # fmt: skip
    assert len({cell.id for cell in found}) == 4
    first = found[0]
    assert first.milestones == (10, 20)
    assert [e["guidance"] for e in first.evaluations.values()] == [1.5, 3.0]
    assert all(key == digest(value)[:12] for key, value in first.evaluations.items())
    assert first.settings["method"] == {"name": "sit"}
    assert found[2].settings["method"] == {"name": "cbdm", "tau": 0.5, "gamma": 0.25, "prior": "empirical"}
    assert found[2].identity["method"] == {"name": "cbdm", "tau": 0.5}
    assert first.settings["train"]["betas"] == [0.9, 0.999]
    assert list(first.settings["train"]) == list(SETTINGS)
    assert first.identity["train"] == {"batch": 24, "local_batch": 12}


# (text to find, what to put there, the token that the message must point at, words of the message)
MISTAKES = [
    ("name: mine", "name: ../x", "../x", ["name", "allowed"]),
    ("name: mine", "name: -rf", "-rf", ["name"]),
    ("name: mine", "name: " + "x" * 65, "xxx", ["name"]),
    ("name: mine", "name: a..b", "a..b", ["name"]),
    ("name: mine", 'name: "a\\nb"', '"a', ["name"]),
    ("name: mine", "name: 7", "7", ["name"]),
    ("title: A", "titel: A", "titel", ["did you mean 'title'"]),
    ("pipeline: sit", "pipeline: sti", "sti", ["sti", "sit, ddpm", "did you mean 'sit'"]),
    ("name: digits", "name: digit", "digit,", ["unknown data set", "did you mean 'digits'"]),
    ("imbalance: 0.1", "imbalanse: 0.1", "imbalanse", ["takes imbalance=0.1", "did you mean 'imbalance'"]),
    ("imbalance: 0.1", "imbalance: high", "high", ["expects a number", "'high'"]),
    ("imbalance: 0.1", "imbalance: 2.0", "2.0", ["imbalance", "2.0"]),
    ("SiT-N/2", "SiT-N/3", "SiT-N/3", ["3", "resolution 8"]),
    ("SiT-N/2", "SiT-M/2", "SiT-M/2", ["unknown network", "did you mean 'SiT-"]),
    ("batch: 24", "bacth: 24", "bacth", ["did you mean 'batch'"]),
    ("batch: 24", "batch: many", "many", ["whole number"]),
    ("batch: 24", "batch: -24", "-24", ["at least 1"]),
    ("batch: 24", "batch: 24.5", "24.5", ["whole number"]),
    ("batch: 24", "batch: 50", "12", ["local_batch 12 does not divide batch 50"]),
    ("batch: 24", "batch: 24000", "24000", ["batch 24000 is larger than the training data", "at most"]),
    ("batch: 24", "batch: 24\n  micro_batch: 8", "8", ["micro_batch 8", "allowed: 12, 24"]),
    ("[10, 20]", "[20, 10]", "[20", ["rise", "[10, 20]"]),
    ("[10, 20]", "[10, 10]", "[10", ["rise"]),
    ("[10, 20]", "[]", "[]", ["empty"]),
    ("[10, 20]", "[0, 20]", "0,", ["at least 1"]),
    ("local_batch: 12", "lr: 010x", "010x", ["expects a number", "010x"]),
    ("local_batch: 12", "flip: no", "no", ["expects true or false", "'no'"]),
    ("local_batch: 12", "ema: 1.0", "1.0", ["below 1"]),
    ("local_batch: 12", "betas: [0.9]", "[0.9]", ["too few"]),
    ("local_batch: 12", "preset: seed-dppm", "seed-dppm", ["unknown training preset", "seed-sit"]),
    ("local_batch: 12", "preset: seed-ddpm", "seed-ddpm", ["recipe of pipeline ddpm"]),
    ("small-data", "small-dada", "small-dada", ["unknown protocol", "did you mean 'small-data'"]),
    ("euler", "ddim", "ddim", ["does not belong to pipeline 'sit'", "euler, heun"]),
    ("samples: 100", "samples: 105", "105", ["multiple of 10 classes"]),
    ("samples: 100", "extractor: fashion-cnn-v1", "fashion-cnn-v1", ["fashion_mnist", "not for digits"]),
    ("samples: 100", "extractor: nope", "nope", ["unknown extractor", "digits-cnn-v1"]),
    ("samples: 100", "extractor: timm:vit_tiny", "timm:vit_tiny", ["needs the first 8 digits", "timm:vit_tiny#SHA"]),
    ("samples: 100", "extractor: inception-2015-12-05@w.pth", "inception", ["not the place", "LTBENCH_WEIGHTS"]),
    ("[1.5, 3.0]", "[1.5, 1.5]", "evaluate", ["same evaluation twice"]),
    ("[1.5, 3.0]", "[-1.5]", "-1.5", ["at least 0"]),
    ("[sit,", "[stt,", "stt", ["unknown method 'stt'", "did you mean 'sit'"]),
    ("[sit,", "[sit, sit,", "sit, {", ["same cells twice"]),
    ("[sit,", "[{name: cbdm},  {name: cbdm, tau: 1},", "{name: cbdm, tau: 1}", ["same cells twice"]),
    ("tau: 0.5", "taw: 0.5", "taw", ["takes tau=1.0, gamma=0.25, prior=empirical", "did you mean 'tau'"]),
    ("tau: 0.5", "tau: half", "half", ["tau expects a number"]),
    ("tau: 0.5", "prior: unifrom", "unifrom", ["empirical | uniform", "did you mean 'uniform'"]),
    ("tau: 0.5", "preset: relased", "relased", ["no preset", "did you mean 'released'"]),
    ("seed: [0, 1]", "seed: [0, 0]", "0]", ["twice"]),
    ("seed: [0, 1]", f"seed: [{2**70}]", str(2**70), ["below 4294967296"]),
    ("seed: [0, 1]", "seed: [-1]", "-1", ["at least 0"]),
    ("seed: [0, 1]", "sead: [0, 1]", "sead", ["did you mean 'seed'"]),
    ("seed: [0, 1]", "resample: [0.0]", "0.0", ["above 0"]),
    ("seed: [0, 1]", "train.passes: [serial, parallel]", "parallel", ["fused, serial"]),
    ("seed: [0, 1]", "train.micro_batch: [12]", "train.micro_batch", ["grid has no key"]),
    ("seed: [0, 1]", "dataset.imbalance: [0.1, 3.0]", "3.0", ["imbalance"]),
    ("seed: [0, 1]", "dataset.size: [3]", "3", ["no parameter 'size'"]),
    ("seed: [0, 1]", "network: [SiT-N/2, SiT-N/5]", "SiT-N/5", ["resolution 8"]),
    ("seed: [0, 1]", "seed: [0]\nexclude: [{method: cbm}]", "cbm", ["excludes no method", "sit, cbdm"]),
    ("seed: [0, 1]", "seed: [0]\nexclude: [{seed: 5}]", "5", ["excludes nothing"]),
    ("seed: [0, 1]", "seed: [0]\nexclude: [{sede: 0}]", "sede", ["did you mean 'seed'"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "token", "words"), MISTAKES)
def test_a_mistake_is_one_problem_at_its_place(
    tmp_path: Path, old: str, new: str, token: str, words: list[str]
) -> None:
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1)
    (problem,) = problems(tmp_path, text)
    assert problem.line is not None
    assert problem.column is not None
    assert text.splitlines()[problem.line - 1][problem.column - 1 :].startswith(token)
    shown = str(problem)
    assert shown.startswith(f"{tmp_path / 'spec.yaml'}:{problem.line}:{problem.column}: ")
    assert "\n" not in shown
    for word in words:
        assert word in shown


@pytest.mark.parametrize("key", ["name", "dataset", "pipeline", "network", "train", "grid"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    text = re.sub(rf"(?m)^{key}:.*\n(  .*\n)*", "", GOOD)
    assert f"needs the key '{key}'" in "\n".join(map(str, problems(tmp_path, text)))


def test_independent_mistakes_come_all_at_once_and_in_order(tmp_path: Path) -> None:
    text = GOOD
    wanted = []
    for old, new in (
        ("batch: 24", "bacth: 24"),
        ("A title", "3"),
        ("tau: 0.5", "tau: x"),
        ("[sit,", "[sti,"),
        ("small-", "smal-"),
    ):
        text = text.replace(old, new, 1)
    for word in ("title expects", "'bacth'", "smal-data", "'sti'", "tau expects"):
        wanted.append(next(i for i, line in enumerate(map(str, problems(tmp_path, text))) if word in line))
    assert wanted == sorted(wanted)


@pytest.mark.timeout(30)  # building it would take hours
def test_a_grid_of_a_billion_cells_is_refused_before_it_is_built(tmp_path: Path) -> None:
    seeds = "[" + ", ".join(map(str, range(400))) + "]"
    axes = "".join(f"  train.{key}: {seeds}\n" for key in ("lr", "weight_decay", "warmup"))
    (problem,) = problems(tmp_path, GOOD + axes)
    assert f"{2 * 2 * 400**3} cells" in problem.message
    assert "100000" in problem.message


def test_a_class_without_images_is_named_with_the_imbalance_that_works(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, GOOD.replace("imbalance: 0.1", "imbalance: 0.001"))
    found = re.search(r"imbalance (0\.\d+) or more|fills every class is (0\.\d+)", problem.message)
    assert found is not None, problem.message
    smallest = next(filter(None, found.groups()))
    assert cells(tmp_path, GOOD.replace("imbalance: 0.1", f"imbalance: {smallest}"))
    too_small = round(float(smallest) * 0.98, 6)
    problems(tmp_path, GOOD.replace("imbalance: 0.1", f"imbalance: {too_small}"))


EMPTY = """
from ltbench.datasets import Dataset
class Thin(Dataset):
    extractor = "digits-cnn-v1"
    channels, resolution = 1, 8
    classes = ("ant", "bee", "cow")
    reference_id = "thin"
    def __init__(self, *, imbalance: float = 1.0) -> None:
        self.imbalance = imbalance
    def counts(self): return [50, int(50 * self.imbalance ** 0.5), int(50 * self.imbalance)]
    def train(self): raise NotImplementedError
    def reference(self): raise NotImplementedError
    def holdout(self): raise NotImplementedError
"""


@pytest.fixture
def extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of plugins that only this test sees."""
    import ltbench.datasets

    folder = tmp_path / "extra"
    folder.mkdir()
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.delitem(sys.modules, "ltbench.datasets.thin", raising=False)
    monkeypatch.setattr(ltbench.datasets, "__path__", list(ltbench.datasets.__path__))
    plugins.use([folder])
    assert os.environ[plugins.VARIABLE] == str(folder)
    return folder


def test_a_data_set_that_only_counts_gets_the_same_advice(tmp_path: Path, extra: Path) -> None:
    (extra / "thin.py").write_text(EMPTY)
    text = GOOD.replace("digits, imbalance: 0.1", "thin, imbalance: 0.01").replace(
        "\n  - {protocol", "\n  # {protocol"
    )
    text = text.replace("evaluate:", "exclude: []  #")
    (problem,) = problems(tmp_path, text.replace("batch: 24", "batch: 12"))
    assert "no training image of cow" in problem.message
    assert "is 0.02" in problem.message  # 50 * 0.02 = 1


def test_a_data_set_that_breaks_is_named_with_its_error(tmp_path: Path, extra: Path) -> None:
    (extra / "thin.py").write_text(EMPTY.replace("return [50,", "return [1 // 0,"))
    (problem,) = problems(tmp_path, GOOD.replace("digits, imbalance: 0.1", "thin"))
    assert "data set 'thin' fails: ZeroDivisionError" in problem.message


def test_a_broken_method_is_said_where_it_is_asked_for_and_nowhere_else(tmp_path: Path, extra: Path) -> None:
    (extra / "broken.py").write_text("class (")
    assert cells(tmp_path, GOOD)
    (problem,) = problems(tmp_path, GOOD.replace("[sit,", "[broken,"))
    assert "cannot be used" in problem.message
    assert "broken.py" in problem.message


# --- identity -------------------------------------------------------------------------------------------------------

SAME_CELL = {
    "a default written out": (
        "local_batch: 12",
        "local_batch: 12\n  lr: 1e-4\n  flip: true\n  betas: [0.9, 0.999]",
    ),
    "a whole number for a float": ("local_batch: 12", "local_batch: 12\n  weight_decay: 0"),
    "micro-batch": ("local_batch: 12", "local_batch: 12\n  micro_batch: 12"),
    "checkpoints and logs": (
        "local_batch: 12",
        "local_batch: 12\n  checkpoint_seconds: 1\n  log_every: 5\n  preview_every: 5",
    ),
    "more steps": ("[10, 20]", "[10, 20, 40]"),
    "other evaluations": ("[1.5, 3.0]", "[2.0]"),
    "no evaluation": ("- {protocol", "# - {protocol"),
    "names and titles": ("name: mine\ntitle: A title", "name: other"),
    "a default parameter": ("tau: 0.5", "tau: 0.5, gamma: 0.25"),
    "resampling off": ("seed: [0, 1]", "seed: [0, 1]\n  resample: none"),
    "another order of keys": ("batch: 24\n  local_batch: 12", "local_batch: 12\n  batch: 24"),
    "an axis of one": ("  local_batch: 12\n", ""),
    "a preset of equal values": ("tau: 0.5", "preset: released, tau: 0.5"),
}


@pytest.mark.parametrize("change", SAME_CELL)
def test_what_changes_no_weight_changes_no_id(tmp_path: Path, change: str) -> None:
    old, new = SAME_CELL[change]
    text = GOOD.replace(old, new, 1)
    if change == "an axis of one":
        text += "  train.local_batch: [12]\n"
    if change == "no evaluation":
        text = text.replace("evaluate:\n", "evaluate: []\n")
    assert text != GOOD
    assert [cell.id for cell in cells(tmp_path, text)] == [cell.id for cell in cells(tmp_path, GOOD)]


OTHER = {
    "batch": "48", "local_batch": "24", "optimizer": "adam", "lr": "2e-4", "betas": "[0.5, 0.9]", "weight_decay": "0.1",
    "warmup": "5", "clip_norm": "1.0", "ema": "0.9", "precision": "bf16", "label_drop": "0.2", "label_drop_mode": "batch",
    "flip": "false", "dropout": "0.1", "passes": "serial", "augment": "ada", "augment_probability": "0.2",
}  # fmt: skip


@pytest.mark.parametrize("key", SETTINGS)
def test_every_training_setting_makes_another_cell(tmp_path: Path, key: str) -> None:
    base = ["train.augment=ada"] if key == "augment_probability" else []
    changed = cells(tmp_path, GOOD, changes=[*base, f"train.{key}={OTHER[key]}"])
    assert not {cell.id for cell in changed} & {cell.id for cell in cells(tmp_path, GOOD, changes=base)}


@pytest.mark.parametrize(
    "change",
    [
        "dataset.imbalance=0.2",
        "network=SiT-T/2",
        "grid.seed=[7, 8]",
        "grid.resample=0.5",
        "grid.method=[dispersive, ccua]",
        "grid.method=[{name: cbdm, prior: uniform}]",
    ],
)
def test_everything_else_of_a_cell_does_too(tmp_path: Path, change: str) -> None:
    changed = cells(tmp_path, GOOD, changes=[change])
    assert not {cell.id for cell in changed} & {cell.id for cell in cells(tmp_path, GOOD)}


def test_settings_are_split_into_weights_and_the_rest() -> None:
    assert set(Train.model_fields) == {*SETTINGS, *OPTIONS, "preset", "milestones"}
    assert set(OTHER) == set(SETTINGS)


def test_no_key_of_the_identity_holds_its_default(tmp_path: Path) -> None:
    for cell in cells(tmp_path, GOOD):
        for key, value in cell.identity["train"].items():
            default = Train.model_fields[key].default
            assert key == "batch" or value != default
        assert cell.id == digest({"format": 1, **cell.identity})


# --- presets --------------------------------------------------------------------------------------------------------


def test_precedence_is_signature_pipeline_preset_yaml(tmp_path: Path, extra: Path) -> None:
    (extra / "layered.py").write_text(
        "from ltbench.methods import Method\n"
        "class Layered(Method):\n"
        "    presets = {'sit': {'b': 1, 'c': 1, 'd': 1}, 'paper': {'c': 2, 'd': 2}}\n"
        "    def __init__(self, task, *, a: int = 0, b: int = 0, c: int = 0, d: int = 0): ...\n"
    )
    text = GOOD.replace("[sit,", "[{name: layered, preset: paper, d: 3},")
    found = cells(tmp_path, text)[0]
    assert found.settings["method"] == {"name": "layered", "a": 0, "b": 1, "c": 2, "d": 3}
    assert found.identity["method"] == {"name": "layered", "b": 1, "c": 2, "d": 3}
    assert found.label == "layered (preset=paper, d=3)"


def test_a_training_preset_lies_between_pipeline_and_yaml(tmp_path: Path) -> None:
    text = GOOD.replace("  batch: 24\n  local_batch: 12\n", "  preset: seed-sit\n  ema: 0.5\n")
    train = cells(tmp_path, text)[0].settings["train"]
    assert (train["batch"], train["local_batch"], train["precision"], train["ema"]) == (48, 12, "tf32", 0.5)


def test_the_ddpm_pipeline_has_its_own_defaults(tmp_path: Path) -> None:
    text = GOOD.replace("pipeline: sit", "pipeline: ddpm").replace("euler", "ddim").replace("[sit,", "[ddpm,")
    train = cells(tmp_path, text.replace("SiT-N/2", "UNet-16"))[0].settings["train"]
    wanted = {
        "optimizer": "adam",
        "lr": 2e-4,
        "warmup": 5000,
        "clip_norm": 1.0,
        "ema": 0.9999,
        "dropout": 0.1,
    }
    assert {key: train[key] for key in wanted} == wanted
    assert train["label_drop_mode"] == "batch"


def test_every_deviation_from_a_preset_is_said(tmp_path: Path) -> None:
    def said(train: str, more: str = "") -> dict[str, str | None]:
        text = GOOD.replace("  batch: 24\n  local_batch: 12\n", f"  {train}\n").replace(
            "[0, 1]", "[0]" + more
        )
        return {cell.label: cell.recipe for cell in cells(tmp_path, text)}

    assert said("batch: 24") == {"sit": None, "cbdm (tau=0.5)": None}
    assert set(said("preset: seed-sit").values()) == {"seed-sit"}
    assert set(said("{preset: seed-sit, batch: 48, ema: 0.9999}"[1:-1].replace(", ", "\n  ")).values()) == {
        "seed-sit"
    }
    assert said("preset: seed-sit\n  batch: 96\n  precision: fp32\n  clip_norm: 1")["sit"] == (
        "seed-sit, but for batch 96 (there 48), clip_norm 1.0 (there null), precision fp32 (there tf32)"
    )
    # a local batch that the recipe leaves open follows the batch; one that is given does not
    assert said("preset: repa\n  batch: 64")["sit"] == "repa, but for batch 64 (there 256)"
    assert "local_batch 32 (there 64)" in str(said("preset: repa\n  batch: 64\n  local_batch: 32")["sit"])
    assert set(said("preset: seed-sit", "\n  train.ema: [0.9999, 0.5]").values()) == {
        "seed-sit",
        "seed-sit, but for ema 0.5 (there 0.9999)",
    }


def test_presets_hold_what_the_official_recipes_fix() -> None:
    table = {
        name: (home, values["optimizer"], values["lr"], values["batch"])
        for name, (home, values) in PRESETS.items()
    }
    assert table == {
        "sit": ("sit", "adamw", 1e-4, 256),
        "dispersive": ("sit", "adamw", 1e-4, 256),
        "repa": ("sit", "adamw", 1e-4, 256),
        "seed-sit": ("sit", "adamw", 1e-4, 48),
        "pytorch-ddpm": ("ddpm", "adam", 2e-4, 128),
        "cbdm": ("ddpm", "adam", 2e-4, 48),
        "cbdm-ddpm": ("ddpm", "adam", 2e-4, 64),
        "cbdm-ada": ("ddpm", "adam", 2e-4, 48),
        "oclt": ("ddpm", "adam", 2e-4, 128),
        "seed-ddpm": ("ddpm", "adam", 2e-4, 64),
        "seed-ddpm-64px": ("ddpm", "adam", 2e-4, 128),
    }
    assert PRESETS["repa"][1]["flip"] is False
    assert PRESETS["repa"][1]["clip_norm"] == 1.0
    assert PRESETS["pytorch-ddpm"][1]["label_drop"] == 0.0
    for home, values in PRESETS.values():
        Train.model_validate({**values, "milestones": (1,)})
        assert values["warmup"] == (5000 if home == "ddpm" else 0)


# --- agreement with other rooms -------------------------------------------------------------------------------------


def test_samplers_are_those_that_exist() -> None:
    from ltbench.diffusion import process_for
    from ltbench.errors import UsageError
    from ltbench.sampling import SAMPLERS as REAL
    from ltbench.sampling import check_sampling

    assert {name for names in SAMPLERS.values() for name in names} == set(REAL)
    for pipeline in SAMPLERS:
        for sampler in REAL:
            for steps in (1, 2, 20, 30, 1000):
                try:
                    check_sampling(process_for(pipeline), sampler=sampler, steps=steps)
                    fits = True
                except UsageError:
                    fits = False
                assert (check_steps(pipeline, sampler, steps) is None) == fits, (pipeline, sampler, steps)


def test_network_names_are_those_that_exist() -> None:
    assert network_names("SiT-T/4") == [name.replace("/P", "/4") for name in NETWORK_NAMES]


def test_shipped_benchmarks_load_and_open_with_command_cost_and_expectation() -> None:
    for path in sorted((ROOT / "benchmarks").glob("*.yaml")):
        assert expand(load(path))
        head = path.read_text().split("\nname:")[0]
        assert all(word in head for word in ("make ", "python harness.py", "Costs", "Expect")), path


def test_the_quickstart_holds_what_it_promises() -> None:
    found = {
        (cell.part, cell.label, cell.seed) for cell in expand(load(ROOT / "benchmarks" / "quickstart.yaml"))
    }
    flow = {("flow", method, seed) for method in ("sit", "cbdm", "dispersive", "ccua") for seed in (0, 1)}
    assert found == flow | {("ddpm", "ddpm", 0), ("ddpm", "ccua", 0)}


def test_the_schema_knows_every_key_and_method() -> None:
    found = schema()
    assert set(found["$defs"]["Train"]["properties"]) == set(Train.model_fields)
    assert found["$defs"]["MethodRow"]["anyOf"][0]["enum"] == list(plugins.find("methods"))
    assert {"name", "extends", "parts", "grid"} <= set(found["properties"])


@pytest.mark.parametrize(
    "name",
    ["inception-2015-12-05", "inception-2015-12-05-torch", "lite0", "timm:vit_tiny_patch16_224#0123abcd"],
)
def test_extractors_that_were_made_for_no_data_set_fit_any(tmp_path: Path, name: str) -> None:
    """Planned by their hash: no weights, no torch."""
    (cell, *_) = cells(tmp_path, GOOD.replace("samples: 100", f"samples: 100, extractor: {name}", 1))
    (found, *_) = cell.evaluations.values()
    assert found["extractor"]["name"] == name.partition("#")[0]
    assert found["extractor"]["sha256"][:8] in ("6726825d", "57934424", "0123abcd")
