"""Dropout: masks belong to rows and streams, whatever the grouping."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltbench.networks.dropout import Dropout, dropout_streams
from tests.nets import SMALL, batch, build, streams

torch.set_num_threads(1)


@settings(deadline=None, max_examples=30)
@given(slices=st.integers(1, 5), rows=st.integers(1, 4), p=st.floats(0.05, 0.9), seed=st.integers(0, 2**31))
def test_masks_do_not_depend_on_how_rows_are_grouped(slices: int, rows: int, p: float, seed: int) -> None:
    layers = [Dropout(p), Dropout(p)]
    x = torch.randn((slices * rows, 3, 5), generator=torch.Generator().manual_seed(seed))

    def run(part: Tensor, generators: list[torch.Generator]) -> Tensor:
        with dropout_streams(generators):
            return layers[1](layers[0](part) + 1)

    seeds = [seed + k for k in range(slices)]
    together = run(x, streams(*seeds))
    apart = torch.cat([run(part, streams(seeds[k])) for k, part in enumerate(x.split(rows))])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("name", ["SiT-N/4", "UNet-16"])
def test_a_whole_network_drops_the_same_units_however_rows_are_grouped(name: str) -> None:
    network = build(name, filled=True, dropout=0.2)
    x, t, y = batch(network, rows=6)

    def run(rows: slice, *seeds: int) -> Tensor:
        with dropout_streams(streams(*seeds)), torch.no_grad():
            return network(x[rows], t[rows], y[rows])[0]

    together = run(slice(0, 6), 10, 11, 12)
    apart = torch.cat([run(slice(2 * k, 2 * k + 2), 10 + k) for k in range(3)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    assert (together - run(slice(0, 6), 20, 21, 22)).abs().max() > 1e-2
    assert (together - network.eval()(x, t, y)[0]).abs().max() > 1e-2


@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_masks_of_unequal_slices_are_those_of_each_slice_alone(rows: list[int], seed: int) -> None:
    layer, x = Dropout(0.4), torch.ones(sum(rows), 7)
    with dropout_streams(streams(*range(seed, seed + len(rows))), rows):
        together = layer(x)
    apart = [x[:0]]
    for k, n in enumerate(rows):
        with dropout_streams(streams(seed + k)):
            apart.append(layer(x[:n]))
    assert torch.equal(together, torch.cat(apart))


@pytest.mark.parametrize("rows", [(1, 2), (2, 3), (4,)])
def test_slices_that_do_not_fit_the_batch_are_refused(rows: tuple[int, ...]) -> None:
    with dropout_streams(streams(0, 1), rows), pytest.raises(ValueError, match="4 batch rows"):
        Dropout(0.5)(torch.ones(4, 3))


@pytest.mark.parametrize("name", SMALL)
def test_an_empty_batch_passes_through(name: str) -> None:
    network = build(name, dropout=0.5)
    x, t, y = batch(network)
    taps = list(network.tap_widths)
    with dropout_streams(streams(0, 1), (0, 0)):
        prediction, features = network(x[:0], t[:0], y[:0], taps)
    assert prediction.shape == x[:0].shape
    assert [tuple(feature.shape) for feature in features] == [(0, *network.tap_widths[tap]) for tap in taps]


@pytest.mark.parametrize(("name", "layers"), [("SiT-N/4", 2 * 2), ("UNet-16", 3 + 2 + 6)])
def test_dropout_acts_once_per_branch(name: str, layers: int) -> None:
    network, seen = (
        build(name, dropout=0.5),
        [],
    )  # SiT: two branches of two blocks; U-Net: every residual block
    for module in network.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda _m, given, out: seen.append(torch.equal(given[0], out)))
    x, t, y = batch(network)
    with dropout_streams(streams(0)):
        network(x + 1, t, y)
    assert seen == [False] * layers


def test_dropout_keeps_the_mean_and_the_share() -> None:
    with dropout_streams(streams(0)):
        out = Dropout(0.3)(torch.ones(4, 50_000))
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(out.max(), torch.tensor(1 / 0.7))


def test_dropout_is_off_in_eval_and_at_zero_and_never_uses_the_global_stream() -> None:
    x, state = torch.ones(4, 3), torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    with pytest.raises(RuntimeError, match="dropout_streams"):
        Dropout(0.5)(x)
    with (
        dropout_streams(streams(0, 1, 2)),
        pytest.raises(ValueError, match=r"4 batch rows .* 3 dropout streams"),
    ):
        Dropout(0.5)(x)
    with dropout_streams(streams(0)):
        with dropout_streams(streams(1)):
            inner = Dropout(0.5)(x)
        outer = Dropout(0.5)(x)
    with dropout_streams(streams(1)):
        assert torch.equal(Dropout(0.5)(x), inner)
    with dropout_streams(streams(0)):
        assert torch.equal(Dropout(0.5)(x), outer)
    with pytest.raises(RuntimeError, match="dropout_streams"):
        Dropout(0.5)(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_dropout_wants_a_probability_below_one(p: float) -> None:
    with pytest.raises(ValueError, match=r"probability in \[0, 1\)"):
        Dropout(p)
