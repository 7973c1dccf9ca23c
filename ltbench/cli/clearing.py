"""`gc`: what lies in the scratch folder, which of it may go, and deleting that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.options import AsJson, Changes, Filters, Plugins, ScratchAt, StoreAt, WithMethods, place
from ltbench.cli.output import dump, out, plural, say, table
from ltbench.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from ltbench.clearing.inventory import Asked, Scope
    from ltbench.clearing.items import Item
    from ltbench.clearing.living import Life
    from ltbench.clearing.removing import Removed
    from ltbench.store import Store

VERDICTS = {"goes": "goes", "asked": "by name", "stays": "stays"}
SHOWN = 10  # things that could not be deleted, at most


def gc(
    spec: Annotated[
        str | None,
        typer.Argument(metavar="[SPEC]", help="A spec: path or name. [everything in the scratch folder]"),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is listed as `goes`. [only list it]")
    ] = False,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--kind",
            "-k",
            metavar="KIND",
            help="Only this kind, also one that goes by name alone; repeatable.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME", help="The prepared data set of this name; repeatable."),
    ] = None,
    keep_days: Annotated[
        float,
        typer.Option("--keep-days", metavar="N", min=0, help="What was written in the last N days stays."),
    ] = 1.0,
    list_: Annotated[bool, typer.Option("--list", "-l", help="One line per file or folder.")] = False,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """What may be deleted from the scratch folder: by kind, with sizes and reasons. Nothing is deleted without --delete.

    What nobody needs goes: checkpoints of trainings that are over, code and pickles of submissions that are over, what killed processes
    left. What can be made again at a price goes only by name: --kind weights, samples, features, references, latents, stale, logs,
    submissions, traces, answers, compiled, downloads; --data NAME. Records never go, nor anything of a cell that runs or waits, nor
    what a link leads to. With SPEC it is about what belongs to the benchmark's cells alone; weights go only so, because only a plan
    knows what still needs them. Exit code 4 when something could not be deleted.

    \b
    Example:
      python harness.py gc
      python harness.py gc --delete
      python harness.py gc table1 --kind weights --filter method=cbdm
    """
    from ltbench.cli import stores

    place(store, scratch, plugins)
    asked = _asked(spec, kind or [], data or [], keep_days)
    house = stores.open_store(write=delete)
    scope = _scope(spec, house, filter_ or [], set_ or [], with_ or [])
    items, life = _taken(house, asked, scope)
    if not delete:
        _show(items, life, asked, json=json, each=list_)
        return
    removed = _delete(items, life, house, json=json, each=list_)
    if failed := [each for each in removed if each.outcome == "failed"]:
        lines = [f"{each.item.path}: {each.why}" for each in failed[:SHOWN]]
        raise EnvironmentProblem(
            "\n".join([f"{plural(len(failed), 'thing')} could not be deleted:", *lines]),
            "change their permissions, then run gc again: what is half deleted is a leftover now",
        )


def _asked(spec: str | None, kinds: Sequence[str], data: Sequence[str], days: float) -> Asked:
    """Raises UsageError for a kind that there is not."""
    import difflib

    from ltbench.clearing.inventory import Asked, choices
    from ltbench.clearing.items import DAY

    for name in kinds:
        if name not in choices():
            near = difflib.get_close_matches(name, choices(), 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(choices())}"
            hint = "prepared data sets go by their names: --data NAME" if name == "data" else hint
            raise UsageError(f"--kind {name}: there is no such kind", hint)
    if data and spec is not None:
        raise UsageError("--data goes without a SPEC", "a prepared data set belongs to no benchmark alone")
    return Asked(frozenset(kinds), frozenset(data), days * DAY)


def _scope(
    spec: str | None, house: Store, filters: Sequence[str], changes: Sequence[str], methods: Sequence[str]
) -> Scope | None:
    from ltbench import plan as plans
    from ltbench.clearing.inventory import Scope
    from ltbench.cli import targets

    if spec is None:
        if filters or changes or methods:
            raise UsageError("--filter, --set and --with belong to a spec", "name one: gc SPEC --filter ...")
        return None
    benchmark = targets.load(spec, changes, methods)
    whole = plans.plan(benchmark, house)
    chosen = frozenset(cell.id for cell in targets.cells_of(benchmark, filters))
    return Scope.of(whole).only(chosen)


def _taken(house: Store, asked: Asked, scope: Scope | None) -> tuple[list[Item], Life]:
    from ltbench.clearing import inventory, living

    def wait(whose: str) -> None:
        say(f"asking for {house.lease:.0f} s whether {whose} still lives ...")

    life = living.look(house, wait)
    for note in life.notes:
        say(f"note: {note}")
    return inventory.take(house, life, asked, scope), life


# --- telling ----------------------------------------------------------------------------------------------------------


def _show(items: Sequence[Item], life: Life, asked: Asked, *, json: bool, each: bool) -> None:
    """The dry run (stdout)."""
    if json:
        dump({**_sums(items), "notes": life.notes, "items": [item.json() for item in items]})
        return
    _table(items, each=each)
    going = [item for item in items if item.verdict == "goes"]
    if not items:
        out(
            f"there is nothing of {'these kinds' if asked.kinds or asked.data else 'ours'} in {life.store.scratch}"
        )
    elif not going:
        out("\nnothing goes")
    else:
        out(f"\n{_amount(going)} would go; nothing was deleted: the same command with --delete does it")
    for line in _price(going):
        out(line)
    if missing := asked.data - {name for item in items if item.kind == "data" for name in _names(item)}:
        say(f"note: no prepared data set is called {', '.join(sorted(missing))}")


def _delete(items: Sequence[Item], life: Life, house: Store, *, json: bool, each: bool) -> list[Removed]:
    """Delete, and say what came of it (stdout)."""
    from ltbench.clearing.inventory import roots
    from ltbench.clearing.removing import remove

    going = [item for item in items if item.verdict == "goes"]
    if not json:
        _table(going, each=each)
        for line in _price(going):
            out(line)
    removed = list(remove(going, life, roots(house)))
    freed, count = sum(one.bytes for one in removed), sum(one.files for one in removed)
    if json:
        dump({"freed_bytes": freed, "freed_files": count, "items": [one.json() for one in removed]})
        return removed
    from ltbench.cli.costing import bytes_text

    for one in removed:
        if one.outcome == "kept":
            out(f"kept: {one.item.path} ({one.why})")
    out(f"freed {bytes_text(freed)} in {plural(count, 'file')}" if removed else "nothing goes")
    return removed


def _table(items: Sequence[Item], *, each: bool) -> None:
    """Things of one kind, verdict and reason as one row; `each`: a line for each."""
    from ltbench.cli.costing import bytes_text

    if each:
        for item in items:
            why = f"{item.why}: {item.detail}" if item.detail else item.why
            out(
                f"{VERDICTS[item.verdict]:<8}{item.kind:<12}{bytes_text(item.size.bytes):>8}  {item.path}  ({why})"
            )
        return
    groups: dict[tuple[str, str, str], list[Item]] = {}
    for item in items:
        groups.setdefault((item.kind, item.verdict, item.why), []).append(item)
    rows = []
    for (kind, verdict, why), own in groups.items():
        size, count = _sum(own)
        rows.append((kind, bytes_text(size), count, _age(own), VERDICTS[verdict], why))
    if rows:
        table(
            ("kind", "size", "files", "written", "", "why"),
            rows,
            right=("size", "files", "written"),
            keep=("kind", "size", "files", "written", ""),
        )


def _price(going: Sequence[Item]) -> list[str]:
    """What will have to be done again."""
    from ltbench.clearing.inventory import again

    cells, steps = again(going)
    if not cells:
        return []
    return [
        f"weights of {plural(cells, 'cell')}: sample, load_model and evaluations that are added later will need "
        f"{steps:,} training steps again"
    ]


def _sums(items: Sequence[Item]) -> dict[str, Any]:
    return {
        verdict: dict(zip(("bytes", "files"), _sum([i for i in items if i.verdict == verdict]), strict=True))
        for verdict in VERDICTS
    }


def _sum(items: Sequence[Item]) -> tuple[int, int]:
    return sum(item.size.bytes for item in items), sum(item.size.files for item in items)


def _amount(items: Sequence[Item]) -> str:
    from ltbench.cli.costing import bytes_text

    size, count = _sum(items)
    return f"{bytes_text(size)} in {plural(count, 'file')}"


def _age(items: Sequence[Item]) -> str:
    """How long ago the newest of these was written: `5 min`, `3 h`, `12 d`."""
    seconds = max(0.0, time.time() - max(item.size.newest for item in items))
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172800 else f"{seconds / 86400:.0f} d"


def _names(item: Item) -> tuple[str, str]:
    name = Path(item.path).name
    return name, name.rpartition("-")[0]
