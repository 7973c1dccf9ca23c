"""Everything that lies below the scratch root (and prepared data), judged: what may go, what only by name, what stays, and why.

Records, and whatever else is in the store, are not looked at, but for what killed writers left half-written there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ltbench import caches, files, plugins, provenance, sources
from ltbench.clearing.items import DAY, KINDS, NAMED, Item, Size, Verdict, measure
from ltbench.clearing.living import Life, Reason
from ltbench.datasets import data_folders
from ltbench.errors import LtbenchError
from ltbench.launch import drivers
from ltbench.launch.slurm import layout, snapshot
from ltbench.plan import Plan
from ltbench.stages.names import parse, trained
from ltbench.store import Run, Store

CHECKPOINTS = "training is over; to go beyond its last milestone it would begin again at step 0"
WEIGHTS = "sample, evaluate and load_model read them; made again by training from step 0"
SHARED = (  # where they lie, their kind, what losing them means
    (
        sources.features_root,
        "features",
        "made again by sampling, when another measure or a larger sample asks",
    ),
    (sources.samples_root, "samples", "kept on purpose; sampled again when they are asked for"),
    (sources.references_root, "references", "made again from the real images by the next evaluation"),
    (sources.latents_root, "latents", "encoded again by the next training"),
)
DOWNLOADS = ("huggingface", "torch")  # below caches/: what `fetch` brought
OURS = {
    *(root(Path()).name for root, _, _ in SHARED),
    *("cells", "derived", "profiles", caches.FOLDER, drivers.FOLDER, layout.FOLDER, snapshot.FOLDER),
}
_STEP = re.compile(r"step-([0-9]{9,})")
_DRIVER = re.compile(r"\d{8}-\d{6}-\d+")


@dataclass(frozen=True)
class Scope:
    """A benchmark's cells. wanted: the milestones of a cell whose weights are still needed. trains: cells with training to do."""

    cells: frozenset[str]
    wanted: Mapping[str, frozenset[int]]
    trains: frozenset[str]

    @classmethod
    def of(cls, found: Plan) -> Scope:
        """What the plan of a benchmark still needs."""
        wanted: dict[str, set[int]] = {}
        trains = set()
        for item in found.cells:
            for named in (parse(due.stage) for due in item.due if not due.stage.startswith("train:")):
                wanted.setdefault(item.cell.id, set()).update(named.steps)
            if any(trained(due.stage) for due in item.due):
                trains.add(item.cell.id)
            if item.due and item.cell.source is not None:
                wanted.setdefault(item.cell.source.cell.id, set()).add(item.cell.source.step)
        cells = frozenset(item.cell.id for item in found.cells)
        return cls(cells, {cell: frozenset(steps) for cell, steps in wanted.items()}, frozenset(trains))

    def only(self, cells: frozenset[str]) -> Scope:
        """The same about some of the cells: what all of them need stays needed."""
        return replace(self, cells=cells)


@dataclass(frozen=True)
class Asked:
    """What a person wants to see or lose. kinds: only these; empty: all, of which only free ones go. data: prepared data sets by
    name. keep: seconds for which what was written stays."""

    kinds: frozenset[str] = frozenset()
    data: frozenset[str] = frozenset()
    keep: float = DAY


@dataclass(frozen=True)
class _Draft:
    """A thing before its verdict. stays: why it may not go; None: it may."""

    kind: str
    path: Path
    why: str
    stays: Reason | None = None
    detail: str = ""
    cell: str | None = None
    run: str | None = None
    step: int | None = None


