"""The verb that lists feature extractors: who they are, what they may print, where their weights are looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.options import AsJson
from ltbench.cli.output import dump, out, say, table
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.extractors import Wanted


def extractors(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME[@FILE][#SHA]]", help="Show one of them, or check a weights file."),
    ] = None,
    json: AsJson = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the weights of NAME where no place has them.")
    ] = False,
) -> None:
    """List the feature extractors: what they measure, whether they can be used here, and which of them prints FID.

    Weights are looked for in the folders of LTBENCH_WEIGHTS (separated by ':'), then in the caches of torch.hub and Hugging
    Face. `timm:NAME#SHA` is any timm model. Exit code 4 when the one asked for cannot be used here.

    \b
    Example:
      python harness.py extractors
      python harness.py extractors inception-2015-12-05 --download
      python harness.py extractors inception-2015-12-05@weights.pth
      python harness.py extractors timm:vit_large_patch14_dinov2.lvd142m#1a2b3c4d
    """
    from ltbench.extractors import parse

    if name is None:
        if download:
            raise UsageError("--download goes with a NAME")
        _list(json)
        return
    wanted = parse(name)
    if download:
        from ltbench.metrics.downloads import fetch

        say(f"weights: {fetch(wanted)}")
    found = facts(name, wanted)
    dump(found) if json else _show(found)
    if found["problem"]:
        raise typer.Exit(4)


def facts(text: str, wanted: Wanted) -> dict[str, Any]:
    """Everything about one extractor that is known without torch; what only its network knows is None (timm's dimensions)."""
    from ltbench import extractors as library
    from ltbench.metrics.naming import metric_name

    known = library.extractors().get(wanted.name)
    file, problem = library.find_weights(wanted), library.extractor_problem(text)
    sha256 = library.digits_of(wanted) or (library.sha256_of(file) if file else "")
    refused = bool(problem and file)  # a file of other weights prints nothing
    return {
        "name": wanted.name,
        "what": known.doc if known else "a model of timm by its weights file",
        "family": library.extractor_family(wanted.name),
        "prints": metric_name("FD", f"{wanted.name}@{sha256}") if sha256 and not refused else None,
        "pool": known.pool if known else None,
        "spatial": known.spatial if known else 0,
        "logits": known.logits if known else 0,
        "channels": list(known.channels) if known else [1, 3],
        "datasets": list(known.datasets) if known else [],
        "unquantised": bool(known and known.unquantised),
        "sha256": sha256 or None,
        "places": [str(path) for path in library.places(wanted)],
        "file": str(file) if file else None,
        "licence": known.licence if known else None,
        "problem": problem,
    }


def _list(json: bool) -> None:
    from ltbench import extractors as library

    found = [facts(name, library.parse(name)) for name in sorted(library.extractors())]
    if json:
        dump(found)
        return
    table(
        ("name", "prints", "family", "pool", "spatial", "logits", "sha256", "licence", "here"),
        (
            (
                one["name"],
                one["prints"],
                one["family"],
                *(one[key] or "-" for key in ("pool", "spatial", "logits")),
                one["sha256"][:8],
                one["licence"],
                "no" if one["problem"] else "yes",
            )
            for one in found
        ),
        right=("pool", "spatial", "logits"),
        keep=("name", "prints"),
    )
    out(
        "\ntimm:NAME#SHA is any timm model; SHA: the first 8 or more hex digits of its weights file's sha256."
    )
    if problems := [one["problem"] for one in found if one["problem"]]:
        out("\nnot usable here:")
        for problem in problems:
            out(f"  {problem}")


def _show(one: dict[str, Any]) -> None:
    sizes = ", ".join(f"{key} {one[key]}" for key in ("pool", "spatial", "logits") if one[key])
    takes = " or ".join(map(str, one["channels"])) + " channels, uint8"
    out(f"{one['name']}: {one['what']}\n")
    rows = {
        "prints": one["prints"] or "nothing as it stands",
        "family": one["family"],
        "gives": sizes or "pool, as wide as the model",
        "takes": takes + (" or float in [0, 1]" if one["unquantised"] else ""),
        "made for": ", ".join(one["datasets"]) or "any data set",
        "sha256": one["sha256"] or "not given",
        "licence": one["licence"] or "see the model's card",
        "weights": one["file"] or "not found",
    }
    for key, value in rows.items():
        out(f"{key:<9}{value}")
    out("looked for, in order:")
    for place in one["places"]:
        out(f"  {place}")
    if one["problem"]:
        out(f"\nnot usable here: {one['problem']}")
