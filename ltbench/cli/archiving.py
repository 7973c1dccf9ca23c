"""`export` and `import`: a benchmark's results as one file, and such files merged into a store."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.options import (
    AsJson,
    Changes,
    Filters,
    Plugins,
    ScratchAt,
    SpecName,
    StoreAt,
    WithMethods,
    place,
)
from ltbench.cli.output import dump, out, plural, say

if TYPE_CHECKING:
    from ltbench.archive.images import Kept
    from ltbench.archive.merge import Merged
    from ltbench.archive.pack import Packed
    from ltbench.spec.resolved import Spec


def export(
    spec: SpecName,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.zip", help="The archive. [NAME.zip]")
    ] = None,
    lock: Annotated[
        Path | None,
        typer.Option(
            "--lock", metavar="FILE", help="Pack this lock of `report`, and all records that it pins."
        ),
    ] = None,
    samples: Annotated[
        bool,
        typer.Option("--samples", help="Also the generated images that were kept (run --keep-samples)."),
    ] = False,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Pack a benchmark's results into one zip file: records, pictures, the spec, the plugins' code.

    Rows of its tables that were not trained here (evaluate --external) are in it too. The file goes to a colleague, a paper's supplement or another cluster's store (`import`). Weights are not in it, and generated
    images only with --samples. The same results give the same bytes.

    \b
    Example:
      python harness.py export quickstart --out quickstart.zip
      python harness.py export quickstart --lock paper.lock --out supplement.zip
      python harness.py export quickstart --samples --filter seed=0
    """
    from ltbench.archive.pack import pack
    from ltbench.cli import stores, targets
    from ltbench.cli.inputs import external_cells

    place(store, scratch, plugins)
    benchmark = targets.load(spec, set_ or [], with_ or [])
    cells = targets.cells_of(benchmark, filter_ or [])
    path = to or Path(f"{benchmark.name}.zip")
    house = stores.open_store(write=False)
    others = external_cells(cells, house)
    made = pack(path, benchmark.name, _text(benchmark), cells, house, lock, samples=samples, externals=others)
    if made.absent:
        say(
            f"{plural(len(made.absent), 'cell')} of {benchmark.name} are not in the store, and not in the archive"
        )
    if json:
        dump({"file": str(path), "cells": made.cells, "records": made.records, "files": made.members,
              "bytes": made.bytes, "absent": list(made.absent), "images": _images(made)})  # fmt: skip
        return
    out(
        f"{path}: {plural(made.records, 'record')} of {plural(made.cells, 'cell')}, {made.bytes / 1e6:.2f} MB"
    )
    if made.images is not None:
        _tell_images(made.images)
    out(f"next: python harness.py import {shlex.quote(str(path))} --store DIR")


def _images(made: Packed) -> dict[str, Any] | None:
    kept = made.images
    return kept and {"files": len(kept.members), "bytes": kept.bytes, "sets": len(kept.keys),
                     "without": len(kept.without), "damaged": [str(path) for path in kept.damaged]}  # fmt: skip


def _tell_images(kept: Kept) -> None:
    """What of the images went in, and how the others come back."""
    out(
        f"images: {plural(len(kept.keys), 'set')} in {plural(len(kept.members), 'file')}, {kept.bytes / 1e6:.2f} MB"
    )
    for path in kept.damaged:
        say(f"left out: {path} does not match its name (sha256)")
    if kept.without:
        one = kept.without[0]
        say(
            f"images of {plural(len(kept.without), 'record')} were not kept; their seeds bring them back where the weights are: "
            f"python harness.py sample {one.cell[:12]} --step {one.step} --evaluation {one.evaluation} --out images.npz"
        )


def _text(benchmark: Spec) -> bytes:
    """The benchmark complete in itself: what it extends is in it."""
    from ltbench.spec.compose import read_tree
    from ltbench.spec.yaml_io import dump_yaml

    if benchmark.derived is not None:
        return benchmark.derived.encode()
    return dump_yaml(read_tree(Path(benchmark.file)).plain()).encode()


def import_(
    archives: Annotated[list[Path], typer.Argument(metavar="FILE.zip ...", help="Archives of `export`.")],
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
) -> None:
    """Add the results of archives to a store. What is there stays; what contradicts it is named and left out.

    Exit code 1 when something was left out. Every archive is checked whole before anything of it is added. Generated images go to
    the scratch folder.

    \b
    Example:
      python harness.py import juwels.zip leonardo.zip
    """
    from ltbench.archive.merge import merge
    from ltbench.cli import stores

    place(store, scratch)
    house = stores.open_store(write=True)
    merged: dict[Path, Merged] = {}
    for path in archives:
        merged[path] = merge(path, house)
        if not json:  # at once: what a damaged archive stops is told from what was added before it
            _tell_merged(path, merged[path])
    if json:
        dump({str(path): _facts(done) for path, done in merged.items()})
    if any(done.conflicts for done in merged.values()):
        raise typer.Exit(1)


def _tell_merged(path: Path, done: Merged) -> None:
    """What came of one archive."""
    new, old = (plural(count["record"], "record") for count in (done.added, done.present))
    out(f"{path}: {new} added, {old} there already" + _failures(done))
    if images := done.added["image"] + done.present["image"]:
        new = f"{done.added['image']} added ({done.image_bytes / 1e6:.2f} MB)"
        out(f"  {plural(images, 'file')} of images: {new}, {done.present['image']} there already")
    for conflict in done.conflicts:
        out(f"  left out: {conflict}")
    if lacking := _lacking(done.left):
        _tell_lacking(path, lacking)


def _lacking(members: Sequence[str]) -> list[str]:
    """Of an archive's specs and plugins those that this checkout has nothing of the name of: reports of the results need them."""
    from ltbench import plugins
    from ltbench.cli import specs

    here = {(kind, name) for kind in ("methods", "datasets") for name in plugins.find(kind)}
    known = {file.stem for folder in specs.folders() for file in folder.glob("*.yaml")}
    places = [(name, *PurePosixPath(name).parts[:-1], PurePosixPath(name).stem) for name in members]
    return [
        name
        for name, *where in places
        if (where[0] == "spec" and where[-1] not in known)
        or (where[0] == "plugins" and tuple(where[1:]) not in here)
    ]


def _tell_lacking(path: Path, lacking: Sequence[str]) -> None:
    """How what stayed in the archive is used from a folder of its own."""
    say(
        f"{path} also holds {', '.join(lacking)}, which this checkout has not; a checkout's files are its own"
    )
    folder = Path(path.stem)
    words = ["unzip", "-n", str(path), *lacking, "-d", str(folder)]
    spec = next((str(folder / name) for name in lacking if name.startswith("spec/")), "SPEC")
    report = ["python", "harness.py", "report", spec]
    for name in lacking:
        report += ["--plugins", str(folder / name)] if name.startswith("plugins/") else []
    out(f"next: {shlex.join(words)} && {shlex.join(report)}")


def _failures(done: Merged) -> str:
    return f", {plural(done.added['failure'], 'failure')} noted" if done.added["failure"] else ""


def _facts(done: Merged) -> dict[str, Any]:
    return {"added": dict(done.added), "present": dict(done.present), "conflicts": done.conflicts}
