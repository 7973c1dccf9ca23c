"""The cost section in words and digits, for all views."""

from __future__ import annotations

from ltbench.report import words
from ltbench.report.cost_table import CostBlock, CostRow, Costs, Known, Source, Where

HEADING = "Cost"
LEGEND = (
    "steps/s and images/s: the median of the speeds that the trainings noted while they ran, over their attempts. Hours: all attempts "
    "of all seeds that left a record, up to their last one. FLOPs: two per multiply-add of matrix products and convolutions, forward and "
    "backward (three forward passes), for every pass of a batch through the network; frozen encoders, a method's own layers and "
    "the optimiser are not in it.",
    "time and FLOPs against the baseline: a step of the method over a step of the pipeline's plain objective in the same table, that is "
    "with the same network, batch and precision, on the same device, executed the same way. Times of two devices are never divided.",
)
SLOW_BASELINE = 0.9  # a time ratio below so much of the FLOP ratio needs a sentence
OVERHEAD = 1.1
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def heads(block: CostBlock) -> list[tuple[str, str]]:
    """(key, head) of the columns."""
    hours = "GPU-hours" if block.where.gpu else "hours"
    memory = "peak GPU memory" if block.where.gpu else "peak memory of the process"
    return [
        ("steps_per_s", "steps/s"),
        ("images_per_s", "images/s"),
        ("time_ratio", "time / baseline"),
        ("operations_ratio", "FLOPs / baseline"),
        ("memory_bytes", memory),
        ("train_hours", f"{hours}, training"),
        ("evaluation_hours", f"{hours}, evaluation"),
        ("step_operations", "FLOPs of a step"),
        ("image_operations", "FLOPs of an image"),
        ("operations_per_s", "achieved FLOP/s"),
    ]


def title(block: CostBlock) -> str:
    """ "SiT-S/2 on 4x32x32 latents, batch 48, bf16" """
    data = block.data
    seen = f"{data['channels']}x{data['resolution']}x{data['resolution']}"
    parts = [f"{block.network} on {seen} {'latents' if block.latents else 'pixels'}"]
    return words.clean(", ".join([*parts, f"batch {block.batch}", block.precision, *block.more]))


def where(block: CostBlock) -> str:
    """Of a block's head: `where_text`."""
    return where_text(block.where)


def where_text(place: Where) -> str:
    """ "NVIDIA H200, 2 ranks, graphs" """
    parts = [place.device]
    parts += [words.plural(place.threads, "thread")] if place.threads else []
    parts += [words.plural(place.ranks, "rank")] if place.ranks > 1 else []
    return words.clean(", ".join([*parts, *([place.execution] if place.execution else [])]))


def label(row: CostRow) -> str:
    """The row's label, and how many of its cells trained here where it is not all of them."""
    if row.runs == row.planned:
        return words.clean(row.label)
    return words.clean(f"{row.label} ({f'{row.runs} of {row.planned} runs' if row.runs else 'calibrated'})")


def text(key: str, known: Known) -> str:
    """A number for people; "" where there is none."""
    if known.value is None:
        return ""
    if key == "memory_bytes":
        return _prefixed(known.value, "B")
    if "operations" in key and key != "operations_ratio":
        return _prefixed(known.value, "").rstrip()
    if key.endswith("_ratio"):
        return f"{known.value:.2f}"
    return _digits(known.value)


def gap(known: Known) -> str:
    """What a cell without a number says: `n/a`, or a dash where there was nothing to know; `tip` has the reason."""
    return "n/a" if known.why and known.why != "not evaluated" else "-"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _prefixed(value: float, unit: str) -> str:
    power = 0
    while value >= 1000 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_PREFIXES[power]}{unit}"


def tip(key: str, known: Known) -> str:
    """Every number behind a value with its record, or why there is none."""
    if known.value is None:
        return words.clean(known.why)
    return words.clean("; ".join(_source(key, source) for source in known.sources))


def _source(key: str, source: Source) -> str:
    name = source.name[:8] if source.seed is not None else f"{source.what} {source.name}"
    seed = "" if source.seed is None else f"seed {source.seed}"
    value = "" if source.value is None else text(key, Known(source.value))
    return f"{seed}{': ' if seed and value else ''}{value} ({name})".strip()


def gaps(block: CostBlock) -> list[str]:
    """Why numbers of a block are missing, a line per reason."""
    missing: dict[str, list[str]] = {}
    for row in block.rows:
        for key in ("steps_per_s", "memory_bytes", "operations_ratio", "time_ratio", "evaluation_hours"):
            why = row.values[key].why
            if why and why != "not evaluated" and row.label not in missing.get(why, ()):
                missing.setdefault(why, []).append(row.label)
    return [words.clean(f"n/a for {', '.join(labels)}: {why}.") for why, labels in missing.items()]


def remarks(block: CostBlock) -> list[str]:
    """What time ratios far from the FLOP ratios say."""
    slow, over = [], []
    for row in block.rows:
        time, operations = row.values["time_ratio"].value, row.values["operations_ratio"].value
        if time is None or operations is None or operations == 1:
            continue
        told = f"{row.label} {time:.2f} times the time for {operations:.2f} times the FLOPs"
        if time < SLOW_BASELINE * operations:
            slow.append(told)
        elif time > OVERHEAD * operations:
            over.append(told)
    found = []
    if slow:
        found.append(
            f"Against the baseline: {', '.join(slow)}. That says more of the baseline than of the method: what a step holds beside "
            "the network (launches, data, the update) both pay once. The more of it is removed, the nearer time comes to FLOPs; next to "
            "a slow baseline a low ratio is no saving."
        )
    if over:
        found.append(
            f"Against the baseline: {', '.join(over)}. FLOPs do not explain that much: it is what the method does beside the network, "
            "or small kernels; run --profile-step shows where."
        )
    return [words.clean(text) for text in found]


def missing_lines(costs: Costs) -> list[str]:
    """Rows of which no cost is known."""
    return [words.clean(f"{label}: {why}") for label, why in costs.missing]


def sources(row: CostRow) -> list[tuple[Source, str]]:
    """(record or calibration, "cbdm seed 1") behind a row's own numbers, each once; a ratio's other side is the baseline's row."""
    found: dict[str, tuple[Source, str]] = {}
    for key, known in row.values.items():
        for source in known.sources if key != "time_ratio" else ():
            whose = row.label + words.of_seed(source.seed)
            found.setdefault(source.name, (source, words.clean(whose)))
    return list(found.values())
