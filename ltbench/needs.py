"""What a benchmark needs from elsewhere: weights of extractors, frozen encoders, VAEs, starting weights, archives of data sets.

Known without torch and without a network; `fetch` brings what has an address, and `submit` refuses while something is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench import plugins, vaes
from ltbench.download import Asset
from ltbench.extractors import (
    INCEPTION_FILES,
    TIMM,
    Wanted,
    digits_of,
    extractor_problem,
    extractors,
    find_weights,
    hub_folders,
    parse,
    torch_hub,
)

if TYPE_CHECKING:
    from ltbench.spec.cells import Cell

# torch-fidelity's own (torch_fidelity/feature_extractor_inceptionv3.py: URL_INCEPTION_V3)
INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
TIMM_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Hub:
    """Files of a repository of Hugging Face's hub, which its own library puts into its cache, resumed and checked."""

    repository: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Need:
    """Something that a benchmark needs. what: for people. place: where it lies or will lie. bytes, sha256, licence: as far as known.

    source: how it is brought, None where nothing here can. problem: None if it can be used, else why not and what to do.
    """

    what: str
    kind: str
    place: Path | None
    bytes: int | None = None
    licence: str = ""
    sha256: str = ""
    source: Asset | Hub | None = None
    problem: str | None = None

    @property
    def fetchable(self) -> bool:
        """Whether `fetch` can bring it."""
        return isinstance(self.source, Hub) or (
            isinstance(self.source, Asset) and bool(self.source.url) and not self.source.ask
        )

    def json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "what": self.what,
            "kind": self.kind,
            "place": None if self.place is None else str(self.place),
            "bytes": self.bytes,
            "licence": self.licence,
            "sha256": self.sha256 or None,
            "present": self.problem is None,
            "fetchable": self.fetchable,
            "problem": self.problem,
        }


def needs(cells: Iterable[Cell]) -> list[Need]:
    """Everything that these cells need from elsewhere, each once; what ships with ltbench or a package is left out if it is there."""
    found: dict[str, Need] = {}
    seen: set[tuple[int, ...]] = set()
    for cell in cells:
        parts = (cell.settings["dataset"], cell.settings["method"], cell.evaluations)
        own = (*map(id, parts), id(cell.file))
        if own in seen:
            continue
        seen.add(own)
        for need in _of_cell(cell):
            key = need.what if need.place is None else str(need.place)  # two extractors may share a file
            found.setdefault(key, need)
    return list(found.values())


def missing_assets(cells: Sequence[Cell], spec: str = "SPEC") -> list[tuple[str, str]]:
    """(what is missing and why, what brings it) of everything these cells need and this machine lacks."""
    command = f"python harness.py fetch {spec}"
    return [
        (f"{need.what}: {need.problem}", command if need.fetchable else _by_hand(need))
        for need in needs(cells)
        if need.problem is not None
    ]


def _by_hand(need: Need) -> str:
    if isinstance(need.source, Asset) and need.source.ask:
        return f"get it at {need.source.ask} and put it at {need.place}"
    return f"put it at {need.place}" if need.place is not None else "see the message"


def _of_cell(cell: Cell) -> Iterator[Need]:
    yield from _data(cell.settings["dataset"])
    if (vae := vaes.named(cell.settings["dataset"])) is not None:
        yield from _vae(vae)
    for evaluation in cell.evaluations.values():
        yield from _extractor(evaluation["extractor"])
    for name in _encoders(cell.settings["method"]):
        yield _encoder(name)
    if cell.file is not None:
        yield _start(cell)


# --- data ------------------------------------------------------------------------------------------------------------


def _data(dataset: Mapping[str, Any]) -> tuple[Need, ...]:
    name, root = dataset["name"], os.environ.get("LTBENCH_DATA", "")
    built = _built({key: value for key, value in dataset.items() if key != vaes.KEY})
    problem = built.missing()
    place = Path(root).expanduser() if root else Path("LTBENCH_DATA")
    if problem is None:
        return ()  # the data is here in a form that is read; its archives are not needed any more
    if (command := built.unprepared()) is not None:
        return (Need(f"data set {name}", "data", None, problem=f"not prepared here; run: {command}"),)
    assets = built.assets(place)
    no_root = "" if root else "; say by LTBENCH_DATA where data sets go"
    needs = tuple(
        Need(
            f"data set {name}: {asset.name}",
            "data",
            asset.place,
            asset.bytes,
            asset.licence,
            asset.sha256 or asset.md5,
            asset if root else None,
            f"not here{no_root}" if not asset.place.exists() else None,
        )
        for asset in assets
    )
    lacking = [need for need in needs if need.problem]
    if lacking:
        return needs
    return (*needs, Need(f"data set {name}", "data", place, problem=problem))


