"""`sync`: curves, metrics and grids of a benchmark, mirrored from the store to a tracker."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltbench.cli.options import AsJson, Changes, Filters, Plugins, SpecName, StoreAt, WithMethods, place
from ltbench.cli.output import dump, out, plural, say
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.trackers import Mirror


def sync(
    spec: SpecName,
    to: Annotated[str, typer.Option("--to", metavar="tensorboard|wandb", help="Which tracker.")],
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where its files go. [reports/build/NAME/TRACKER]"),
    ] = None,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    json: AsJson = False,
    store: StoreAt = None,
    plugins: Plugins = None,
) -> None:
    """Mirror a benchmark's curves, metrics and grids for TensorBoard or Weights & Biases.

    From the store's records, at any time: jobs need no network and no key. Doing it again writes only what is new. W&B's runs are
    written offline; `wandb sync` sends them.

    \b
    Example:
      python harness.py sync quickstart --to tensorboard
      tensorboard --logdir reports/build/quickstart/tensorboard
    """
    from ltbench import trackers
    from ltbench.cli import stores, targets

    if to not in trackers.KINDS:
        raise UsageError(f"--to {to}: no such tracker", f"there are {', '.join(trackers.KINDS)}")
    place(store, None, plugins)
    benchmark = targets.load(spec, set_ or [], with_ or [])
    cells = targets.cells_of(benchmark, filter_ or [])
    house = stores.open_store(write=False)
    root = out_dir or Path("reports/build") / benchmark.name / to
    counts = {"written": 0, "unchanged": 0, "without records": 0}
    done = set()
    for cell in cells:
        if cell.id in done:
            continue
        done.add(cell.id)
        name = targets.name_of(cell, benchmark)
        runs = house.runs(cell.id)
        found = [trackers.mirror_of(run, name) for run in runs]
        counts["without records"] += not any(found)
        for mirror in filter(None, found):
            new = _write(to, mirror, root, benchmark.name)
            counts["written" if new else "unchanged"] += 1
            for problem in mirror.problems:
                say(f"left out: {problem}")
    if json:
        dump({"folder": str(root), **counts})
        return
    out(f"{root}: {plural(counts['written'], 'run')} written, {counts['unchanged']} as they were")
    if counts["without records"]:
        out(f"{plural(counts['without records'], 'cell')} have no record yet")
    if counts["written"] + counts["unchanged"] == 0:
        return
    here = shlex.quote(str(root.absolute()))
    out(
        f"next: tensorboard --logdir {here}"
        if to == "tensorboard"
        else f"next: wandb sync {here}/wandb/offline-run-*"
    )


def _write(to: str, mirror: Mirror, root: Path, project: str) -> bool:
    from ltbench.trackers import tensorboard, wandb

    return tensorboard.write(mirror, root) if to == "tensorboard" else wandb.write(mirror, root, project)
