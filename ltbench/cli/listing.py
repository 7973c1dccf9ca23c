"""The verbs that look at what there is: methods, datasets, benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.jobs import OnCluster
from ltbench.cli.options import AsJson, Plugins, place
from ltbench.cli.output import clip, dump, out, plural, say, table
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.plugins import Plugin

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME | new NAME | check NAME|PATH ...]", help="Show one, write a new one, or check some."
    ),
]
DataWords = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME | prepare NAME]", help="Show one, or prepare one.")
]
NoImport = Annotated[
    bool, typer.Option("--no-import", help="Only read the files; do not try to import them (faster).")
]


def methods(
    words: Words = None,
    json: AsJson = False,
    plugins: Plugins = None,
    no_import: NoImport = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="new: where the file goes. [methods/]")
    ] = None,
) -> None:
    """List the training methods; show one: what it does, its parameters and presets; write a new one; check some.

    Every file is read without running it, then imported once in a child process; a file that fails is one line with
    its reason. `new` writes a working method. `check` runs the conformance suite, about 20 s for one; exit code 1 when
    something failed.

    \b
    Example:
      python harness.py methods
      python harness.py methods ccua
      python harness.py methods new mine
      python harness.py methods check mine
    """
    from ltbench.cli import checking

    place(plugins=plugins)
    verb, *rest = words or [""]
    if folder is not None and verb != "new":
        raise UsageError("--folder goes with `methods new NAME`")
    if verb == "new":
        checking.new(rest, folder)
    elif verb == "check":
        checking.check(rest, json)
    elif rest:
        raise UsageError(
            f"methods {' '.join(words or [])}: one name at a time", "or: methods check NAME|PATH ..."
        )
    elif verb:
        checking.show(verb, json, no_import)
    else:
        _list_or_show("methods", None, json, no_import)


Parameters = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="A parameter of the data set; repeatable."),
]
PictureAt = Annotated[
    Path | None, typer.Option("--picture", metavar="FILE", help="Where the picture of the tail goes.")
]
RootAt = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="prepare: where data lies. [the environment's LTBENCH_DATA]"),
]
Download = Annotated[
    bool, typer.Option("--download", help="prepare: fetch what is missing, where programs may.")
]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="PATH",
        help="prepare: where the archive or folder lies; it is linked into LTBENCH_DATA, not copied.",
    ),
]
Checksums = Annotated[
    bool,
    typer.Option(
        "--checksums/--no-checksums", help="prepare: compare archives with their published sums, once."
    ),
]
Decoders = Annotated[
    int | None, typer.Option("--workers", min=1, help="prepare: processes that decode. [all cores]")
]
Pixels = Annotated[
    list[str] | None,
    typer.Option(
        "--pixels",
        metavar="PART",
        help="prepare: a part to decode (train, reference, holdout); repeatable.",
    ),
]


def datasets(
    words: DataWords = None,
    json: AsJson = False,
    plugins: Plugins = None,
    no_import: NoImport = False,
    set_: Parameters = None,
    picture: PictureAt = None,
    root: RootAt = None,
    download: Download = False,
    from_: From = None,
    checksums: Checksums = True,
    workers: Decoders = None,
    pixels: Pixels = None,
    profile: OnCluster = None,
) -> None:
    """List the data sets; show one: images per class, group shares, where it lies, a picture of its tail; prepare one.

    `prepare` finds the archives or folders in LTBENCH_DATA (or links them from elsewhere, or downloads them), checks them, and decodes the images that training
    sees into one file that is mapped ever after. Stopped, it goes on where it was. Prepared before, it checks every byte. With
    --profile it decodes in a job; cells that are submitted meanwhile wait for it.

    \b
    Example:
      python harness.py datasets
      python harness.py datasets fashion_mnist --set resolution=16
      python harness.py datasets prepare tiny_imagenet_lt --root ~/data --download
      python harness.py datasets prepare imagenet_lt --from /archive/ILSVRC2012
      python harness.py datasets prepare imagenet_lt --profile mine
    """
    from ltbench.cli import dataset

    place(plugins=plugins)
    verb, *rest = words or [""]
    how = dataset.How(root, from_, download, checksums, workers, tuple(pixels or ()), profile)
    if verb == "prepare" and len(rest) == 1:
        dataset.prepare(rest[0], set_ or [], json, how)
        return
    if verb == "prepare" or rest:
        raise UsageError(f"datasets {' '.join(words or [])}: one name at a time", "or: datasets prepare NAME")
    if how != dataset.How():
        options = "--root, --from, --download, --no-checksums, --workers, --pixels and --profile"
        raise UsageError(f"{options} go with `datasets prepare NAME`")
    if not verb:
        _list_or_show("datasets", None, json, no_import)
        return
    dataset.show(verb, set_ or [], json, picture)


def benchmarks(json: AsJson = False) -> None:
    """List the specs in benchmarks/: what each compares, its cells, data sets and pipelines.

    \b
    Example:
      python harness.py benchmarks
    """
    from ltbench.cli.specs import headings

    found = headings()
    if json:
        dump(found)
        return
    if not found:
        say("no spec in benchmarks/")
    table(
        ("name", "title", "cells", "data set", "pipeline"),
        (
            (row["name"], row["title"], row["cells"], ", ".join(row["datasets"]), ", ".join(row["pipelines"]))
            for row in found
        ),
        right=("cells",),
        keep=("name", "cells"),
    )


def _list_or_show(kind: str, name: str | None, json: bool, no_import: bool) -> None:
    from ltbench import plugins as registry

    if name is not None:
        plugin = registry.get(kind, name)
        problem = None if no_import else _problems({name: plugin})[name]
        _show(plugin, problem, json)
        return
    found = registry.find(kind)
    problems = {n: p.problem for n, p in found.items()} if no_import else _problems(found)
    if json:
        dump([_record(plugin, problems[key]) for key, plugin in found.items()])
        return
    good = [plugin for key, plugin in found.items() if problems[key] is None]
    table(
        ("name", "what it does", "parameters"),
        ((p.name, _first(p.doc), ", ".join(map(str, p.parameters)) or "none") for p in good),
        keep=("name",),
    )
    bad = {key: reason for key, reason in problems.items() if reason is not None}
    if bad:
        out()
        out(f"{plural(len(bad), 'file')} not usable:")
        for key, reason in bad.items():
            out(f"  {_near(found[key].path)}: {clip(reason or '', 300)}")


def _problems(found: dict[str, Plugin]) -> dict[str, str | None]:
    """Per plugin why it cannot be used: what reading it told, else what importing it told."""
    from ltbench.cli.probe import probe

    readable = [name for name, plugin in found.items() if plugin.problem is None]
    told = probe(next(iter(found.values())).kind, readable) if readable else {}
    return {name: plugin.problem or told.get(name) for name, plugin in found.items()}


def _record(plugin: Plugin, problem: str | None) -> dict[str, Any]:
    return {
        "name": plugin.name,
        "file": _near(plugin.path),
        "description": _first(plugin.doc),
        "parameters": plugin.defaults,
        "presets": plugin.presets or {},
        "problem": problem,
    }


def _show(plugin: Plugin, problem: str | None, json: bool) -> None:
    if json:
        dump({**_record(plugin, problem), "doc": plugin.doc})
        return
    from ltbench.spec.types import spell

    out(f"{plugin.name}  ({_near(plugin.path)})")
    if problem:
        out(f"not usable: {problem}")
    out()
    out(plugin.doc or "no description: give the class or the file a docstring")
    if plugin.parameters:
        out("\nparameters:")
        table(
            ("  name", "type", "default"),
            ((f"  {p.name}", p.kind, spell(p.default)) for p in plugin.parameters),
        )
    for preset, values in (plugin.presets or {}).items():
        words = ", ".join(f"{key}={spell(value)}" for key, value in values.items()) or "the defaults"
        out(f"\npreset {preset}: {words}")


def _first(doc: str) -> str:
    """The first sentence or line of a docstring."""
    return clip(doc.split("\n\n")[0].replace("\n", " ").split(". ")[0].rstrip("."), 160) if doc else ""


def _near(path: Path) -> str:
    """The path as seen from here, if it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
