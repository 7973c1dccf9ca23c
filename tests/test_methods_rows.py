"""Rows of a pass and the host: filled-up forwards change nothing, and no method makes the host wait for the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from ltbench.conformance.suite.reads import HostRead, no_host_reads
from ltbench.encoders import Tokens, load_encoder
from ltbench.methods import Draw, Method, Objective, Reference, Rng, fixed_rows
from tests.toy import PIPELINES, Toy, draw, method, network, small, task, variants

torch.set_num_threads(1)

META = torch.device("meta")  # a tensor there has no numbers: whoever reads one fails
PASSES = ("fused", "serial")


@pytest.mark.parametrize("batch", [1, 4, 12, 48, 64, 128, 256])
def test_rows_are_filled_up_to_few_counts(batch: int) -> None:
    found = {rows: fixed_rows(rows, batch) for rows in range(2 * batch + 1)}
    assert found[0] == 0
    assert (found[batch], found[2 * batch]) == (batch, 2 * batch)
    for rows, count in found.items():
        top = -(-rows // batch) * batch
        assert rows <= count <= top
        assert count - rows < max(1, batch // 12) or count == top - batch // 4
    # A second pass of the kept rows: this many shapes, and the whole batch where nobody is kept.
    assert len({count for rows, count in found.items() if rows > batch}) <= 5


def terms_and_gradients(pipeline: str, name: str, passes: Any, fixed: bool) -> tuple[dict[str, Tensor], list]:
    net = network(pipeline, dropout=0.2)
    the_task = task(pipeline, passes=passes, dropout=0.2, fixed_rows=fixed)
    options = small(name, pipeline)
    options.pop("name")
    objective = Objective(net, method(name, the_task, **options))
    rows = []
    net.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    terms = objective(draw(pipeline, shards=3))
    torch.stack([term.mean() for term in terms.values()]).sum().backward()
    assert [fixed_rows(n, 12) for n in rows] == rows or not fixed
    return terms, [p.grad for p in net.parameters()]


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_is_filled_in_changes_nothing(
    pipeline: str, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do its masks move those of other rows."""
    plain = terms_and_gradients(pipeline, "ccua", passes, False)
    filled = terms_and_gradients(pipeline, "ccua", passes, True)
    calls = []

    def noise(self: Method, made: Draw, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(rows)
        x = torch.randn(rows, *made.xt.shape[1:], generator=torch.Generator().manual_seed(3))
        return x, made.t[-1:].expand(rows), made.y[:1].expand(rows)

    monkeypatch.setattr(Method, "_filling", noise)
    other = terms_and_gradients(pipeline, "ccua", passes, True)
    assert calls
    assert min(calls) > 0
    for name, value in filled[0].items():
        assert torch.equal(value, other[0][name])
        torch.testing.assert_close(value, plain[0][name], rtol=1e-4, atol=1e-6)
    for a, b, c in zip(filled[1], other[1], plain[1], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-6)


def test_rows_of_a_draw_are_counted_by_local_batch() -> None:
    made = draw("sit", shards=5)
    assert torch.equal(made.kept, (~made.dropped).nonzero().squeeze(1))
    assert list(made.kept_sizes) == made.by_local_batch(~made.dropped).sum(1).tolist()
    assert list(made.sizes(made.kept)) == list(made.sizes(made.kept.clone()))
    assert made.sizes(torch.tensor([4, 5, 19])) == [0, 2, 0, 0, 1]
    assert made.sizes(made.kept[:0]) == [0] * 5
    assert made.sizes(None) == [4] * 5


# --- the host -------------------------------------------------------------------------------------------------------


def elsewhere(made: Draw) -> Draw:
    """The draw on the device without numbers. Generators stay, for masks that nobody draws there."""
    moved: dict[str, Any] = {k: v.to(META) for k, v in vars(made).items() if isinstance(v, Tensor)}
    assert made.reference is not None
    moved["reference"] = Reference(*(part.to(META) for part in made.reference))
    rng = Rng(0, 1, range(len(made.dropout_seeds)), made.local_batch, META)
    return dataclasses.replace(
        made, **moved, rng=rng, generators=lambda group, number: torch.Generator().manual_seed(number)
    )


def meta_encoder(name: str, grid: tuple[int, int], cache: bool = False) -> Tokens:
    raw = torch.from_numpy(Toy().train().images).to(META)
    kept = {"images": lambda index, flipped: raw[index], "size": len(raw)} if cache else {}
    tokens = Tokens(load_encoder(name, META), grid, **kept)
    for number, flip in sorted(tokens._missing):  # as `prepare` leaves them once all images were seen
        tokens._fill(number, flip, META)
    return tokens


CASES = [(*variant, "fused") for variant in variants()]
CASES += [("ccua", pipeline, {}, "serial") for pipeline in PIPELINES]


@pytest.mark.parametrize(("name", "pipeline", "options", "passes"), CASES)
def test_no_step_waits_for_the_device(name: str, pipeline: str, options: dict[str, Any], passes: Any) -> None:
    """Forward and backward run without a single number; a method that says why it needs some is seen to need them."""
    here = task(pipeline, passes=passes, dropout=0.2, fixed_rows=True, encoder=meta_encoder)
    the_method = method(
        name, here, **{k: v for k, v in {**small(name, pipeline), **options}.items() if k != "name"}
    )
    for key, value in vars(the_method).items():
        if isinstance(value, Tensor):
            setattr(the_method, key, value.to(META))
    the_method.task = dataclasses.replace(
        here, class_counts=here.class_counts.to(META), class_prior=here.class_prior.to(META)
    )
    objective = Objective(network(pipeline, dropout=0.2), the_method).to(META)
    made = dataclasses.replace(elsewhere(draw(pipeline, shards=3)), recorded=True)
    here.process.signal(made.t)  # its tables are there from the first step on

    def run() -> None:
        with no_host_reads():
            terms = objective(made)
            torch.stack([term.mean() for term in terms.values()]).sum().backward()

    if the_method.on_host:
        with pytest.raises(HostRead):
            run()
        return
    run()
    assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


X = torch.tensor([1.0, -2.0, 3.0])
READS = {
    "a number": lambda: X.sum().item(),
    "a truth": lambda: 1 if (X > 0).any() else 0,
    "a list": lambda: X.tolist(),
    "an array": lambda: X.numpy(),
    "a length": lambda: range((X > 0).sum()),
    "rows": lambda: (X > 0).nonzero(),
    "rows by where": lambda: torch.where(X > 0),
    "a mask": lambda: X[X > 0],
    "a count": lambda: torch.repeat_interleave(X, torch.tensor([1, 2, 3])),
    "a message": lambda: f"{X[0]}",
    "a comparison": lambda: torch.equal(X, X),
}


@pytest.mark.parametrize("what", READS)
def test_reading_on_the_host_is_noticed(what: str) -> None:
    with pytest.raises(HostRead), no_host_reads():
        READS[what]()
    with no_host_reads():
        torch.where(X > 0, X, 0).sum().clamp_min(1) / X[torch.tensor([0, 2])].sum()
