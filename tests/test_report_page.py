"""Figures drawn from records, and the page as a browser sees it."""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltbench.canonical import digest
from ltbench.report import figure_data, sample_data
from ltbench.report.assemble import build_table
from ltbench.report.build import fetch_from, write_report
from ltbench.report.definition import load_definition
from ltbench.report.figures import looks
from ltbench.report.select import select
from ltbench.report.words import number
from ltbench.store import Store
from ltbench.tiles import read_grid
from tests.report_world import COUNTS, NAMES, fact, planned, quickstart, record
from tests.test_report_views import hostile_inputs

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = load_definition(ROOT / "reports" / "summary.yaml")


def fetch(made, name):
    return fact(name)


@pytest.fixture(scope="module")
def world():
    inputs = quickstart()
    return inputs, build_table(inputs, SUMMARY), select(inputs.records)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_report(quickstart(), SUMMARY, fetch, tmp_path_factory.mktemp("report"))


# data of figures


def test_lines_and_bars_hold_the_tables_numbers(world):
    _, table, _ = world
    section = table.sections[0]
    j = next(j for j, c in enumerate(section.columns) if (c.metric, c.group) == ("KD", "tail"))
    plot = figure_data.metric_steps(section, "KD", ["all", "tail"])
    assert [panel.title for panel in plot.panels] == ["all", "tail"]
    line = plot.panels[1].lines[1]
    assert (line.label, line.x) == ("cbdm", (280.0, 560.0))
    assert line.mean == tuple(1000 * section.entry(1, j, step).mean for step in (280, 560))
    assert line.sd == tuple(1000 * section.entry(1, j, step).sd for step in (280, 560))
    assert plot.panels[1].floor == 1000 * section.floors[j, 560]
    assert "×1000" in plot.y_label
    bars = figure_data.group_bars(section, "KD")
    assert bars.groups == ("head", "body", "tail")
    assert bars.values["cbdm"]["tail"] == (1000 * section.entry(1, j).mean, 1000 * section.entry(1, j).sd)
    assert figure_data.group_bars(section, "nothing") is None
    assert figure_data.metric_steps(section, "nothing", ["all"]) is None


def test_class_plot_orders_classes_by_frequency_and_averages_seeds(world):
    inputs, table, selected = world
    name = "recall[fashion-cnn-v1@1a2b3c4d]"
    plot = figure_data.class_plot(table.sections[0], selected, "recall")
    assert (plot.names, plot.counts) == (NAMES, tuple(COUNTS))
    assert plot.groups == ("head",) * 3 + ("body",) * 4 + ("tail",) * 3
    arrays = [
        r["body"]["per_class"]["metrics"][name]
        for r in inputs.records
        if r["body"]["kind"] == "evaluation" and r["body"]["step"] == 560
        if (r["body"]["settings"]["method"]["name"], r["body"]["settings"]["pipeline"]) == ("ccua", "sit")
    ]
    line = next(line for line in plot.lines if line.label == "ccua")
    assert line.mean == pytest.approx(np.mean(arrays, axis=0))
    assert line.sd == pytest.approx(np.std(arrays, axis=0, ddof=1))
    assert figure_data.class_plot(table.sections[0], selected, "FD") is None


def test_per_class_nulls_leave_gaps():
    cells = [planned("sit", 0)]
    made = record(cells[0], 560)
    name = "recall[fashion-cnn-v1@1a2b3c4d]"
    made["body"]["per_class"]["metrics"][name][9] = None
    made["digest"] = digest(made["body"])
    inputs = replace(quickstart(), planned=cells, records=[made])
    plot = figure_data.class_plot(build_table(inputs, SUMMARY).sections[0], select([made]), "recall")
    assert plot.lines[0].x == tuple(float(n) for n in COUNTS[:9])
    made["body"]["per_class"]["metrics"][name] = [None] * 10
    made["digest"] = digest(made["body"])
    inputs = replace(inputs, records=[made])
    empty = build_table(inputs, SUMMARY).sections[0]
    assert figure_data.class_plot(empty, select([made]), "recall") is None, "nothing to draw is no figure"


