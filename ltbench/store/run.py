"""One run of a cell: what one version of the training code made of it. The place of its records, claims and failures."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench import files, redact
from ltbench.canonical import digest
from ltbench.errors import LtbenchError
from ltbench.store import claims, kept, records, sealed, values
from ltbench.store.claims import Claim, Held
from ltbench.store.kept import Reads, Seen
from ltbench.store.records import Damaged, Glimpse, Record, Records

if TYPE_CHECKING:
    from ltbench.store.core import Store

CAUSES = ("nan", "unsupported", "oom", "plugin", "data", "disk", "killed", "code")
CAUSES += (
    "preempted",
    "node",
    "timeout",
    "cancelled",
    "no-progress",
)  # ends of a SLURM job that its processes could not write down
FACT_LIMIT = 1 << 20  # bytes
TRACEBACK_LIMIT = 20_000  # characters
_FACT = re.compile(r"[0-9a-f]{16}\.(png|npz)")


@dataclass(frozen=True)
class StageState:
    """How a stage fares, as far as files tell: "running", "lost" (its process is gone without a word), "failed", "preempted"
    or "released". Whether it is done is for the records to say. `sure` is False while only time can tell running from lost."""

    state: str
    attempt: int
    sure: bool = True
    cause: str | None = None
    message: str | None = None
    host: str | None = None
    progress: dict[str, Any] | None = None


def run_id(code: dict[str, str], settings: dict[str, Any]) -> str:
    """12 hex digits that name a run: from the digests of the training components and the resolved settings."""
    return digest({"code": code, "settings": settings})[:12]


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
    def _layers(self) -> list[Path]:
        return [root / self._place for root in self.store.layers]

    def layers(self) -> list[str]:
        """The layers that have something of the run, one's own first; see `Store.layer_of`."""
        return [self.store.layer_of(layer) for layer in self._layers if layer.is_dir()]

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
        self._writable()
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
        for layer in self._layers:
            if (layer / "run.json").exists():
                return sealed.read_sealed(layer / "run.json")
        raise self._unknown()

    def made_of(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """(code, settings) of `info`, through what is kept of the store; nobody changes them. Raises as `info` does."""
        for root in self.store.folders:
            try:
                return self.store.reads.info(f"{root}/{self._place}/run.json")
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
        self._writable("records")
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
            places = [f"{root}/{self._place}" for root in self.store.folders]
            layers = [_layer_records(place, kind, self.store.read_record, reads) for place in places]
            found = layers[0] if len(layers) == 1 else records.unite(layers)
            looked[self.cell, self.run] = found
        return found

    def record_names(self) -> list[str]:
        """The record files of one's own store, unread."""
        found = self.store.reads.names(f"{self.store.folders[0]}/{self._place}/records")
        return [name for name in found if records.NAME.fullmatch(name)]

    def glimpses(self) -> list[Glimpse]:
        """The records by their names and heads, a hundred times faster than `records`: damage in the middle of a file, and a
        record whose writer had lost its claim, are not noticed. Where two files answer one question, all are read and judged."""
        return self.glimpses_of(self.seen())

    def seen(self) -> list[Seen]:
        """What `glimpses` is made of: a folder for each layer that has records of the run."""
        reads = self.store.reads
        found = [reads.records(f"{root}/{self._place}/records") for root in self.store.folders]
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
            return _Fence(str(self.dir))(records.read_record(path))
        except (FileNotFoundError, files.Unreadable):
            return False

    # --- facts -----------------------------------------------------------------------------------------------------

    def put_fact(self, data: bytes, suffix: str) -> str:
        """Keep at most 1 MiB that figures need, and return its name; `suffix` is png or npz."""
        name = f"{files.sha256_bytes(data)[:16]}.{suffix.removeprefix('.')}"
        if not _FACT.fullmatch(name):
            raise ValueError(f"a fact is a png or an npz, not {suffix!r}")
        if len(data) > FACT_LIMIT:
            raise ValueError(
                f"a fact has at most {FACT_LIMIT:,} bytes, not {len(data):,}: keep it in the scratch folder"
            )
        self._writable("facts")
        path = self.dir / "facts" / name
        if (
            not files.write_once(path, data, link=self.store.link)
            and files.sha256_file(path)[0][:16] != name[:16]
        ):
            files.replace(path, data)
        return name

    def fact_names(self) -> list[str]:
        """The facts of all layers, sorted."""
        found = {name for layer in self._layers for name in kept.names(layer / "facts")}
        return sorted(name for name in found if _FACT.fullmatch(name))

    def fact(self, name: str) -> Path:
        """The file of a fact. Raises LtbenchError when no layer has it."""
        if not _FACT.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a fact")
        for layer in self._layers:
            if (layer / "facts" / name).is_file():
                return layer / "facts" / name
        raise LtbenchError(
            f"fact {name} of {self!r} is missing", "Run the cell's evaluation again to make it."
        )

    def read_fact(self, name: str) -> bytes:
        """A fact's bytes, verified. Raises LtbenchError (files.Unreadable when damaged)."""
        path = self.fact(name)
        data = files.read_regular(path, FACT_LIMIT)
        if files.sha256_bytes(data)[:16] != name[:16]:
            raise files.Unreadable(path, "does not match its name (sha256)")
        return data

    # --- claims, failures, state -----------------------------------------------------------------------------------

    def claim(self, stage: str, *, patience: float = 0.0) -> Claim | Held:
        """Claim a stage; falsy `Held` when somebody lives who has it.

        Asks for up to `patience` seconds. The lease of an owner on another machine runs from this process's first look, so a
        worker that moves on and comes back waits no longer than one that stays.
        """
        claims.check_stage(stage)
        for name in ("claims", "beats", "records"):
            self._writable(name)
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
        if fields.get("cause") not in CAUSES:
            raise ValueError(f"cause {fields.get('cause')!r} is not one of {', '.join(CAUSES)}")
        fields["traceback"] = redact.clean(fields.get("traceback") or "")[-TRACEBACK_LIMIT:]
        content = {
            "format": sealed.FORMAT,
            "stage": claims.check_stage(stage),
            "attempt": attempt,
            "time": _now(),
        }
        self._writable("failed")
        path = self.dir / "failed" / f"{stage}.{attempt}.json"
        sealed.keep_once(path, content | redact.clean_all(sealed.finite(fields)), link=self.store.link)

    def failures(self, stage: str | None = None) -> list[dict[str, Any]]:
        """The failures of a stage, or of all, oldest attempt first."""
        return [
            value
            for _, _, value in self._failures(stage)
            if isinstance(value, dict) and stage in (None, value["stage"])
        ]

    def state(self, stage: str) -> StageState | None:
        """How the latest attempt at a stage fares; None when there was none."""
        own = f"{self.store.folders[0]}/{self._place}"
        now = claims.standing(own, stage, self.store.watch, self.store.lease, self.store.reads)
        last = max(self.failures(stage), key=lambda each: each["attempt"], default=None)
        attempt = 0 if now is None else now.attempt
        if last is not None and last["attempt"] >= attempt and not _outlived(last, now):
            host = None if now is None or now.owner is None else now.owner.host
            return StageState(
                "failed", last["attempt"], cause=last["cause"], message=last.get("message"), host=host,
                progress={} if now is None else now.beat,
            )  # fmt: skip
        if now is None:
            return None
        state = {None: "running", "done": "released"}.get(now.outcome, now.outcome) or "running"
        if now.outcome is None and now.alive is False:
            state = "lost"
        sure = now.outcome is not None or now.alive is not None
        return StageState(
            state, attempt, sure, host=None if now.owner is None else now.owner.host, progress=now.beat
        )

    def touched(self) -> set[str]:
        """Every stage that was ever claimed or has failed, in any layer: of the others `state` knows nothing."""
        folders = [f"{root}/{self._place}/failed" for root in self.store.folders]
        folders.append(f"{self.store.folders[0]}/{self._place}/claims")
        return {name.partition(".")[0] for folder in folders for name in self.store.reads.names(folder)}

    def stages(self) -> list[str]:
        """Every stage that was ever claimed here, or whose failure came from another store."""
        reads, folders = self.store.reads, [f"{root}/{self._place}" for root in self.store.folders]
        failed = (
            _stage_and_attempt(name)[0] for folder in folders for name in reads.names(f"{folder}/failed")
        )
        return sorted({*claims.stages(folders[0], reads), *failed})

    def standing_failures(self) -> list[Path]:
        """The files of those failures that are a stage's present state, by name."""
        states = {stage: self.state(stage) for stage in {each["stage"] for each in self.failures()}}
        wanted = {
            f"{stage}.{now.attempt}.json" for stage, now in states.items() if now and now.state == "failed"
        }
        found = {name: folder for folder, name, value in self._failures() if isinstance(value, dict)}
        return [Path(found[name], name) for name in sorted(wanted & set(found))]

    def file(self, name: str) -> Path | None:
        """run.json or accepted.json of the first layer that has it."""
        return next((layer / name for layer in self._layers if (layer / name).is_file()), None)

    def accept(self, because: str, code: dict[str, str]) -> None:
        """Take this run's records as good for other code, with the reason; `code` = the component digests accepted for."""
        self._writable()
        content = {"format": sealed.FORMAT, "because": because, "code": code, "time": _now()}
        files.replace(self.dir / "accepted.json", sealed.seal(content))

    def accepted(self) -> dict[str, Any] | None:
        """What `accept` kept, None where nothing was. Raises files.Unreadable when it is damaged."""
        for root in self.store.folders:
            place = f"{root}/{self._place}/accepted.json"
            if os.path.lexists(place):  # asked first: nearly no run has one, and thousands are asked
                try:
                    return sealed.read_sealed(Path(place))
                except FileNotFoundError:
                    continue
        return None

    def damaged(self) -> list[Damaged]:
        """Every file of the run that cannot be trusted, with the reason."""
        found = [*self.records().damaged]
        for layer in self._layers:
            found += damage(layer / "run.json")
        failures = self._failures()
        return found + [
            Damaged(Path(f, name), value) for f, name, value in failures if isinstance(value, str)
        ]

    # --- inside ----------------------------------------------------------------------------------------------------

    def _failures(self, stage: str | None = None) -> Iterator[tuple[str, str, dict[str, Any] | str]]:
        """(folder, file, content or the reason why it cannot be read) by stage and attempt, of files that are named for `stage`."""
        for root in self.store.folders:
            folder = f"{root}/{self._place}/failed"
            there = self.store.reads.names(folder)
            own = there if stage is None else [name for name in there if name.startswith(f"{stage}.")]
            for name in sorted(own, key=_stage_and_attempt):
                try:
                    value = self.store.reads.sealed(f"{folder}/{name}")
                except FileNotFoundError:
                    continue
                except files.Unreadable as problem:
                    value = problem.reason
                yield folder, name, value

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

    def _writable(self, name: str = "") -> None:
        self.store.require_writable()
        files.make_directory(self.dir / name)


def _layer_records(layer: str, kind: str | None, read: Callable[[str], Record], reads: Reads) -> Records:
    """The records of a run that count in one layer."""
    found: list[Record] = []
    fenced: list[Record] = []
    damaged: list[Damaged] = []
    accepts = _Fence(layer, reads)
    for name in reads.names(f"{layer}/records"):
        if kind is not None and (match := records.NAME.fullmatch(name)) and match["kind"] != kind:
            continue
        try:
            record = read(f"{layer}/records/{name}")
        except files.Unreadable as problem:
            damaged.append(Damaged(problem.path, problem.reason))
        except FileNotFoundError:
            continue  # replaced under our eyes; not there is a state too
        else:
            (found if accepts(record) else fenced).append(record)
    settled = records.settle(found)
    settled.superseded += fenced
    settled.damaged += damaged
    return settled


class _Fence:
    """Whether a record was written while its writer still had its claim, as far as the claims of `folder` tell."""

    def __init__(self, folder: str, reads: Reads = kept.LIVE) -> None:
        self._folder, self._reads = folder, reads
        self._latest: dict[str, int] = {}

    def __call__(self, record: Record) -> bool:
        stage = record.stage
        if stage not in self._latest:
            self._latest[stage] = claims.latest_attempt(self._folder, stage, self._reads)
        latest = self._latest[stage]
        if not 0 < record.attempt < latest:
            return True
        inherited = claims.inherited_records(Path(self._folder), stage, record.attempt, latest)
        return inherited is None or record.path.name in inherited


def _outlived(failure: dict[str, Any], now: claims.Standing | None) -> bool:
    """Whether an attempt that a person cancelled is not over yet, or came to its end before it heard of that."""
    if failure["cause"] != "cancelled" or now is None or now.attempt != failure["attempt"]:
        return False
    return now.outcome == "done" or (now.outcome is None and now.alive is not False)


def damage(path: Path) -> list[Damaged]:
    """What is wrong with a sealed file; nothing when it is sound or absent."""
    try:
        sealed.read_sealed(path)
    except FileNotFoundError:
        return []
    except files.Unreadable as problem:
        return [Damaged(path, problem.reason)]
    return []


def _stage_and_attempt(name: str) -> tuple[str, int, str]:
    stage, _, number = name.removesuffix(".json").partition(".")
    return stage, int(number) if number.isdigit() else 0, name


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
