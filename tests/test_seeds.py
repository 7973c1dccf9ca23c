"""Keyed random streams are NumPy's Philox under a hashed key, and nothing else."""

from __future__ import annotations

import hashlib

import numpy as np

from ltbench import seeds


def test_a_stream_is_philox_under_the_first_half_of_the_hash() -> None:
    digest = hashlib.sha256(b"ltbench\x1f3\x1fnoise\x1f5\x1f1").digest()
    plain = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], "<u8")))
    ours = seeds.stream(3, "noise", 5, 1)
    assert np.array_equal(ours.standard_normal(64), plain.standard_normal(64))
    assert (
        ours.bit_generator.state["state"]["key"].tolist()
        == plain.bit_generator.state["state"]["key"].tolist()
    )
