"""How cells stand, one row each, from the store's files alone: no driver, no server, no torch.

With a plan, a row is what the plan says of a cell, and how far a running stage has come. Without one, it is what the files
of a cell's run tell: nobody knows then what else a benchmark may want of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ltbench import provenance
from ltbench.errors import LtbenchError
from ltbench.plan import STATES, Plan, Planned
from ltbench.store import Run, StageState, Store
from ltbench.store.records import NAME


@dataclass(frozen=True)
class Row:
    """One line of the board. step, total, loss and the speeds are those of a running stage; done and records count records
    (records is None where no plan says how many there will be)."""

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

    @property
    def name(self) -> str:
        """The label with the seed, where there is one."""
        return self.label if self.seed is None else f"{self.label} seed {self.seed}"

    @property
    def progress(self) -> float | None:
        """Share of the running stage, 0 to 1."""
        return self.step / self.total if self.step is not None and self.total else None

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def of_plan(plan: Plan) -> list[Row]:
    """One row per planned cell, in the plan's order."""
    several = len(plan.spec.parts) > 1
    return [_planned(item, several) for item in plan.cells]


def _planned(item: Planned, several: bool) -> Row:
    cell = item.cell
    running = next((due.stage for due in item.due if due.reason.startswith("running")), None)
    return Row(
        cell=cell.id,
        label=f"{cell.part} {cell.label}" if several else cell.label,
        seed=cell.seed,
        state=item.state,
        reason=item.reason,
        cause=item.cause,
        done=item.done,
        records=item.total,
        **_beat(item.progress, running, cell.settings),
    )


def of_store(store: Store) -> list[Row]:
    """One row per cell of the store: its run by the present code if there is one, else the one with most records."""
    return [_found(store, cell) for cell in store.cells()]


def _found(store: Store, cell: str) -> Row:
    settings = store.cell(cell)["settings"]
    runs = {run.run: (run, _records(run)) for run in store.runs(cell)}
    present = _present_run(settings)
    chosen = runs.get(present or "") or max(runs.values(), key=lambda found: len(found[1]), default=None)
    base = {"cell": cell, "label": name_of(settings), "seed": settings.get("seed")}
    if chosen is None:
        return Row(**base, state="new", reason="never run")
    run, made = chosen
    states = {name: state for name in run.stages() if (state := run.state(name)) is not None}
    for word in ("running", "failed", "lost", "preempted"):
        stage = next((name for name, state in states.items() if state.state == word), None)
        if stage is not None:
            return Row(**base, done=len(made), **_told(stage, states[stage], settings))
    return Row(
        **base, state="done" if made else "new", reason="every stage that was begun is over", done=len(made)
    )


def _told(stage: str, now: StageState, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the stage that decides a cell's state gives to its row."""
    if now.state == "running":
        return {"state": "running", "reason": f"on {now.host}", **_beat(now.progress or {}, stage, settings)}
    if now.state == "failed":
        return {
            "state": "failed",
            "reason": f"{now.cause}: {now.message or ''}",
            "cause": now.cause,
            "stage": stage,
        }
    reason = "its process ended without a word" if now.state == "lost" else "was interrupted"
    return {"state": "partial", "reason": reason, "stage": stage}


def _present_run(settings: Mapping[str, Any]) -> str | None:
    try:
        return provenance.run_id(provenance.train_code(settings), settings)
    except LtbenchError:
        return None  # its method or data set is not here; its records are


def _records(run: Run) -> list[str]:
    """Names of the record files, unread: reading them is for `show`."""
    folder = run.dir / "records"
    return [path.name for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []


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


def name_of(settings: Mapping[str, Any]) -> str:
    """A short name for a cell seen without its benchmark, seed excepted: `ccua (fashion_mnist 32, sit)`; what was not trained
    here says so: `adm (fashion_mnist 32, external)`."""
    data = settings["dataset"]
    size = f" {data['resolution']}" if "resolution" in data else ""
    if "external" in settings:
        return f"{settings['external']['name']} ({data['name']}{size}, external)"
    return f"{settings['method']['name']} ({data['name']}{size}, {settings['pipeline']})"


def count(rows: Sequence[Row]) -> dict[str, int]:
    """Cells by state, without zeros."""
    found = {state: sum(row.state == state for row in rows) for state in STATES}
    return {state: number for state, number in found.items() if number}
