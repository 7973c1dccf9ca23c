"""The LaTeX of a report set by a real LaTeX, with hostile names inside; and what its text becomes."""

from __future__ import annotations

import re
import string
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from ltbench.report.assemble import build_table
from ltbench.report.definition import load_definition
from ltbench.report.latex_text import escape, key
from ltbench.report.render_latex import render_latex
from tests import latex_world, paper_world
from tests.report_world import quickstart
from tests.test_report_views import HOSTILE, hostile_inputs

latex = latex_world.latex  # a fixture
SUMMARY = load_definition(Path(__file__).resolve().parents[1] / "reports" / "summary.yaml")
EVERY = "".join(
    chr(code)
    for code in (*range(32, 127), *range(0xA0, 0x250), *range(0x370, 0x400))
    if chr(code).isprintable()
)


@pytest.mark.latex
@pytest.mark.parametrize("packages", ["", r"\usepackage[T1]{fontenc}"])
def test_a_real_latex_sets_the_tables_and_runs_nothing(latex, tmp_path, packages):
    partial = replace(quickstart(), records=quickstart().records[3:])
    for name, inputs in (("plain", partial), ("hostile", hostile_inputs())):
        (tmp_path / f"{name}.tex").write_text(render_latex(build_table(inputs, SUMMARY)))
    log = latex(r"\input{plain}" + "\n\n" + r"\input{hostile}", packages)
    assert "(/etc/passwd" not in log  # how a log names a file that was opened
    assert "Missing character" not in log


@pytest.mark.latex
def test_a_real_latex_sets_every_printable_character(latex):
    """Spaces between, and all of them joined: no ligature or command of two."""
    body = "\n\n".join(
        escape(" ".join(part)) + "\n\n" + escape(part)
        for part in [EVERY, *HOSTILE, "漢字🙂", "a--b---c ''x'' ?`!`"]
    )
    log = latex(body)
    assert "Missing character" not in log


def test_nothing_but_known_commands_is_left():
    """Whatever the text, its LaTeX is ASCII and holds no character that acts, but in what we put there."""
    for character in EVERY + "漢字🙂\u202e\x1b\n":
        made = escape(character)
        assert made.isascii()
        if character in string.ascii_letters + string.digits + ".,:;()/=+!?@'-":
            assert made == character
    assert escape("a--b") == "a-{}-b"
    assert escape("Ågren") == r"\r{A}gren"
    assert escape(unicodedata.normalize("NFD", "Ågren")) == escape("Ågren")
    assert escape("漢") == r"\texttt{U+6F22}"
    assert key("ccua, {evil}\\x") == "ccua-evil-x"


def test_the_tables_are_for_input():
    text = render_latex(build_table(quickstart(), SUMMARY))
    for word in (r"\documentclass", r"\usepackage{geometry}", r"\begin{table}", r"\begin{document}"):
        assert word not in text
    for word in (r"\toprule", r"\bottomrule", r"$\downarrow$", r"\mathbf{"):
        assert word in text


def test_a_long_note_moves_no_column(tmp_path):
    """A table's own rows are its numbers: a note among them, wider than they are, would widen the last column."""
    sheet = paper_world.build("table7", paper_world.planned("table7", tmp_path))
    for text in (render_latex(build_table(hostile_inputs(), SUMMARY)), render_latex(sheet)):
        tables = re.findall(r"\\begin\{tabular\}\{l.*?\\end\{tabular\}", text, re.DOTALL)
        assert tables
        assert not [table for table in tables if "{p{" in table or r"\footnotesize" in table]
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")
        assert r"\footnotesize" in text
