"""What a paper's appendix needs to say of a benchmark: how it was trained, on what, measured how, by which code, on what machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench import plugins
from ltbench.canonical import digest
from ltbench.groups import groups
from ltbench.report.axes import flat, setting_text
from ltbench.report.citations import Citation, by_name, entries, of_plugin
from ltbench.report.compute import spent
from ltbench.report.words import plural

if TYPE_CHECKING:
    from ltbench.spec.cells import Cell
    from ltbench.spec.resolved import Spec

Record = Mapping[str, Any]
REFERENCES = Path("results/published/references.bib")


@dataclass(frozen=True)
class Grid:
    """A table of texts with a head."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Block:
    """One heading with its sentences and tables."""

    title: str
    texts: Sequence[str] = ()
    grids: Sequence[Grid] = ()


@dataclass(frozen=True)
class Appendix:
    """cited: BibTeX keys by what they are cited for, in order."""

    title: str
    blocks: Sequence[Block]
    cited: Mapping[str, Sequence[str]] = field(default_factory=dict)
    bib: Sequence[Citation] = ()


def appendix(spec: Spec, cells: Sequence[Cell], records: Sequence[Record], references: str) -> Appendix:
    """The appendix of a benchmark. records: those of its cells, in any order; references: the text of a .bib file."""
    records = sorted(records, key=lambda record: record["digest"])
    cited, bib = _citations(cells, references)
    blocks = [
        *_hyper_parameters(spec, cells),
        _data(spec),
        _protocols(cells),
        _seeds(cells, records),
        _versions(records),
        _compute(records),
        _reproducibility(spec, cells, records),
    ]
    return Appendix(spec.title, blocks, cited, bib)


# --- training -------------------------------------------------------------------------------------------------------


def _hyper_parameters(spec: Spec, cells: Sequence[Cell]) -> Iterator[Block]:
    """A block per part; parts that are trained alike share one."""
    alike: dict[str, list[Block]] = {}
    for block in _of_parts(spec, cells):
        alike.setdefault(repr((block.texts, block.grids)), []).append(block)
    for blocks in alike.values():
        names = "; ".join(block.title for block in blocks if block.title)
        yield replace(blocks[0], title="Hyper-parameters" + (f": {names}" if names else ""))


def _of_parts(spec: Spec, cells: Sequence[Cell]) -> Iterator[Block]:
    """Under the part's own title; "" for the only one."""
    for part in spec.parts:
        own = [cell for cell in cells if cell.part == part.name]
        if not own:
            continue
        title = (part.title or part.name) if len(spec.parts) > 1 else ""
        texts = sorted({f"Trained as {cell.recipe}." for cell in own if cell.recipe is not None})
        if not texts:
            texts = ["No published recipe is named; every setting is below."]
        texts.append(f"Evaluated at {_steps({step for cell in own for step in cell.milestones})}.")
        yield Block(title, texts, [Grid(("setting", "value"), _settings(own)), _method_grid(own)])


