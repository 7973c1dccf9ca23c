"""How cells stand, one row each, from the store's files alone: no driver, no server, no torch.

With a plan, a row is what the plan says of a cell, and how far a running stage has come. Without one, it is what the files
of a cell's run tell: nobody knows then what else a benchmark may want of it. What waits in SLURM's queue, or was cancelled
there, is laid over it by `with_queue`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ltbench import provenance
from ltbench.canonical import Digester
from ltbench.errors import LtbenchError, UsageError
from ltbench.plan import Plan
from ltbench.plan.planned import STATES, Planned
from ltbench.stages.names import stage_name
from ltbench.store import Run, StageState, Store

if TYPE_CHECKING:
    from ltbench.launch.slurm.layout import Submission
    from ltbench.launch.slurm.seen import Seen, Task

WAITING, CANCELLED = "queued", "cancelled"
WORDS = (
    *STATES[:2],
    WAITING,
    *STATES[2:],
    CANCELLED,
)  # every state of a row, in the order in which they are told
OVER = ("done", "failed", "n/a", CANCELLED)
AGAIN = "was cancelled; run, submit or retry --class cancelled asks for it again"


@dataclass(frozen=True)
class Waiting:
    """What SLURM says of a cell's task. job: `1234_5`, None where SLURM never got it; state: SLURM's word, or "unknown" where it does
    not answer; alive: not over, as far as that is known; reason: why it waits; nodes: where it runs; cause: the class of a bad end;
    message: what it said of it."""

    job: str | None
    state: str
    alive: bool
    reason: str = ""
    nodes: str = ""
    cause: str | None = None
    message: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the board. step, total, loss and the speeds are those of a running stage; done and records count records
    (records is None where no plan says how many there will be). reached and wanted are steps of the training. restarts: how often
    SLURM has started its job again, or a stage was taken up again."""

    cell: str
    label: str
    seed: int | None
    state: str
    reason: str
    cause: str | None = None
    stage: str | None = None
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    steps_per_s: float | None = None
    done: int = 0
    records: int | None = None
    data: str = ""
    host: str | None = None
    reached: int = 0
    wanted: int | None = None
    restarts: int = 0
    queue: Waiting | None = None

    @property
    def name(self) -> str:
        """The label with the seed, where there is one."""
        return self.label if self.seed is None else f"{self.label} seed {self.seed}"

    @property
    def progress(self) -> float | None:
        """Share of the running stage, 0 to 1."""
        return self.step / self.total if self.step is not None and self.total else None

    @property
    def left(self) -> float | None:
        """Seconds until a running training is over at its present speed; None for anything else."""
        if self.steps_per_s and self.wanted is not None:
            return max(0, self.wanted - self.reached) / self.steps_per_s
        return None

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        queue = None if self.queue is None else asdict(self.queue)
        return {**vars(self), "queue": queue, "left_s": self.left}


@dataclass(frozen=True)
class Whole:
    """A grid in numbers: cells by state, training steps reached and wanted, steps per second of everything that trains now, and
    the seconds in which what is left of the training would be done at that speed (None while nothing trains)."""

    counts: dict[str, int]
    steps: int
    wanted: int
    steps_per_s: float
    left: float | None
    restarts: int

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        found = asdict(self)
        return {"restarts": found.pop("restarts"), "left_s": found.pop("left"), **found}


def whole(rows: Sequence[Row]) -> Whole:
    """The sum of the rows; what cannot run counts for nothing."""
    asked = [row for row in rows if row.wanted is not None and row.state != "n/a"]
    steps, wanted = sum(row.reached for row in asked), sum(row.wanted or 0 for row in asked)
    speed = sum(row.steps_per_s or 0.0 for row in rows)
    left = (wanted - steps) / speed if speed else None
    return Whole(count(rows), steps, wanted, speed, left, sum(row.restarts for row in rows))


def of_plan(plan: Plan) -> list[Row]:
    """One row per planned cell, in the plan's order."""
    several = len(plan.spec.parts) > 1
    return [_planned(item, several) for item in plan.cells]


def _planned(item: Planned, several: bool) -> Row:
    cell = item.cell
    running = next((due.stage for due in item.due if due.reason.startswith("running")), None)
    wanted = cell.milestones[-1]
    cancelled = item.cause == CANCELLED
    return Row(
        cell=cell.id,
        label=f"{cell.part} {cell.label}" if several else cell.label,
        seed=cell.seed,
        state=CANCELLED if cancelled else item.state,
        reason=AGAIN if cancelled else item.reason,
        cause=None if cancelled else item.cause,
        done=item.done,
        records=item.total,
        data=data_of(cell.settings),
        host=item.host,
        reached=wanted if item.state == "done" else min(wanted, item.reached),
        wanted=wanted,
        restarts=max(0, item.attempts - 1),
        **_beat(item.progress, running, cell.settings),
    )


