"""Rows and sections from planned cells: what is compared with what, and which settings besides the method differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ltbench.canonical import Digester, canonical_json, digest
from ltbench.protocols import sampling_text
from ltbench.report.identity import section_of
from ltbench.report.table import External

Planned = Mapping[str, Any]


@dataclass(frozen=True)
class RowPlan:
    """One row before it has numbers: the planned cells that differ only in their seed."""

    label: str
    method: str
    axes: tuple[str, ...]
    cells: tuple[Planned, ...]  # by seed
    external: External | None = None


def setting_text(value: Any) -> str:
    """A setting as a reader writes it: none for null, plain numbers, lists in brackets."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(setting_text(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {setting_text(item)}" for key, item in sorted(value.items())) + "}"
    return str(value)


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("train.lr", 0.002), ... in sorted order. How batches are resampled is one setting, whatever it is spelled with."""
    for key in sorted(settings):
        value = settings[key]
        if isinstance(value, Mapping) and key != "resample":
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def start_text(init: Mapping[str, Any]) -> str:
    """Where weights begin, for a table: `ddpm@200000`, or `file 1a2b3c4d`."""
    if "source" in init:
        return f"{init['source']['method']['name']}@{init['step']}"
    return f"file {init['sha256'][:8]}"


def compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by which rows differ: of a start where it lies, in one value, for its source is another cell at every seed."""
    init = settings.get("init")
    if init is None:
        return {**settings, "prior_steps": 0}
    said = f"{start_text(init)} [{digest(_without_seed(init))[:8]}]"
    return {**settings, "init": said, "prior_steps": init["prior_steps"]}


def _without_seed(init: Mapping[str, Any]) -> dict[str, Any]:
    """What two starts at different seeds share."""
    kept = {key: value for key, value in init.items() if key not in ("cell", "source")}
    if "source" in init:
        source = {key: value for key, value in init["source"].items() if key != "seed"}
        below = {"init": _without_seed(source["init"])} if "init" in source else {}
        kept["source"] = source | below
    return kept


def seed_of(cell: Planned) -> int:
    """The training seed of a planned cell."""
    return int(cell["settings"]["seed"])


def stated_seed(row: RowPlan, cell: Planned) -> int | None:
    """The same; None for an external row, which has no training of ours."""
    return None if row.external else seed_of(cell)


def rows_of(cells: Sequence[Planned]) -> tuple[tuple[str, ...], list[RowPlan]]:
    """(axis names, rows) of one section, rows in the order of the plan.

    Axes are the settings outside `method` and `seed` that differ between rows. A plan's labels name what its grid varies; what
    differs without being named in any label, or between rows of one label, is added here, so that nothing unequal stays
    unseen.
    """
    grouped: dict[tuple[str, str], list[Planned]] = {}
    digester = Digester()  # cells of a grid share most of their settings
    for cell in cells:
        same = {key: value for key, value in compared(cell["settings"]).items() if key != "seed"}
        grouped.setdefault((cell["label"], digester.digest(same)), []).append(cell)
    rows = [sorted(group, key=seed_of) for group in grouped.values()]
    settings = [dict(flat(compared(row[0]["settings"]))) for row in rows]
    labels = [str(row[0]["label"]) for row in rows]
    axes = [name for name in _varying(settings) if name != "seed" and not name.startswith("method.")]
    # prior steps have a footnote on every row that has some
    said_elsewhere = {"prior_steps"}
    unnamed = [
        name
        for name in axes
        if name not in said_elsewhere and not any(f"{_last(name)}=" in label for label in labels)
    ]
    plans = []
    for row, known, label in zip(rows, settings, labels, strict=True):
        twins = [s for s, other in zip(settings, labels, strict=True) if other == label]
        extra = dict.fromkeys(name for name in (*_varying(twins), *unnamed) if name not in said_elsewhere)
        said = ", ".join(f"{_last(name)}={setting_text(known.get(name))}" for name in extra if name != "seed")
        values = tuple(setting_text(known.get(name)) for name in axes)
        plans.append(
            RowPlan(f"{label} ({said})" if said else label, str(known["method.name"]), values, tuple(row))
        )
    return tuple(axes), plans