def _settings(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """Everything but method, seed and data; a setting with several values has all of them."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        known = {k: v for k, v in cell.settings.items() if k not in ("method", "seed", "dataset")}
        for name, value in flat(known):
            found.setdefault(name, {})[setting_text(value)] = None
    return [(name, " | ".join(values)) for name, values in found.items()]


def _method_grid(cells: Sequence[Cell]) -> Grid:
    rows: dict[tuple[str, ...], None] = {}
    for cell in cells:
        for row in _method_rows(cell.settings["method"], cell.settings["pipeline"]):
            rows[row] = None
    return Grid(("method", "parameter", "value", "default"), list(rows))


def _method_rows(method: Mapping[str, Any], pipeline: str) -> Iterator[tuple[str, ...]]:
    """A line per parameter; the default is the signature's, and said only where it is not what is used."""
    name = method["name"]
    plugin = plugins.find("methods").get(name)
    defaults = plugin.defaults if plugin is not None else {}
    given = {key: value for key, value in method.items() if key != "name"}
    label = f"{name}{_preset(plugin, given, pipeline)}"
    if not given:
        yield label, "none", "", ""
    for key, value in given.items():
        text, default = (
            setting_text(value),
            setting_text(defaults[key]) if key in defaults else "not known here",
        )
        yield label, key, text, "" if text == default else default


def _preset(plugin: Any, given: Mapping[str, Any], pipeline: str) -> str:
    """ " (preset seed)" where the parameters are exactly what a named preset makes of this pipeline."""
    known = {} if plugin is None else plugin.presets or {}
    base = {**(plugin.defaults if plugin is not None else {}), **known.get(pipeline, {})}
    same = [
        name
        for name, values in known.items()
        if name not in (pipeline, "check", "sit", "ddpm") and _equal({**base, **values}, given)
    ]
    return f" (preset {', '.join(same)})" if same else ""


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return {k: setting_text(v) for k, v in one.items()} == {k: setting_text(v) for k, v in other.items()}


def _steps(steps: Iterable[int]) -> str:
    found = sorted(steps)
    return ("step " if len(found) == 1 else "steps ") + ", ".join(f"{step:,}" for step in found)


# --- data and evaluation --------------------------------------------------------------------------------------------


def _data(spec: Spec) -> Block:
    rows: dict[tuple[str, ...], None] = {}
    told: dict[str, None] = {}
    for part in spec.parts:
        for data in part.data.values():
            rows[_data_row(data)] = None
            text = ", ".join(f"{name} {setting_text(value)}" for name, value in flat(data.settings))
            told[f"{text}. Compared with {data.reference}."] = None
    head = ("data set", "classes", "images", "largest class", "smallest class", "head", "body", "tail")
    rule = (
        "head, body, tail: thirds of the classes ranked by training images; the columns count their images."
    )
    return Block("Data", [*told, rule], [Grid(head, list(rows))])


def _data_row(data: Any) -> tuple[str, ...]:
    if not data.counts:
        return (data.settings["name"], str(len(data.classes)), *(["not known here"] * 6))
    thirds = groups(data.counts).values() if len(data.counts) > 2 else ()
    sizes = [sum(data.counts[k] for k in third) for third in thirds] or ["-"] * 3
    numbers = (sum(data.counts), max(data.counts), min(data.counts), *sizes)
    return (
        data.settings["name"],
        str(len(data.counts)),
        *(f"{n:,}" if isinstance(n, int) else n for n in numbers),
    )


def _protocols(cells: Sequence[Cell]) -> Block:
    found = {key: what for cell in cells for key, what in cell.evaluations.items()}
    told = {key: {name: setting_text(value) for name, value in flat(found[key])} for key in sorted(found)}
    shared = {
        name: value
        for name, value in next(iter(told.values()), {}).items()
        if all(each.get(name) == value for each in told.values())
    }
    head = "every evaluation" if len(told) > 1 else f"evaluation {''.join(told)}"
    grids = [Grid((head, "value"), list(shared.items()))] if shared else []
    for key, each in told.items():
        own = [(name, value) for name, value in each.items() if name not in shared]
        grids += [Grid((f"evaluation {key}", "value"), own)] if own else []
    said = plural(len(told), "evaluation")
    if any(set(cell.evaluations) != set(told) for cell in cells):
        said += "; a milestone is measured by those of its own part of the benchmark"
    else:
        said += " at every milestone"
    return Block("Evaluation protocol", [f"{said}."], grids)


def _seeds(cells: Sequence[Cell], records: Sequence[Record]) -> Block:
    training = sorted({cell.seed for cell in cells})
    sampling = sorted(
        {str(what["seed"]) for cell in cells for what in cell.evaluations.values() if "seed" in what}
    )
    return Block(
        "Seeds",
        [
            f"Training seeds {', '.join(map(str, training))}; sampling seeds {', '.join(sampling) or 'none'}.",
            "At one training seed every method sees the same images, noise, times and dropped labels, and all methods are sampled "
            "from the same noise: differences are paired.",
            *_progress(cells, records),
        ],
    )


def _progress(cells: Sequence[Cell], records: Sequence[Record]) -> Iterator[str]:
    """How many training runs are measured whole, and which are not: an appendix of half a benchmark says so."""
    made = {
        (r["body"]["cell"], r["body"]["step"], _evaluated(r)) for r in records if r["body"]["kind"] != "train"
    }
    own = {cell.id: cell for cell in cells}
    lacking = {
        name: sum((name, step, key) not in made for step in cell.milestones for key in cell.evaluations)
        for name, cell in own.items()
    }
    open_ = {name: count for name, count in lacking.items() if count}
    yield f"{plural(len(own), 'training run')} planned, {len(own) - len(open_)} measured."
    if not open_:
        return
    whole = {name: len(own[name].milestones) * len(own[name].evaluations) for name in open_}
    untouched = [name for name in open_ if open_[name] == whole[name]]
    if len(untouched) == len(own):
        yield "INCOMPLETE: nothing is measured yet. What follows says how the numbers are to be made."
        return
    told = [
        f"{own[name].label} seed {own[name].seed} ({whole[name] - open_[name]} of {whole[name]})"
        for name in open_
    ]
    shown = ", ".join(told[:12]) + (f" and {len(told) - 12} more" if len(told) > 12 else "")
    yield f"INCOMPLETE: not every evaluation is there of {shown}."


def _evaluated(record: Record) -> str:
    """The id of the evaluation that a record is of; of a search that of the search."""
    return str((record["body"].get("evaluation") or {}).get("id"))


# --- circumstances --------------------------------------------------------------------------------------------------


def _versions(records: Sequence[Record]) -> Block:
    packages: dict[str, set[str]] = {}
    commits: set[str] = set()
    code: dict[str, set[str]] = {}
    for record in records:
        envelope = record.get("envelope") or {}
        for name, version in (envelope.get("versions") or {}).items():
            packages.setdefault(name, set()).add(str(version))
        if envelope.get("commit"):
            commits.add(envelope["commit"][:12] + (" with changes" if envelope.get("dirty") else ""))
        for name, value in (record["body"].get("code") or {}).items():
            pictures = name == "evaluation" and record["body"]["kind"] == "illustration"
            code.setdefault("illustration" if pictures else name, set()).add(str(value)[:12])
    grids = [
        Grid(
            ("package", "versions"), [(name, ", ".join(sorted(packages[name]))) for name in sorted(packages)]
        )
    ]
    grids += [
        Grid(
            ("code", "digests (sha256 of syntax trees)"),
            [(n, ", ".join(sorted(code[n]))) for n in sorted(code)],
        )
    ]
    said = f"Commits: {', '.join(sorted(commits))}." if commits else "The records name no commit."
    said = said if records else "No record yet."
    return Block("Versions", [said], [grid for grid in grids if grid.rows])


def _compute(records: Sequence[Record]) -> Block:
    rows = [
        (device, stage, f"{use.hours:.2f}", f"{use.gpu_hours:.2f}", str(use.attempts))
        for (device, stage), use in sorted(spent(records).items())
    ]
    total = sum(use.gpu_hours for use in spent(records).values())
    texts = [
        f"GPU-hours in all: {total:.2f}. Counted are attempts that left a record, up to their last one: what a killed attempt did "
        "after its last milestone is in no record."
    ]
    if not rows:
        return Block("Compute", ["No record yet."])
    return Block("Compute", texts, [Grid(("device", "stage", "hours", "GPU-hours", "attempts"), rows)])


def _reproducibility(spec: Spec, cells: Sequence[Cell], records: Sequence[Record]) -> Block:
    measured = [record for record in records if record["body"]["kind"] == "evaluation"]
    all_ids = sorted(record["digest"] for record in records)
    ids = sorted({cell.id for cell in cells})
    how = sorted({_exact(record) for record in records} - {""})
    plan = f"the {plural(len(ids), 'training run')} of the plan have the digest {digest(ids)[:16]}"
    made = (
        f"Every number comes from {plural(len(measured), 'evaluation record')}, a file written by the program that computed it; all "
        f"records together have the digest {digest(all_ids)[:16]}; {plan}."
        if measured
        else f"There is no number yet; {plan}."
    )
    texts = [
        f"{made} Tables and figures are regenerated from records by `python harness.py report {spec.name}`, byte for byte.",
        "Every random number is a function of the seed, a named stream, the step and the part of the batch; no generator is carried "
        "along, so a run that was interrupted continues as if it had not been, bit for bit on the same kind of device at equal "
        f"thread count. {f'Runs used {_joined(how)}.' if how else ''}".strip(),
        "The code of trainer, network, method, data and evaluation is digested and kept with every record (above).",
    ]
    return Block("Reproducibility", texts)


def _exact(record: Record) -> str:
    envelope = record.get("envelope") or {}
    if "threads" not in envelope:
        return ""
    ranks, threads = int(envelope.get("ranks") or 1), plural(int(envelope["threads"]), "thread")
    return f"{ranks} {'process' if ranks == 1 else 'processes'} of {threads}"


def _joined(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} or {items[-1]}"


# --- citations ------------------------------------------------------------------------------------------------------


def _citations(cells: Sequence[Cell], references: str) -> tuple[dict[str, list[str]], list[Citation]]:
    """Keys by method and data set, and every entry once, sorted: those of the references too, since tables cite them."""
    shared = {each.key: each for each in entries(references)}
    known_works, cited = by_name(shared), {}
    bib = dict(shared)
    for kind, what in (("methods", "method"), ("datasets", "dataset")):
        known = plugins.find(kind)
        for name in sorted({cell.settings[what]["name"] for cell in cells}):
            found = of_plugin(known[name].path, name, known_works) if name in known else []
            cited[name] = [each.key for each in found]
            bib |= {each.key: each for each in found if each.key not in bib}
    return cited, [bib[key] for key in sorted(bib)]
