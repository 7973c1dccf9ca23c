"""The checks of a method's loss, on one pipeline each. A check returns when it is passed and raises Failed or DoesNotApply."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltbench.checkpoint import newest_checkpoint, save_checkpoint
from ltbench.conformance.suite import toy
from ltbench.conformance.suite.reads import HostRead, no_host_reads
from ltbench.conformance.suite.subject import (
    DoesNotApply,
    Failed,
    Subject,
    backward,
    close,
    gradient,
    last_line,
    require,
)
from ltbench.guard import Guard, has_children
from ltbench.parts import Parts
from ltbench.trainer import Trainer

Check = Callable[[Subject], None]
CELL, RUN = "0" * 64, "0" * 12  # whose checkpoint the resumed one is


def supports(subject: Subject) -> None:
    """`supports` gives None or a reason; with a reason, the other checks of this pipeline do not apply."""
    reason = subject.cls.supports(subject.baseline().task)
    require(
        reason is None or (isinstance(reason, str) and bool(reason.strip())),
        f"supports() must return None or a reason, not {reason!r}",
    )
    if reason is not None:
        raise DoesNotApply(f"not on this pipeline: {reason}")


def terms(subject: Subject) -> None:
    """Objective checks names and shapes; here also that they are finite, float32 and differentiable."""
    found = subject.terms()
    for name, term in found.items():
        require(isinstance(name, str), f"the name of a term must be text, not {name!r}")
        require(term.dtype == torch.float32, f"term '{name}' is {term.dtype}, not torch.float32")
        require(term.isfinite().all(), f"term '{name}' is not finite: {term.detach().flatten()[:4].tolist()}")
    total = torch.stack([term.mean() for term in found.values()]).sum()
    require(total.requires_grad, "no gradient flows from the terms: every one is detached")


def gradients(subject: Subject) -> None:
    """Whatever the baseline trains in the network, and all that the method registers, gets a finite gradient."""
    built, plain = subject.parts(), subject.baseline()
    for each in (built, plain):
        backward(each.objective, each.objective(toy.draw(each)))
    trained = {name for name, p in plain.objective.network.named_parameters() if p.grad is not None}
    names = {f"network.{name}" for name in trained}
    names |= {f"method.{name}" for name, p in built.objective.method.named_parameters() if p.requires_grad}
    found = {name: p.grad for name, p in built.objective.named_parameters()}
    silent = [name for name in sorted(names) if found[name] is None]
    require(not silent, f"no gradient reaches {_few(silent)}")
    bad = [name for name, grad in found.items() if grad is not None and not grad.isfinite().all()]
    require(not bad, f"the gradient of {_few(bad)} is not finite")


def own_parameters(subject: Subject) -> None:
    """Parameters of the method are registered, change while training, and are in the checkpoint."""
    built = subject.parts()
    method = built.objective.method
    _nothing_hidden(method)
    before = {name: p.detach().clone() for name, p in method.named_parameters() if p.requires_grad}
    if not before:
        raise DoesNotApply("the method registers no parameters")
    loop = toy.trainer(built)
    for _ in range(3):
        loop.advance()
    now = dict(method.named_parameters())
    still = [name for name, value in before.items() if torch.equal(value, now[name])]
    require(not still, f"three steps did not change {_few(still)}")
    saved = loop.state()[0]["model"]
    lost = [name for name in before if f"method.{name}" not in saved]
    require(not lost, f"the checkpoint does not hold {_few(lost)}")


def _nothing_hidden(method: nn.Module) -> None:
    """Raise Failed for a trainable tensor or module that PyTorch cannot see on the method."""
    seen = {id(p) for p in method.parameters()}
    for name, value in vars(method).items():
        inside = (
            value.values()
            if isinstance(value, dict)
            else value
            if isinstance(value, list | tuple)
            else [value]
        )
        for item in [] if name.startswith("_") else inside:
            if (
                isinstance(item, nn.Module)
                and not {id(p) for p in item.parameters() if p.requires_grad} <= seen
            ):
                raise Failed(
                    f"self.{name} holds a module that is not registered: use nn.ModuleList or nn.ModuleDict"
                )
            if isinstance(item, Tensor) and item.requires_grad and id(item) not in seen:
                raise Failed(
                    f"self.{name} asks for gradients but is no nn.Parameter, so nothing trains or saves it"
                )


def switched_off(subject: Subject) -> None:
    """With the preset `off`, loss, gradients and network rows equal the baseline's bit for bit."""
    if subject.is_baseline:
        raise DoesNotApply("this is the baseline itself")
    if "off" not in subject.presets:
        raise DoesNotApply("no preset `off` says which parameters switch the method off")
    quiet, plain = subject.parts({**subject.options, **subject.presets["off"]}), subject.baseline()
    sums, grads, rows = [], [], []
    for built in (quiet, plain):
        count = count_rows(built)
        found = built.objective(toy.draw(built))
        backward(built.objective, found)
        sums.append(torch.stack([term.detach().mean() for term in found.values()]).sum())
        grads.append(torch.cat([_flat(p) for p in built.objective.network.parameters()]))
        rows.append(sum(count))
    require(
        rows[0] == rows[1],
        f"switched off it still asks for {rows[0]} network rows, the baseline for {rows[1]}",
    )
    require(
        torch.equal(*sums), f"switched off its loss is {float(sums[0])!r}, the baseline's {float(sums[1])!r}"
    )
    require(torch.equal(*grads), "switched off its gradient is not the baseline's, bit for bit")


