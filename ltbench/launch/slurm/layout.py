"""The files of a submission: SCRATCH/submissions/SUB/. Each has one writer, is sealed JSON and is written once.

    submission.json        what was submitted, with which profile and which code                       (the driver)
    array-A.json           what every element of array A is to do                                      (the driver, or a training)
    jobs.json              SLURM's numbers of the driver's arrays, written anew after each sbatch     (the driver)
    job-A.json             that of array A which a training submitted, or that was found by its token  (whoever did)
    started/A.I.R.json     element I of array A began, for the R-th time                               (the job)
    ended/A.I.R.json       how that ended, as far as the job could say                                 (the job)
    cancelled, cancelled-A-I   a person wants no more of it                                            (`cancel`)
    logs/A_I.out           what the element printed                                                    (SLURM)
    calls/                 submitit's own: the call of a running element and what it returned          (the job)

An array that neither names was never submitted, or its driver died between sbatch and the file: its token finds it.
Everything about the cells themselves is in the store. What thousands of cells share is written once per array.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltbench import files, redact
from ltbench.errors import LtbenchError, UsageError
from ltbench.launch.work import CellWork
from ltbench.profiles import Profile
from ltbench.store import Store, sealed
from ltbench.store.kept import names

FOLDER = "submissions"
_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6,9}")
_ARRAY = re.compile(r"array-(\d+)\.json")
_ELEMENT = re.compile(r"(\d+)\.(\d+)\.(\d+)\.json")


@dataclass(frozen=True)
class Entry:
    """One cell's share of an array element. cell, label, seed, run, stages, options, after, start, latents: as CellWork and Work.

    settings, identity: what `register` puts into the store before the first stage. evaluations: those that the stages name, by id.
    """

    cell: str
    label: str
    seed: int
    run: str
    stages: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, int] | None = None
    start: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    latents: str | None = None

    def work(self, **options: Any) -> CellWork:
        """For `launch.local`; `options` are added to those of the entry."""
        start = {} if self.start is None else {"start": self.start}
        said = {**self.options, **options, **start}
        return CellWork(
            self.cell, self.label, self.seed, self.stages, self.run, said, self.after, self.latents
        )

    def register(self, store: Store) -> None:
        """Write what jobs read, as `plan.register` does for a run on this machine. Raises LtbenchError where the code that runs
        here would make another run of the cell than the one that was submitted."""
        from ltbench import provenance

        code = provenance.train_code(self.settings)
        run = provenance.run_id(code, self.settings)
        if run != self.run:
            raise LtbenchError(
                f"the code here makes run {run} of cell {self.cell[:12]}; run {self.run} was submitted",
                "the snapshot of the submission is not what runs here, or was changed: submit again",
            )
        store.put_cell(self.cell, self.identity, self.settings)
        store.run(self.cell, run).create(code, self.settings)
        for evaluation in self.evaluations.values():
            store.put_evaluation(evaluation)


Task = tuple[Entry, ...]  # what one array element runs; empty: the array has no such element


@dataclass(frozen=True)
class Array:
    """An array of jobs. resource: {"class": training | evaluation | helper | watchdog, ...} and what sbatch was asked for."""

    number: int
    resource: dict[str, Any]
    tasks: tuple[Task, ...]

    @property
    def indices(self) -> list[int]:
        """Elements that there are."""
        return [
            index
            for index, task in enumerate(self.tasks)
            if task or self.resource["class"] == "watchdog" or "command" in self.resource
        ]


@dataclass(frozen=True)
class Submission:
    """A submission's folder."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    def info(self) -> dict[str, Any]:
        """submission.json. Raises FileNotFoundError where the driver did not come so far, files.Unreadable."""
        return sealed.read_sealed(self.folder / "submission.json")

    def profile(self) -> Profile:
        """The profile it was submitted with, as it was then."""
        return Profile.from_plain(self.info()["resolved"])

    # --- arrays and jobs --------------------------------------------------------------------------------------------

    def arrays(self) -> list[int]:
        """Numbers of its arrays, rising."""
        return sorted(int(found[1]) for name in names(self.folder) if (found := _ARRAY.fullmatch(name)))

    def array(self, number: int) -> Array:
        """Raises FileNotFoundError, files.Unreadable."""
        kept = sealed.read_sealed(self.folder / f"array-{number}.json")
        return Array(number, kept["resource"], tuple(_unpacked(kept)))

    def add_array(self, resource: Mapping[str, Any], tasks: Sequence[Sequence[Entry]]) -> Array:
        """Write an array under the next free number: trainings that submit evaluations may do so at the same moment."""
        number = max(self.arrays(), default=-1) + 1
        packed = {"format": sealed.FORMAT, "resource": dict(resource), **_packed(tasks)}
        while not files.write_once(self._array(number), sealed.seal({**packed, "array": number})):
            number += 1
        return Array(number, dict(resource), tuple(map(tuple, tasks)))

    def _array(self, number: int) -> Path:
        return self.folder / f"array-{number}.json"

    def token(self, number: int) -> str:
        """The comment by which SLURM knows array `number`, also when its number was never written down."""
        return f"ltbench-{self.id}-{number}"

    def job(self, number: int) -> str | None:
        """SLURM's job number of an array; None: not submitted, or its driver died before it could write it down."""
        for name, of in ((f"job-{number}.json", None), ("jobs.json", str(number))):
            try:
                kept = sealed.read_sealed(self.folder / name)
            except FileNotFoundError:
                continue
            job = kept["job_id"] if of is None else kept["jobs"].get(of)
            if job is not None:
                return str(job)
        return None

    def put_job(self, number: int, job_id: str) -> None:
        """Write job-A.json; whoever adopts an array writes the same."""
        value = {"format": sealed.FORMAT, "job_id": job_id, "token": self.token(number)}
        sealed.keep_once(self.folder / f"job-{number}.json", value, link=True)

    def put_jobs(self, jobs: Mapping[int, str]) -> None:
        """Write jobs.json: array -> SLURM's number, of everything that the driver has submitted so far. The driver alone does."""
        value = {"format": sealed.FORMAT, "jobs": {str(number): job for number, job in jobs.items()}}
        files.replace(self.folder / "jobs.json", sealed.seal(value))

    # --- what jobs say ------------------------------------------------------------------------------------------------

    def put_started(self, array: int, index: int, restart: int, **fields: Any) -> None:
        """node, job_id, pid, time, kept: the element began, with so much kept of its starts before (ltbench/launch/slurm/headway.py)."""
        self._put("started", array, index, restart, fields)

    def put_ended(self, array: int, index: int, restart: int, **fields: Any) -> None:
        """reason (done, failed, preempted, timeout, cancelled), outcome, cause, message: the element ended."""
        self._put("ended", array, index, restart, fields)

    def _put(self, kind: str, array: int, index: int, restart: int, fields: Mapping[str, Any]) -> None:
        path = self.folder / kind / f"{array}.{index}.{restart}.json"
        files.make_directory(path.parent)
        told = redact.clean_all(sealed.finite(dict(fields)))
        files.replace(path, sealed.seal({"format": sealed.FORMAT, **told}))

    def started(self) -> dict[tuple[int, int, int], Path]:
        """(array, index, restart) -> file, of every beginning."""
        return self._listed("started")

    def ended(self) -> dict[tuple[int, int, int], Path]:
        """(array, index, restart) -> file, of every end that was told."""
        return self._listed("ended")

    def _listed(self, kind: str) -> dict[tuple[int, int, int], Path]:
        found = {}
        for name in names(self.folder / kind):
            if match := _ELEMENT.fullmatch(name):
                found[int(match[1]), int(match[2]), int(match[3])] = self.folder / kind / name
        return found

    # --- cancelling, logs ---------------------------------------------------------------------------------------------

    def cancel(self, array: int | None = None, index: int | None = None) -> None:
        """Leave the mark that a task looks for: of the whole submission, or of one element."""
        name = "cancelled" if array is None else f"cancelled-{array}-{index}"
        files.write_once(self.folder / name, b"")

    def cancelled(self, array: int, index: int) -> bool:
        """Whether a person cancelled this element, or everything."""
        return any((self.folder / name).exists() for name in ("cancelled", f"cancelled-{array}-{index}"))

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def log(self, array: int, index: int) -> Path:
        """What SLURM writes of an element; every restart appends."""
        return self.logs / f"{array}_{index}.out"

    @property
    def calls(self) -> Path:
        return self.folder / "calls"


