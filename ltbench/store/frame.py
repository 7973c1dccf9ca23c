"""Records as a table for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ltbench.store.core import Store
from ltbench.store.records import Record

if TYPE_CHECKING:
    import pandas


_BODY = ("cell", "run", "step", "images_seen", "nfe")
_ROW = ("metric", "name", "group", "value", "floor", "n_gen", "n_ref")
_ENVELOPE = ("seconds", "host", "attempt")


def load_records(store: Store | None = None) -> pandas.DataFrame:
    """Every evaluation value in the store (the default one: LTBENCH_STORE or results/store), one per row.

    Columns: cell, run, step, images_seen, evaluation.*, dataset.name, method.name, train.lr ... (every setting by its
    dotted path), then metric, name, group, value, floor, n_gen, n_ref and what else a row of the record has, and
    seconds, host and attempt of the envelope. Damaged and superseded records are not in it: `store.damaged()`.
    """
    import pandas

    opened = Store.open(write=False) if store is None else store
    rows = flatten(opened.records("evaluation"))
    # A question about an empty store gets an empty answer, and no KeyError.
    return pandas.DataFrame(rows) if rows else pandas.DataFrame(columns=[*_BODY, *_ROW, *_ENVELOPE])


def flatten(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One plain dict per value of each record; see `load_records` for its keys."""
    rows = []
    for record in records:
        body = record.body
        common: dict[str, Any] = {key: body.get(key) for key in _BODY}
        common |= _dotted(body.get("settings") or {}) | _dotted(body["evaluation"], "evaluation.")
        common |= {key: record.envelope.get(key) for key in _ENVELOPE}
        rows += [common | row for row in body["rows"]]
    return rows


def _dotted(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            found |= _dotted(item, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = item
    return found
