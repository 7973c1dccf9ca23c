"""`sample`: images from a milestone, as a file that ADM's evaluator reads, as PNG, or as a sheet to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.inspecting import CellName
from ltbench.cli.options import AsJson, Device, Plugins, ScratchAt, StoreAt, place
from ltbench.cli.output import dump, out, say
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.store import Record, Store

FREE = {"classes": "all", "labels": "balanced", "block": 100, "seed": 0, "quantise": "round"}
A_CLASS = 8  # images of a sheet, per class
MOST = 96

OutAt = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.npz|FOLDER", help="An .npz (arr_0, arr_1), or a folder of PNG."),
]
GridAt = Annotated[
    Path | None,
    typer.Option("--grid", metavar="FILE.png", help="A sheet with the first images of each class."),
]
Step = Annotated[int | None, typer.Option(help="Which milestone. [the last one kept]")]
Count = Annotated[
    int | None, typer.Option("--n", min=1, help="How many images. [the evaluation's; a sheet's worth]")
]
Classes = Annotated[
    str | None,
    typer.Option(metavar="0,3", help="Only these classes, by number or name. [the evaluation's]"),
]
Evaluation = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Sample as this evaluation does. [the cell's that agrees best]"),
]
Guidance = Annotated[float | None, typer.Option(min=0, help="w; 1 is without guidance.")]
Sampler = Annotated[str | None, typer.Option(help="euler, heun, dopri5, ddim ...")]
Steps = Annotated[int | None, typer.Option(min=1, help="Of the sampler.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of the noise.")]


def sample(
    cell: CellName,
    out_: OutAt = None,
    grid: GridAt = None,
    step: Step = None,
    n: Count = None,
    classes: Classes = None,
    evaluation: Evaluation = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Images from a trained cell. Image k is the image k that an evaluation with these settings measures.

    \b
    Example:
      python harness.py sample 76fc6efc05e6 --out samples.npz
      python harness.py sample 76fc6efc05e6 --classes 0,9 --grid look.png
    """
    from ltbench.cli import stores

    place(store, scratch, plugins)
    if out_ is None and grid is None:
        raise UsageError(
            "sample has nothing to write", "give --out FILE.npz, --out FOLDER or --grid FILE.png"
        )
    house = stores.open_store(write=False)
    found = house.resolve(cell)
    settings = house.cell(found)["settings"]
    if "method" not in settings:
        raise UsageError(f"cell {found[:12]} was not trained here: there is no milestone to sample from")
    given = {"guidance": guidance, "sampler": sampler, "steps": steps, "seed": seed}
    told = {key: value for key, value in given.items() if value is not None}
    chosen = _evaluation(house, found, settings, step, evaluation, told)
    ids = _classes(classes, chosen, settings)
    count = n or (
        int(chosen["samples"]) if out_ is not None and "samples" in chosen else _sheet(chosen, ids, settings)
    )
    made = _made(found, step, settings, chosen, count, classes=ids, out=out_, grid=grid, device=device)
    if json:
        paths = {"out": out_ and str(out_), "grid": grid and str(grid)}
        dump({"cell": found, "count": count, **made, **paths})
        return
    for path in (out_, grid):
        if path is not None:
            out(str(path))
    if settings_grey(settings, out_):
        say("the images are grey: arr_0 repeats them in three channels, as ADM's evaluator expects")


def _made(
    cell: str,
    step: int | None,
    settings: Mapping[str, Any],
    chosen: Mapping[str, Any],
    count: int,
    **where: Any,
) -> dict[str, Any]:
    """Make the images, having said how they are made; what `ltbench.stages.export` tells of them."""
    from ltbench.cli import heavy
    from ltbench.protocols import sampling_text

    say(f"{sampling_text(chosen)}, seed {chosen['seed']}: {count} images")
    if where["out"] is not None and chosen["quantise"] == "none":
        say("this evaluation measures unrounded images; a file holds rounded ones")
    tell = heavy.teller("sampled", count)
    return heavy.call(
        "ltbench.stages.export:export",
        cell,
        step,
        settings,
        chosen,
        count,
        notice=say,
        progress=tell,
        **where,
    )


