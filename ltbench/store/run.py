"""One run of a cell: what one version of the training code made of it. The place of its records, claims and failures."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench import files
from ltbench.errors import LtbenchError
from ltbench.store import claims, failures, kept, records, sealed, states, values
from ltbench.store.claims import Claim, Held
from ltbench.store.facts import Facts
from ltbench.store.fence import Fence, layer_records
from ltbench.store.kept import Seen
from ltbench.store.records import Damaged, Glimpse, Records, damage
from ltbench.store.states import StageState

if TYPE_CHECKING:
    from ltbench.store.core import Store


class Run:
    """Run `run` of cell `cell`, in the store's own folder and, for reading, in its read-only layers."""

    def __init__(self, store: Store, cell: str, run: str) -> None:
        self.store, self.cell, self.run = store, cell, run
        self._place = f"cells/{cell[:2]}/{cell}/runs/{run}"

    def __repr__(self) -> str:
        return f"Run({self.cell[:12]}, {self.run})"

    # Made when they are asked for: a look at thousands of runs asks for few of them.

    @functools.cached_property
    def dir(self) -> Path:
        """The run's folder in the store."""
        return self.store.root / self._place

    @functools.cached_property
    def scratch(self) -> Path:
        """The run's folder below the scratch root."""
        return self.store.scratch / self._place

    @functools.cached_property
    def folders(self) -> list[Path]:
        """The run's folder in every layer, one's own first."""
        return [root / self._place for root in self.store.layers]

    @functools.cached_property
    def _places(self) -> list[str]:
        """`folders` as text: paths are slow to make, and a look makes them for thousands of runs."""
        return [f"{root}/{self._place}" for root in self.store.folders]

    @functools.cached_property
    def facts(self) -> Facts:
        """Small files that figures need beside the records."""
        return Facts(self)

    def layers(self) -> list[str]:
        """The layers that have something of the run, one's own first; see `Store.layer_of`."""
        return [self.store.layer_of(layer) for layer in self.folders if layer.is_dir()]

    @property
    def checkpoints(self) -> Path:
        """Where the trainer keeps its checkpoints."""
        return self.scratch / "checkpoints"

    @property
    def milestones(self) -> Path:
        """Where EMA weights stay."""
        return self.scratch / "milestones"

    def create(self, code: dict[str, Any], settings: dict[str, Any]) -> None:
        """Write run.json: `code` = {component: {"digest": hex, "files": {path: {top-level name: sha8}}}}. A second call
        with the same run is nothing."""
        self.writable()
        content = {
            "format": sealed.FORMAT,
            "run": self.run,
            "cell": self.cell,
            "code": code,
            "settings": settings,
        }
        sealed.keep_once(self.dir / "run.json", content, link=self.store.link)

    def info(self) -> dict[str, Any]:
        """run.json. Raises files.Unreadable when it is damaged, LtbenchError when the run was never created."""
        for layer in self.folders:
            if (layer / "run.json").exists():
                return sealed.read_sealed(layer / "run.json")
        raise self._unknown()

    def made_of(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(code, settings) of `info`, through what is kept of the store; nobody changes them. Raises as `info` does."""
        for place in self._places:
            try:
                return self.store.reads.info(f"{place}/run.json")
            except FileNotFoundError:
                continue
        raise self._unknown()

    def _unknown(self) -> LtbenchError:
        return LtbenchError(
            f"run {self.run} of cell {self.cell[:12]} does not exist", "`plan` lists what does."
        )

    # --- records ---------------------------------------------------------------------------------------------------

    def put_record(
        self,
        kind: str,
        step: int,
        body: dict[str, Any],
        envelope: dict[str, Any],
        evaluation: str | None = None,
    ) -> Path:
        """Keep a record durably and return its file; a body that is there already is left alone.

        kind, step, cell, run, format and the evaluation's id are put into the body where it lacks them. Raises ValueError
        for a body that readers would refuse (a NaN, another cell), StorageProblem when the disk does.
        """
        body = {
            "format": sealed.FORMAT,
            "kind": kind,
            "cell": self.cell,
            "run": self.run,
            "step": step,
        } | body
        if evaluation is not None:
            body["evaluation"] = {"id": evaluation} | body.get("evaluation", {})
        told = (kind, step, self.cell, self.run, evaluation or records.evaluation_of(body))
        found = (*(body[key] for key in ("kind", "step", "cell", "run")), records.evaluation_of(body))
        if told != found:
            raise ValueError(f"a record for {told} has a body for {found}")
        records.check_body(body)
        name, data = records.record_file(body, envelope)
        self.writable("records")
        path = self.dir / "records" / name
        if not files.write_once(path, data, link=self.store.link):
            if self._counts(path):
                return path
            files.replace(path, data)
        values.note(self.store.root, path, data)
        return path

    def records(self, kind: str | None = None) -> Records:
        """The verified records that count, of all layers, sorted by kind, step and evaluation; see `Records` for the rest."""
        looked = self.store.looked if self.store.lazy and kind is None else {}
        found = looked.get((self.cell, self.run))
        if found is None:
            reads = self.store.reads if self.store.lazy else kept.LIVE
            layers = [layer_records(place, kind, self.store.read_record, reads) for place in self._places]
            found = layers[0] if len(layers) == 1 else records.unite(layers)
            looked[self.cell, self.run] = found
        return found

    def record_names(self) -> list[str]:
        """The record files of one's own store, unread."""
        found = self.store.reads.names(f"{self._places[0]}/records")
        return [name for name in found if records.NAME.fullmatch(name)]

    def glimpses(self) -> list[Glimpse]:
        """The records by their names and heads, a hundred times faster than `records`: damage in the middle of a file, and a
        record whose writer had lost its claim, are not noticed. Where two files answer one question, all are read and judged."""
        return self.glimpses_of(self.seen())

    def seen(self) -> list[Seen]:
        """What `glimpses` is made of: a folder for each layer that has records of the run."""
        reads = self.store.reads
        found = [reads.records(f"{place}/records") for place in self._places]
        return [each for each in found if each.slots]

    def glimpses_of(self, seen: list[Seen]) -> list[Glimpse]:
        """The glimpses of what `seen` has just found."""
        found = [glimpse for each in seen for glimpse in each.glimpses()]
        return found if len({each[1:] for each in found}) == len(found) else self._judged()

    def _judged(self) -> list[Glimpse]:
        return [
            Glimpse(str(each.path), each.kind, each.step, each.evaluation, each.evaluation_code)
            for each in self.records()
        ]

    def _counts(self, path: Path) -> bool:
        """Whether the record at `path` is sound and its writer held its claim."""
        try:
            return Fence(str(self.dir))(records.read_record(path))
        except (FileNotFoundError, files.Unreadable):
            return False

    # --- claims, failures, state -----------------------------------------------------------------------------------

    def claim(self, stage: str, *, patience: float = 0.0) -> Claim | Held:
        """Claim a stage; falsy `Held` when somebody lives who has it.

        Asks for up to `patience` seconds. The lease of an owner on another machine runs from this process's first look, so a
        worker that moves on and comes back waits no longer than one that stays.
        """
        claims.check_stage(stage)
        for name in ("claims", "beats", "records"):
            self.writable(name)
        end = time.monotonic() + patience
        while True:
            won = claims.contend(
                self.dir,
                stage,
                self.store.watch,
                self.store.lease,
                link=self.store.link,
                inherited=lambda: self._made_by(stage),
            )
            if isinstance(won, Claim):
                self.sweep()
                return won
            if time.monotonic() >= end:
                return won
            time.sleep(min(1.0, self.store.lease / 5, max(0.0, end - time.monotonic())))

    def fail(self, stage: str, attempt: int, **fields: Any) -> None:
        """Keep why an attempt ended: step, cause (one of CAUSES), message, traceback, evidence. The first failure of an
        attempt stays, being the root of those that follow. Secrets in the texts are hidden."""
        content = failures.content(stage, attempt, fields)
        self.writable("failed")
        sealed.keep_once(self.dir / "failed" / f"{stage}.{attempt}.json", content, link=self.store.link)

    def failures(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The failures of a stage, or of all, oldest attempt first."""
        return [v for _, _, v in self._failed(stage) if isinstance(v, dict) and stage in (None, v["stage"])]

    def state(self, stage: str) -> StageState | None:
        """How the latest attempt at a stage fares; None when there was none."""
        now = claims.standing(self._places[0], stage, self.store.watch, self.store.lease, self.store.reads)
        last = max(self.failures(stage), key=lambda each: each["attempt"], default=None)
        return states.told(now, last)

    def touched(self) -> set[str]:
        """Every stage that was ever claimed or has failed, in any layer: of the others `state` knows nothing."""
        folders = [*(f"{place}/failed" for place in self._places), f"{self._places[0]}/claims"]
        return {name.partition(".")[0] for folder in folders for name in self.store.reads.names(folder)}

    def stages(self) -> list[str]:
        """Every stage that was ever claimed here, or whose failure came from another store."""
        reads = self.store.reads
        names = (name for place in self._places for name in reads.names(f"{place}/failed"))
        failed = (failures.stage_and_attempt(name)[0] for name in names)
        return sorted({*claims.stages(self._places[0], reads), *failed})

    def standing_failures(self) -> list[Path]:
        """The files of those failures that are a stage's present state, by name."""
        states = {stage: self.state(stage) for stage in {each["stage"] for each in self.failures()}}
        wanted = {
            f"{stage}.{now.attempt}.json" for stage, now in states.items() if now and now.state == "failed"
        }
        found = {name: folder for folder, name, value in self._failed() if isinstance(value, dict)}
        return [Path(found[name], name) for name in sorted(wanted & set(found))]

    def file(self, name: str) -> Path | None:
        """run.json or accepted.json of the first layer that has it."""
        return next((layer / name for layer in self.folders if (layer / name).is_file()), None)

    def accept(self, because: str, code: dict[str, str]) -> None:
        """Take this run's records as good for other code, with the reason; `code` = the component digests accepted for."""
        self.writable()
        content = {"format": sealed.FORMAT, "because": because, "code": code, "time": failures.now()}
        files.replace(self.dir / "accepted.json", sealed.seal(content))

    def accepted(self) -> dict[str, Any] | None:
        """What `accept` kept, None where nothing was. Raises files.Unreadable when it is damaged."""
        for place in self._places:
            path = f"{place}/accepted.json"
            if os.path.lexists(path):  # asked first: nearly no run has one, and thousands are asked
                try:
                    return sealed.read_sealed(Path(path))
                except FileNotFoundError:
                    continue
        return None

    def damaged(self) -> list[Damaged]:
        """Every file of the run that cannot be trusted, with the reason."""
        found = [*self.records().damaged]
        for layer in self.folders:
            found += damage(layer / "run.json")
        return found + [
            Damaged(Path(folder, name), value)
            for folder, name, value in self._failed()
            if isinstance(value, str)
        ]

    # --- inside ----------------------------------------------------------------------------------------------------

    def _failed(self, stage: str | None = None) -> Iterator[tuple[str, str, dict[str, Any] | str]]:
        return failures.read(self._places, self.store.reads, stage)

    def _made_by(self, stage: str) -> list[str]:
        """The record files of a stage, by their names."""
        found = []
        for name in kept.names(self.dir / "records"):
            match = records.NAME.fullmatch(name)
            if match and records.stage_name(match["kind"], int(match["step"]), match["evaluation"]) == stage:
                found.append(name)
        return found

    def sweep(self) -> None:
        """Remove what killed processes of this machine left half-written."""
        for name in ("claims", "beats", "records", "facts", "failed", "."):
            files.sweep(self.dir / name)
        files.sweep(self.dir.parent.parent)
        for folder in (self.checkpoints, self.milestones):
            files.sweep(folder)

    def writable(self, name: str = "") -> None:
        """Make a folder of the run. Raises EnvironmentProblem for a store that is only read, StorageProblem."""
        self.store.require_writable()
        files.make_directory(self.dir / name)
