"""The appendix: its numbers are those of spec and records, its citations are complete, and a real LaTeX sets it."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ltbench import spec as specs
from ltbench.report.appendix import appendix
from ltbench.report.citations import by_name, entries, of_plugin
from ltbench.report.compute import spent
from ltbench.report.render_appendix import render_bib, render_latex, render_markdown
from ltbench.spec.cells import expand
from tests import cli_world, latex_world

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures
latex = latex_world.latex
ROOT = Path(__file__).resolve().parents[1]
REFERENCES = (ROOT / "results" / "published" / "references.bib").read_text()


def record(kind: str = "train", cell: str = "a", **envelope) -> dict:
    told = {
        "started": 1.0,
        "host": "n1",
        "device": "H100",
        "seconds": 3600.0,
        "gpu_hours": 4.0,
        "threads": 2,
        **envelope,
    }
    body = {"kind": kind, "cell": cell, "run": "r", "code": {"trainer": 64 * "a"}}
    return {"body": body, "digest": f"{kind}{cell}{sorted(told.items())}", "envelope": told}


@pytest.fixture(scope="module")
def quick():
    benchmark = specs.load(ROOT / "benchmarks" / "quickstart.yaml")
    return benchmark, expand(benchmark)


def test_hours_count_each_attempt_once():
    """Two milestones of one attempt tell their time from one start; another attempt has its own."""
    first = [record(seconds=3600.0, gpu_hours=1.0), record(seconds=7200.0, gpu_hours=2.0)]
    again = [record(seconds=1800.0, gpu_hours=0.5, started=9.0)]
    other = [
        record("evaluation", seconds=360.0, gpu_hours=0.1),
        record("selection", seconds=300.0, gpu_hours=0.08),
    ]
    found = spent([*first, *again, *other])
    assert found["H100", "training"].hours == pytest.approx(2.5)
    assert found["H100", "training"].gpu_hours == pytest.approx(2.5)
    assert found["H100", "training"].attempts == 2
    assert found["H100", "evaluation"].hours == pytest.approx(0.1)


def test_every_setting_and_parameter_is_named(quick):
    benchmark, cells = quick
    text = render_markdown(appendix(benchmark, cells, [], REFERENCES)).replace("\\", "")
    for cell in cells:
        for name, value in cell.settings["train"].items():
            line = re.search(rf"\| train.{name} \| (.*) \|", text)
            assert line, (name, value)
        for name in cell.settings["method"]:
            assert name == "name" or f"| {name} |" in text
    assert "| ccua | alpha | 1 | 0.05 |" in text  # the pipeline's own value, and the signature's
    data = next(iter(benchmark.parts[0].data.values()))
    assert f"| {sum(data.counts):,} | {max(data.counts):,} | {min(data.counts):,} |" in text
    assert "Training seeds 0, 1; sampling seeds 0." in text


def test_deviations_from_a_named_recipe_are_said():
    table1 = specs.load(ROOT / "benchmarks" / "table1_imagenet_lt.yaml", changes=["train.lr=0.0002"])
    text = render_markdown(appendix(table1, expand(table1), [], ""))
    assert "but for lr 0.0002 (there 0.0001)" in text


def test_it_does_not_depend_on_the_order_of_records(quick):
    benchmark, cells = quick
    records = [record(cell=name, device=device) for name in "abc" for device in ("H100", "A100")]
    texts = {render_latex(appendix(benchmark, cells, order, ""), "x") for order in (records, records[::-1])}
    assert len(texts) == 1


def test_references_win_over_lines_and_a_plugins_own_entries_over_both(tmp_path):
    known = {each.key: each for each in entries(REFERENCES)}
    assert "chen2025ccua" in known
    for name, key in (("ccua", "chen2025ccua"), ("sit", "ma2024sit"), ("oclt", "zhang2024oclt")):
        found = of_plugin(ROOT / "methods" / f"{name}.py", name, by_name(known))
        assert [each.key for each in found] == [key]
    cifar = of_plugin(ROOT / "datasets" / "cifar10_lt.py", "cifar10_lt", by_name(known))
    assert [each.key for each in cifar] == ["krizhevsky2009cifar", "cao2019ldam"]
    assert [each.key for each in of_plugin(ROOT / "methods" / "sit.py", "sit", {})] == ["arxiv2401.08740"]
    mine = tmp_path / "mine.py"
    mine.write_text(
        '"""Mine.\n\n@inproceedings{me2026, title={A {B} c}, author={M}}\n@misc{open, title={x\n"""\n'
    )
    assert [(each.key, each.entry.count("}")) for each in of_plugin(mine, "mine", {})] == [("me2026", 4)]
    mine.write_text('"""A } title { with % (by _me_)."""\n')
    (made,) = of_plugin(mine, "mine", {})
    assert made.entry.count("{") == made.entry.count("}")
    mine.write_text("x = 1\n")
    assert of_plugin(mine, "mine", {}) == []


def test_every_method_and_data_set_of_the_house_has_a_citation():
    for path in [*sorted((ROOT / "methods").glob("*.py")), *sorted((ROOT / "datasets").glob("*.py"))]:
        assert of_plugin(path, path.stem, {}), path


@pytest.mark.latex
def test_a_real_latex_sets_it_with_its_citations(quick, latex, tmp_path):
    benchmark, cells = quick
    hostile = "100%&$#_{}~^\\input{/etc/passwd}"
    records = [record(device=hostile, versions={hostile: hostile}, commit=hostile)]
    made = appendix(replace(benchmark, title=hostile), cells, records, REFERENCES)
    (tmp_path / "a.tex").write_text(render_latex(made, "a"))
    (tmp_path / "a.bib").write_text(render_bib(made))
    body = r"\input{a}\bibliographystyle{plain}\bibliography{a}"
    log = latex(body)
    assert "(/etc/passwd" not in log
    if shutil.which("bibtex"):
        done = subprocess.run(["bibtex", "main"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        latex(body)
        assert "undefined" not in latex(body)


def test_from_the_command_line(run, cli, here):
    run("--workers", "1")
    code, out, _ = cli("report", "appendix", "little.yaml")
    assert code == 0
    names = [Path(line).name for line in out.split()]
    assert names == [f"little-appendix.{kind}" for kind in ("md", "tex", "bib")]
    text = Path(out.split()[0]).read_text()
    assert "4 training runs planned, 4 measured." in text
    assert cli("report", "appendix", "little.yaml", "--format", "pdf")[0] == 2
    code, _, err = cli("report", "other", "little.yaml")
    assert code == 2
    assert "report appendix SPEC" in err


@pytest.mark.parametrize("words", [["--paper"], ["--fail-on", "drift"], ["--lock", "l"], ["--check", "l"]])
def test_an_appendix_refuses_what_it_would_not_heed(cli, here, words):
    code, out, err = cli("report", "appendix", "little.yaml", *words)
    assert (code, out) == (2, "")
    assert words[0] in err
    assert list(here.glob("l")) == []


def test_an_appendix_of_nothing_says_of_what(cli, here):
    code, _, err = cli("report", "appendix")
    assert code == 2
    assert "report appendix SPEC" in err
