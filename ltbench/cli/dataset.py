"""`datasets NAME`: one data set in numbers and in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.cli.output import dump, out, say, table
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.datasets import Dataset

COLUMNS, SCALE = 8, 3  # images per class in the picture; screen pixels per pixel
BAR = 40  # characters of the longest bar


def show(name: str, changes: Sequence[str], json: bool, picture: Path | None) -> None:
    """Print counts, shares and origin of a data set and write a picture of its tail classes."""
    from ltbench import plugins
    from ltbench.datasets import build_dataset
    from ltbench.groups import groups

    plugin = plugins.get("datasets", name)
    settings = {**plugin.defaults, **_parameters(changes, name, plugin.defaults)}
    data = build_dataset({"name": name, **settings})
    counts = [int(count) for count in data.counts()]
    ranked = groups(counts)
    missing = data.missing()
    found = {
        "name": name,
        "parameters": settings,
        "file": str(plugin.path),
        "about": plugin.doc,
        "missing": missing,
        "channels": data.channels,
        "resolution": data.resolution,
        "classes": list(data.classes),
        "counts": counts,
        "total": sum(counts),
        "shares": {key: sum(counts[k] for k in ids) / sum(counts) for key, ids in ranked.items()},
        "groups": {key: list(ids) for key, ids in ranked.items()},
        "reference": data.reference_id,
        "extractor": data.extractor,
    }
    if missing is None:
        found |= {
            "held_out": len(data.reference()),
            "picture": str(_picture(data, ranked["tail"], name, picture)),
        }
    dump(found) if json else _print(found)


def _parameters(changes: Sequence[str], name: str, known: dict[str, Any]) -> dict[str, Any]:
    """`resolution=16` and the like, read as a spec reads its values."""
    from ltbench.spec.yaml_io import parse_yaml

    given = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or key not in known:
            raise UsageError(f"--set {change}: data set '{name}' takes {', '.join(known) or 'no parameters'}")
        given[key] = parse_yaml(f"value: {text}", f"--set {change}").plain()["value"]
    return given


def _print(found: dict[str, Any]) -> None:
    counts, classes = found["counts"], found["classes"]
    group_of = {k: group for group, ids in found["groups"].items() for k in ids}
    parameters = ", ".join(f"{key}={value}" for key, value in found["parameters"].items())
    out(f"{found['name']}  ({parameters or 'no parameters'})")
    out()
    out(found["about"])
    out()
    total, largest = sum(counts), max(counts)
    order = sorted(range(len(counts)), key=lambda k: (-counts[k], k))
    table(
        ("class", "", "group", "images", "share", "frequency"),
        (
            (
                k,
                classes[k],
                group_of.get(k, ""),
                counts[k],
                f"{counts[k] / total:.1%}",
                _bar(counts[k], largest),
            )
            for k in order
        ),
        right=("class", "images", "share"),
    )
    out()
    for group in ("head", "body", "tail"):
        ids = found["groups"][group]
        images = sum(counts[k] for k in ids)
        out(f"{group}: {len(ids)} classes, {images} images, {images / total:.1%}")
    out(f"all:  {len(counts)} classes, {total} images, smallest over largest {min(counts) / largest:.4g}")
    size = f"{found['channels']} x {found['resolution']} x {found['resolution']}"
    out(
        f"\nimages {size}; reference {found['reference']}; extractor {found['extractor']}; code {found['file']}"
    )
    if found["missing"]:
        say(f"the data is not here: {found['missing']}")
    else:
        out(f"{found['held_out']} balanced real images to compare with")
        out(f"a picture of the tail: {found['picture']}")


def _bar(count: int, largest: int) -> str:
    return "█" * max(1, round(BAR * count / largest)) if count else ""


def _picture(data: Dataset, tail: Sequence[int], name: str, path: Path | None) -> Path:
    """Write the first images of each tail class, one row per class; a row with fewer images is filled up with black."""
    import numpy as np

    from ltbench.tiles import grid_png

    train = data.train()
    shape = (len(tail), COLUMNS, data.channels, data.resolution, data.resolution)
    sheet = np.zeros(shape, np.uint8)
    for row, k in enumerate(tail):
        chosen = train.images[train.labels == k][:COLUMNS]
        sheet[row, : len(chosen)] = chosen
    path = path or Path("reports/build") / f"dataset-{name}-tail.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(grid_png(sheet.repeat(SCALE, axis=-1).repeat(SCALE, axis=-2)))
    return path