def test_sample_rows_show_the_same_tiles_of_every_method(world):
    _, table, selected = world
    grid = sample_data.sample_grid(table.sections[0], selected, fetch, per_class=3, classes=4)
    assert list(grid.tiles) == ["real images", "sit", "cbdm", "dispersive", "ccua"]
    assert grid.names == tuple(NAMES[c] for c in (0, 3, 6, 9))
    for label, file in (("cbdm", "cbdm-0.png"), ("real images", "real.png")):
        assert np.array_equal(grid.tiles[label], read_grid(fact(file), 32)[[0, 3, 6, 9], :3])
    assert grid.seeds == dict.fromkeys(["sit", "cbdm", "dispersive", "ccua"], 0)
    assert sample_data.sample_grid(table.sections[0], selected, lambda r, n: None, 2, 10) is None


def test_loss_curves_average_seeds_and_skip_windows_without_the_group(world):
    inputs, table, selected = world
    plot = figure_data.loss_curves(table.sections[0], selected, ["denoise", "denoise/tail", "unknown"])
    assert [panel.title for panel in plot.panels] == ["denoise", "denoise/tail"]
    assert plot.panels[0].lines[0].x == tuple(float(s) for s in range(20, 561, 20))
    assert 40.0 not in plot.panels[1].lines[0].x
    curves = [
        r["body"]["curve"]["terms"]["denoise"]
        for r in inputs.records
        if r["body"]["kind"] == "train"
        if (r["body"]["step"], r["body"]["settings"]["method"]["name"]) == (560, "sit")
    ]
    assert plot.panels[0].lines[0].mean == pytest.approx(np.mean(curves, axis=0))


def test_a_method_keeps_its_look_and_no_two_share_one():
    labels = [f"m{i}" for i in range(40)]
    style = looks(labels)
    assert len(set(style.values())) == 40
    assert looks(labels[:5]) == {label: style[label] for label in labels[:5]}


def test_pictures_come_from_the_store_and_a_lost_one_is_a_gap(tmp_path):
    store = Store.open(tmp_path / "store", tmp_path / "scratch")
    cell = planned("sit", 0)
    store.put_cell(cell["cell"], {}, cell["settings"])
    run = store.run(cell["cell"], "0" * 12)
    run.create({}, cell["settings"])
    name = run.facts.put(fact("a"), "png")
    made = record(cell, 560)
    read = fetch_from(store)
    assert read(made, name) == fact("a")
    assert read(made, "0" * 16 + ".png") is None
    assert read(made, "../../x") is None
    run.facts.file(name).write_bytes(b"damaged")
    assert read(made, name) is None


# files