def create(scratch: Path, info: Mapping[str, Any]) -> Submission:
    """A fresh submission below `scratch` with its submission.json. Raises files.StorageProblem."""
    name = _new_name(time.time_ns())
    made = Submission(Path(scratch).absolute() / FOLDER / name)
    for folder in (made.logs, made.calls):
        files.make_directory(folder)
    value = {"format": sealed.FORMAT, "id": name, "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **info}
    files.replace(made.folder / "submission.json", sealed.seal(value))
    return made


def _new_name(now: int) -> str:
    """The id of a submission made at `now`, nanoseconds since 1970: its order is that of time, in one second and over a change of
    clocks as well, for the newest one speaks for a cell. UTC, microseconds in five hexadecimal digits, four that are random."""
    seconds, rest = divmod(now, 10**9)
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds))
    return f"{stamp}-{rest // 1000:05x}{uuid.uuid4().hex[:4]}"


def named(text: str) -> bool:
    """Whether this is how a submission is called."""
    return _NAME.fullmatch(text) is not None


def submissions(scratch: Path, benchmark: str | None = None) -> Iterator[Submission]:
    """Every submission (of a benchmark), the newest first; one without a readable submission.json sent nothing."""
    folder = Path(scratch).absolute() / FOLDER
    for name in sorted(filter(_NAME.fullmatch, names(folder)), reverse=True):
        found = Submission(folder / name)
        try:
            info = found.info()
        except (FileNotFoundError, files.Unreadable):
            continue
        if benchmark is None or info["benchmark"] == benchmark:
            yield found


