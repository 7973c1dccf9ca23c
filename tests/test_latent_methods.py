"""Every method in methods/ on latents: the contract holds there as on pixels. A dropped-in file needs no test here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ltbench.datasets import Images
from ltbench.latents.codec import Codec, load_codec
from ltbench.methods import Unsupported
from ltbench.parts import Parts
from ltbench.places import Rows
from ltbench.trainer import Trainer
from tests.latent_world import CPU, latent_parts, moments, rows_of, squares
from tests.test_methods_conformance import NAMES, off, options
from tests.toy import PIPELINES

Cell = tuple[Images, Codec, Rows]
every = pytest.mark.parametrize(("name", "pipeline"), [(n, p) for p in PIPELINES for n in NAMES])


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("squares")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTBENCH_DATA", str(folder))
        images = squares()
    codec = load_codec("tiny-vae", CPU)
    return images, codec, rows_of(moments(images, codec, folder))


def built(name: str, pipeline: str, encoded: Cell, **changes: Any) -> Parts:
    try:
        return latent_parts(pipeline, {"name": name, **options(name, pipeline), **changes}, *encoded)
    except Unsupported as reason:
        pytest.skip(str(reason))


@every
def test_terms_are_finite_and_gradients_reach_every_parameter(
    name: str, pipeline: str, encoded: Cell
) -> None:
    made = built(name, pipeline, encoded)
    draw = made.drawer.draw(1, [0, 1])
    assert draw.x0.shape == (8, 4, 4, 4)
    terms = made.objective(draw)
    assert all(term.isfinite().all() for term in terms.values())
    sum(term.mean() for term in terms.values()).backward()
    assert not [n for n, p in made.objective.named_parameters() if p.requires_grad and p.grad is None]


@every
def test_switched_off_equals_the_baseline_bit_for_bit(name: str, pipeline: str, encoded: Cell) -> None:
    found = []
    for made in (built(name, pipeline, encoded, **off(name)), built(pipeline, pipeline, encoded)):
        terms = made.objective(made.drawer.draw(2, [0, 1, 2]))
        loss = sum(term.mean() for term in terms.values())
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, made.objective.network.parameters(), allow_unused=True) if g is not None]))  # fmt: skip
    assert torch.equal(*found)


@every
def test_resuming_is_exact(name: str, pipeline: str, encoded: Cell) -> None:
    """Two steps and two more from the state equal four, bitwise, with latents drawn anew at every step."""
    whole = Trainer(built(name, pipeline, encoded), 12, 1)
    for _ in range(2):
        whole.advance()
    tensors, state = whole.state()
    kept = {part: {key: value.clone() for key, value in group.items()} for part, group in tensors.items()}
    rest = Trainer(built(name, pipeline, encoded), 12, 1)
    rest.load(kept, state)
    for trainer in (whole, rest):
        for _ in range(2):
            trainer.advance()
    one, two = (trainer.state()[0]["model"] for trainer in (whole, rest))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_micro_batch_changes_no_draw(encoded: Cell, tmp_path: Path) -> None:
    losses = []
    for micro in (12, 4):
        trainer = Trainer(built("sit", "sit", encoded), micro, 1)
        point = trainer.advance()
        assert point is not None
        losses.append(point["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
