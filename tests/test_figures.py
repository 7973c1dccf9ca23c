"""Figures of images: each property against an oracle, from the evaluation layer to the drawn file."""

from __future__ import annotations

import copy
import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.stats import gaussian_kde

from ltbench import embedding, illustrate, provenance, spec
from ltbench.cli.reasons import accept, reasons
from ltbench.errors import LtbenchError, SpecError
from ltbench.job import run_job
from ltbench.packed import pack, unpack
from ltbench.plan import plan, register
from ltbench.plan.helpers import with_helpers
from ltbench.provenance import components
from ltbench.report import cost_data, figures, illustrated, sheets
from ltbench.report.build import fetch_from, write_report
from ltbench.report.cost_data import pareto
from ltbench.report.definition import load_definition
from ltbench.report.figure_data import ClassPlot, Line
from ltbench.spec.cells import expand
from ltbench.store import Store
from ltbench.tiles import read_grid

ROOT = Path(__file__).resolve().parents[1]
SPEC = """
name: drawn
dataset: {name: digits, imbalance: 0.1, resolution: 16}
pipeline: sit
network: SiT-N/4
train: {batch: 12, local_batch: 6, milestones: [1, 2], lr: 1e-3, ema: 0.5}
evaluate:
  - {protocol: small-data, sampler: euler, steps: 4, samples: 60, block: 20, metrics: [FD, recall], guidance: 1.5}
  - {protocol: small-data, sampler: euler, steps: 4, block: 20, guidance: 1.5, illustrate: {images: 12, most: 3, neighbours: 4}}
grid: {method: [sit, {name: ccua, preset: off}], seed: 0}
"""
OPTIONS = {"checkpoint_seconds": 3600.0, "log_every": 1, "threads": 1, "device": "cpu"}