def find(scratch: Path, name: str) -> Submission:
    """The submission of this id. Raises UsageError."""
    found = Submission(Path(scratch).absolute() / FOLDER / name)
    if not _NAME.fullmatch(name) or not (found.folder / "submission.json").exists():
        raise UsageError(f"there is no submission '{name}' in {found.folder.parent}")
    return found


# --- what entries share -----------------------------------------------------------------------------------------------


def _packed(tasks: Sequence[Sequence[Entry]]) -> dict[str, Any]:
    """Entries as JSON, with pools of what many share. Settings and identity are kept per key: cells of a grid differ in few."""
    pieces, forms, options = _Pool(), _Pool(), _Pool()
    evaluations: dict[str, dict[str, Any]] = {}
    rows = []
    for task in tasks:
        row = []
        for entry in task:
            form = {
                kind: {key: pieces.add(value) for key, value in content.items() if key != "seed"}
                for kind, content in (("settings", entry.settings), ("identity", entry.identity))
            }
            for key, description in entry.evaluations.items():
                evaluations.setdefault(key, description)
            item: dict[str, Any] = {
                "cell": entry.cell,
                "label": entry.label,
                "seed": entry.seed,
                "run": entry.run,
                "stages": list(entry.stages),
                "options": options.add(entry.options),
                "form": forms.add(form),
            }
            if entry.after is not None:
                item["after"] = list(entry.after)
            if entry.start is not None:
                item["start"] = entry.start
            if entry.latents is not None:
                item["latents"] = entry.latents
            row.append(item)
        rows.append(row)
    shared = {"pieces": pieces.values, "forms": forms.values, "options": options.values}
    return {"tasks": rows, "shared": shared, "evaluations": evaluations}


def _unpacked(kept: Mapping[str, Any]) -> Iterator[Task]:
    shared, evaluations = kept["shared"], kept["evaluations"]
    for row in kept["tasks"]:
        yield tuple(_entry(item, shared, evaluations) for item in row)


def _entry(item: Mapping[str, Any], shared: Mapping[str, Any], evaluations: Mapping[str, Any]) -> Entry:
    form = shared["forms"][item["form"]]
    settings, identity = (
        {key: shared["pieces"][place] for key, place in form[kind].items()} | {"seed": item["seed"]}
        for kind in ("settings", "identity")
    )
    named = {part for stage in item["stages"] for part in stage.split(":")[1:]} & evaluations.keys()
    return Entry(
        cell=item["cell"],
        label=item["label"],
        seed=item["seed"],
        run=item["run"],
        stages=tuple(item["stages"]),
        options=dict(shared["options"][item["options"]]),
        after=tuple(item["after"]) if "after" in item else None,
        start=item.get("start"),
        latents=item.get("latents"),
        settings=settings,
        identity=identity,
        evaluations={key: evaluations[key] for key in sorted(named)},
    )


class _Pool:
    """Values, each once. Most are one object in thousands of cells, so the object itself is looked up first."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._objects: dict[int, int] = {}
        self._texts: dict[str, int] = {}

    def add(self, value: Any) -> int:
        known = self._objects.get(id(value))
        if known is not None:
            return known
        text = repr(value)
        if text not in self._texts:
            self._texts[text] = len(self.values)
            self.values.append(value)
        place = self._texts[text]
        if self.values[place] is value:  # it stays alive here, so its id stays its own
            self._objects[id(value)] = place
        return place
