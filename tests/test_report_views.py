"""One table, five views: the same numbers in each, bytes that depend on the records only, and labels that stay text."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from ltbench.canonical import digest
from ltbench.errors import UsageError
from ltbench.report import render_csv, render_html, render_latex, render_markdown, words
from ltbench.report.assemble import build_table
from ltbench.report.build import write_report
from ltbench.report.definition import load_definition
from ltbench.report.render_grid import within
from ltbench.report.render_terminal import render_terminal
from ltbench.report.table import Inputs, Table
from tests import paper_world
from tests.report_world import STEPS, external, fact, planned, quickstart, record

ROOT = Path(__file__).resolve().parents[1]
WHOLE = re.compile(r"[-+]?\d+\.\d+|published|Precision")
SUMMARY = load_definition(ROOT / "reports" / "summary.yaml")
RESERVED = re.compile(r"\b(FID|sFID|IS|KID)\b")

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\\input{/etc/passwd}",
    "100%&$#_{}~^",
    "a|b|c",
    "=cmd|' /C calc'!A0",
    "@SUM(A1)",
    "+1-2",
    "\x1b[31mred\x1b[0m\x07",
    "[bold red]markup[/]",
    "![x](http://example.com/x.png) [y](javascript:alert(1))",
    "**b** `c` ~~d~~ <!-- e -->",
    "line\nbreak\r\n# heading",
    "\u202egnp.exe\u2066",
    "{{ 7 * 7 }}{% raw %}",
    "[opt] * star",
    "$\\frac$ $x$",
    '" onmouseover="alert(1)',
    "_hidden",
    "1. list",
    "Ω漢字🙂",
]


def hostile_inputs() -> Inputs:
    """Every hostile text as a label, and in the title, part, reasons, class names and data set of a benchmark."""
    cells, records = [], []
    for number, label in enumerate(HOSTILE):
        for seed in (0, 1):
            cell = planned(f"m{number}", seed, label=label)
            cell["part"] = HOSTILE[0] + HOSTILE[2] + HOSTILE[3]
            cells.append(cell)
    for cell in cells[:-3]:
        for step in STEPS:
            made = record(cell, step, classes=[*HOSTILE[:10]])
            records.append({**made, "digest": digest(made["body"])})
    records[2] = json.loads(json.dumps(records[2]))
    records[2]["body"]["code"]["trainer"] = HOSTILE[0] + HOSTILE[2]
    states = {cells[-1]["cell"]: {"text": HOSTILE[2], "detail": " ".join(HOSTILE)}}
    cells[-2]["unsupported"] = " ".join(HOSTILE)
    others = [external(name, declared={HOSTILE[0]: HOSTILE[2], "sampler": name}) for name in HOSTILE]
    return Inputs("hostile", " ".join(HOSTILE), cells, records, states, externals=others)


def terminal(table: Table, width: int = 100, **options) -> str:
    target = io.StringIO()
    render_terminal(table, Console(file=target, width=width, **options))
    return target.getvalue()


def page(table: Table) -> str:
    return render_html.render_html(table, [], [])


VIEWS = {
    "terminal": terminal,
    "markdown": render_markdown.render_markdown,
    "latex": render_latex.render_latex,
    "csv": render_csv.render_csv,
    "html": page,
}


@pytest.fixture(scope="module")
def table() -> Table:
    return build_table(quickstart(), SUMMARY)


@pytest.fixture(scope="module")
def hostile() -> Table:
    return build_table(hostile_inputs(), SUMMARY)


@pytest.fixture(scope="module")
def papers(tmp_path_factory) -> Table:
    """Table 5 of the paper, nothing run."""
    return paper_world.build("table5", paper_world.planned("table5", tmp_path_factory.mktemp("paper")))


@pytest.fixture(scope="module")
def partial() -> Table:
    inputs = quickstart()
    lost = next(c["cell"] for c in inputs.planned if (c["label"], c["settings"]["seed"]) == ("ccua", 1))
    states = {lost: {"text": "running 63 %", "detail": "step 353 of 560"}}
    return build_table(
        replace(inputs, records=[r for r in inputs.records if r["body"]["cell"] != lost], states=states),
        SUMMARY,
    )


# the same numbers everywhere


@pytest.mark.parametrize("view", list(VIEWS))
def test_every_mean_of_the_table_is_in_every_view(view, table):
    text = VIEWS[view](table)
    for section in table.sections:
        for j, column in enumerate(section.columns):
            for i in range(len(section.rows)):
                found = section.entry(i, j)
                shown = words.number(found.mean, column, table.decimals)
                assert (repr(found.mean) if view == "csv" else shown) in text


@pytest.mark.parametrize("view", list(VIEWS))
def test_missing_seeds_and_cells_are_visible_in_every_view(view, partial):
    text = VIEWS[view](partial)
    plain = text.replace("\\", "")
    assert "running 63 %" in plain
    if view != "csv":
        assert "(n=1 of 2)" in plain
        lost = partial.sections[0].missing[0]
        assert lost.cell[:12] in text
        assert "step 353 of 560" in plain


@pytest.mark.parametrize("view", list(VIEWS))
def test_names_of_the_literature_are_never_printed_for_another_extractor(view, table, hostile):
    for one in (table, hostile):
        assert not RESERVED.search(VIEWS[view](one))


def test_scales_signs_and_zeros(table):
    kd = next(c for c in table.sections[0].columns if c.metric == "KD")
    assert words.number(0.0123, kd, {"KD": 1}) == "12.3"
    assert words.number(-0.000001, kd, {"KD": 1}) == "0.0"
    assert words.number(-0.0123, kd, {"KD": 1}) == "-12.3"
    assert (
        words.metric_heading(table.sections[0], kd.name)
        == "KD[fashion-cnn-v1@1a2b3c4d] ×1000 ↓ (lower is better)"
    )


def test_marks_are_shown_and_said(table):
    bold = {
        "terminal": r"\*\d",
        "markdown": r"\*\*\d+\.\d+\*\*",
        "latex": r"\\mathbf\{\d",
        "html": r'class="best"[^>]*>(?:<a[^>]*>)?<b>\d',
        "csv": r",best,",
    }
    wanted = sum(
        e.mark == "best" for s in table.sections for (_, _, step), e in s.entries.items() if step == s.shown
    )
    assert wanted > 0
    for view, pattern in bold.items():
        found = len(re.findall(pattern, VIEWS[view](table)))
        assert found >= wanted if view == "csv" else found == wanted, view
        if view != "csv":
            assert "2 standard errors" in " ".join(VIEWS[view](table).split())


def test_terminal_needs_neither_width_nor_unicode_nor_a_tty(table):
    narrow = terminal(table, width=80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "\x1b" not in narrow
    wide = terminal(table, width=170)
    assert len(wide.splitlines()) < len(narrow.splitlines())
    raw = io.BytesIO()
    target = io.TextIOWrapper(raw, encoding="ascii")
    render_terminal(table, Console(file=target, width=80))
    target.flush()
    text = raw.getvalue().decode("ascii")
    assert "(v) (lower is better)" in text
    assert "+-" in text


@pytest.mark.parametrize("width", [80, 60, 30])
def test_a_narrow_terminal_folds_and_cuts_nothing(width, table, hostile, papers):
    for each in (table, papers):
        wide, narrow = terminal(each, width=400), terminal(each, width=width)
        assert max(map(cell_len, narrow.splitlines())) <= width
        assert "…" not in narrow
        if width >= 60:  # room for every word
            assert Counter(WHOLE.findall(narrow)) == Counter(WHOLE.findall(wide))
    assert "…" not in terminal(hostile, width=width)


def test_a_footnote_stands_apart_from_its_number(tmp_path):
    table1 = terminal(paper_world.build("table1", paper_world.planned("table1", tmp_path)), width=200)
    assert re.search(r" 20\.94 \[\d+\]", table1)
    assert not re.search(r"\d\[\d", table1)


def test_the_widest_columns_give_first_and_words_stay_whole_while_they_can():
    assert within([20, 10, 5], [8, 10, 5], 30) == [15, 10, 5]
    assert within([20, 10, 5], [8, 6, 5], 19) == [8, 6, 5]
    assert within([20, 10, 5], [8, 6, 5], 16) == [5, 6, 5]
    assert within([3, 3], [3, 3], 1) == [1, 1]
    assert within([3, 3], [3, 3], 99) == [3, 3]


def test_csv_holds_every_number_bit_for_bit(table):
    rows = list(csv.DictReader(io.StringIO(render_csv.render_csv(table))))
    found = {
        (r["part"], r["label"], r["seed"], r["step"], r["metric"], r["group"], r["kind"]): r for r in rows
    }
    assert len(found) == len(rows)
    for section in table.sections:
        for (i, j, step), entry in section.entries.items():
            column = section.columns[j]
            key = (str(step), column.metric, column.group)
            mean = found[section.part, section.rows[i].label, "", *key, "mean"]
            assert float(mean["value"]) == entry.mean
            assert (int(mean["n"]), int(mean["planned"])) == (entry.n, entry.planned)
            assert mean["sd"] == ("" if entry.sd is None else repr(entry.sd))
            assert int(mean["n_gen"]) == column.n_gen
            assert float(mean["floor"]) == section.floors[j, step]
            for value in entry.values:
                line = found[section.part, section.rows[i].label, str(value.seed), *key, "seed"]
                assert (float(line["value"]), line["record"]) == (value.value, value.digest)


# labels stay text


def test_html_holds_no_tag_or_attribute_from_a_label(hostile):
    class Reader(html.parser.HTMLParser):
        tags: set[str]
        text: list[str]

        def __init__(self):
            super().__init__()
            self.tags, self.text, self.attributes = set(), [], set()

        def handle_starttag(self, tag, attrs):
            self.tags.add(tag)
            self.attributes |= {name for name, _ in attrs}
            assert not any("://" in (value or "") for name, value in attrs if name in ("src", "href"))

        def handle_data(self, data):
            self.text.append(data)

    reader = Reader()
    text = page(hostile)
    reader.feed(text)
    assert text.count("<script") == 1, "the page's own"
    assert text.count("script-src 'sha256-") == 1
    assert not {name for name in reader.attributes if name.startswith("on")}
    shown = " ".join("".join(reader.text).split())
    for label in HOSTILE:
        assert words.clean(label) in shown
    assert "url(" not in text
    assert "\x1b" not in text
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in text


def test_markdown_reads_back_as_the_labels(hostile):
    text = render_markdown.render_markdown(hostile)
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    assert sum(token.type == "heading_open" for token in tokens) == 2
    assert not any(token.type == "html_block" for token in tokens)
    inline = [child for token in tokens for child in token.children or []]
    tags = {child.content for child in inline if child.type == "html_inline"}
    assert tags <= {"<sup>", "</sup>", "<u>", "</u>"}
    assert not {"image", "link_open", "code_inline", "s_open"} & {child.type for child in inline}
    cells = [
        "".join(child.content for child in tokens[i + 1].children or [] if child.type != "html_inline")
        for i, token in enumerate(tokens)
        if token.type == "td_open"
    ]
    for label in HOSTILE:
        assert any(words.clean(label) in cell for cell in cells), label
    rows = "".join("x" if t.type == "td_open" else "|" if t.type == "tr_open" else "" for t in tokens)
    assert set(map(len, rows.split("|"))) <= {0, 5}  # no label opens another column


def test_latex_holds_no_command_or_column_from_a_label(hostile):
    text = render_latex.render_latex(hostile)
    ours = """begin end toprule midrule bottomrule multicolumn emph mathbf underline pm textsuperscript footnotesize
        linewidth approx mathrm rightarrow textbackslash textasciicircum textasciitilde textless textgreater textbar char texttt Omega
        downarrow uparrow times usepackage"""
    assert set(re.findall(r"\\([a-zA-Z]+)", text)) <= set(re.findall(r"\w+", ours))
    assert "\\input" not in text
    assert not re.search(r"\\\\\s*[\[*]", text)  # \\[ and \\* are commands
    depth = 0
    for character in re.sub(r"\\.", "", text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    for line in text.splitlines():
        if line.startswith("%") or not line.endswith(r"\\"):
            continue
        whole = line.startswith((r"\multicolumn", r"\end{tabular}"))
        assert len(re.findall(r"(?<!\\)&", line)) == (0 if whole else 4)
        assert not re.search(r"(?<!\\)[%#]", line)


def test_csv_starts_no_formula_and_keeps_its_columns(hostile):
    text = render_csv.render_csv(hostile)
    for row in csv.DictReader(io.StringIO(text), strict=True):
        assert set(row) == set(render_csv.FIELDS)
        for name, field in row.items():
            if field[:1] in ("=", "+", "-", "@", "\t", "\r"):
                assert name in ("value", "sd", "floor")
                float(field)
    assert "\r" not in text


def test_the_terminal_prints_no_escape_and_no_markup_of_a_label(hostile):
    text = terminal(hostile, width=240)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold red]markup[/]" in text
    coloured = terminal(hostile, width=240, force_terminal=True, color_system="standard")
    assert "\x1b[31mred" not in coloured


# bytes


def test_equal_records_give_equal_files_whatever_the_order_the_hash_seed_and_the_locale(tmp_path):
    code = (
        "import sys, random; from pathlib import Path; from dataclasses import replace\n"
        "from tests.report_world import quickstart, fact\n"
        "from ltbench.report.build import write_report; from ltbench.report.definition import load_definition\n"
        "i = quickstart(); r = list(i.records); random.Random(int(sys.argv[2])).shuffle(r)\n"
        "r = [{k: x[k] for k in sorted(x, key=lambda k: hash((k, sys.argv[2])))} for x in r]\n"
        "write_report(replace(i, records=r), load_definition(Path('reports/summary.yaml')),\n"
        "             lambda record, name: fact(name), Path(sys.argv[1]))\n"
    )
    for number, locale in enumerate(("C", "C.UTF-8")):
        variables = {**os.environ, "PYTHONHASHSEED": str(number), "LC_ALL": locale, "TZ": f"UTC+{number}"}
        variables |= {"MPLCONFIGDIR": str(tmp_path / "mpl")}
        out = str(tmp_path / str(number))
        subprocess.run([sys.executable, "-c", code, out, str(number)], check=True, cwd=ROOT, env=variables)
    files = [
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in "01"
    ]
    assert len(files[0]) == 4 + 10
    assert files[0] == files[1]


def test_writing_replaces_whole_files_and_leaves_nothing_else(tmp_path):
    inputs = quickstart()
    first = write_report(inputs, SUMMARY, lambda record, name: None, tmp_path, ("md", "csv"))
    before = {path: path.read_bytes() for path in first.paths.values()}
    write_report(inputs, SUMMARY, lambda record, name: None, tmp_path, ("md", "csv"))
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quickstart.csv", "quickstart.md"]
    with pytest.raises(UsageError, match="docx"):
        write_report(inputs, SUMMARY, lambda record, name: None, tmp_path, ("docx",))


def test_an_empty_benchmark_is_a_table_of_reasons(tmp_path):
    inputs = replace(quickstart(), records=[])
    report = write_report(inputs, SUMMARY, lambda record, name: fact(name), tmp_path)
    assert "not run" in (tmp_path / "quickstart.md").read_text()
    assert "Missing: 8 of 8 cells" in (tmp_path / "quickstart.html").read_text()
    assert not [name for name in report.paths if name.startswith("png:")]


@pytest.mark.parametrize("width", [200, 60, 24])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_table_that_fits_is_laid_out_as_rich_lays_it_out(width, terminal):
    from rich import box
    from rich.segment import Segment
    from rich.text import Text

    from ltbench.report.render_grid import Block

    block = Block(
        title=Text("FD[x@1a2b3c4d] ↓ (lower is better)", "bold"),
        heads=[(("method (n=3)", ""),), (("all", ""),), (("漢字", ""),)],
        rows=[
            [(("ccua", ""),), (("*1.25", "bold"), (" ", ""), ("±0.10", "dim")), (("failed", "yellow"),)],
            [(("a longer name [2]", ""),), (("", ""),), (("12.50", ""),)],
        ],
        last=[(("real images", "dim"),), (("-", "dim"),), (("0.5", "dim"),)],
        box=box.SIMPLE_HEAD,
    )
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system="truecolor", _environ={}
    )

    def seen(picture):
        lines = Segment.split_lines(console.render(picture))
        return [
            [(c, segment.style if terminal and c.strip() else None) for segment in line for c in segment.text]
            for line in lines
        ]

    def shown(picture):
        return [[(c, style or None) for c, style in line] for line in seen(picture)]

    assert shown(block) == shown(block.grid(width))
    assert console.measure(block).maximum == console.measure(block.grid(width)).maximum