def settings_grey(settings: Mapping[str, Any], out_: Path | None) -> bool:
    """Whether an .npz was written of images with one channel."""
    from ltbench.cli import heavy

    if out_ is None or out_.suffix != ".npz":
        return False
    return heavy.call("ltbench.datasets:build_dataset", settings["dataset"]).channels == 1


def _evaluation(
    store: Store,
    cell: str,
    settings: Mapping[str, Any],
    step: int | None,
    wanted: str | None,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """What to sample by: a stored evaluation of this cell with the given settings in the place of its own."""
    from ltbench.protocols import guidance_problems, sampler_options, sampler_problems

    base = dict(_base(store, cell, step, wanted, given))
    other = "sampler" in given and given["sampler"] != base.get("sampler")
    if other:
        base = {key: value for key, value in base.items() if key not in (*_own_keys(), "sampler", "steps")}
    entry = {**base, **given}
    if "sampler" not in entry:
        raise UsageError(
            f"cell {cell[:12]} has no evaluation to sample like",
            "say how: --sampler, --steps and --guidance (euler, 50 and 1.5 say)",
        )
    wrong = [*sampler_problems(settings["pipeline"], entry), *guidance_problems(_asked(entry))]
    if wrong:
        raise UsageError("; ".join(message if not key else f"{key}: {message}" for key, message in wrong))
    return {"steps": None, **entry, **sampler_options(entry)}


def _asked(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry without labels has guidance 0 in the store, and none in a spec."""
    unguided = entry["labels"] is None and not entry.get("guidance")
    return {key: value for key, value in entry.items() if not (unguided and key == "guidance")}


def _own_keys() -> set[str]:
    from ltbench.protocols import OPTIONS

    return {key for options in OPTIONS.values() for key in options}


def _base(
    store: Store, cell: str, step: int | None, wanted: str | None, given: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The evaluation that was asked for, else the one of this cell that agrees best with what was given."""
    if wanted is not None:
        return store.get_evaluation(wanted)
    made = list(_records(store, cell))
    known = {r.evaluation: r for r in [r for r in made if r.step == step] or made}
    if not known:
        return FREE
    best = max(known.values(), key=lambda r: sum(r.body["evaluation"].get(k) == v for k, v in given.items()))
    say(f"as evaluation {best.evaluation} ({best.body['evaluation']['protocol']}) of this cell")
    return {key: value for key, value in best.body["evaluation"].items() if key != "id"}


def _records(store: Store, cell: str) -> Iterator[Record]:
    for run in store.runs(cell):
        yield from run.records("evaluation")


def _classes(
    text: str | None, evaluation: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[int] | None:
    from ltbench.cli import heavy

    if text is None:
        return None
    if evaluation["labels"] is None:
        raise UsageError("--classes: this evaluation samples without labels")
    names: Sequence[str] = heavy.call("ltbench.datasets:build_dataset", settings["dataset"]).classes
    found = []
    for word in (part.strip() for part in text.split(",")):
        if word in names:
            found.append(names.index(word))
        elif word.isascii() and word.isdigit() and int(word) < len(names):
            found.append(int(word))
        else:
            raise UsageError(
                f"--classes: {word!r} is no class",
                f"classes are 0 to {len(names) - 1}, or {', '.join(names[:10])}",
            )
    return sorted(set(found))


def _sheet(evaluation: Mapping[str, Any], ids: Sequence[int] | None, settings: Mapping[str, Any]) -> int:
    """As many images as a sheet shows."""
    from ltbench.cli import heavy
    from ltbench.protocols import sampled_classes

    if ids is None:
        data = heavy.call("ltbench.datasets:build_dataset", settings["dataset"])
        ids = sampled_classes(evaluation, data.counts())
    return min(MOST, A_CLASS * len(ids)) if evaluation["labels"] is not None else MOST
