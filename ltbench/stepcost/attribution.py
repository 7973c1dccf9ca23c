"""From what a profiler saw to the costs of a step: every microsecond belongs to one part of the step and one kind of operation.

A part is the innermost named range around an operation. What autograd runs backwards belongs to the part whose forward operation
has the same sequence number, so a block's backward pass is its own. On a CPU the time is that of the host; on a GPU that of its
kernels, and what is left of a step is waiting.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

PREFIX = "ltbench: "  # of the name of a range; what follows names the part
STEP = "step"  # the range around a whole step
REST = "rest of the step"
BACKWARD = ", backward"
UNNAMED = "compiled or captured kernels"  # that no operation of torch launched
WAITING = "waiting: launches, data, the host"
HOST = "Python, NumPy, launches"  # of a range itself, between its operations
TORCH = "autograd itself"

# The kind of an operation by its name, the first that fits.
_KINDS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("attention", r"(scaled_dot_product|flash|efficient|cudnn)\w*attention"),
        ("matrix products", r"^(mm|addmm|bmm|baddbmm|linear|matmul|einsum|addbmm|mv)$|mkldnn_linear"),
        ("convolutions", r"conv(olution|[123]d|_)|^mkldnn_conv|slow_conv"),
        ("norms", r"(layer|group|batch)_norm"),
        ("optimiser update", r"_fused_(adam|sgd)|_foreach"),
        (
            "copies and casts",
            r"^(_to_copy|to|copy_|clone|contiguous|cat|stack|fill_|zero_|zeros\w*|new_\w+)$",
        ),
        ("memory", r"^(empty|resize)"),
        ("lookups", r"(index|embedding|gather|scatter|take)"),
        ("sums and means", r"^(sum|mean|norm|linalg_vector_norm|amax|amin|max|min|logsumexp|_softmax)"),
        ("activations", r"(gelu|silu|relu|sigmoid|tanh)"),
        ("element by element", r"^(add|sub|mul|div|neg|pow|sqrt|rsqrt|exp|log|where|lerp|addc\w+)_?$"),
    )
)
_BACKWARD_SCOPE = 1  # at::RecordScope::BACKWARD_FUNCTION
_ENGINE = "autograd::engine::"  # what runs a node has the node's number, and the scope of a forward operation
_NODE = re.compile(r"^autograd::|Backward\d+$|AccumulateGrad$")


@dataclass(frozen=True)
class Event:
    """One operation on the host. parent: its place in the list, None at the top. seconds: its own, without its children's.

    sequence: autograd's number, -1 for none. backward: whether autograd runs it. kernels: (name, seconds) of what it launched.
    """

    name: str
    parent: int | None
    seconds: float
    sequence: int = -1
    backward: bool = False
    kernels: tuple[tuple[str, float], ...] = ()


@dataclass
class Cost:
    """Of a step on average. names: the operations behind it, the costliest first."""

    part: str
    kind: str
    seconds: float = 0.0
    calls: float = 0.0
    names: list[str] = field(default_factory=list)

    def json(self, whole: float) -> dict[str, Any]:
        """share: of a step of `whole` seconds."""
        share = self.seconds / whole if whole else 0.0
        return {**vars(self), "names": self.names[:4], "share": share}


def on_host(events: Sequence[Event], steps: int) -> list[Cost]:
    """Costs of a step on a CPU, the largest first: everything inside the range STEP, to which they add up."""
    inside, parts = _inside(events), _parts(events)
    found = ((parts[k], event.name, event.seconds) for k, event in enumerate(events) if inside[k])
    return _summed(found, steps)


def on_device(
    events: Sequence[Event], kernels: Iterable[tuple[str, float]], steps: int, seconds: float
) -> list[Cost]:
    """Costs of a step on a GPU, the largest first.

    kernels: all that ran, whoever launched them. seconds: of a step without a profiler; what is left of it is WAITING.
    """
    parts = _parts(events)
    found = [(parts[k], event.name, spent) for k, event in enumerate(events) for _, spent in event.kernels]
    seen = Counter(name for event in events for name, _ in event.kernels)
    for name, spent in kernels:
        if seen[name] > 0:
            seen[name] -= 1
        else:
            found.append((UNNAMED, name, spent))
    costs = _summed(found, steps)
    idle = seconds - sum(cost.seconds for cost in costs)
    if idle > 0:
        costs.append(Cost(WAITING, "nothing runs", idle, 1.0))
    return sorted(costs, key=lambda cost: -cost.seconds)


def by_part(costs: Iterable[Cost]) -> list[tuple[str, float]]:
    """(part, seconds of a step), the largest first."""
    found: dict[str, float] = defaultdict(float)
    for cost in costs:
        found[cost.part] += cost.seconds
    return sorted(found.items(), key=lambda item: (-item[1], item[0]))


def kind_of(name: str) -> str:
    """The kind of an operation, in words; its own name where it has none."""
    if name.startswith((PREFIX, "Optimizer.")):
        return HOST
    if _NODE.search(name):
        return TORCH
    bare = name.removeprefix("aten::").removesuffix("_backward")
    return next((kind for kind, pattern in _KINDS if pattern.search(bare)), bare)


def _own(name: str) -> str | None:
    """The part that a range names; torch names an optimiser's update itself."""
    if name.startswith(PREFIX):
        part = name.removeprefix(PREFIX)
        return None if part == STEP else part
    return "optimiser" if name.startswith("Optimizer.") else None


