"""`retry`: cells that failed or were stopped, by class, again: where they ran before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from ltbench.cli.options import (
    AsJson,
    Ask,
    Changes,
    Filters,
    Plugins,
    ScratchAt,
    SpecName,
    StoreAt,
    WithMethods,
    place,
)
from ltbench.cli.output import dump, plural, say
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.spec.resolved import Spec
    from ltbench.status import Row

NAMED_ONLY = ("nan", "unsupported", "impossible", "cancelled")  # tried again only where the class is named
CLASSES = (
    "preempted",
    "timeout",
    "node",
    "lost",
    "killed",
    "oom",
    "disk",
    "data",
    "plugin",
    "code",
    "no-progress",
    *NAMED_ONLY,
)


def retry(
    spec: SpecName,
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            "-c",
            metavar="CAUSE,...",
            help="Only these causes. [all but nan, unsupported, cancelled]",
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch",
            metavar="N",
            min=1,
            help="Images per forward: less memory, the same cell and result.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", "-p", metavar="NAME", help="Submit with it. [the one they were submitted with]"
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes, on this machine. [as run]")] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="On this machine. [as run]")] = None,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    ask: Ask = True,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
    job: Annotated[str | None, typer.Option("--job", metavar="MODULE:FUNCTION", hidden=True)] = None,
) -> None:
    """Take up cells again that failed, were lost or stopped, by the class of their failure, and no others.

    Where one of them was submitted, all are submitted, with the newest submission's profile; else they run on this machine. Training
    goes on from the last checkpoint. A loss that was not finite, and a cell that was cancelled, are taken up only where their class
    is named: --class nan, --class cancelled.

    \b
    Example:
      python harness.py retry table1
      python harness.py retry table1 --class preempted,node,timeout
      python harness.py retry table1 --class oom --micro-batch 16
    """
    from ltbench.cli import jobs
    from ltbench.cli.standing import Looker

    place(store, scratch, plugins)
    look = Looker(spec, tuple(filter_ or ()), tuple(set_ or ()), tuple(with_ or ()))
    rows = _chosen(look(), [word for text in class_ or [] for word in text.split(",") if word])
    for note in look.notes:
        say(f"note: {note}")
    if not rows:
        say("nothing to take up again")
        if json:
            dump({"cells": 0})
        return
    again = Again(spec, rows, micro_batch, profile or _remembered(rows), ask, json)
    if again.profile is not None:
        jobs.refuse_local(workers=workers, device=device, job=job)
    benchmark = _benchmark(spec, set_ or [], with_ or [], micro_batch)
    if again.profile is None:
        raise typer.Exit(_run(benchmark, again, workers, device, job))
    raise typer.Exit(_submit(benchmark, again))


@dataclass(frozen=True)
class Again:
    """What is taken up again: the spec as typed, the rows, and how."""

    spec: str
    rows: Sequence[Row]
    micro_batch: int | None
    profile: str | None
    ask: bool
    json: bool

    @property
    def filters(self) -> tuple[str, ...]:
        """What leaves these cells of the benchmark."""
        return ("cell=" + ",".join(row.cell[:16] for row in self.rows),)


def class_of(row: Row) -> str | None:
    """The class by which a row is taken up again; None for what did not fail."""
    from ltbench.status import CANCELLED

    if row.state == CANCELLED:
        return CANCELLED
    if row.state not in ("failed", "partial"):
        return None
    if row.cause is not None:
        return row.cause
    if row.reason.startswith("was interrupted"):
        return "preempted"
    return "lost" if row.reason.startswith("its process ended without a word") else None


def _chosen(rows: Sequence[Row], wanted: Sequence[str]) -> list[Row]:
    """The rows of the classes that are wanted, each counted (stderr). Raises UsageError for a word that is no class."""
    found = Counter(cause for row in rows if (cause := class_of(row)) is not None)
    here = ", ".join(f"{cause} {number}" for cause, number in found.most_common()) or "no cell has failed"
    for word in wanted:
        if word not in CLASSES and word not in found:
            raise UsageError(
                f"--class {word}: there is no such class", f"here: {here}; allowed: {', '.join(CLASSES)}"
            )
    taken = [row for row in rows if (c := class_of(row)) and (c in wanted if wanted else c not in NAMED_ONLY)]
    counts = Counter(class_of(row) for row in taken)
    if taken:
        said = ", ".join(f"{cause} {number}" for cause, number in counts.most_common())
        say(f"taking up {plural(len(taken), 'cell')} again: {said}")
    left = {cause: number for cause, number in found.items() if cause not in counts}
    if left:
        say(
            "left alone: "
            + ", ".join(f"{cause} {number}" for cause, number in left.items())
            + " (name them: --class)"
        )
    return taken


def _benchmark(spec: str, changes: Sequence[str], methods: Sequence[str], micro_batch: int | None) -> Spec:
    """The benchmark; with a micro-batch of its own it stays the same benchmark, since that changes no cell."""
    from ltbench.cli import targets

    plain = targets.load(spec, changes, methods)
    if micro_batch is None:
        return plain
    changed = targets.load(spec, [*changes, f"train.micro_batch={micro_batch}"], methods)
    say(
        f"with {micro_batch} images per forward; write train.micro_batch: {micro_batch} into the spec to keep it"
    )
    return replace(changed, name=plain.name, derived=plain.derived)


def _remembered(rows: Sequence[Row]) -> str | None:
    """The profile of the newest submission that had one of the cells."""
    from ltbench.cli.stores import scratch_root
    from ltbench.launch.slurm import seen

    if not (scratch_root() / "submissions").is_dir():
        return None
    known = seen.look(scratch_root(), ask=False).tasks
    newest = max(
        (known[row.cell][0].submission for row in rows if row.cell in known), key=lambda s: s.id, default=None
    )
    if newest is None:
        return None
    told = newest.info()
    say(f"submitting again with profile {told['profile']}, as {newest.id}")
    if own := sum(row.cell not in known for row in rows):
        say(f"{plural(own, 'cell')} of these ran without SLURM, and would again by `run` with --filter")
    return str(told.get("profile_file") or told["profile"])


def _run(benchmark: Spec, again: Again, workers: int | None, device: str | None, job: str | None) -> int:
    from ltbench.cli.running import Asked, Pool, carry_out

    pool = Pool(workers, None, device, 1, job)
    asked = Asked("run", again.spec, again.filters, again.ask, retry_failed=True, json=again.json)
    return carry_out(benchmark, pool, asked)


def _submit(benchmark: Spec, again: Again) -> int:
    """Through the same function as `submit`: what waits or runs by now is left out there."""
    from ltbench import profiles
    from ltbench.cli.submitting import Asked, carry_out

    assert again.profile is not None, "the caller has looked"
    found = profiles.load(again.profile)
    asked = Asked(again.spec, again.profile, again.filters, ask=again.ask, retry_failed=True, json=again.json)
    return carry_out(benchmark, found, asked)
