"""A loss that grew late is said below the table, and its values stay in the mean."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from ltbench.report.assemble import build_table
from ltbench.report.definition import Definition
from ltbench.report.diverged import grown
from tests.report_world import quickstart


def curve(*losses: float) -> dict:
    return {"step": [20 * (n + 1) for n in range(len(losses))], "terms": {"denoise": list(losses)}}


def test_a_loss_has_grown_where_its_end_is_far_above_its_lowest() -> None:
    falling = [1.0 / (n + 1) for n in range(60)]
    assert grown(curve(*falling)) is None
    assert grown(curve(*falling[:-1], 0.9)) is None, "one bad point is no divergence"
    times, at = grown(curve(*falling, *[100 * falling[-1]] * 4)) or (0, 0)
    assert times == pytest.approx(100, rel=0.05)
    assert at == 60 * 20
    for nothing in (
        {},
        curve(),
        curve(1.0, float("inf")),
        curve(0.0, 1.0),
        {"step": [1], "terms": {"denoise": [None]}},
    ):
        assert grown(nothing) is None


def test_it_is_a_footnote_of_its_row_and_counts_in_the_mean() -> None:
    inputs = quickstart()
    plain = build_table(inputs, Definition(name="n"))
    records = copy.deepcopy(list(inputs.records))
    last = max(record["body"]["step"] for record in records)
    bad = next(r for r in records if r["body"]["kind"] == "train" and r["body"]["step"] == last)
    losses = bad["body"]["curve"]["terms"]["denoise"]
    bad["body"]["curve"]["terms"]["denoise"] = [*losses[:-1], 1000 * max(losses)]
    table = build_table(dataclasses.replace(inputs, records=records), Definition(name="n"))
    (note,) = set(table.notes) - set(plain.notes)
    assert "times its lowest" in note
    assert "its values count in the mean" in note
    marked = [row for row in table.sections[0].rows if table.notes.index(note) + 1 in row.notes]
    assert [bad["body"]["cell"] in [cell for _, cell in row.cells] for row in marked] == [True]
    assert table.sections[0].entries == plain.sections[0].entries