@dataclass
class _Taker:
    """Goes through the scratch root once."""

    store: Store
    life: Life
    asked: Asked
    scope: Scope | None
    now: float = field(default_factory=time.time)
    temporaries: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scratch = self.store.scratch
        self.known = set(self.store.cells())
        self.sizes: dict[Path, Size] = {}
        self.strangers = 0.0  # the last change of a cell that this store does not know

    # --- cells ------------------------------------------------------------------------------------------------------

    def cells(self) -> Iterator[_Draft]:
        """Of each run its checkpoints and milestones."""
        for group in self.folders(self.scratch / "cells"):
            for folder in self.folders(group):
                if self.scope is not None and folder.name not in self.scope.cells:
                    continue
                if folder.name not in self.known:
                    self.strangers = max(self.strangers, self.measured(folder).newest)
                    why = "this store has no such cell; another may (LTBENCH_STORE)"
                    yield _Draft("unknown", folder, why, Reason(why, ""))
                    continue
                for place in self.folders(folder / "runs"):
                    yield from self.run(self.store.run(folder.name, place.name))

    def run(self, run: Run) -> Iterator[_Draft]:
        """A run's heavy files."""
        own = {"cell": run.cell, "run": run.run}
        lives = self.life.cells.get(run.cell)
        self.entries(run.scratch)  # a killed `gc` leaves here what it had put aside
        if os.path.lexists(run.checkpoints):
            self.inside(run.checkpoints)
            yield replace(self.checkpoints(run, lives), **own)
        current: bool | None = None
        for path in self.folders(run.milestones):
            if (match := _STEP.fullmatch(path.name)) is None:
                continue
            current = self.current(run) if current is None else current
            stays = lives or self.weights(run, int(match[1]), current)
            yield _Draft("weights", path, WEIGHTS, stays, step=int(match[1]), **own)

    def checkpoints(self, run: Run, lives: Reason | None) -> _Draft:
        """All checkpoints of a run go together."""
        state = run.state("train")
        over = state is not None and state.state == "released"
        if lives is None and self.scope is not None and run.cell in self.scope.trains and self.current(run):
            lives = Reason("its benchmark still trains it", "")
        if lives is not None or over:
            return _Draft("checkpoints", run.checkpoints, CHECKPOINTS, lives)
        word = "never claimed here" if state is None else f"{state.state} {state.cause or ''}".strip()
        at = (state.progress or {}).get("step") if state is not None else None
        detail = f"{word} at step {at}" if at else word
        if not self.current(run):
            why = "code that is not here any more began this training; only that code goes on with it"
            return _Draft("stale", run.checkpoints, why, detail=detail)
        return _Draft("checkpoints", run.checkpoints, "", Reason("training goes on from it", detail))

    def weights(self, run: Run, step: int, current: bool) -> Reason | None:
        """Why the weights of a milestone must stay, whatever is asked for."""
        if self.scope is not None and step in self.scope.wanted.get(run.cell, ()) and current:
            return Reason("an evaluation, or a cell that starts from it, still needs it", "")
        if self.scope is None and current:
            return Reason("a plan knows what still needs them: gc SPEC --kind weights", "")
        return None

    def current(self, run: Run) -> bool:
        """Whether the present code would take this run for its own, or may: where that cannot be told, yes."""
        try:
            if run.accepted():
                return True
            settings = self.store.cell(run.cell)["settings"]
            return provenance.run_id(provenance.train_code(settings), settings) == run.run
        except LtbenchError:
            return True

    # --- what cells share ---------------------------------------------------------------------------------------------

    def shared(self) -> Iterator[_Draft]:
        """Folders whose names are digests of what they hold, and caches."""
        stays = self.life.anyone()
        if stays is None and self.now - self.strangers < DAY:
            stays = Reason("cells of another store lie here and changed within a day", "")
        for root, kind, why in SHARED:
            for path in self.entries(root(self.scratch)):
                self.inside(path)
                yield _Draft(kind, path, why, stays)
        for path in self.entries(self.scratch / caches.FOLDER):
            if path.name in DOWNLOADS:
                yield _Draft("downloads", path, "fetch brings them again; jobs have no network", stays)
            else:
                yield _Draft("compiled", path, "compiled again, a minute or two per process", stays)
        for path in self.entries(self.scratch / "derived"):
            yield _Draft("answers", path, "asked again by the next plan or run", stays)
        for path in self.entries(self.scratch / "profiles"):
            yield _Draft("traces", path, "made again by run --profile-step")

    def data(self) -> Iterator[_Draft]:
        """Prepared data sets."""
        for root in data_folders("prepared"):
            for path in self.entries(root):
                name = path.name.rpartition("-")[0]
                why = f"made again by datasets prepare {name}" if name else ""
                stays = self.life.anyone() if name else Reason("not a prepared data set", "")
                yield _Draft("data", path, why, stays)

    # --- runs and submissions ---------------------------------------------------------------------------------------

    def logs(self) -> Iterator[_Draft]:
        """Of runs on some machine."""
        living = {driver.folder.name for driver in drivers.drivers(self.scratch)}
        for path in self.entries(self.scratch / drivers.FOLDER):
            if not _DRIVER.fullmatch(path.name):
                yield _foreign(path)
                continue
            stays = Reason("its run may go on", "") if path.name in living else None
            yield _Draft("logs", path, "logs CELL prints them", stays)

    def submissions(self) -> Iterator[_Draft]:
        """What a submission kept, submitit's files apart."""
        for path in self.entries(self.scratch / layout.FOLDER):
            if not layout.named(path.name):
                yield _foreign(path)
                continue
            self.inside(path)
            used = self.life.submissions.get(path.name)
            over = self.life.over.get(path.name, [])
            stays = Reason("jobs of its submission wait or run", used) if used else None
            if stays is None and path.name not in self.life.over:
                stays = Reason("nobody knows how it stands", "")
            bad = sorted({task.cause for task in over if task.cause is not None})
            told = stays or (
                Reason("status tells from it how its jobs ended", ", ".join(bad)) if bad else None
            )
            calls = layout.Submission(path).calls
            if self.entries(calls) and (told is not None or "submissions" not in self.asked.kinds):
                yield _Draft("calls", calls, "its jobs are over", stays)
                self.sizes[path] = _less(self.measured(path), self.measured(calls))
            yield _Draft(
                "submissions", path, "its logs, and how often its jobs were started, go with it", told
            )

    def snapshots(self) -> Iterator[_Draft]:
        """Copies of code."""
        own = plugins.PACKAGE.parent if plugins.snapshot() is not None else None
        for path in self.entries(self.scratch / snapshot.FOLDER):
            user = self.life.uses(str(path))
            stays = None if user is None else Reason("jobs of its submission wait or run", user)
            if path == own:
                stays = Reason("this program runs from it", "")
            yield _Draft("snapshots", path, "no job needs it; submit makes it again", stays)

    # --- leftovers ----------------------------------------------------------------------------------------------------

    def leftovers(self) -> Iterator[_Draft]:
        """Half-written things, found while everything else was looked at, and those of the store."""
        if self.scope is None:
            self.temporaries += _temporaries(self.store.root, self.scratch)
        for path in dict.fromkeys(self.temporaries):
            yield _Draft("leftovers", path, "its process is gone", self.written(path))

    def written(self, path: Path) -> Reason | None:
        """Why a half-written thing may still be written."""
        whose = files.writer(path.name)
        if whose == "gone":
            return None
        if whose == "here":
            return Reason("a process is writing it", "")
        if self.now - self.measured(path).newest < DAY:
            return Reason("another machine wrote it within a day", "")
        cell = next((part for part in path.parts if part in self.life.cells), None)
        return None if cell is None else self.life.cells[cell]

    def rest(self) -> Iterator[_Draft]:
        """What is in the scratch root beside our folders."""
        for path in self.entries(self.scratch):
            if path.name.startswith(".ltbench-probe-"):
                young = self.now - self.measured(path).newest < DAY
                yield _Draft(
                    "leftovers",
                    path,
                    "of doctor --probe",
                    Reason("written within a day", "") if young else None,
                )
            elif path.name not in OURS:
                yield _foreign(path)
            elif path.is_symlink():
                yield _Draft("unknown", path, "", Reason("a link: what it leads to is not looked at", ""))

    # --- looking ----------------------------------------------------------------------------------------------------------

    def entries(self, folder: Path) -> list[Path]:
        """What is in a folder, by name, without half-written things, which are noted; nothing where it is a link or not there."""
        if folder.is_symlink() and folder != self.scratch:
            return []
        try:
            found = sorted(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        self.temporaries += [folder / name for name in found if files.writer(name) is not None]
        return [folder / name for name in found if files.writer(name) is None]

    def folders(self, folder: Path) -> list[Path]:
        """The real folders in it."""
        return [path for path in self.entries(folder) if path.is_dir() and not path.is_symlink()]

    def inside(self, path: Path) -> None:
        """Note the half-written things in a tree."""
        self.temporaries += self.measured(path).temporaries

    def measured(self, path: Path) -> Size:
        """How large it is, looked at once."""
        if path not in self.sizes:
            self.sizes[path] = measure(path)
        return self.sizes[path]

    def verdict(self, draft: _Draft) -> Item:
        """What becomes of a thing."""
        size = self.measured(draft.path)
        stays = draft.stays or self.unmovable(draft, size)
        verdict: Verdict
        if stays is not None:
            verdict, why, detail = "stays", stays.why, stays.detail or draft.detail
        else:
            named = draft.kind in self.asked.kinds or self.by_name(draft)
            verdict = "goes" if KINDS[draft.kind].free or named else "asked"
            why, detail = draft.why, draft.detail
        return Item(draft.kind, draft.path, size, verdict, why, detail, draft.cell, draft.run, draft.step)

    def by_name(self, draft: _Draft) -> bool:
        name = draft.path.name
        return draft.kind == "data" and bool({name, name.rpartition("-")[0]} & self.asked.data)

    def unmovable(self, draft: _Draft, size: Size) -> Reason | None:
        """Why something stays that nobody needs."""
        if size.link:
            return Reason("a link: what it leads to is not looked at", "")
        if draft.kind == "leftovers":
            return None
        if any(files.writer(path.name) == "here" for path in size.temporaries):
            return Reason("a process is writing into it", "")
        if self.now - size.newest < self.asked.keep:
            days = self.asked.keep / DAY
            return Reason(f"written within {days:g} day{'' if days == 1 else 's'} (--keep-days)", "")
        return None


def take(store: Store, life: Life, asked: Asked, scope: Scope | None = None) -> list[Item]:
    """Everything there is (of a benchmark, what belongs to its cells alone), by kind, then by path."""
    taker = _Taker(store, life, asked, scope)
    drafts = list(taker.cells())
    if scope is None:
        for part in (taker.shared, taker.data, taker.logs, taker.submissions, taker.snapshots, taker.rest):
            drafts += part()
    drafts += taker.leftovers()
    wanted = asked.kinds | ({"data"} if asked.data else set())
    order = list(KINDS)
    items = [taker.verdict(draft) for draft in drafts if not wanted or draft.kind in wanted]
    return sorted(items, key=lambda item: (order.index(item.kind), str(item.path)))


def choices() -> list[str]:
    """The kinds that a person may name."""
    return [name for name in KINDS if name not in NAMED]


def again(items: Collection[Item]) -> tuple[int, int]:
    """(cells, training steps) that it takes to make the weights among these things again."""
    last: dict[Any, int] = {}
    for item in items:
        if item.kind == "weights" and item.step is not None:
            key = (item.cell, item.run)
            last[key] = max(last.get(key, 0), item.step)
    return len({cell for cell, _ in last}), sum(last.values())


def _less(whole: Size, part: Size) -> Size:
    return replace(whole, bytes=whole.bytes - part.bytes, files=whole.files - part.files)


def _foreign(path: Path) -> _Draft:
    return _Draft("unknown", path, "", Reason("not made by ltbench", ""))


def _temporaries(root: Path, but: Path) -> Iterator[Path]:
    """Half-written things in a store's own folders."""
    for folder, names, own in os.walk(root):
        found = [name for name in (*names, *own) if files.writer(name) is not None]
        yield from (Path(folder, name) for name in found)
        names[:] = [name for name in names if name not in found and Path(folder, name) != but]


def roots(store: Store) -> list[Path]:
    """The folders below which anything is ever deleted."""
    return [store.scratch, store.root, *(path.absolute() for path in data_folders("prepared"))]
