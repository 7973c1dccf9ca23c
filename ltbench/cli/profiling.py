"""`run --profile-step`: a few training steps of real cells under a profiler, and what a step of each spends its time on."""

from __future__ import annotations

import json as json_
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.cli import measuring
from ltbench.cli.output import clip, dump, out, plural, say, table
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.spec.cells import Cell
    from ltbench.spec.resolved import Spec

FOLDER = "profiles"  # of the scratch root
STEPS = 3  # under the profiler
SECONDS = 900  # at most, for one cell
LARGEST = 5
PARTS = 8  # at most, in the line of parts


@dataclass(frozen=True)
class Where:
    """What the command said of the device."""

    device: str | None
    threads: int | None


def refuse(**flags: object) -> None:
    """Raises UsageError for options that mean nothing without training. flags: what was given, by name."""
    if given := [f"--{name.replace('_', '-')}" for name, value in flags.items() if value]:
        raise UsageError(
            f"--profile-step trains nothing and goes without {', '.join(given)}",
            "it takes --filter, --set, --with, --smoke, --device, --threads and --json",
        )


def profile_step(benchmark: Spec, filters: Sequence[str], where: Where, *, json: bool) -> int:
    """Profile the chosen cells and say what came of it; the exit code.

    Raises UsageError where no cell is left, or no chosen method can run.
    """
    from ltbench.cli import stores
    from ltbench.cli.targets import name_of
    from ltbench.launch.devices import check

    check(None, where.threads, where.device)
    cells = chosen(benchmark, filters)
    device, threads = measuring.place_of(benchmark, where.device, where.threads)
    traces = stores.scratch_root().absolute() / FOLDER
    say(f"{plural(len(cells), 'cell')} on {measuring.device_of(device)}, each warmed up, timed and profiled")
    asked = {cell.id: cell for cell in cells}
    found = []
    lines = "\n".join(json_.dumps(_question(cell, traces, device)) for cell in cells)
    words = [device, str(threads), str(STEPS), str(SECONDS)]
    for answer in measuring.answers("ltbench.stepcost", words, lines, device, threads):
        cell = asked[answer["cell"]]
        found.append({"label": name_of(cell, benchmark), **_what(cell), **answer})
        if not json:
            _show(found[-1])
    if lost := [cell for cell in cells if cell.id not in {each["cell"] for each in found}]:
        say(f"{plural(len(lost), 'cell')} not profiled: the process that measures ended")
    if json:
        dump(found)
    if found and all(each["outcome"] == "unsupported" for each in found):
        reasons = "; ".join(f"{each['label']} is n/a: {each['message']}" for each in found)
        raise UsageError(f"nothing to profile: {reasons}", "choose another with --filter method=NAME")
    return 1 if lost or any(each["outcome"] == "failed" for each in found) else 0


def chosen(benchmark: Spec, filters: Sequence[str]) -> list[Cell]:
    """The first cell of each method; with filters, of all that fit, the first of each that takes another kind of step."""
    from ltbench.cli import targets
    from ltbench.cost.calibrations import step_options, train_question

    cells = targets.cells_of(benchmark, filters)
    first: dict[Any, Cell] = {}
    for cell in cells:
        same = train_question(cell.settings, **step_options(cell.options)).id
        key = same if filters else (cell.part, cell.label)
        first.setdefault(key, cell)
    if filters and len(first) < len(cells):
        say(f"{plural(len(cells), 'cell')} fit; those that take the same step are profiled once")
    return list(first.values())


def _question(cell: Cell, traces: Path, device: str) -> dict[str, Any]:
    """One line for ltbench.stepcost. A later profile of the cell on such a device replaces the trace."""
    from ltbench.cost.calibrations import step_options

    trace = traces / f"{cell.settings['method']['name']}-{cell.id[:12]}-{device}.json.gz"
    return {
        "cell": cell.id,
        "settings": cell.settings,
        **step_options(cell.options),
        "execution": cell.options.get("execution") or "auto",
        "trace": str(trace),
    }


def _what(cell: Cell) -> dict[str, Any]:
    return {
        "method": cell.settings["method"]["name"],
        "network": cell.settings["network"],
        "batch": cell.settings["train"]["batch"],
    }


def _show(each: dict[str, Any]) -> None:
    """One cell (stdout): circumstances, parts, the largest costs, the trace."""
    out()
    if each["outcome"] != "done":
        word = "n/a" if each["outcome"] == "unsupported" else each["outcome"]
        out(f"{each['label']}: {word}: {clip(each['message'], 300)}")
        return
    result = each["result"]
    gpu = not result["device"].startswith("cpu")
    threads = "" if gpu else f", {plural(result['threads'], 'thread')}"
    stand_in = ", stand-in data" if result["data"] == "stand-in" else ""
    out(
        f"{each['label']}: {each['network']}, batch {each['batch']}, {result['precision']}, {result['execution']}{stand_in}"
    )
    out(
        f"{result['device']}{threads}: {result['steps_per_s']:.3g} steps/s, {result['images_per_s']:.4g} images/s, "
        f"{_ms(result['seconds_per_step'])} a step without the profiler, "
        f"{_ms(result['profiled_seconds_per_step'])} with it"
    )
    out(f"the {LARGEST} largest costs of a step, of {_parts(result['parts'])}:")
    table(
        ("share", "ms", "calls", "part of the step", "what", "operations"),
        (
            (
                f"{cost['share']:.1%}",
                f"{1000 * cost['seconds']:.2f}",
                f"{cost['calls']:.0f}",
                cost["part"],
                cost["kind"],
                ", ".join(cost["names"]),
            )
            for cost in result["costs"][:LARGEST]
        ),
        right=("share", "ms", "calls"),
        keep=("share", "ms", "calls"),
    )
    out(f"trace: {result['trace']} (open it in https://ui.perfetto.dev or chrome://tracing)")


def _parts(parts: Sequence[dict[str, Any]]) -> str:
    """`network 40%, network backward 35%, ...`: the parts without their pieces, which add up to the step."""
    from collections import defaultdict

    whole: dict[str, float] = defaultdict(float)
    for each in parts:
        name, _, _ = each["part"].removesuffix(", backward").partition(":")
        whole[f"{name} backward" if each["part"].endswith(", backward") else name] += each["share"]
    order = sorted(whole.items(), key=lambda item: -item[1])
    shown = [(name, share) for name, share in order[:PARTS] if share >= 0.005]
    small = sum(share for _, share in order) - sum(share for _, share in shown)
    texts = [f"{name} {share:.0%}" for name, share in shown]
    return ", ".join([*texts, *([f"others {small:.0%}"] if small >= 0.005 else [])])


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.4g} ms"