class House:
    """Two cells of one seed whose weights are equal: a method that is switched off is its baseline, bit for bit."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(folder / "store", folder / "scratch")
        (folder / "drawn.yaml").write_text(SPEC)
        self.benchmark = spec.load(folder / "drawn.yaml")
        self.cells = expand(self.benchmark)
        register(self.cells, self.store)

    def work(self, stop=lambda: False) -> list[str]:
        places = str(self.store.root), str(self.store.scratch)
        outcomes = []
        for item in plan(self.benchmark, self.store).work():
            for stage in item.stages:
                done = run_job(*places, item.cell.id, item.run, stage, OPTIONS, lambda event: None, stop)
                assert done["outcome"] != "failed", done
                outcomes.append(done["outcome"])
        return outcomes

    def bodies(self, kind: str, step: int = 2) -> list[dict]:
        return [
            record.body
            for cell in self.cells
            for run in self.store.runs(cell.id)
            for record in run.records(kind)
            if record.step == step
        ]

    def fact(self, body: dict, name: str) -> bytes:
        return self.store.run(body["cell"], body["run"]).facts.read(name)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    made = House(tmp_path_factory.mktemp("drawn"))
    made.work()
    return made


# what is computed where the model is


def test_two_methods_of_equal_weights_have_equal_pictures_and_maps(house):
    first, second = house.bodies("illustration")
    assert first["cell"] != second["cell"]
    assert first["milestone"] == second["milestone"]
    assert first["facts"] == second["facts"], "facts are named by their content"


def test_a_milestone_is_illustrated_once_and_its_facts_are_small(house):
    found = plan(house.benchmark, house.store)
    assert [item.state for item in found.cells] == ["done", "done"]
    assert with_helpers(found, found.work(), house.store.scratch, split=3) == []
    for body in house.bodies("illustration"):
        run = house.store.run(body["cell"], body["run"])
        assert all(run.facts.file(name).stat().st_size <= 1 << 20 for name in run.facts.names())
        assert body["evaluation"]["illustrate"]["classes"] == [7, 8, 9], "the rarest three of the tail"


def test_pictures_go_stale_by_their_own_code_and_are_accepted_apart_from_numbers(
    house, tmp_path, monkeypatch
):
    own = House.__new__(House)
    for name in ("store", "scratch"):
        shutil.copytree(getattr(house.store, {"store": "root"}.get(name, name)), tmp_path / name)
    own.store = Store.open(tmp_path / "store", tmp_path / "scratch")

    def look():
        found = plan(house.benchmark, own.store).cells[0]
        stages = {due.stage.split(":")[0] for due in found.due}
        return found.state, found.reason, len(found.due), stages

    def edit(name):
        monkeypatch.undo()
        code = copy.deepcopy(provenance.measuring_code("illustration"))
        code["files"]["ltbench/illustrate.py"][f"function {name}"] = 8 * "0"
        monkeypatch.setattr(components, "illustration", lambda: {**code, "digest": 64 * name[0]})

    assert look()[0] == "done"
    cell = house.cells[0].id
    edit("feature_map")
    said = "illustration code changed: ltbench/illustrate.py: function `feature_map` changed"
    assert look() == ("stale", said, 2, {"evaluate"}), "two milestones, and no number of theirs"
    assert reasons(own.store, cell)["evaluations"].popitem()[1] == [said]
    accept(own.store, cell, "only names")
    assert look()[0] == "done"
    edit("nearest")
    assert look()[:3] == ("stale", said.replace("feature_map", "nearest"), 2), (
        "what was accepted is that code"
    )
    monkeypatch.undo()
    assert look()[0] == "done"


def test_neighbours_are_those_of_brute_force():
    draw = np.random.default_rng(0)
    pool, queries = (
        draw.normal(size=(5000, 7)).astype(np.float32),
        draw.normal(size=(3, 7)).astype(np.float32),
    )
    pool[4800] = pool[4] = queries[1]  # a copy, twice: on either side of a chunk
    indices, distances = illustrate.nearest(queries, pool, 6)
    every = cdist(queries.astype(float), pool.astype(float))
    assert indices[1, :2].tolist() == [4, 4800]
    assert distances[1, :2].tolist() == [0.0, 0.0]
    assert np.array_equal(indices, np.argsort(every, axis=1, kind="stable")[:, :6])
    assert np.allclose(distances, np.sort(every, axis=1)[:, :6])
    assert illustrate.nearest(queries, pool[:2], 6)[0].shape == (3, 2), "fewer than k is all"


def test_kept_neighbours_are_the_pictures_that_their_indices_name(house):
    from ltbench.datasets import build_dataset

    body = house.bodies("illustration")[0]
    data = build_dataset(body["settings"]["dataset"])
    fact = body["facts"]["of_generated"]
    grid = read_grid(house.fact(body, fact["file"]), fact["tile"])
    assert grid.shape[:2] == (9, 5)
    assert np.array_equal(grid[:, 1:], data.train().images[np.array(fact["indices"])])
    assert fact["labels"] == data.train().labels[np.array(fact["indices"])].tolist()
    samples = body["facts"]["samples"]
    own = read_grid(house.fact(body, samples["file"]), samples["tile"])
    assert np.array_equal(grid[:, 0].reshape(3, 3, *grid.shape[2:]), own[:, :3]), (
        "the first three of each class"
    )
    back = body["facts"]["of_training"]
    sheet = read_grid(house.fact(body, back["file"]), back["tile"])
    for row, c, number in zip(sheet, back["rows"], back["of"], strict=True):
        assert data.train().labels[number] == c
        assert np.array_equal(row[0], data.train().images[number])
    assert all(
        n % 3 == [7, 8, 9].index(c) for c, ns in zip(back["rows"], back["indices"], strict=True) for n in ns
    )


def test_the_first_and_last_frame_are_the_noise_and_the_image_of_a_plain_sampling():
    from ltbench.diffusion import process_for
    from ltbench.generate import initial_noise, step_noise
    from ltbench.networks import build_network
    from ltbench.sampling import sample

    torch.manual_seed(0)
    for pipeline, name, sampler in (("sit", "SiT-N/4", "heun"), ("ddpm", "UNet-16", "ddpm")):
        network = build_network(name, channels=1, resolution=16, classes=4, dropout=0.0)
        steps = 1000 if sampler == "ddpm" else 6
        if sampler == "ddpm":
            network = _Tiny()
        asked = {"sampler": sampler, "steps": steps, "guidance": 2.0, "seed": 3}
        classes = [None, 0, 2]
        frames, levels = illustrate.reverse(
            network, pipeline, asked, classes, 4, (1, 16, 16), torch.device("cpu")
        )
        noise = initial_noise(3, [0], (1, 16, 16))
        assert torch.equal(frames[0], noise.expand(3, -1, -1, -1)), "one noise for all rows"
        assert levels == sorted(levels, reverse=True)
        assert levels[-1] == 0
        for row, label in ((0, 4), (2, 2)):
            fresh = step_noise(3, [0], (1, 16, 16), torch.device("cpu"))
            alone = sample(network, process_for(pipeline), sampler=sampler, steps=steps, guidance=2.0, noise=noise,
                           labels=torch.tensor([label]), null=4, fresh=fresh)  # fmt: skip
            assert torch.allclose(frames[-1, row], alone[0], atol=1e-4)


class _Tiny(torch.nn.Module):
    """A thousand calls of it take no time."""

    def forward(self, x, t, y):
        return 0.1 * x * (1 + y.reshape(-1, 1, 1, 1)), {}


def test_frames_are_halved_until_they_fit():
    frames = np.random.default_rng(0).normal(size=(2, 3, 1, 8, 8))
    assert np.array_equal(illustrate.shown_frames(frames, 10_000), frames.astype(np.float16))
    small = illustrate.shown_frames(frames, 2 * 2 * 3 * 16)
    assert small.shape == (2, 3, 1, 4, 4)
    assert small[1, 2, 0, 1, 0] == pytest.approx(frames[1, 2, 0, 2:4, 0:2].mean(), abs=1e-3)


def test_a_map_is_reproducible_and_keeps_distances():
    draw = np.random.default_rng(1)
    real, train, made = (draw.normal(size=(n, 512)).astype(np.float32) for n in (30, 5, 20))
    first, second = (illustrate.feature_map(real, train, made) for _ in range(2))
    assert np.array_equal(first.points, second.points)
    assert first.points.shape == (55, 2)
    assert np.array_equal(first.points, embedding.embed(first.features))
    every = np.concatenate([real, train, made])
    ratio = cdist(first.features.astype(float), first.features.astype(float))[np.triu_indices(55, 1)]
    ratio /= cdist(every, every)[np.triu_indices(55, 1)]
    assert ratio.std() / ratio.mean() < 0.12, "Johnson and Lindenstrauss: about 1 / sqrt(2 x 64)"
    assert np.array_equal(embedding.embed(np.ones((9, 4))), np.zeros((9, 2))), "nothing to lay out"


def test_two_clusters_stay_apart_on_a_map():
    draw = np.random.default_rng(2)
    rows = np.concatenate([draw.normal(size=(40, 8)), draw.normal(size=(40, 8)) + 30]).astype(np.float32)
    points = embedding.embed(rows)
    inside = max(cdist(part, part).max() for part in (points[:40], points[40:]))
    assert np.linalg.norm(points[:40].mean(0) - points[40:].mean(0)) > inside / 2
    assert (cdist(points, points) + 1e9 * np.eye(80)).argmin(1).__lt__(40).tolist() == [True] * 40 + [
        False
    ] * 40


def test_packed_arrays_come_back_and_other_bytes_are_refused():
    arrays = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.array([1, 2], np.int8)}
    assert pack(arrays) == pack(dict(reversed(arrays.items())))
    back = unpack(pack(arrays))
    assert all(np.array_equal(back[k], v) and back[k].dtype == v.dtype for k, v in arrays.items())
    for data in (b"", b"PK no zip", pack(arrays)[:-30], pack({"o": np.array([{}], dtype=object)})):
        with pytest.raises(LtbenchError):
            unpack(data)


# what a spec says


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("illustrate: {classes: [eleven, 7]}", "no class 'eleven'"),
        ("illustrate: {classes: [3, 3]}", "different classes"),
        ("illustrate: {klasses: tail}", "no key 'klasses'"),
        ("illustrate: {images: 5}", "8"),
        ("illustrate: tail, labels: null", "guidance"),
    ],
)
def test_an_illustration_that_makes_no_sense_is_refused_with_its_place(tmp_path, asked, said):
    guidance = "" if "labels" in asked else "guidance: 1.5, "
    text = SPEC.replace("guidance: 1.5, illustrate: {images: 12, most: 3, neighbours: 4}", guidance + asked)
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SpecError) as refused:
        spec.load(tmp_path / "bad.yaml")
    assert said in str(refused.value)
    assert "bad.yaml:9:" in str(refused.value)


def test_a_lone_class_and_a_group_are_short_forms(tmp_path):
    for asked, ids in (("three", [3]), ("3", [3]), ("[2, nine]", [2, 9]), ("head", [0, 1, 2])):
        text = SPEC.replace("illustrate: {images: 12, most: 3, neighbours: 4}", f"illustrate: {asked}")
        (tmp_path / "short.yaml").write_text(text)
        evaluations = expand(spec.load(tmp_path / "short.yaml"))[0].evaluations.values()
        assert [e["illustrate"]["classes"] for e in evaluations if "illustrate" in e] == [ids]


# what is drawn


def test_low_and_high_frequencies_sum_to_the_image_and_the_cut_is_where_it_says():
    images = np.random.default_rng(3).normal(size=(2, 3, 16, 16))
    for kind in ("gaussian", "ideal"):
        low = illustrated.low_pass(images, kind, 3)
        assert np.allclose(low.mean(axis=(-1, -2)), images.mean(axis=(-1, -2))), "the mean is low"
        assert np.allclose(low + (images - low), images, atol=1e-14)
    x = np.arange(16) / 16
    for cycles, ideal, gaussian in ((2, 1.0, 0.5 ** (4 / 9)), (3, 1.0, 0.5), (5, 0.0, 0.5 ** (25 / 9))):
        wave = np.cos(2 * np.pi * cycles * x)[None, :].repeat(16, 0)
        assert np.allclose(illustrated.low_pass(wave, "ideal", 3), ideal * wave, atol=1e-12)
        assert np.allclose(illustrated.low_pass(wave, "gaussian", 3), gaussian * wave, atol=1e-12)


@pytest.mark.parametrize("better", ["lower", "higher", "zero"])
def test_the_front_is_that_of_brute_force(better):
    draw = np.random.default_rng(4)
    for _ in range(40):
        points = [tuple(map(float, p)) for p in draw.integers(-4, 5, (12, 2))]
        signed = [(c, {"lower": v, "higher": -v, "zero": abs(v)}[better]) for c, v in points]
        beaten = {
            i
            for i, j in itertools.permutations(range(12), 2)
            if signed[j] != signed[i] and signed[j][0] <= signed[i][0] and signed[j][1] <= signed[i][1]
        }
        front = pareto(points, better)
        assert sorted(front) == sorted(set(range(12)) - beaten)
        assert [points[n][0] for n in front] == sorted(points[n][0] for n in front)


def test_costs_add_up_over_attempts_and_gpu_hours_win():
    from ltbench.report.assemble import build_table
    from ltbench.report.select import select
    from tests.report_world import STEPS, planned, quickstart, record, train_record

    cells = [planned("sit", 0), planned("sit", 1), planned("ccua", 0)]
    told = {
        (0, 280): {"attempt": 1, "seconds": 50.0, "gpu_hours": 2.0, "device": "A"},
        (0, 560): {"attempt": 2, "seconds": 70.0, "gpu_hours": 3.0, "device": "A"},
        (1, 280): {"attempt": 1, "seconds": 50.0, "gpu_hours": 4.0, "device": "B"},
        (1, 560): {"attempt": 1, "seconds": 90.0, "gpu_hours": 7.0, "device": "B"},
    }
    trained = [train_record(cell, step) for cell in cells for step in STEPS]
    for made in trained:
        place = [cell["cell"] for cell in cells].index(made["body"]["cell"])
        made["envelope"] |= told.get((place, made["body"]["step"]), {})
    records = [*trained, *(record(cell, step) for cell in cells for step in STEPS)]
    inputs = replace(quickstart(), planned=cells, records=records)
    definition = load_definition(ROOT / "reports" / "summary.yaml")
    section = build_table(inputs, definition).sections[0]
    plot = cost_data.cost_plot(section, select(records), "FD", "tail")
    assert plot is not None
    (line,) = plot.lines
    assert (line.label, line.hours, line.steps) == ("sit", (3.0, 6.0), STEPS)  # (2 + 4) / 2, (2 + 3 + 7) / 2
    assert (plot.unit, plot.devices, plot.unknown) == ("GPU-hours of training", ("A", "B"), ("ccua",))


def test_a_density_and_its_levels_agree_with_scipy():
    points = np.random.default_rng(5).normal(size=(60, 2))
    x = y = np.linspace(-5, 5, 80)
    width = sheets.bandwidth(points)
    held = sheets.density(points, x, y, width)
    where = np.stack(np.meshgrid(x, y)).reshape(2, -1)
    oracle = gaussian_kde(points.T)
    oracle.covariance = np.eye(2) * width**2
    kernels = np.exp(-cdist(where.T, points, "sqeuclidean") / (2 * width**2)) / (2 * np.pi * width**2)
    assert np.allclose(held.ravel(), kernels.mean(axis=1))
    assert width == pytest.approx(oracle.scotts_factor() * np.sqrt(points.var(axis=0).mean()))
    for mass, level in zip((0.9, 0.5), sheets.mass_levels(held, (0.9, 0.5)), strict=True):
        assert held[held >= level].sum() / held.sum() == pytest.approx(mass, abs=0.01)


def _lightness(colour) -> float:
    """L* of CIE 1976 of an sRGB colour."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour]
    y = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return 116 * np.cbrt(y) - 16


