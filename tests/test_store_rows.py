"""A record whose rows are left unread is the record, whatever its texts hold; and the fast parser gives what json gives."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ltbench.canonical import canonical_json
from ltbench.store import records, rows, sealed

# Texts that look like the places where a record is cut.
TEXTS = st.sampled_from(
    ['"rows":[', '],"run":', 'rows":[', "cut out", '"', "\\", "}", "é\u2028", "{", "[1.5,2.5]", "\x01"]
) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.just("rows"), inner, max_size=3),
    max_leaves=8,
)
# Rows as the metrics write them, which are packed, beside others that cannot be.
MEASURED = st.builds(
    lambda named, more: more | named,
    st.fixed_dictionaries({"metric": TEXTS, "group": TEXTS}),
    st.dictionaries(TEXTS | st.just(":1.5,"), VALUES | st.lists(NUMBERS, min_size=1, max_size=4), max_size=3),
)
ROWS = st.lists(MEASURED, max_size=3) | st.lists(
    MEASURED | st.dictionaries(TEXTS, VALUES, max_size=3) | st.just("cut out"), max_size=3
)


@settings(max_examples=100, deadline=None)
@given(ROWS, VALUES, VALUES, VALUES)
@example([{"metric": "FD", "group": "all", "note": "cut out", "value": 1.5}], None, None, None)
def test_unread_rows_are_the_rows(found, before, after, envelope):
    value = {
        "body": {"facts": before, "rows": found, "run": "0" * 12, "train_counts": after},
        "envelope": envelope,
    }
    text = canonical_json(value)
    read = rows.parse(text)
    assert read == sealed.parse(text) == json.loads(text)
    plain, unread = json.loads(text)["body"]["rows"], read["body"]["rows"]
    assert canonical_json([*unread]) == canonical_json(plain)  # asked a second time: 1 is not 1.0
    if isinstance(unread, rows.Rows) and (parts := unread.parts()):
        again = rows.Rows.packed(parts[0], memoryview(bytes(parts[1])))
        assert canonical_json([*again]) == canonical_json(plain)
        names = frozenset((row["metric"], row["group"]) for row in plain[:1])
        assert repr(rows.named(again, names)) == repr(rows.named(plain, names))


def test_rows_are_left_unread_where_they_can_be(tmp_path):
    body = {"format": 1, "kind": "evaluation", "cell": "a" * 64, "run": "b" * 12, "step": 7}
    body |= {"evaluation": {"id": "c" * 12}, "rows": [{"metric": "FD", "group": "all", "value": 1.5}]}
    name, data = records.record_file(body, {"attempt": 1})
    path = tmp_path / body["cell"] / "runs" / body["run"] / "records" / name
    lazy, plain = (records.parse_record(path, data, lazy=lazy) for lazy in (True, False))
    assert type(lazy.body["rows"]) is rows.Rows
    assert type(plain.body["rows"]) is list
    assert lazy == plain
    assert lazy.body["rows"].parts() is not None
    assert rows.Rows(b'{"group":"all","metric":"FD","value":1e999}').parts() is None
    large = {"folds": [1.7e308, 1.7e308], "group": "all", "metric": "FD"}  # finite, unlike their sum
    assert rows.Rows(canonical_json(large)) == [large]
    # Written again, as an import does, it is the same file.
    assert records.record_file(lazy.body, lazy.envelope) == (name, data)


@pytest.mark.parametrize("text", [b"NaN", b'{"a":-Infinity}', b'"\xff"', b"[1,]", b"01", b"{}x", b"[" * 5000])
def test_what_json_refuses_is_refused_however_long(text):
    for padded in (text, text + b" " * sealed.LONG):
        with pytest.raises(ValueError, match=r"^(is|holds) "):
            sealed.parse_any(padded)
    assert sealed.parse_any(b'"\\ud800"' + b" " * sealed.LONG) == "\ud800"
