"""A record whose rows are left unread is the record, whatever its texts hold; and the fast parser gives what json gives."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltbench.canonical import canonical_json
from ltbench.store import records, rows, sealed

# Texts that look like the places where a record is cut.
TEXTS = st.sampled_from(
    ['"rows":[', '],"run":', 'rows":[', "cut out", '"', "\\", "}", "é\u2028", "{"]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.just("rows"), inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3) | st.just("cut out"), max_size=3)


@settings(max_examples=150, deadline=None)
@given(ROWS, VALUES, VALUES, VALUES)
def test_unread_rows_are_the_rows(found, before, after, envelope):
    value = {
        "body": {"facts": before, "rows": found, "run": "0" * 12, "train_counts": after},
        "envelope": envelope,
    }
    text = canonical_json(value)
    read = rows.parse(text)
    assert read == sealed.parse(text) == json.loads(text)
    assert [*read["body"]["rows"]] == json.loads(text)["body"]["rows"]  # asked a second time


def test_rows_are_left_unread_where_they_can_be(tmp_path):
    body = {"format": 1, "kind": "evaluation", "cell": "a" * 64, "run": "b" * 12, "step": 7}
    body |= {"evaluation": {"id": "c" * 12}, "rows": [{"metric": "FD", "group": "all", "value": 1.5}]}
    name, data = records.record_file(body, {"attempt": 1})
    path = tmp_path / body["cell"] / "runs" / body["run"] / "records" / name
    lazy, plain = (records.parse_record(path, data, lazy=lazy) for lazy in (True, False))
    assert type(lazy.body["rows"]) is rows.Rows
    assert type(plain.body["rows"]) is list
    assert lazy == plain
    # Written again, as an import does, it is the same file.
    assert records.record_file(lazy.body, lazy.envelope) == (name, data)


@pytest.mark.parametrize("text", [b"NaN", b'{"a":-Infinity}', b'"\xff"', b"[1,]", b"01", b"{}x", b"[" * 5000])
def test_what_json_refuses_is_refused_however_long(text):
    for padded in (text, text + b" " * sealed.LONG):
        with pytest.raises(ValueError, match=r"^(is|holds) "):
            sealed.parse_any(padded)
    assert sealed.parse_any(b'"\\ud800"' + b" " * sealed.LONG) == "\ud800"