def _parts(events: Sequence[Event]) -> list[str]:
    """The part of every event. A parent comes before its children."""
    forward: list[str | None] = []
    for event in events:
        above = None if event.parent is None else forward[event.parent]
        forward.append(_own(event.name) or above)
    made: dict[int, str | None] = {}
    for part, event in zip(forward, events, strict=True):
        if event.sequence >= 0 and not event.backward:
            made[event.sequence] = part
    backward: list[str | None] = []
    for event in events:
        known = None if event.parent is None else backward[event.parent]
        if event.backward and event.sequence in made:
            known = f"{made[event.sequence] or REST}{BACKWARD}"
        backward.append(known)
    return [back or ahead or REST for back, ahead in zip(backward, forward, strict=True)]


def _inside(events: Sequence[Event]) -> list[bool]:
    found: list[bool] = []
    for event in events:
        within = event.parent is not None and found[event.parent]
        found.append(within or event.name == PREFIX + STEP)
    return found


def _summed(found: Iterable[tuple[str, str, float]], steps: int) -> list[Cost]:
    costs: dict[tuple[str, str], Cost] = {}
    names: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for part, name, seconds in found:
        key = part, kind_of(name)
        cost = costs.setdefault(key, Cost(*key))
        cost.seconds += seconds / steps
        cost.calls += 1 / steps
        names[key][name] += seconds
    for key, cost in costs.items():
        cost.names = [_short(name) for name, _ in sorted(names[key].items(), key=lambda item: -item[1])]
    return sorted(costs.values(), key=lambda cost: (-cost.seconds, cost.part, cost.kind))


def _short(name: str) -> str:
    return name.removeprefix("aten::").removeprefix(PREFIX)[:80]


def read(recorded: Iterable[Any], cuda: bool) -> tuple[list[Event], list[tuple[str, float]]]:
    """(what the host did, kernels of the GPU) from torch.profiler's `events()`, which count in microseconds."""
    recorded = list(recorded)
    ordered = _parents_first(
        [each for each in recorded if each.device_type.name == "CPU" and not each.is_async]
    )
    place = {id(each): k for k, each in enumerate(ordered)}
    events = [
        Event(
            each.name,
            None if each.cpu_parent is None else place.get(id(each.cpu_parent)),
            each.self_cpu_time_total / 1e6,
            each.sequence_nr,
            each.scope == _BACKWARD_SCOPE or each.name.startswith(_ENGINE),
            tuple((kernel.name, kernel.duration / 1e6) for kernel in each.kernels) if cuda else (),
        )
        for each in ordered
    ]
    kernels = [
        (each.name, each.time_range.elapsed_us() / 1e6)
        for each in recorded
        if each.device_type.name == "CUDA" and not each.is_user_annotation
    ]
    return events, kernels


def _parents_first(host: Sequence[Any]) -> list[Any]:
    """Every event after its parent, in order of time."""
    ordered: list[Any] = []
    waiting = [each for each in reversed(host) if each.cpu_parent is None]
    while waiting:
        each = waiting.pop()
        ordered.append(each)
        waiting += reversed(each.cpu_children)
    return ordered