def with_queue(rows: Sequence[Row], seen: Seen) -> list[Row]:
    """The rows with what SLURM and the files of submissions tell of cells: tasks that wait or are over, how often they were started
    again, and which cells were cancelled. A cell that runs or is done, by its own files, stays that; one that had failed is not
    cancelled by cancelling the whole benchmark, or its cause would be lost and `retry` would take up a NaN by another name."""
    restarts, cancelled = seen.restarts(), seen.cancelled()
    waiting = {cell: _waiting(task) for cell in seen.tasks if (task := seen.of(cell)) is not None}
    return [
        _queued(row, waiting.get(row.cell), restarts.get(row.cell, 0), row.cell in cancelled) for row in rows
    ]


def of_commands(seen: Seen) -> list[str]:
    """A line for each command that runs as a job or ended badly, the newest of its kind."""
    newest: dict[str, Task] = {}
    for task in seen.commands:
        assert task.command is not None, "that is what they are chosen by"
        newest.setdefault(task.command.title, task)
    found = []
    for title, task in newest.items():
        waiting = _waiting(task)
        if task.alive:
            found.append(f"{title}: {_why_waiting(waiting)}")
        elif task.cause is not None:
            found.append(f"{title}: {_why_over(waiting)}; python harness.py logs {task.submission.id}")
    return found


def _waiting(task: Task) -> Waiting:
    state, ended = task.state, task.ended or {}
    return Waiting(
        task.name if task.job else None,
        task.word,
        task.alive,
        state.reason if state else "",
        state.node if state else "",
        task.cause,
        "what it waited for failed" if task.orphaned else str(ended.get("message") or ""),
    )


def _queued(row: Row, task: Waiting | None, restarts: int, cancelled: bool) -> Row:
    row = replace(row, queue=task, restarts=max(row.restarts, restarts))
    if row.state in ("done", "running", "n/a"):
        return row
    if task is not None and task.alive:
        return replace(row, state=WAITING, reason=_why_waiting(task), cause=None)
    if cancelled and row.state != "failed":
        return replace(row, state=CANCELLED, reason=AGAIN, cause=None)
    if task is not None and task.cause is not None and row.state in ("new", "partial"):
        return replace(row, state="partial", reason=_why_over(task, row.state == "new"), cause=task.cause)
    return row


def _why_over(task: Waiting, fresh: bool = False) -> str:
    """fresh: nothing of its cell has begun. SLURM remembers for minutes why it gave a job up, and people come back after days."""
    if task.job is None:
        return f"{task.cause}: it was never handed to SLURM; submit sends it"
    said = "SLURM no longer knows it" if task.state == "forgotten" else f"SLURM says {task.state}"
    if fresh and task.state == "forgotten":
        said = "it never began, and SLURM no longer knows it: what it waited for may have failed"
    return f"{task.cause}: job {task.job} is over ({task.message or said})"


def _why_waiting(task: Waiting) -> str:
    if task.state == "unknown":
        return f"job {task.job} was submitted; SLURM does not say how it stands"
    where = f" on {task.nodes}" if task.nodes else ""
    why = f" ({task.reason})" if task.reason and task.reason != "None" else ""
    return f"job {task.job} is {task.state}{where}{why}"


def of_store(store: Store, seen: Seen | None = None) -> list[Row]:
    """One row per cell of the store: its run by the present code if there is one, else the one with most records; then the cells that
    were submitted to it and have not begun, which their jobs write down themselves. `with_queue` says how those stand."""
    digester = Digester()
    tasks = {} if seen is None else seen.tasks
    found = (_found(store, cell, digester, tasks.get(cell, ())) for cell in store.cells())
    rows = [row for row in found if row is not None]
    return rows if seen is None else [*rows, *_not_begun(store, seen, {row.cell for row in rows})]


def _not_begun(store: Store, seen: Seen, known: Collection[str]) -> Iterator[Row]:
    """Cells of submissions to this store that are not in it, unless their jobs were cancelled or have nothing to say."""
    ours: dict[Submission, bool] = {}
    for cell in sorted(seen.tasks.keys() - known):
        task = seen.of(cell)
        if task is None or not (task.alive or task.cause not in (None, CANCELLED)):
            continue
        if task.submission not in ours:
            ours[task.submission] = _for(store, task.submission)
        if ours[task.submission]:
            entry = next(entry for entry in task.entries if entry.cell == cell)
            label, data = name_of(entry.settings), data_of(entry.settings)
            yield Row(cell, label, entry.seed, "new", "never run", data=data)