def baselines_of(rows: Sequence[RowPlan]) -> list[int | None]:
    """For every row the place of its baseline: the row of its pipeline's plain objective (sit or ddpm, a method of the
    pipeline's name) with the same other settings. None for a baseline itself and where there is no such row."""

    def others(row: RowPlan) -> bytes:
        settings = row.cells[0]["settings"]
        return canonical_json(
            {key: value for key, value in settings.items() if key not in ("method", "seed")}
        )

    own = [(place, row) for place, row in enumerate(rows) if not row.external]
    plain = {
        others(row): place
        for place, row in reversed(own)
        if row.method == row.cells[0]["settings"]["pipeline"]
    }
    found = [None if row.external else plain.get(others(row)) for row in rows]
    return [None if base == place else base for place, base in enumerate(found)]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _varying(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    names = sorted({name for known in settings for name in known})
    return [name for name in names if _differ([known.get(name) for known in settings])]


def _differ(values: Sequence[Any]) -> bool:
    several = {
        repr(value): value for value in values
    }  # equal texts are equal values, and mostly there is one
    return len(several) > 1 and len({canonical_json(value) for value in several.values()}) > 1


@dataclass(frozen=True)
class SectionPlan:
    """Cells that one evaluation makes comparable: one part, one data set, one protocol, sampler and guidance."""

    part: str
    title: str
    dataset: Mapping[str, Any]
    evaluation: Mapping[str, Any]  # without "metrics"; its "id" is `identity.section_id`
    ids: tuple[str, ...]  # of the planned evaluations that meet here: they differ in their metrics only
    cells: tuple[Planned, ...]
    # Where guidance was chosen (`guidance.py`), by (cell, step): the section id whose records count, why there is none, and w.
    picks: Mapping[tuple[str, int], str] | None = None
    gaps: Mapping[tuple[str, int], str] = field(default_factory=dict)
    weights: Mapping[tuple[str, int], float] = field(default_factory=dict)
    chosen_by: str = ""


def sections_of(planned: Sequence[Planned]) -> list[SectionPlan]:
    """Sections in the order of the plan. Titles name what differs between them."""
    several = len({cell.get("benchmark") for cell in planned}) > 1
    found: dict[tuple[str, str, str], dict[tuple[str, str], Planned]] = {}
    ids: dict[tuple[str, str, str], list[str]] = {}
    evaluations: dict[str, Mapping[str, Any]] = {}
    digester = Digester()
    for cell in planned:
        dataset = digester.digest({"dataset": cell["settings"]["dataset"]})
        for evaluation in cell["evaluations"]:
            which = section_of({"body": {"evaluation": evaluation}})
            shared = {key: value for key, value in evaluation.items() if key != "metrics"}
            evaluations[which] = {**shared, "id": which}
            key = cell["part"], dataset, which
            found.setdefault(key, {}).setdefault((cell["cell"], cell["label"]), cell)
            ids.setdefault(key, []).append(evaluation["id"])
    return [
        SectionPlan(
            part=key[0],
            title=_of_benchmark(cells.values(), several)
            + section_title(key[0], next(iter(cells.values())), evaluations[key[2]]),
            dataset=next(iter(cells.values()))["settings"]["dataset"],
            evaluation=evaluations[key[2]],
            ids=tuple(dict.fromkeys(ids[key])),
            cells=tuple(cells.values()),
        )
        for key, cells in found.items()
    ]


def _of_benchmark(cells: Iterable[Planned], several: bool) -> str:
    """ "table7_cifar: " where a report is of several benchmarks and the cells are of one."""
    names = {cell.get("benchmark") for cell in cells}
    return f"{names.pop()}: " if several and len(names) == 1 else ""


def section_title(part: str, cell: Planned, evaluation: Mapping[str, Any]) -> str:
    """Part, data set and sampling in one line."""
    dataset = cell["settings"]["dataset"]
    words = [str(dataset["name"])]
    if dataset.get("resolution"):
        words.append(f"{dataset['resolution']} px")
    if dataset.get("imbalance") is not None:
        words.append(f"imbalance {dataset['imbalance']:g}")
    return f"{cell.get('part_title') or part}: {', '.join(words)}; {sampling_text(evaluation)}"


def setup_of(cells: Sequence[Planned], step: int) -> str:
    """ "SiT-T/8, batch 64, step 560 (35,840 images)"; what differs between the cells is left to the axis columns."""
    networks = {cell["settings"]["network"] for cell in cells}
    batches = {int(cell["settings"]["train"]["batch"]) for cell in cells}
    parts = [networks.pop()] if len(networks) == 1 else []
    seen = ""
    if len(batches) == 1:
        batch = batches.pop()
        parts.append(f"batch {batch}")
        seen = f" ({batch * step:,} images seen)"
    return ", ".join([*parts, f"step {step:,}{seen}"])