def test_neighbouring_rows_differ_in_grey_and_every_row_has_a_second_sign():
    style = list(figures.looks([f"m{i}" for i in range(40)]).values())
    for one, other in itertools.pairwise(style[:10]):
        assert abs(_lightness(one.colour) - _lightness(other.colour)) > 7.5
    for one, other in itertools.combinations(style[:10], 2):
        assert one.marker != other.marker
        assert one.hatch != other.hatch
    assert all(_lightness(look.colour) < 90 for look in style), "seen on white"


# deuteranopia and protanopia in linear RGB: Machado, Oliveira and Fernandes 2009, severity 1
_BLIND = (
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
)


@pytest.mark.parametrize("matrix", _BLIND)
def test_the_first_rows_differ_for_colour_blind_readers(matrix):
    def seen(colour):
        linear = np.array([v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour])
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        f = np.cbrt(np.clip(xyz @ np.clip(np.array(matrix) @ linear, 0, 1), 1e-4, None) / (0.9505, 1, 1.089))
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    colours = [look.colour for look in figures.looks([f"m{i}" for i in range(5)]).values()]
    for one, other in itertools.combinations(colours, 2):
        assert np.linalg.norm(seen(one) - seen(other)) > 11, "about five times what is just noticeable"


def test_words_on_axes_are_readable():
    """Names of classes do not lie on one another whatever their counts, and no number is left in TeX's words."""
    counts = (24, 19, 15, 12, 10, 8, 6, 5, 4, 3, 2, 2)
    names = tuple(f"garment {i % 10}, kind {i // 10}" for i in range(12))
    line = Line("sit", tuple(map(float, counts)), tuple(12 * [0.5]), tuple(12 * [0.0]), ())
    groups = tuple(4 * ["head"] + 4 * ["body"] + 4 * ["tail"])
    classes = ClassPlot(names, counts, groups, (line,), tuple(12 * [None]), "recall", (tuple(range(12)),))
    costs = (cost_data.CostLine("sit", (0.02, 0.4), (9.0, 7.0), (0.0, 0.0), (1, 2)),)
    cost = cost_data.CostPlot(costs, ((0, 0), (0, 1)), "hours", ("cpu",), (), None, "lower", "FD")
    with figures.drawing():
        style = figures.looks(["sit"])
        first, second = figures.draw_classes(classes, style), figures.draw_cost(cost, style)
        for figure in (first, second):
            figure.draw_without_rendering()
            texts = [label for label in figure.axes[0].get_xticklabels(which="both") if label.get_text()]
            assert not any("$" in label.get_text() for label in texts)
            boxes = sorted((label.get_window_extent() for label in texts), key=lambda box: box.x0)
            assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
        marks = first.axes[0].lines[0].get_xdata()
        assert len(set(marks)) == 12, "classes of one count have places of their own"