def _built(dataset: dict[str, Any]) -> Any:
    plugin = plugins.get("datasets", dataset.pop("name"))
    module = importlib.import_module(f"ltbench.datasets.{plugin.name}")
    return getattr(module, plugin.class_name)(**dataset)


# --- weights ---------------------------------------------------------------------------------------------------------


def weights_folder() -> Path | None:
    """Where `fetch` puts weights that have no cache of their own: the first folder of LTBENCH_WEIGHTS."""
    folders = [part for part in os.environ.get("LTBENCH_WEIGHTS", "").split(os.pathsep) if part]
    return Path(folders[0]).expanduser() if folders else None


def _extractor(named: Mapping[str, str]) -> Iterator[Need]:
    name = named["name"]
    text = f"{name}#{named['sha256']}" if name.startswith(TIMM) else name
    wanted = parse(text)
    problem = extractor_problem(text)
    if problem is None and wanted.kind in ("embedded", "lite0"):
        return
    found, licence = find_weights(wanted), ""
    if wanted.name in extractors():
        licence = extractors()[wanted.name].licence
    sha256 = digits_of(wanted)
    what = f"extractor {text}"
    if wanted.kind == "inception":
        place = found or (weights_folder() or torch_hub() / "checkpoints") / INCEPTION_FILES[0]
        asset = Asset(what, INCEPTION_URL, place, licence, sha256=sha256 if len(sha256) == 64 else "")
        yield Need(what, "weights", place, None, licence, sha256, asset, problem)
    elif wanted.kind == "timm":
        hub = Hub(f"timm/{name.removeprefix(TIMM)}", (TIMM_WEIGHTS,))
        yield Need(what, "weights", found or _hub_place(hub), None, licence, sha256, hub, problem)
    else:
        yield Need(what, "weights", found, None, licence, sha256, None, problem)


def _hub_place(hub: Hub) -> Path:
    """Where the first of its files lies, or will lie, in Hugging Face's cache."""
    return next(iter(hub_folders(hub.repository))) / hub.files[0]


def _vae(name: str) -> Iterator[Need]:
    problem = vaes.problem(name)
    if name == vaes.TINY:
        return
    known, folder = vaes.vae(name), vaes.find(name)
    hub = Hub(known.hub, ("config.json", vaes.WEIGHTS)) if known.hub else None
    place = folder or (_hub_place(hub).parent if hub else None)
    if hub is not None and problem is not None and "package" in problem:
        hub = None  # weights do not help where the program that reads them is not installed
    yield Need(f"VAE {name}", "weights", place, known.size or None, known.licence, known.sha256, hub, problem)


def _encoders(method: Mapping[str, Any]) -> Iterator[str]:
    """Names of frozen encoders among a method's parameters: whatever is written as `timm:...`."""
    for key, value in method.items():
        for text in value if isinstance(value, list | tuple) else (value,):
            if key != "name" and isinstance(text, str) and text.startswith(TIMM):
                yield text


def _encoder(text: str) -> Need:
    what = f"encoder {text.partition('@')[0]}"
    model, _, file = text.removeprefix(TIMM).partition("@")
    if file:
        wanted = Wanted(f"{TIMM}{model}", file.partition("#")[0], file.partition("#")[2].lower())
        place = find_weights(wanted)
        problem = None if place else "its weights file is not here"
        return Need(what, "weights", Path(wanted.file), sha256=wanted.sha256, problem=problem)
    hub = Hub(f"timm/{model}", (TIMM_WEIGHTS,))
    there = next(
        (p for folder in hub_folders(hub.repository) if (p := folder / TIMM_WEIGHTS).is_file()), None
    )
    problem = None if there else "its weights are not in Hugging Face's cache"
    if importlib.util.find_spec("timm") is None:
        problem, hub = "needs a package that is not installed: pip install timm", None
        return Need(what, "weights", there, problem=problem)
    return Need(what, "weights", there or _hub_place(hub), source=hub, problem=problem)


def _start(cell: Cell) -> Need:
    assert cell.file is not None, "asked for a cell that begins at a file"
    place = cell.file.located()
    problem = None if place.is_file() else "the file that training begins at is not here"
    return Need(
        f"starting weights {cell.file.label}", "start", place, sha256=cell.file.sha256, problem=problem
    )