def _for(store: Store, submission: Submission) -> bool:
    """Whether a submission was made to this store: another one may share the scratch folder."""
    try:
        return submission.info().get("store") in (None, *store.folders)
    except (FileNotFoundError, LtbenchError):
        return False


def _found(store: Store, cell: str, digester: Digester, tasks: Sequence[Task]) -> Row | None:
    """None for a cell that has not begun: of one that was cancelled before, a failure alone may be there."""
    try:
        settings = store.settings(cell)
    except UsageError:
        return None
    runs = {run.run: (run, _made(run)) for run in store.runs(cell)}
    present = _present_run(settings, digester)
    chosen = runs.get(present or "") or max(runs.values(), key=lambda found: found[1], default=None)
    base = {
        "cell": cell,
        "label": name_of(settings),
        "seed": settings.get("seed"),
        "data": data_of(settings),
    }
    if chosen is None:
        return Row(**base, state="new", reason="never run")
    run, made = chosen
    states = {name: state for name in run.stages() if (state := run.state(name)) is not None}
    for word in ("running", "failed", "lost", "preempted"):
        stage = next((name for name, state in states.items() if state.state == word), None)
        if stage is not None:
            return Row(**base, done=made, **_told(stage, states[stage], settings))
    if missing := _not_measured(run, cell, states, tasks):
        reason = f"{len(missing)} of its evaluations not begun"
        return Row(**base, state="partial", reason=reason, done=made)
    return Row(
        **base, state="done" if made else "new", reason="every stage that was begun is over", done=made
    )


def _made(run: Run) -> int:
    """Records of a run: of the one store by their names alone, of layers each once."""
    return len(run.record_names() if len(run.store.layers) == 1 else run.glimpses())


def _not_measured(run: Run, cell: str, begun: Collection[str], tasks: Sequence[Task]) -> set[str]:
    """Evaluations of a run that jobs are still to make, or that the newest submission has not made, by their stages."""
    asked = {
        stage
        for task in tasks
        if task.alive or task.submission == tasks[0].submission
        for entry in task.entries
        if (entry.cell, entry.run) == (cell, run.run)
        for stage in entry.stages
        if stage.startswith("evaluate:") and stage_name(stage) not in begun
    }
    if asked:  # what came from another store was never begun here
        asked -= {f"evaluate:{each.step}:{each.evaluation}" for each in run.glimpses()}
    return asked


def _told(stage: str, now: StageState, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the stage that decides a cell's state gives to its row."""
    if now.state == "running":
        beat = _beat(now.progress or {}, stage, settings)
        steps = {"reached": beat["step"] or 0, "wanted": beat["total"]} if stage == "train" else {}
        again = {"host": now.host, "restarts": now.attempt - 1}
        return {"state": "running", "reason": f"on {now.host}", **beat, **steps, **again}
    if now.state == "failed" and now.cause == CANCELLED:
        return {"state": CANCELLED, "reason": AGAIN, "stage": stage}
    if now.state == "failed":
        return {
            "state": "failed",
            "reason": f"{now.cause}: {now.message or ''}",
            "cause": now.cause,
            "stage": stage,
        }
    reason = "its process ended without a word" if now.state == "lost" else "was interrupted"
    return {"state": "partial", "reason": reason, "stage": stage}


def _present_run(settings: Mapping[str, Any], digester: Digester) -> str | None:
    try:
        return provenance.run_id(provenance.train_code(settings), settings, digester)
    except LtbenchError:
        return None  # its method or data set is not here; its records are


def _beat(beat: Mapping[str, Any] | None, stage: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    if beat is None:
        return {}
    rate = beat.get("images_per_s")
    training = stage is not None and stage.startswith("train")
    return {
        "stage": stage,
        **{key: beat.get(key) for key in ("step", "total", "loss", "images_per_s")},
        "steps_per_s": rate / settings["train"]["batch"] if rate and training else None,
    }


def data_of(settings: Mapping[str, Any]) -> str:
    """The data set's name with its size, where it has one: `fashion_mnist 32`."""
    data = settings["dataset"]
    return f"{data['name']} {data['resolution']}" if "resolution" in data else data["name"]


def name_of(settings: Mapping[str, Any]) -> str:
    """A short name for a cell seen without its benchmark, seed excepted: `ccua (fashion_mnist 32, sit)`; what was not trained
    here says so: `adm (fashion_mnist 32, external)`."""
    if "external" in settings:
        return f"{settings['external']['name']} ({data_of(settings)}, external)"
    return f"{settings['method']['name']} ({data_of(settings)}, {settings['pipeline']})"


def count(rows: Sequence[Row]) -> dict[str, int]:
    """Cells by state, without zeros."""
    found = Counter(row.state for row in rows)
    return {state: found[state] for state in WORDS if found[state]}