@pytest.fixture(scope="module")
def drawn(house, tmp_path_factory):
    from ltbench.cli.inputs import gather

    inputs = gather(plan(house.benchmark, house.store), house.store)
    definition = load_definition(ROOT / "reports" / "figures.yaml")
    place = tmp_path_factory.mktemp("report")
    formats = ("png", "pdf", "svg")
    first = write_report(inputs, definition, fetch_from(house.store), place / "a", formats)
    again = replace(inputs, records=inputs.records[::-1])
    return first, write_report(again, definition, fetch_from(house.store), place / "b", formats)


def test_every_kind_is_drawn_from_the_store_and_twice_the_same(drawn):
    first, second = drawn
    kinds = {name.split("-")[-1] for name in first.paths}
    assert kinds == {
        *("samples", "neighbours", "feature_map", "reverse_process", "metric_steps", "group_bars"),
        *("class_quality", "quality_cost", "loss_curves"),
    }
    assert [section.title for section in first.table.sections if "illustr" in section.title] == []
    for name, path in first.paths.items():
        assert path.read_bytes() == second.paths[name].read_bytes(), name
        text = path.read_bytes()
        assert not any(word in text for word in (b"CreationDate", b"<dc:date>", b"Matplotlib v"))


def test_definitions_of_the_papers_figures_load():
    found = {path.stem: load_definition(path) for path in sorted(ROOT.glob("reports/figure*.yaml"))}
    assert {f"figure{n}" for n in (1, 4, 5, 7, 8, 10, 11)} | {"figures"} == set(found)
    assert all(definition.name == name for name, definition in found.items())


def test_a_mistake_in_a_figure_has_its_line_and_column(tmp_path):
    (tmp_path / "bad.yaml").write_text(
        "name: bad\nfigures:\n  - {kind: neighbours, of: nothing}\n  - {kind: reverse_process, cut: 0.0}\n"
        "  - {kind: feature_map, tint: red}\n"
    )
    with pytest.raises(SpecError) as refused:
        load_definition(tmp_path / "bad.yaml")
    assert {(p.line, p.column > 1) for p in refused.value.problems} == {(3, True), (4, True), (5, True)}


def test_maps_of_other_real_images_are_not_laid_out_together():
    kinds = np.array([0, 0, 1, 2], np.int8)
    one = {"features": np.zeros((4, 2), np.float16), "kinds": kinds}
    other = {"features": np.eye(4, 2, dtype=np.float16), "kinds": kinds}
    with pytest.raises(LtbenchError, match="other real or training images"):
        illustrated._joint({"sit": one, "ccua": other})
