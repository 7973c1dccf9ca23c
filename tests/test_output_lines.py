"""What the command line writes for thousands of rows in one go is what it would write row by row."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from ltbench.cli import output

LEAVES = (None, True, -3, 1e-7, 2.5e22, 'é\n"x, {}', Path("/a/b"), {}, [])
KEYS = ("a", "b: ", 'q"', "ü", 1, None, 2.5)


def _value(chance: random.Random, depth: int):
    kind = chance.randrange(3) if 0 < depth < 5 else 0 if depth else chance.randrange(1, 3)
    if kind == 0:
        return chance.choice(LEAVES)
    if kind == 1:
        return {chance.choice(KEYS): _value(chance, depth + 1) for _ in range(chance.randrange(4))}
    return [_value(chance, depth + 1) for _ in range(chance.randrange(4))]


def test_json_is_spelled_as_with_an_indent_of_one(capsys):
    chance = random.Random(7)
    for _ in range(500):
        value = _value(chance, 0)
        output.dump(value)
        wanted = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False, default=str)
        assert capsys.readouterr().out == wanted + "\n"
    with pytest.raises(ValueError, match="not JSON compliant"):
        output.dump({"rows": [{"loss": float("nan")}]})


def test_many_lines_are_cleaned_as_one_is(capsys, monkeypatch):
    monkeypatch.setenv("A_TOKEN", "planted-value-1")
    lines = ["plain", "with planted-value-1 in it", "a\x1b[31m colour", "", "ü\u202e"]
    for line in lines:
        output.out(line)
    single = capsys.readouterr().out
    output.out_all(iter(lines))
    assert capsys.readouterr().out == single
    assert "planted" not in single
