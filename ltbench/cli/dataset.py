"""`datasets NAME`: one data set in numbers and in one picture; `datasets prepare NAME`: its images in one array."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.cli.output import dump, out, say, table
from ltbench.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from ltbench.datasets import Dataset
    from ltbench.datasets.photos import Photos

COLUMNS, SCALE, SIDE = (
    8,
    3,
    192,
)  # images per class in the picture; screen pixels per pixel, of an image, at most
BAR = 40  # characters of the longest bar


def show(name: str, changes: Sequence[str], json: bool, picture: Path | None) -> None:
    """Print counts, shares and origin of a data set and write a picture of its tail classes."""
    from ltbench import plugins
    from ltbench.datasets import build_dataset
    from ltbench.datasets.listed import Listed
    from ltbench.groups import groups

    plugin = plugins.get("datasets", name)
    settings = {**plugin.defaults, **_parameters(changes, name, plugin.defaults)}
    data = build_dataset({"name": name, **settings})
    found = {
        "name": name,
        "parameters": settings,
        "file": str(plugin.path),
        "about": plugin.doc,
        "missing": data.missing(),
        "data": _state(data),
        "channels": data.channels,
        "resolution": data.resolution,
        "reference": data.reference_id,
        "extractor": data.extractor,
    }
    if isinstance(data, Listed) and json and found["missing"] is not None and not data.has_counts():
        # only the published list tells how many images of which class; how many in all is known
        unknown = dict.fromkeys(("counts", "shares", "groups"))
        dump({**found, **unknown, "classes": list(data.classes), "total": data.published})
        return
    counts = [int(count) for count in data.counts()]
    ranked, missing = groups(counts), found["missing"]
    found |= {
        "classes": list(data.classes),
        "counts": counts,
        "total": sum(counts),
        "shares": {key: sum(counts[k] for k in ids) / sum(counts) for key, ids in ranked.items()},
        "groups": {key: list(ids) for key, ids in ranked.items()},
    }
    if missing is None:
        found |= {
            "held_out": len(data.reference()),
            "picture": str(_picture(data, name, picture)),
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
    for place in found["data"]["source"]:
        out(f"source: {place['path']}" + (f" ({place['bytes']:,} bytes)" if place["bytes"] else ""))
    for part, state in found["data"]["prepared"].items():
        out(
            f"prepared {part}: {state['images']:,} images as {state['form']}, {state['bytes']:,} bytes, {state['folder']}"
        )
    if found["missing"]:
        say(f"the data is not here: {found['missing']}")
    else:
        out(f"{found['held_out']} balanced real images to compare with")
        out(f"a picture of the tail: {found['picture']}")


def _bar(count: int, largest: int) -> str:
    return "█" * max(1, round(BAR * count / largest)) if count else ""


def _picture(data: Dataset, name: str, path: Path | None) -> Path:
    """Write the first images of the rarest tail classes, one row per class."""
    from ltbench.datasets.summary import tail_picture

    path = path or Path("reports/build") / f"dataset-{name}-tail.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tail_picture(data, COLUMNS, max(1, min(SCALE, SIDE // data.resolution))))
    return path


# --- preparing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class How:
    """What the command says of preparing. root: LTBENCH_DATA. source: where the data lies, to be linked."""

    root: Path | None = None
    source: Path | None = None
    download: bool = False
    checksums: bool = True
    workers: int | None = None
    pixels: Sequence[str] = ()


def prepare(name: str, changes: Sequence[str], json: bool, how: How) -> None:
    """Make a data set ready to train on: link or fetch it where asked, check it, decode it."""
    from ltbench import plugins
    from ltbench.datasets import build_dataset
    from ltbench.datasets.photos import Photos

    if how.root is not None:
        os.environ["LTBENCH_DATA"] = str(how.root.expanduser().resolve())
    plugin = plugins.get("datasets", name)
    data = build_dataset({"name": name, **_parameters(changes, name, plugin.defaults)})
    if how.source is not None:
        _link(data, how.source)
    _provide(data, how.download)
    if how.checksums:
        _check(data)
    if not isinstance(data, Photos):
        say(f"{name} needs no preparing: its files are read as they are")
        found = {}
    else:
        found = _decode(data, how.workers, how.pixels)
    made = {part: str(folder) for part, folder in found.items()}
    if json:
        dump({"name": name, "counts": data.counts(), "total": sum(data.counts()), "prepared": made})
        return
    out(f"{name}: {sum(data.counts()):,} training images in {len(data.counts())} classes")
    for part, folder in made.items():
        out(f"  {part}: {folder}")


def _link(data: Dataset, source: Path) -> None:
    from ltbench.datasets.linking import link

    root = os.environ.get("LTBENCH_DATA")
    if not root:
        raise EnvironmentProblem(
            "LTBENCH_DATA is not set: nothing says where data goes", "set it, or give --root DIR"
        )
    for path in link(data, source, Path(root).expanduser(), lambda: _absent(data)):
        say(f"{path} is {path.resolve()}")


def _check(data: Dataset) -> None:
    """Archives against their published sums, where a person put them there and something is to be made of them."""
    from ltbench.datasets.checksums import check
    from ltbench.datasets.photos import Photos
    from ltbench.download import Bar

    root = os.environ.get("LTBENCH_DATA")
    if not root or (isinstance(data, Photos) and data.is_prepared()):
        return  # nothing is made of them any more
    folder = Path(root).expanduser()
    check(data.assets(folder), data.source() if isinstance(data, Photos) else (), folder, Bar, say)


def _decode(data: Photos, workers: int | None, pixels: Sequence[str]) -> dict[str, Path]:
    from ltbench.datasets.prepare import prepare as make
    from ltbench.download import Bar

    try:
        return make(data, pixels or None, workers, Bar(data.name, "images", 1), say)
    except KeyboardInterrupt:
        say("stopped; what is decoded is kept, and the same command goes on from there")
        raise SystemExit(130) from None


def _provide(data: Dataset, download: bool) -> None:
    """The data's files in their places, downloaded where asked; else an error that says what there is to get."""
    from ltbench.download import Bar, fetch

    root = os.environ.get("LTBENCH_DATA")
    assets = data.assets(Path(root).expanduser()) if root else []
    missing = _absent(data)
    if missing is None:
        return
    for asset in assets:
        say(asset.describe())
    if not download or not root:
        raise EnvironmentProblem(missing, None if root else "set LTBENCH_DATA, or give --root DIR")
    for asset in assets:
        got = fetch(asset, Bar(asset.name))
        say(f"{got.path}: {got.bytes:,} bytes, sha256 {got.sha256}")
    missing = _absent(data)
    if missing is not None:
        raise EnvironmentProblem(missing)


def _absent(data: Dataset) -> str | None:
    """Why the files are not there; None where they are, or nobody needs them any more."""
    from ltbench.datasets.photos import Photos
    from ltbench.datasets.prepared import PARTS

    if not isinstance(data, Photos):
        return data.missing()
    if all(data.place.part(part, "pixels") for part in PARTS):
        return None
    try:
        data.source()
        return None
    except EnvironmentProblem as problem:
        return str(problem)


def _state(data: Dataset) -> dict[str, Any]:
    """{"source": its folders and archives with their bytes, "prepared": part -> form, images, bytes, folder}."""
    from ltbench.datasets.photos import Photos

    if not isinstance(data, Photos):
        return {"source": [], "prepared": {}}
    try:
        places = data.source()
    except EnvironmentProblem:
        places = []
    sizes = [
        {"path": str(p), "bytes": p.stat().st_size if p.is_file() else None} for p in dict.fromkeys(places)
    ]
    return {"source": sizes, "prepared": data.place.state()}
