"""What `plan` and `submit` say of costs: for which machine, how much, resting on what, and how earlier predictions came out."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from ltbench.cli.output import clip, duration, out, plural, table
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.cost.estimate import Actual, GridCost
    from ltbench.cost.machine import Machine
    from ltbench.plan import Plan
    from ltbench.profiles import Resources
    from ltbench.spec.resolved import Spec
    from ltbench.store import Store

_PREFIXES = ("", "k", "M", "G", "T", "P")
SOURCES_SHOWN = 6
UNCALIBRATED = ("metrics:", "encoding:")  # sources of what `calibrate` does not measure


def this_machine(benchmark: Spec) -> Machine:
    """What `run` would use here: all GPUs, or the CPU with the workers and threads that this benchmark gets."""
    from ltbench.cost.machine import Machine, cpu_name, gpu_names
    from ltbench.launch.devices import seats

    found = seats(_cells(benchmark), workers=None, threads=None, device=None)
    names = gpu_names()
    return Machine(names[0] if names else cpu_name(), found.threads, slots=found.workers)


def machine_of(
    benchmark: Spec, device: str | None, limit: str | None, slots: int | None, profile: str | None = None
) -> Machine:
    """The machine that --profile, and over it --on, --limit and --slots, describe; this one as far as they do not."""
    from dataclasses import replace

    from ltbench.cost.machine import Machine, cpu_name

    if profile is not None:
        from ltbench import profiles

        machine = machine_for(profiles.load(profile).resources("training"), _cells(benchmark))
        machine = machine if device is None else replace(machine, device=device)
    elif device is None:
        machine = this_machine(benchmark)
    elif device == "cpu":
        machine = replace(this_machine(benchmark), device=cpu_name())
    else:
        machine = Machine(device)
    changes: dict[str, Any] = {} if limit is None else {"limit": seconds_of(limit)}
    changes |= {} if slots is None else {"slots": slots}
    return replace(machine, **changes)


def _cells(benchmark: Spec) -> int:
    """How many cells its grids have, before anything is left out."""
    return sum(math.prod(map(len, part.axes.values())) for part in benchmark.parts)


def machine_for(asked: Resources, cells: int) -> Machine:
    """What a training job of a cluster's profile has. Of `cells` all run at a time where `at_once` lets them, each job with those that
    share it: how many the cluster has room for, nobody knows."""
    from ltbench.cost.machine import Machine, cpu_name

    device = (asked.gpu_type or "GPU") if asked.gpus else cpu_name()
    threads = max(1, asked.cores // (asked.ranks * asked.pack))
    slots = cells if asked.at_once is None else asked.at_once * asked.pack
    return Machine(device, threads, asked.ranks, max(1, min(slots, cells)), asked.time * 60.0)


def seconds_of(text: str) -> float:
    """`24h`, `90min`, `1-12:00:00` or `12:00:00` in seconds. Raises UsageError."""
    import re

    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)", text.strip()):
        return float(match[1]) * {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", text.strip()):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    raise UsageError(f"'{text}' is not a time", "write 24h, 90min, 12:00:00 or 1-12:00:00")


def cost_of(found: Plan, store: Store, machine: Machine) -> tuple[GridCost, list[str]]:
    """The cost of what a plan holds on a machine, and calibrations that could not be read."""
    from ltbench.cost import calibrations
    from ltbench.cost.estimate import estimate

    known, bad = calibrations.read_all(store)
    return estimate(found.cells, machine, known), bad


def bytes_text(count: float) -> str:
    """`512 B`, `27.4 MB`."""
    power = 0
    while count >= 1000 and power < len(_PREFIXES) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.0f} B" if power == 0 else f"{count:.3g} {_PREFIXES[power]}B"


def hours_text(hours: float) -> str:
    """`0.012`, `3.4`, `1,230`."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def show_cost(cost: GridCost, name: str) -> None:
    """The cost of what is to be done (stdout)."""
    machine, unit = cost.machine, cost.machine.unit
    at_once = "one cell at a time" if machine.slots == 1 else f"{machine.slots} cells at a time"
    threads = "" if machine.gpu else f", {plural(machine.threads, 'thread')} each"
    out(f"\ncost of that on {machine.device}{threads}, {at_once}:")
    rows = [
        ("training", hours_text(machine.hours(cost.train.seconds)), cost.train.basis),
        ("evaluation", hours_text(machine.hours(cost.evaluate.seconds)), cost.evaluate.basis),
    ]
    if cost.encoding.seconds:
        rows.append(("latents", hours_text(machine.hours(cost.encoding.seconds)), cost.encoding.basis))
    table(("", unit, "figure is"), rows, right=(unit,))
    out(f"wall time {duration(cost.wall)} without waiting in a queue")
    if cost.segments is not None and machine.limit is not None:
        limit = duration(machine.limit)
        out(f"{plural(cost.segments, 'segment')} of training, each within a job of at most {limit}")
    out(
        f"store: {bytes_text(cost.store.bytes)} in {plural(cost.store.files, 'file')} (estimated); "
        f"scratch: {bytes_text(cost.scratch.bytes)} in {plural(cost.scratch.files, 'file')} "
        "(weights exact, features estimated)"
    )
    _show_sources(cost)
    if any(
        basis != "measured" and not source.startswith(UNCALIBRATED) for basis, source, _ in cost.assumptions()
    ):
        out(f"to measure instead, on the device in question: python harness.py calibrate {name}")


def _show_sources(cost: GridCost) -> None:
    sources = cost.assumptions()
    for basis, source, _ in sources[:SOURCES_SHOWN]:
        out(f"  {basis}: {source}")
    if len(sources) > SOURCES_SHOWN:
        out(f"  and {len(sources) - SOURCES_SHOWN} more (--json has all)")


def show_actual(actual: tuple[Actual, ...]) -> None:
    """Predicted against actual, a line per row of the table and device (stdout)."""
    if not actual:
        return
    groups: dict[tuple[str, str], list[Actual]] = {}
    for each in actual:
        groups.setdefault((each.label, each.device), []).append(each)
    out("\nspent so far, beside what would be predicted without these records:")
    rows = []
    for (label, device), found in groups.items():
        spent = sum(each.seconds for each in found)
        predicted = sum(each.predicted.seconds for each in found)
        ratios = [each.ratio for each in found if each.ratio is not None]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
        basis = found[0].predicted.basis
        cells = len({each.cell for each in found})  # one may have run with several numbers of threads
        rows.append((label, cells, duration(predicted), basis, duration(spent), ratio, clip(device, 40)))
    table(
        ("row", "cells", "predicted", "figure is", "actual", "ratio", "on"),
        rows,
        right=("cells", "predicted", "actual", "ratio"),
    )
