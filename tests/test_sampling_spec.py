"""Entries of `evaluate:`: what they become, which ids they have, what is refused, and how they are put into words."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest

from ltbench.canonical import digest
from ltbench.errors import Problem, SpecError
from ltbench.protocols import OPTIONS, PRECISIONS, SAMPLERS, SCHEDULES, sampled_in, sampling_text
from ltbench.report.assemble import build_table
from ltbench.report.axes import sections_of
from ltbench.report.definition import load_definition
from ltbench.report.words import section_line
from ltbench.sampling import SAMPLERS as REAL
from ltbench.spec import load, schema
from ltbench.spec.cells import expand
from ltbench.spec.models import Evaluate, Schedule
from tests.report_world import evaluation as old_evaluation
from tests.report_world import planned, quickstart

ROOT = Path(__file__).resolve().parents[1]
SPEC = """\
name: mine
dataset: {{name: digits, imbalance: 0.1}}
pipeline: {pipeline}
network: {network}
train: {{batch: 24, milestones: [10]}}
evaluate:
  - {{protocol: small-data, samples: 100, {entry}}}
grid:
  method: [{method}]
"""
FLOW = {"pipeline": "sit", "network": "SiT-N/2", "method": "sit"}
CHAIN = {"pipeline": "ddpm", "network": "UNet-16", "method": "ddpm"}


def text_of(entry: str) -> str:
    chain = any(f"sampler: {name}" in entry for name in SAMPLERS["ddpm"])
    return SPEC.format(**(CHAIN if chain else FLOW), entry=entry).replace(
        "imbalance: 0.1", "imbalance: 0.1, resolution: 16" if chain else "imbalance: 0.1"
    )


def evaluations(tmp_path: Path, entry: str, **options: list[str]) -> list[dict[str, Any]]:
    path = tmp_path / "spec.yaml"
    path.write_text(text_of(entry))
    (cell,) = expand(load(path, **options))
    assert list(cell.evaluations) == [digest(one)[:12] for one in cell.evaluations.values()]
    return list(cell.evaluations.values())


def problems(tmp_path: Path, entry: str) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        evaluations(tmp_path, entry)
    return caught.value.problems


def test_ids_of_the_shipped_benchmarks_have_not_moved() -> None:
    # an evaluation states all that its protocol fixes; its id moves only when what is compared does
    found = {
        name: {key for cell in expand(load(ROOT / "benchmarks" / f"{name}.yaml")) for key in cell.evaluations}
        for name in ("quickstart", "smoke")
    }
    assert found == {
        "quickstart": {"058d25a69189", "584edb21bd10"},
        "smoke": {"1c4ffeb6e5c8", "aa1219c2a76b"},
    }


PLAIN = "sampler: euler, steps: 5, guidance: [1.0, 2.0]"


def test_an_evaluation_says_what_was_asked_and_nothing_idle(tmp_path: Path) -> None:
    plain = evaluations(tmp_path, PLAIN)
    assert all(not {"schedule", "guidance_channels", "diffusion", "atol"} & set(one) for one in plain)
    assert evaluations(tmp_path, PLAIN + ", schedule: {name: constant}") == plain
    one, two = evaluations(tmp_path, PLAIN + ", schedule: {name: interval, high: 0.7}, guidance_channels: 3")
    assert one == plain[0]  # at w = 1 there is nothing to guide
    assert two == {
        **plain[1],
        "schedule": {"name": "interval", "low": 0.0, "high": 0.7},
        "guidance_channels": 3,
    }
    one, two = evaluations(tmp_path, PLAIN + ", schedule: {name: linear}")
    assert one["schedule"] == two["schedule"] == {"name": "linear"}  # from 0 to 1 is not constantly 1
    (two,) = evaluations(tmp_path, "sampler: euler, steps: 5, guidance: 2, schedule: {name: gamma}")
    assert two["schedule"] == {"name": "gamma", "gamma": 100.0}


def test_a_precision_is_stated_where_it_is_asked_for_and_follows_the_training_else(tmp_path: Path) -> None:
    plain = evaluations(tmp_path, PLAIN)
    for name in PRECISIONS:
        asked = evaluations(tmp_path, PLAIN + f", precision: {name}")
        assert asked == [{**one, "precision": name} for one in plain]
        assert {sampled_in(one, trained) for one in asked for trained in (*PRECISIONS, None)} == {name}
    found = [sampled_in(plain[0], trained) for trained in ("fp32", "tf32", "bf16", None)]
    assert found == ["fp32", "tf32", "fp32", "fp32"]


def test_a_sampler_writes_its_own_settings_out(tmp_path: Path) -> None:
    (one,) = evaluations(tmp_path, "sampler: sde-euler, steps: 250, guidance: 1.5")
    assert {key: one[key] for key in OPTIONS["sde-euler"]} == {
        "diffusion": "sigma", "diffusion_norm": 1.0, "last_step": "mean", "last_step_size": 0.04
    }  # fmt: skip
    (one,) = evaluations(
        tmp_path,
        "sampler: sde-euler, steps: 9, guidance: 1.5, diffusion: SBDM, diffusion_norm: 2, last_step: none",
    )
    assert (one["diffusion"], one["diffusion_norm"], one["last_step"], one["last_step_size"]) == (
        "SBDM", 2.0, "none", None
    )  # fmt: skip
    (one,) = evaluations(tmp_path, "sampler: dopri5, guidance: 7.5, rtol: 1e-4")
    assert (one["steps"], one["atol"], one["rtol"], one["block"]) == (None, 1e-6, 1e-4, 100)


def test_no_labels_is_unconditional(tmp_path: Path) -> None:
    entry = "sampler: ddim, steps: 10, labels: null"
    (one,) = evaluations(tmp_path, entry)
    assert (one["labels"], one["guidance"]) == (None, 0.0)
    (balanced,) = evaluations(tmp_path, "sampler: ddim, steps: 10, guidance: 0")
    assert balanced == {**one, "labels": "balanced"}
    # without classes there is nothing that the number of images must be a multiple of
    (odd,) = evaluations(tmp_path, entry, changes=["evaluate.0.samples=101"])
    assert odd == {**one, "samples": 101}


# (entry, what stands where the message points, words of the message)
MISTAKES = [
    ("sampler: eular, steps: 5, guidance: 1", "eular", ["euler, heun, dopri5", "did you mean 'euler'"]),
    ("sampler: euler, guidance: 1", "{protocol", ["sampler 'euler' needs the key 'steps'"]),
    ("sampler: euler, steps: 5", "{protocol", ["needs the key 'guidance'", "labels: null"]),
    ("sampler: euler, steps: 5, guidance: []", "[]", ["empty"]),
    ("sampler: dopri5, steps: 50, guidance: 1", "50", ["chooses its own steps", "leave steps out"]),
    ("sampler: ddpm, steps: 1001, guidance: 1", "1001, g", ["the chain has 1000 steps", "ddpm can take no more"]),
    ("sampler: ddim-corrected, steps: 2000, guidance: 1", "2000", ["can take no more"]),
    ("sampler: sde-euler, steps: 1, guidance: 1", "1,", ["needs 2"]),
    ("sampler: heun, steps: 5, guidance: 1, diffusion: sigma", "sigma", ["takes no diffusion", "sde-euler, sde-heun"]),
    ("sampler: sde-euler, steps: 5, guidance: 1, diffusion: sbdm", "sbdm", ["SBDM", "constant"]),
    ("sampler: sde-euler, steps: 5, guidance: 1, diffusion_norm: 0", "0}", ["above 0"]),
    ("sampler: sde-heun, steps: 5, guidance: 1, last_step: none", "none", ["0/0", "mean, euler or tweedie"]),
    ("sampler: sde-euler, steps: 5, guidance: 1, last_step: none, last_step_size: 0.1", "0.1}", ["leave last_step_size out"]),
    ("sampler: sde-euler, steps: 5, guidance: 1, last_step_size: 1", "1}", ["below 1"]),
    ("sampler: euler, steps: 5, guidance: 1, rtol: 1e-3", "1e-3", ["takes no rtol", "dopri5"]),
    ("sampler: euler, steps: 5, guidance: 1, schedule: lineer", "lineer", ["did you mean 'linear'"]),
    ("sampler: euler, steps: 5, guidance: 1, schedule: [linear]", "[linear]", ["expects a mapping"]),
    ("sampler: euler, steps: 5, guidance: 2, schedule: {name: lineer}", "lineer", ["did you mean 'linear'"]),
    ("sampler: euler, steps: 5, guidance: 2, schedule: {name: linear, powr: 2}", "powr", ["no key 'powr'", "gamma"]),
    ("sampler: euler, steps: 5, guidance: 2, schedule: {name: linear, gamma: 2}", "2}", ["takes no parameters, not gamma"]),
    ("sampler: euler, steps: 5, guidance: 2, schedule: {name: interval}", "{name: i", ["needs high"]),
    ("sampler: euler, steps: 5, guidance: 2, schedule: {name: interval, low: 0.7, high: 0.7}", "{name: i", ["is empty"]),
    ("sampler: euler, steps: 5, guidance: 2, schedule: {name: interval, high: 1}", "{name: i", ["constant"]),
    ("sampler: euler, steps: 5, guidance: 2, schedule: {name: gamma, gamma: 1}", "{name: g", ["constant"]),
    ("sampler: euler, steps: 5, guidance: 2, guidance_channels: 0", "0}", ["at least 1"]),
    ("sampler: euler, steps: 5, guidance: 0, labels: null", "0,", ["not guided", "leave guidance out"]),
    ("sampler: euler, steps: 5, labels: null, schedule: {name: linear}", "{name: l", ["leave schedule out"]),
    ("sampler: euler, steps: 5, guidance: 1, precision: fp16", "fp16", ["fp32", "bf16"]),
    ("sampler: euler, steps: 5, guidance: 1, labels: even", "even", ["balanced"]),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "token", "words"), MISTAKES, ids=[entry for entry, *_ in MISTAKES])
def test_mistakes_point_at_their_place(tmp_path: Path, entry: str, token: str, words: list[str]) -> None:
    (found,) = problems(tmp_path, entry)
    assert found.line is not None
    assert found.column is not None
    line = text_of(entry).split("\n")[found.line - 1]
    assert line[found.column - 1 :].startswith(token), (found, line[found.column - 1 :])
    said = " ".join(
        map(str, (found.message, f"allowed: {found.allowed}", f"did you mean '{found.suggestion}'"))
    )
    for word in words:
        assert word in said


def test_every_mistake_of_an_entry_is_reported_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path, "sampler: dopri5, steps: 50, guidance: 1, diffusion: sigma, schedule: {name: interval}"
    )
    assert len(found) == 3


def test_models_name_what_protocols_know() -> None:
    def literals(annotation: Any) -> set[str]:
        inner = [literals(part) if typing.get_args(part) else {part} for part in typing.get_args(annotation)]
        return {value for values in inner for value in values if isinstance(value, str)}

    assert literals(Evaluate.model_fields["sampler"].annotation) | {"euler"} == set(REAL)
    names = literals(Schedule.model_fields["name"].annotation)
    assert names | {"constant"} == set(SCHEDULES)
    assert {key for taken in SCHEDULES.values() for key in taken} == set(Schedule.model_fields) - {"name"}
    assert {key for options in OPTIONS.values() for key in options} <= set(Evaluate.model_fields)
    assert literals(Evaluate.model_fields["precision"].annotation) == set(PRECISIONS)
    assert "Schedule" in schema()["$defs"]
    assert schema()["$defs"]["Evaluate"]["properties"]["schedule"]["anyOf"][0] == {"enum": list(SCHEDULES)}


def test_a_schedule_may_be_its_name_alone(tmp_path: Path) -> None:
    entry = "sampler: euler, steps: 5, guidance: 2, schedule: "
    (short,), (whole,) = (
        evaluations(tmp_path, entry + text) for text in ("gamma", "{name: gamma, gamma: 100}")
    )
    assert short == whole
    assert short["schedule"] == {"name": "gamma", "gamma": 100.0}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("sampler: euler, steps: 20, guidance: 1.5", "euler 20 steps, guidance 1.5"),
        ("sampler: euler, steps: 20, guidance: 1.5, precision: bf16", "euler 20 steps in bf16, guidance 1.5"),
        (
            "sampler: dopri5, guidance: 7.5, guidance_channels: 3",
            "dopri5 (atol 1e-06, rtol 0.001, steps shared by blocks of 100), guidance 7.5 on the first 3 channels",
        ),
        (
            "sampler: sde-euler, steps: 250, guidance: 1.8, schedule: {name: interval, high: 0.7}",
            "sde-euler 250 steps (diffusion sigma, last step mean of 0.04), guidance 1.8 for noise levels 0 to 0.7",
        ),
        (
            "sampler: sde-euler, steps: 9, guidance: 2, last_step: none, diffusion: SBDM, diffusion_norm: 0.5,"
            " schedule: {name: gamma}",
            "sde-euler 9 steps (diffusion SBDM x 0.5, last step none), guidance 2, gamma schedule (100)",
        ),
        (
            "sampler: ddim-corrected, steps: 10, guidance: 2, schedule: {name: cosine}",
            "ddim-corrected 10 steps, guidance 2, cosine schedule",
        ),
        ("sampler: ddpm, steps: 1000, labels: null", "ddpm 1000 steps, unconditional"),
    ],
)
def test_words_name_whatever_differs(tmp_path: Path, entry: str, words: str) -> None:
    (one,) = evaluations(tmp_path, entry)
    assert sampling_text(one) == words


def test_the_report_titles_sections_by_how_they_sampled() -> None:
    plain = old_evaluation()
    free = {**plain, "id": "1" * 12, "labels": None, "guidance": 0.0}
    sections = sections_of([planned("sit", 0, evaluations=[plain, free])])
    assert [section.title.rpartition("; ")[2] for section in sections] == [
        "euler 20 steps, guidance 1.5",
        "euler 20 steps, unconditional",
    ]


def test_a_section_without_labels_says_so() -> None:
    section = build_table(quickstart(), load_definition(ROOT / "reports" / "summary.yaml")).sections[0]
    assert "500 generated images, labels balanced, sampling seed 0" in section_line(section)
    free = dataclasses.replace(section, evaluation={**section.evaluation, "labels": None})
    assert "500 generated images, no labels, sampling seed 0" in section_line(free)