def test_every_figure_is_a_picture_with_something_on_it(written):
    names = [name.removeprefix("png:") for name in written.paths if name.startswith("png:")]
    kinds = ["samples", "group_bars", "metric_steps", "class_quality", "loss_curves"]
    assert names == [
        f"{s}-{part}-{n}-{k}" for s, part in ((1, "sit"), (2, "ddpm")) for n, k in enumerate(kinds, 1)
    ]
    for name in names:
        with Image.open(written.paths[f"png:{name}"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
            assert not {"Software", "Creation Time"} & set(picture.info)
        assert pixels.shape[0] > 300
        assert pixels.shape[1] > 800
        assert (pixels != 255).any(axis=-1).mean() > 0.02


def test_the_page_is_one_file_that_holds_its_figures(written):
    text = written.paths["html"].read_text()
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(embedded) == 10
    assert [base64.b64decode(e) for e in embedded] == [
        path.read_bytes() for name, path in written.paths.items() if name.startswith("png:")
    ]
    bare = re.sub(r'src="data:[^"]+"', "", text)
    assert not re.search(r"(src|href)=\"(?!data:|#)|url\(|@import|https?://", bare)
    assert not re.search(r"\b(FID|sFID|IS|KID)\b", bare)
    assert len(written.paths["html"].read_bytes()) < 4_000_000


def test_hostile_labels_can_be_drawn(tmp_path):
    report = write_report(hostile_inputs(), SUMMARY, fetch, tmp_path, ("png",))
    assert len(report.paths) == 4  # no training records: no loss curves
    assert all(path.parent == tmp_path / "figures" for path in report.paths.values())


def test_many_classes_methods_and_sections_can_be_drawn(tmp_path):
    """200 classes, 14 methods, a part whose name is a path."""
    cells = [planned(f"method-number-{i}", 0) for i in range(14)]
    counts = sorted((max(1, round(500 * 0.01 ** (c / 199))) for c in range(200)), reverse=True)
    cut = {"head": list(range(66)), "body": list(range(66, 134)), "tail": list(range(134, 200))}
    name = "recall[fashion-cnn-v1@1a2b3c4d]"
    records = []
    for cell in cells:
        cell["part"] = "../../etc"
        wide = (np.linspace(0.7, 0.2, 200) + 0.2 * np.random.default_rng(len(records)).random(200)).tolist()
        made = record(
            cell,
            560,
            classes=[f"class {c}" for c in range(200)],
            train_counts=counts,
            groups=cut,
            per_class={"classes": list(range(200)), "metrics": {name: wide}, "floor": {}, "reason": {}},
            facts={},
        )
        records.append(made)
    inputs = replace(quickstart(), planned=cells, records=records)
    report = write_report(inputs, SUMMARY, fetch, tmp_path, ("png", "html"))
    figures = [path for name, path in report.paths.items() if name != "html"]
    assert [path.name.split("-")[-1] for path in figures] == [
        "group_bars.png",
        "metric_steps.png",
        "class_quality.png",
    ]
    assert {path.parent for path in figures} == {tmp_path / "figures"}


# a browser


@pytest.fixture(scope="module")
def chromium():
    found = shutil.which("chromium")
    if found is None:
        message = "chromium is not installed (Debian: apt-get install chromium): the page was not looked at"
        if "chromium" in os.environ.get("LTBENCH_REQUIRE", ""):
            pytest.fail(message)
        pytest.skip(message)
    return found


def browse(chromium: str, page: Path, *options: str) -> subprocess.CompletedProcess:
    """Run a fresh headless browser without a network on a page."""
    quiet = "headless no-sandbox disable-gpu disable-quic no-first-run hide-scrollbars disable-sync "
    quiet += "disable-background-networking disable-component-update"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *(f"--{name}" for name in quiet.split()), f"--user-data-dir={profile}", *options]
        return subprocess.run([*command, page.as_uri()], capture_output=True, timeout=400, check=True)


@pytest.mark.chromium
@pytest.mark.parametrize(("width", "scheme"), [(1200, 1), (500, 0)])
def test_the_page_shows_in_a_browser(chromium, written, tmp_path, width, scheme):
    shot = tmp_path / "page.png"
    options = (
        f"--screenshot={shot}",
        f"--window-size={width},2400",
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    browse(chromium, written.paths["html"], *options)
    with Image.open(io.BytesIO(shot.read_bytes())) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape == (2400, width)
    assert (pixels[0].mean() > 200) == (scheme == 1)  # paper is white, or dark in dark mode
    for band in np.array_split(pixels, 8):
        assert band.std() > 5  # nothing on the way down is blank


@pytest.mark.chromium
def test_the_page_has_its_table_and_no_console_errors(chromium, written):
    done = browse(chromium, written.paths["html"], "--dump-dom", "--enable-logging=stderr", "--log-level=0")
    dom, log = done.stdout.decode(), done.stderr.decode()
    assert "CONSOLE" not in log, [line for line in log.splitlines() if "CONSOLE" in line]
    section = written.table.sections[0]
    column = section.columns[3]
    assert number(section.entry(0, 3).mean, column, written.table.decimals) in dom
    assert dom.count("<table") == 2 * 4 + 2 * 4 + 1  # values, paired differences, records
    assert dom.count("<img") == 10


@pytest.mark.chromium
def test_hostile_labels_run_nothing_in_a_browser(chromium, tmp_path):
    report = write_report(hostile_inputs(), SUMMARY, fetch, tmp_path, ("html",))
    done = browse(chromium, report.paths["html"], "--dump-dom", "--enable-logging=stderr", "--log-level=0")
    assert b"CONSOLE" not in done.stderr
    assert done.stdout.count(b"<script") == 1
    assert b"&lt;script&gt;alert(1)" in done.stdout
    assert b'aria-sort="none"' in done.stdout, "the page's own script ran"


@pytest.mark.chromium
def test_tables_sort_in_a_browser_and_values_lead_to_their_records(chromium, written, tmp_path):
    text = written.paths["html"].read_text()
    targets = set(re.findall(r'id="r-([0-9a-f]{16})"', text))
    links = re.findall(r'<td[^>]*><a href="#r-([0-9a-f]{16})">', text)
    assert len(links) > 50
    assert set(links) <= targets
    policy = re.search(r'<meta http-equiv="Content-Security-Policy".*?>', text)
    assert policy
    clicks = "document.querySelectorAll('thead')[0].rows[0].cells[4].click();"
    page = tmp_path / "sorted.html"
    found = []
    for times in (0, 1, 2, 3):
        script = f"<script>{clicks * times}</script></body>"
        page.write_text(text.replace(policy[0], "").replace("</body>", script))
        dom = browse(chromium, page, "--dump-dom").stdout.decode()
        table = dom.split("<tbody>")[1].split("</tbody>")[0]
        found.append(re.findall(r'<th scope="row">([a-z]+)', table))
    section = written.table.sections[0]
    j = next(j for j, c in enumerate(section.columns) if (c.metric, c.group) == ("FD", "tail"))
    order = sorted(range(len(section.rows)), key=lambda i: section.entry(i, j).mean)
    wanted = [section.rows[i].label for i in order]
    plain = [row.label for row in section.rows]
    assert found == [plain, wanted, wanted[::-1], plain]
    (tmp_path / "evil.html").write_text(text.replace("</body>", "<script>document.title='x'</script></body>"))
    dom = browse(chromium, tmp_path / "evil.html", "--dump-dom").stdout.decode()
    assert "<title>x</title>" not in dom, "the policy lets no other script run"


@pytest.mark.chromium
def test_on_a_phone_names_stay_beside_the_values_that_are_scrolled_to(chromium, tmp_path):
    text = write_report(hostile_inputs(), SUMMARY, fetch, tmp_path, ("html",)).paths["html"].read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy".*?>', text)
    assert policy
    script = """<script>
    const lost = [];
    let moved = 0;
    for (const block of document.querySelectorAll("section > .blocks .block")) {
      block.scrollLeft = 80;
      moved += block.scrollLeft > 0;
      for (const name of block.querySelectorAll("th[scope=row]"))
        if (name.getBoundingClientRect().left < block.getBoundingClientRect().left - 1) lost.push(name.textContent);
    }
    document.title = `moved ${moved} lost ${lost.length}`;
    </script></body>"""
    page = tmp_path / "narrow.html"
    page.write_text(text.replace(policy[0], "").replace("</body>", script))
    dom = browse(chromium, page, "--dump-dom", "--window-size=500,900").stdout.decode()
    found = re.search(r"<title>moved (\d+) lost (\d+)</title>", dom)
    assert found
    assert int(found[1]) > 0
    assert int(found[2]) == 0
