"""The strict YAML reader: YAML 1.2's meaning, places that are right, and hostile input refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltbench.errors import SpecError
from ltbench.spec.yaml_io import MAX_BYTES, Node, dump_yaml, parse_yaml, read_yaml

ROOT = Path(__file__).resolve().parents[1]

TEXT = st.text(
    st.characters(
        blacklist_categories=("Cs", "Cc"), blacklist_characters="\ufeff\u2028\u2029\x85\ufffe\uffff"
    ),
    max_size=20,
)
NUMBER = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**20), 10**20)
SCALAR = st.none() | st.booleans() | NUMBER | TEXT
DATA = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
TRICKY = st.sampled_from(
    [
        "no",
        "yes",
        "on",
        "y",
        "1e-4",
        "010",
        "0x1f",
        "0o7",
        "1_000",
        "24:00:00",
        "1:30",
        "~",
        "null",
        "",
        "-",
        "a: b",
        "# x",
        "2024-01-01",
        ".nan",
        ".inf",
        "=",
        "<<",
        "*a",
        "&a",
        "!!str",
        "'",
        '"',
        " a ",
        "a\nb",
        "%x",
        "@x",
        "`",
        "true",
        "1.",
        "+1",
    ]
)


def same(a: object, b: object) -> bool:
    """Equal with equal types: 1, 1.0 and true are three values."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(TEXT | TRICKY, DATA | TRICKY, max_size=5))
def test_what_is_written_is_read_back(data: dict) -> None:
    assert same(parse_yaml(dump_yaml(data), "f").plain(), data)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(TEXT, DATA, min_size=1, max_size=5))
def test_json_is_read_as_json(data: dict) -> None:
    text = json.dumps(data, indent=1, ensure_ascii=False)  # YAML has no surrogate pairs
    assert same(parse_yaml(text, "f").plain(), json.loads(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1e5", 1e5), ("1E+3", 1e3), (".5", 0.5), ("-1.", -1.0), ("010", 10), ("-3", -3), ("+3", 3), ("0x10", 16),
        ("0o17", 15), ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("true", True), ("False", False),
        ("~", None), ("null", None), ("", None), ("24:00:00", "24:00:00"), ("1:30", "1:30"), ("1_000", "1_000"), ("none", "none"),
        ("2024-01-01", "2024-01-01"), ("'1e-4'", "1e-4"), ('"true"', "true"), ("1e", "1e"), ("0x", "0x"), ("N/4", "N/4"),
    ],
)  # fmt: skip
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    assert same(parse_yaml(f"key: {text}", "f").plain(), {"key": value})


@pytest.mark.parametrize(
    ("text", "where", "word"),
    [
        ("a: 1\nb: 2\na: 3", (3, 1), "twice"),
        ("a: {b: 1, b: 2}", (1, 11), "twice"),
        ("a: &x 1", (1, 4), "anchor"),
        ("a: 1\nb: *x", (2, 4), "alias"),
        ("a: !!python/object/apply:os.system [x]", (1, 4), "tag"),
        ("a: !mine 1", (1, 4), "tag"),
        ("a: !!str 1", (1, 4), "tag"),
        ("b: 1\n<<: {a: 1}", (2, 1), "merge key"),
        ("? [a]\n: 1", (1, 3), "key"),
        ("a:\n\tb: 1", (2, 1), "tab"),
        ("a:\n  \t- 1", (2, 3), "tab"),
        ("\ufeffa: 1", (1, 1), "byte order"),
        ("a: x\0y", (1, 5), "NUL"),
        ("a: \x1b[31m", (1, 4), "control"),
        ("b: 1\na: x\ufffey", (2, 5), "control character 0xfffe"),
        ("a: .nan", (1, 4), "NaN"),
        ("a: [1, -.inf]", (1, 8), "NaN"),
        ("a: 1e999", (1, 4), "too large"),
        ("a: " + "9" * 5000, (1, 4), "characters"),
        ("a: 1\n---\nb: 1", (2, 1), "second document"),
        ("%TAG ! tag:x,2000:\n---\na: 1", None, "directive"),
        ("a: 'x", None, "not YAML"),
        ("a: [1", None, "not YAML"),
        ("a: b: c", (1, 5), "not YAML"),
        ("a: " + "[" * 100, (1, 35), "deeper"),
        ("a: " + "[" * 2000, None, "deeper"),  # where libyaml itself gives up depends on its version
        ("{a: " * 2000, None, "deeper"),
        ("a: [" + "1," * 300_000 + "]", None, "values"),
        ("x" * (MAX_BYTES + 1), None, "larger"),
    ],
)  # fmt: skip
@pytest.mark.timeout(30)  # a bomb that went off would take for ever
def test_hostile_text_is_one_error(text: str, where: tuple[int, int] | None, word: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "f.yaml")
    (problem,) = caught.value.problems
    assert word in problem.message
    assert problem.file == "f.yaml"
    assert "\n" not in str(problem)
    assert len(str(problem)) < 300
    if where is not None:
        assert (problem.line, problem.column) == where


def test_the_anchor_bomb_of_305_bytes_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 7)]
    with pytest.raises(SpecError, match="anchor"):
        parse_yaml("\n".join(lines), "f")


def test_text_that_is_not_utf8_says_so() -> None:
    with pytest.raises(SpecError, match="f:2: is not UTF-8"):
        parse_yaml(b"a: 1\nb: \xff", "f")


def test_every_duplicate_is_reported() -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml("a: 1\na: 2\nb: {c: 1, c: 2}\nd: .nan", "f")
    assert [problem.line for problem in caught.value.problems] == [2, 3, 4]


def test_places_point_at_the_keys_and_values_themselves() -> None:
    path = ROOT / "benchmarks" / "quickstart.yaml"
    lines = path.read_text().splitlines()
    checked = 0

    def look(node: Node) -> None:
        nonlocal checked
        if isinstance(node.value, dict):
            for key, where in node.keys.items():
                assert where.line is not None
                assert where.column is not None
                assert lines[where.line - 1][where.column - 1 :].startswith(key)
                checked += 1
                look(node.value[key])
        elif isinstance(node.value, list):
            for item in node.value:
                look(item)
        elif isinstance(node.value, int):
            assert node.where.line is not None
            assert node.where.column is not None
            assert lines[node.where.line - 1][node.where.column - 1 :].startswith(str(node.value))

    look(read_yaml(path))
    assert checked > 20


def test_a_missing_file_and_a_huge_one_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (10 << 20))
    with pytest.raises(SpecError, match="larger than"):
        read_yaml(huge)


def test_a_spec_cannot_be_written_with_a_nan() -> None:
    with pytest.raises(ValueError, match="nan"):
        dump_yaml({"a": [float("nan")]})
