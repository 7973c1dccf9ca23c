"""The one training loop. It knows networks, processes and data; of a method only what `Objective` shows.

A step is a pure function of (settings, step, state): rate, EMA decay, data order and every random number follow from the step,
so a killed and resumed run equals an uninterrupted one bit for bit at equal thread count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ltbench.captured import Captured, Compute, Terms
from ltbench.compiled import compiler_failed, uncompile
from ltbench.curve import Curve
from ltbench.distributed import Ranks
from ltbench.draws import Ahead
from ltbench.ema import Ema
from ltbench.execution import PLAIN, Executed, Execution, executed
from ltbench.graphs import Recorder, cuda_graph
from ltbench.methods import Draw
from ltbench.parts import Parts
from ltbench.places import Coming


class NonFinite(Exception):
    """Loss or gradient of a step is not finite; `evidence` says where. Raised before the weights are touched."""

    def __init__(self, step: int, evidence: dict[str, Any]) -> None:
        super().__init__(f"non-finite loss or gradient at step {step}")
        self.step, self.evidence = step, evidence


@dataclass
class _Step:
    """A step that was computed: gradient norm before clipping, the terms of this rank, and whether any of it is not finite.

    bad: () float32 on the device, 1 where it is not; all ranks hold the same. verdict: the same on its way to the host.
    """

    number: int
    norm: Tensor
    logged: list[tuple[dict[str, Tensor], Draw]]
    bad: Tensor
    verdict: Coming


@dataclass
class Trainer:
    """State of a run between steps, and the step. `micro_batch`: images that one forward holds. `ranks`: who shares it.

    lag: whether the host learns only during the next step that a step was finite, so that a GPU never waits for it (None: on one
    GPU). The update of a step that was not finite is left out on the device in any case; `settle()` brings both in line.
    """

    parts: Parts
    micro_batch: int
    log_every: int
    step: int = 0
    ranks: Ranks = field(default_factory=Ranks)
    origin: dict[str, Any] | None = None  # what the weights began at, if not at their initialisation
    lag: bool | None = None
    execution: Execution = PLAIN
    recorder: Recorder | None = None  # makes the graphs; None: CUDA
    notice: Callable[[str], None] = lambda message: None
    optimizer: torch.optim.Optimizer = field(init=False)
    ema: Ema = field(init=False)
    curve: Curve = field(init=False)
    ahead: Ahead | None = field(init=False)

    def __post_init__(self) -> None:
        recipe, objective = self.parts.recipe, self.parts.objective
        self.shards = self.ranks.shards(recipe.batch // recipe.local_batch)
        self.model = self.ranks.wrap(objective)
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimizer]
        self.named = {name: p for name, p in objective.named_parameters() if p.requires_grad}
        self.optimizer = kind(
            self.named.values(),
            lr=recipe.lr,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.ema = Ema(objective.network, recipe.ema)
        of_class = [0] * len(self.parts.train_counts)
        for number, name in enumerate(("head", "body", "tail")):
            for c in self.parts.groups[name]:
                of_class[c] = number
        device = self.parts.drawer.data.labels.device
        # On a CPU drawing and training share the cores, and nothing is won.
        self.ahead = Ahead(self.parts.drawer) if device.type == "cuda" else None
        if self.lag is None:
            # Several ranks would meet in another order where one of them settles earlier, to write a checkpoint.
            self.lag = device.type == "cuda" and self.ranks.size == 1
        self.curve = Curve(torch.tensor(of_class, device=device), self.log_every)
        self._names: Sequence[str] = ()  # what ranks log, agreed on
        self._pending: _Step | None = None
        self._not_compiled = self._no_graphs = ""  # why, where it was meant to be
        self._forward_backward = self._captured() if self.execution.graphs else self._compute
        self.model.train()

    def close(self) -> None:
        """End what draws ahead; the trainer goes on without it."""
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None

    def _captured(self) -> Compute:
        """Steps as CUDA graphs, unless the method reads numbers on the host or several ranks train."""
        reason = self.parts.objective.method.on_host
        if self.ranks.size > 1:
            reason = "gradients of several ranks are exchanged while they are made"
        if reason:
            self._no_graphs = f"steps are not CUDA graphs: {reason}"
            self.notice(self._no_graphs)
            return self._compute
        recipe, ahead = self.parts.recipe, self.ahead
        return Captured(
            self._compute,
            self.parts.objective.method.prepare,
            list(self.named.values()),
            recipe.precision,
            dropout=recipe.dropout > 0,
            recorder=self.recorder or cuda_graph(self.parts.drawer.data.labels.device),
            notice=self.notice,
            quiet=lambda: None if ahead is None else ahead.wait(),
        )

    @property
    def executed(self) -> Executed:
        """How steps are really run, which is less than `execution` where something was not to be had."""
        made = self._forward_backward
        ended = made.ended if isinstance(made, Captured) else self._no_graphs
        compiled = self.execution.compiled and not self._not_compiled
        graphs = self.execution.graphs and not ended
        return executed(compiled, graphs, self._not_compiled, ended, recompute=self.parts.recompute)

    def advance(self, settle: bool = False) -> dict[str, Any] | None:
        """One step; the point of the log window that it closes, if it does.

        settle: also wait for its verdict, which the end of a window does by itself. Raises NonFinite for this step or for the one
        before it, and leaves the state as it was before the step that is named.
        """
        number = self.step + 1
        made = self._gradients(number)
        _, repaired = self._settle()
        if repaired:  # what was made meanwhile began at weights that lacked a step
            made = self._gradients(number)
        self._update(made)
        self.step, self._pending = number, made
        if settle or not self.lag or self.curve.closes(number):
            return self.settle()
        return None

    def settle(self) -> dict[str, Any] | None:
        """Wait until the last step is known to be finite, and take it into EMA and curve; the point of the window that it closes.

        Whoever looks at `ema` or `curve` settles first. Raises NonFinite as `advance` does.
        """
        return self._settle()[0]

    def _settle(self) -> tuple[dict[str, Any] | None, bool]:
        """`settle`, and whether the step had to be computed again."""
        made, self._pending = self._pending, None
        if made is None:
            return None, False
        if repaired := made.verdict.read():
            # A transient fault does not repeat; a divergence does. Both runs start from the same untouched state.
            self.step = made.number - 1
            made = self._gradients(made.number)
            if made.verdict.read():
                raise NonFinite(made.number, self._evidence(made.norm, made.logged))
            self._update(made)
            self.step = made.number
        self.ema.update()
        self._log(made.logged)
        return self.curve.close_step(made.number, made.norm, self.parts.recipe.rate(made.number)), repaired

    def _update(self, made: _Step) -> None:
        rate = self.parts.recipe.rate(made.number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # What torch's gradient scaler tells fused optimisers: where it is 1 they touch neither weights nor moments.
        self.optimizer.found_inf = made.bad  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer.step()

    def _gradients(self, step: int) -> _Step:
        """The step's gradient, clipped. Where a network cannot be compiled it is run as written, which is said once."""
        try:
            return self._accumulate(step)
        except Exception as error:
            why = compiler_failed(error) if self.execution.compiled else None
            if why is None:
                raise
            self._not_compiled = f"the network is not compiled, it runs as written: {why}"
            self.notice(self._not_compiled)
            uncompile(self.parts.objective.network)
            return self._accumulate(step)

    def _accumulate(self, step: int) -> _Step:
        """Add up the gradient of a global batch over micro-batches, and clip it."""
        recipe = self.parts.recipe
        per_forward = self.micro_batch // recipe.local_batch
        self.optimizer.zero_grad(set_to_none=not self.execution.graphs)  # graphs know gradients by address
        logged, losses = [], []
        starts = range(self.shards.start, self.shards.stop, per_forward)
        forwards = [range(first, min(first + per_forward, self.shards.stop)) for first in starts]
        for number, shards in enumerate(forwards):
            more = shards.stop < self.shards.stop
            with self.ranks.alone(self.model) if more else nullcontext():
                if self.ahead is None:
                    draw = self.parts.drawer.draw(step, shards)
                else:
                    then = (step, forwards[number + 1]) if more else (step + 1, forwards[0])
                    draw = self.ahead.draw(step, shards, then)
                seen, checks = self._forward_backward(draw)
            losses += checks
            logged.append((seen, draw))
        norm = nn.utils.get_total_norm([p.grad for p in self.named.values() if p.grad is not None])
        if recipe.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.named.values(), recipe.clip_norm, norm)
        bad = self.ranks.worst((~torch.stack([norm, *losses]).isfinite().all()).float())
        return _Step(step, norm, logged, bad, Coming(bad))

    def _compute(self, draw: Draw) -> Terms:
        """Forward and backward of a micro-batch; its gradient, weighted by its share of the batch, is added."""
        terms = self.model(draw)
        loss = torch.stack([term.mean() for term in terms.values()]).sum()
        # Shares of ranks are equal, so the mean over ranks is that over the batch.
        own = self.parts.recipe.batch // self.ranks.size
        (loss * (len(draw.y) / own)).backward()
        watched = self.parts.objective.watched
        seen = {name: term.detach() for name, term in {**terms, **watched}.items()}
        return Terms(seen, [loss.detach(), *(value.sum() for value in watched.values())])

    def _log(self, logged: list[tuple[dict[str, Tensor], Draw]]) -> None:
        """Add the terms of the global batch to the curve: with several ranks, a step's sums are those of all of them."""
        alone = self.ranks.size == 1
        curve = self.curve if alone else self.curve.empty()
        for terms, draw in logged:
            curve.add(terms, draw.y, len(draw.y) / self.parts.recipe.batch, draw.level)
        if not alone:
            self._names = self.ranks.names(self._names, curve.open)
            self.curve.merge(self.ranks.sum(curve.open, self._names))

    def _evidence(self, norm: Tensor, logged: list[tuple[dict[str, Tensor], Draw]]) -> dict[str, Any]:
        """What a person needs to look into it: each term, and the images whose share of it is not finite, of every rank."""
        found = self.ranks.gather(self._own_evidence(norm, logged))
        rows = [row for each in found for row in each["rows"]]
        bad = next(
            (each for each in found if each["rows"]), found[0]
        )  # the terms of a rank that has such images
        return {**bad, "rows": rows[:16]}

    def _own_evidence(self, norm: Tensor, logged: list[tuple[dict[str, Tensor], Draw]]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = []
        terms: dict[str, str] = {}
        for values, draw in logged:
            for name, term in values.items():
                terms[name] = repr(float(term.mean()))
                if term.dim() == 1:
                    bad = (~term.isfinite()).nonzero().squeeze(1)[:8].tolist()
                    rows += [
                        {
                            "term": name,
                            "index": int(draw.index[i]),
                            "class": int(draw.y[i]),
                            "level": float(draw.level[i]),
                        }
                        for i in bad
                    ]
        parameters = [
            name for name, p in self.named.items() if p.grad is not None and not p.grad.isfinite().all()
        ]
        return {
            "terms": terms,
            "grad_norm": repr(float(norm)),
            "rows": rows[:16],
            "parameters": parameters[:16],
        }

    def state(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """(tensors by file, JSON state) of a checkpoint; optimiser tensors are named PARAMETER/STATE. Settles."""
        self.settle()
        slots = {
            f"{name}/{key}": value
            for name, p in self.named.items()
            for key, value in self.optimizer.state.get(p, {}).items()
        }
        tensors = {
            "model": dict(self.parts.objective.state_dict()),
            "ema": dict(self.ema.shadow),
            "optim": slots,
        }
        origin = {} if self.origin is None else {"init": self.origin}
        return tensors, {"step": self.step, "curve": self.curve.state(), **origin}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self.parts.objective.load_state_dict(dict(tensors["model"]))
        self.ema.load(tensors["ema"])
        slots: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors["optim"].items():
            parameter, key = name.rsplit("/", 1)
            p = self.named[parameter]
            # Moments lie in memory like their parameter, whose layout may not be the file's: a fused optimiser walks them side by side.
            like = p if value.shape == p.shape else torch.empty(value.shape, device=p.device)
            slots.setdefault(parameter, {})[key] = torch.empty_like(like, dtype=value.dtype).copy_(value)
        for parameter, values in slots.items():
            self.optimizer.state[self.named[parameter]] = values
        self.step = int(state["step"])
        self.curve.load(state["curve"])
        self.origin = state.get("init")

    def start(self, weights: Mapping[str, Tensor], origin: dict[str, Any]) -> None:
        """Begin at these weights of the network, live and EMA alike. Optimiser, step and the method's own parameters stay fresh."""
        self.parts.objective.network.load_state_dict(dict(weights))
        self.ema.load(weights)
        self.origin = origin


def set_precision(precision: str) -> None:
    """TF32 for matrix products and convolutions only where a recipe asks for it; deterministic kernels where torch has them."""
    allowed = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.benchmark = False
    # Not use_deterministic_algorithms: it loads torch's compiler, two seconds of every job, to tell it (compile_modules does).
    torch.set_deterministic_debug_mode("warn")
    # A kernel per new tensor, for code that reads what nobody wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