def fused_and_serial(subject: Subject) -> None:
    """Passes in one forward or one after another: the same gradient, dropout included."""
    found = []
    for passes in ("fused", "serial"):
        built = subject.parts(passes=passes, dropout=0.2)
        count = count_rows(built)
        backward(built.objective, built.objective(toy.draw(built)))
        found.append(gradient(built.objective))
    if len(count) == 1:
        raise DoesNotApply("the method asks for one pass")
    gap = close(*found)
    require(gap is None, f"fused and serial passes part: {gap}")


def micro_batches(subject: Subject) -> None:
    """Three local batches in one forward or one by one: the same gradient, dropout included."""
    found = []
    for micro in (12, 4):
        loop = toy.trainer(subject.parts(dropout=0.2), micro)
        loop.advance()
        found.append(torch.cat([_flat(p) for p in loop.named.values()]))
    gap = close(*found)
    require(
        gap is None, f"one micro-batch of 12 and three of 4 part: {gap} (compare inside draw.by_local_batch)"
    )


def resume(subject: Subject) -> None:
    """Two steps, a checkpoint, two more in a new process's objects: the same weights as four steps, bit for bit."""
    through, first, second = (toy.trainer(subject.parts(dropout=0.2)) for _ in range(3))
    _advance(through, 4)
    _advance(first, 2)
    tensors, state = first.state()
    json.dumps(state, allow_nan=False)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), first.step, tensors, state, cell=CELL, run=RUN, attempt=1)
        found = newest_checkpoint(Path(folder), cell=CELL, run=RUN)
    assert found is not None, "the checkpoint written just now is gone"
    second.load(found.tensors, found.state)
    _advance(second, 2)
    for kind, expected in through.state()[0].items():
        here = second.state()[0][kind]
        apart = [name for name, value in expected.items() if not torch.equal(value, here[name])]
        require(not apart, f"a resumed run parts from an uninterrupted one in {_few(apart)} ({kind})")


def deterministic(subject: Subject) -> None:
    """The same draw gives the same terms, also in an object that has made other steps before."""
    built = subject.parts()
    first = built.objective(toy.draw(built))
    built.objective(toy.draw(built, step=2))
    again = built.objective(toy.draw(built))
    for name, term in first.items():
        require(name in again, f"term '{name}' is missing the second time")
        require(torch.equal(term, again[name]), f"the same batch gives another '{name}' after another step")


def local_batch_of_one(subject: Subject) -> None:
    _edge(subject, batch=3, local_batch=1)


def all_dropped(subject: Subject) -> None:
    _edge(subject, label_drop=1.0)


def none_dropped(subject: Subject) -> None:
    _edge(subject, label_drop=0.0)


def one_class(subject: Subject) -> None:
    _edge(subject, counts=(24, 0, 0, 0, 0, 0))


def absent_classes(subject: Subject) -> None:
    _edge(subject, counts=(30, 0, 12, 0, 1, 3))


def bfloat16(subject: Subject) -> None:
    """Under autocast the terms stay float32 and finite."""
    built = subject.parts(precision="bf16")
    found = built.objective(toy.draw(built))
    for name, term in found.items():
        require(
            term.dtype == torch.float32, f"under bfloat16 term '{name}' is {term.dtype}, not torch.float32"
        )
    _finite(built, found)


def draw_untouched(subject: Subject) -> None:
    """No tensor of the draw, the task or the network's weights is changed in place by a loss."""
    built = subject.parts()
    made, untouched = toy.draw(built), toy.draw(built)
    weights = {name: p.detach().clone() for name, p in built.objective.network.named_parameters()}
    fixed = {name: value.clone() for name, value in vars(built.task).items() if isinstance(value, Tensor)}
    built.objective(made)
    for field, value in vars(untouched).items():
        if isinstance(value, Tensor):
            require(torch.equal(value, getattr(made, field)), f"draw.{field} is changed in place")
    for name, value in fixed.items():
        require(torch.equal(value, getattr(built.task, name)), f"task.{name} is changed in place")
    for name, p in built.objective.network.named_parameters():
        require(torch.equal(p, weights[name]), f"the network's {name} is changed by loss()")


def nothing_read(subject: Subject) -> None:
    """Loss and gradient read no number on the host, so that a GPU need not be waited for and the step can be a CUDA graph."""
    built = subject.parts(dropout=0.2)
    made = replace(toy.draw(built), recorded=True)
    built.objective.method.prepare(made)  # which may read
    if reason := built.objective.method.on_host:
        raise DoesNotApply(f"it says that it does: {reason}")
    try:
        with no_host_reads():
            backward(built.objective, built.objective(made))
    except HostRead as read:
        at = last_line(read, str(subject.plugin.path))
        raise Failed(
            f"it waits for the device in {read}{at}: take draw.kept, torch.where or weights of 0, or say why in `on_host`"
        ) from read


def own_randomness(subject: Subject) -> None:
    """Terms do not depend on torch's, NumPy's or Python's own generator, and none of them is advanced."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        built = subject.parts()
        made = toy.draw(built)
        before = _generators()
        found.append(built.objective(made))
        moved = [name for name, state in _generators().items() if state != before[name]]
        require(not moved, f"loss() uses {' and '.join(moved)}: draw from draw.rng")
    same = all(torch.equal(term, found[1][name]) for name, term in found[0].items())
    require(same, "the terms change with the global seed: draw from draw.rng")


def _generators() -> dict[str, bytes]:
    return {
        "torch's global generator": torch.random.get_rng_state().numpy().tobytes(),
        "numpy.random": repr(np.random.get_state(legacy=False)).encode() + _numpy_key(),
        "Python's random": repr(random.getstate()).encode(),
    }


def _numpy_key() -> bytes:
    state: Any = np.random.get_state(legacy=False)
    return state["state"]["key"].tobytes()


def process_untouched(subject: Subject) -> None:
    """Import, construction, loss and backward leave the process's settings as they were; no thread or child is left."""
    guard = Guard()
    with guard:
        built = subject.parts()
        backward(built.objective, built.objective(toy.draw(built)))
    require(not guard.changed, f"left changed: {'; '.join(guard.changed)}")
    require(not has_children(), "a child process is left")
    require(not guard.tainted, "a thread is left running")


def keeps_to_itself(subject: Subject) -> None:
    """No output, no process started, no connection, no file written, from import to backward."""
    seen: list[str] = []
    watching = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if watching and (event in _EVENTS or (event == "open" and _writes(args))):
            seen.append(f"{_EVENTS.get(event, 'writes')} {args[0]!r:.60}" if args else _EVENTS[event])

    sys.addaudithook(hook)
    built = subject.parts()
    backward(built.objective, built.objective(toy.draw(built)))
    watching = False
    require(not seen, f"it {seen[0] if seen else ''}")
    sys.stdout.flush()
    sys.stderr.flush()
    size = os.fstat(1).st_size  # the child's output is a file of its own
    if size:
        text = os.pread(1, 200, 0).decode("utf-8", "replace").strip().splitlines()
        raise Failed(f"it prints: {text[0] if text else repr(size) + ' bytes'}")


_EVENTS = {
    "os.fork": "forks",
    "os.forkpty": "forks",
    "os.posix_spawn": "starts a process",
    "os.exec": "starts a process",
    "os.system": "starts a process",
    "subprocess.Popen": "starts a process",
    "socket.connect": "connects to",
    "os.remove": "removes",
}


def _writes(args: tuple[Any, ...]) -> bool:
    path, mode, flags = (*args, None, None)[:3]
    if "__pycache__" in str(path):
        return False  # Python's own cache of the imported file
    return (isinstance(mode, str) and any(c in mode for c in "wax+")) or (
        mode is None and isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
    )


# --- helpers --------------------------------------------------------------------------------------------------------


def count_rows(built: Parts) -> list[int]:
    """A list that gets the number of rows of every call of the network from now on."""
    rows: list[int] = []
    built.objective.network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    return rows


def _edge(subject: Subject, **changes: Any) -> None:
    built = subject.parts(**changes)
    _finite(built, built.objective(toy.draw(built)))


def _finite(built: Parts, found: dict[str, Tensor]) -> None:
    for name, term in found.items():
        require(term.isfinite().all(), f"term '{name}' is not finite")
    backward(built.objective, found)
    bad = [
        name
        for name, p in built.objective.named_parameters()
        if p.grad is not None and not p.grad.isfinite().all()
    ]
    require(not bad, f"the gradient of {_few(bad)} is not finite")


def _advance(loop: Trainer, steps: int) -> None:
    for _ in range(steps):
        loop.advance()


def _flat(p: Tensor) -> Tensor:
    return torch.zeros(p.numel()) if p.grad is None else p.grad.flatten()


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


CHECKS: tuple[tuple[str, Check], ...] = (
    ("supports() answers", supports),
    ("terms are finite, float32, () or (B,)", terms),
    ("gradients reach every parameter", gradients),
    ("own parameters are trained and saved", own_parameters),
    ("switched off equals the baseline", switched_off),
    ("the same draw gives the same terms", deterministic),
    ("fused passes equal serial ones", fused_and_serial),
    ("micro-batches change nothing", micro_batches),
    ("resume is bitwise", resume),
    ("a local batch of one", local_batch_of_one),
    ("all labels dropped", all_dropped),
    ("no label dropped", none_dropped),
    ("one class only", one_class),
    ("absent classes", absent_classes),
    ("bfloat16", bfloat16),
    ("the draw is not changed in place", draw_untouched),
    ("nothing is read on the host", nothing_read),
    ("no global random state", own_randomness),
    ("the process is left as it was", process_untouched),
    ("no output, processes or files", keeps_to_itself),
)
