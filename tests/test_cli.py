"""The verbs as a person types them: help, start-up, bad input, everything that only looks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ltbench.cli import VERBS
from tests import cli_world
from tests.cli_world import MINE, ROOT, SPEC

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures

LISTINGS = ("methods", "datasets", "benchmarks", "extractors", "plan", "status", "validate")


# -- help, start-up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [verb.rstrip("_") for _, verb, _ in VERBS])
def test_every_verb_explains_itself_with_an_example_in_80_columns(cli, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli(verb, "--help")
    assert code == 0
    assert f"python harness.py {verb}" in out
    assert max(map(len, out.splitlines())) <= 80
    if verb in LISTINGS:
        assert "--json" in out


TORCH_FREE = [
    ["--help"],
    ["run", "--help"],
    ["validate", "little.yaml"],
    ["plan", "little.yaml", "--all"],
    ["status", "little.yaml"],
    ["status"],
    ["benchmarks"],
    ["methods", "--no-import"],
    ["methods", "ccua", "--no-import"],
    ["datasets", "--no-import"],
    ["schema"],
    ["extractors"],
    ["extractors", "digits-cnn-v1"],
    ["report", "little.yaml", "--format", "md,tex,csv,html,png"],
]


def test_looking_imports_no_torch(here):
    """One process runs every verb that only looks, and reports what each had imported by then; what draws, where nothing has run."""
    code = f"""
        import sys
        from ltbench.cli import main
        for words in {TORCH_FREE!r}:
            sys.argv = ["ltbench", *words]
            code = main()
            print("\\nCHECK", code, not {{"torch", "seaborn"}}.isdisjoint(sys.modules), " ".join(words))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=here
    )
    checks = [line for line in done.stdout.splitlines() if line.startswith("CHECK")]
    assert checks == [f"CHECK 0 False {' '.join(words)}" for words in TORCH_FREE], done.stderr


@pytest.mark.parametrize(
    ("verb", "unneeded"),
    [
        ("--help", ("pydantic", "rich", "importlib.metadata", "ltbench.store", "ltbench.spec")),
        ("status", ("ltbench.spec.loader", "http.client")),
    ],
)
def test_a_verb_imports_nothing_heavy_that_it_does_not_need(here, verb, unneeded):
    heavy = ("torch", "numpy", "pandas", "yaml", "matplotlib", *unneeded)
    code = f"import sys; sys.argv=['ltbench', {verb!r}]; from ltbench.cli import main; main();"
    code += f"print('HEAVY', [m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert "HEAVY []" in done.stdout


def test_the_package_offers_its_entrances_lazily(here):
    code = "import sys, ltbench; print(ltbench.__version__, sorted({'torch','pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert re.fullmatch(r"\d+\.\d+\S* \[\]\n", done.stdout), done.stderr


def test_harness_py_is_the_same_program(here):
    done = subprocess.run(
        [sys.executable, str(ROOT / "harness.py"), "plan", "nowhere"],
        capture_output=True,
        text=True,
        cwd=here,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "there is no spec 'nowhere'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_look_that_ends_at_once_has_said_everything(here):
    code = "import atexit, sys; from ltbench.entry import program; atexit.register(print, 'the end'); "
    code += "sys.argv[1:] = ['status', 'nowhere' if len(sys.argv) > 1 else '--list']; program()"
    said = [
        subprocess.run([sys.executable, "-c", code, *more], capture_output=True, text=True, cwd=here)
        for more in ([], ["nowhere"])
    ]
    assert [(done.returncode, done.stdout) for done in said] == [(0, "the end\n"), (2, "the end\n")]
    assert "there is no spec 'nowhere'" in said[1].stderr


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["plan", "litle"], 2, "there is no spec 'litle'"),
        (["plan", "little.yaml", "--filter", "metod=ccua"], 2, "did you mean 'method'"),
        (["plan", "little.yaml", "--filter", "method=cua"], 2, "did you mean 'ccua'"),
        (["plan", "little.yaml", "--filter", "ccua"], 2, "expects KEY=VALUE"),
        (["plan", "little.yaml", "--set", "train.bach=3"], 2, "did you mean 'batch'"),
        (["plan", "little.yaml", "--with", "ccau"], 2, "ccua"),
        (["plan", "little.yaml", "--plugins", "nowhere"], 2, "no such file or folder"),
        (["run", "little.yaml", "--workers", "0"], 2, "must be at least 1"),
        (["run", "little.yaml", "--device", "tpu"], 2, "allowed: cpu, cuda"),
        (["status", "--filter", "seed=0"], 2, "belong to a spec"),
        (["report", "little.yaml", "--format", "doc"], 2, "'doc'"),
        (["report", "little.yaml", "--as", "nothing"], 2, "there is no reports/nothing.yaml"),
        (["show", "abcdef"], 2, "no cell abcdef"),
        (["show", "xyz"], 2, "at least 6 hex digits"),
        (["methods", "ccau"], 2, "did you mean 'ccua'"),
        (["datasets", "fashion_mnist", "--set", "imbalace=1"], 2, "takes source, imbalance, resolution"),
        (["fly"], 2, "No such command"),
        (["run", "little.yaml", "--store", "/proc/nowhere"], 4, "/proc/nowhere"),
    ],
)
def test_a_wrong_word_is_a_message_with_a_remedy(cli, words, code, says):
    got, out, err = cli(*words)
    assert (got, out) == (code, "")
    assert says in err
    assert "Traceback" not in err


def test_a_wrong_spec_is_every_mistake_with_its_place(cli, here):
    (here / "wrong.yaml").write_text(SPEC.replace("batch: 32", "bach: 32").replace("ccua", "ccau"))
    code, _, err = cli("validate", "wrong.yaml")
    assert code == 2
    assert re.search(r"wrong\.yaml:7:\d+: .*'bach'", err)
    assert re.search(r"wrong\.yaml:10:\d+: .*'ccau'", err)
    code, out, _ = cli("validate", "wrong.yaml", "--json")
    assert code == 2
    assert {problem["line"] for problem in json.loads(out)["problems"]} >= {7, 10}


def test_an_unexpected_error_keeps_its_traceback(here):
    code = """
        import sys
        from ltbench.cli import main, specs
        specs.find = lambda name: 1 / 0
        sys.argv = ["ltbench", "plan", "x"]
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=here
    )
    assert "ZeroDivisionError" in done.stderr
    assert "Traceback" in done.stderr
    assert done.returncode == 1


# -- looking --------------------------------------------------------------------------------------------------------------


def test_status_shows_a_board_of_methods_and_seeds(cli, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run("--filter", "seed=0")
    code, out, _ = cli("status", "little.yaml")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "little.yaml: 4 cells: 2 done, 2 new"
    assert lines[2].split() == ["method", "seed", "0", "seed", "1", "records", "steps"]
    assert lines[3].split()[:3] == ["sit", "done", "new"]
    assert "2 done, 2 new" in out
    assert max(map(len, lines)) <= 80
    found = json.loads(cli("status", "little.yaml", "--json")[1])
    assert found["counts"] == {"done": 2, "new": 2}
    assert "done" in cli("status")[1]


def test_watch_ends_when_all_is_over(cli, run):
    run()
    code, out, _ = cli("status", "little.yaml", "--watch")
    assert code == 0
    assert "4 cells: 4 done" in out


def test_an_empty_store_is_said(cli):
    assert "the store holds no cell yet" in cli("status")[1]


def test_the_report_is_printed_written_and_says_what_is_missing(cli, run, here):
    run("--filter", "seed=0")
    code, out, err = cli("report", "little.yaml", "--format", "md,csv")
    assert code == 0
    assert "ccua" in out
    assert (here / "reports/build/little/little.md").exists()
    assert "reports/build/little/little.csv" in err
    code, out, _ = cli("report", "little.yaml", "--format", "md", "--json", "--out", here / "elsewhere")
    assert Path(json.loads(out)["files"]["md"]).parent == here / "elsewhere"


def test_run_with_report_ends_in_the_table(run, here):
    code, out, _ = run("--report", "--filter", "seed=0")
    assert code == 0
    assert "FD[fashion-cnn-v1" in out
    assert (here / "reports/build/little/little.html").exists()


def test_methods_lists_every_file_and_a_broken_one_is_one_line(cli, here):
    folder = here / "plugins" / "methods"
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(MINE)
    (folder / "absent.py").write_text("import no_such_module\n" + MINE)
    (folder / "leaving.py").write_text(MINE + "\nimport os; os._exit(3)\n")
    (folder / "raising.py").write_text(MINE + "\nraise RuntimeError('not today')\n")
    (folder / "typo.py").write_text("class (\n")
    code, out, _ = cli("methods", "--plugins", folder.parent)
    assert code == 0
    good, bad = out.split("4 files not usable:")
    assert re.search(r"^mine +The plain loss, doubled +factor=1.0$", good, re.M)
    assert re.search(r"^ccua ", good, re.M)
    for line in (
        r"absent\.py: ModuleNotFoundError: No module named 'no_such_module'",
        r"leaving\.py: its import ended the process: it exited with code 3",
        r"raising\.py: RuntimeError: not today",
        r"typo\.py: line 1: ",
    ):
        assert re.search(line, bad)
    assert len(bad.strip().splitlines()) == 4
    listed = {row["name"]: row for row in json.loads(cli("methods", "--plugins", folder.parent, "--json")[1])}
    assert listed["mine"]["parameters"] == {"factor": 1.0}
    assert "not today" in listed["raising"]["problem"]


def test_an_import_that_hangs_is_given_up(here, monkeypatch):
    from ltbench.cli import probe

    (here / "sleepy.py").write_text("import time\ntime.sleep(60)\nfrom ltbench.datasets import Dataset\n")
    monkeypatch.setenv("LTBENCH_PLUGINS", str(here / "sleepy.py"))
    found = probe.probe("datasets", ["digits", "sleepy"], timeout=4)
    assert found["digits"] is None
    assert "did not end" in found["sleepy"]


def test_methods_name_shows_parameters_and_presets(cli):
    _, out, _ = cli("methods", "ccua", "--no-import")
    assert re.search(r"alpha +a number +0.05", out)
    assert "preset ddpm: alpha=1.0" in out


def test_datasets_name_counts_and_draws_the_tail(cli, here):
    from PIL import Image

    code, out, _ = cli("datasets", "fashion_mnist", "--set", "resolution=16", "--picture", here / "tail.png")
    assert code == 0
    assert re.search(r"9 +Ankle boot +tail +10 +0\.4%", out)
    assert "tail: 3 classes, 53 images, 2.1%" in out
    with Image.open(here / "tail.png") as picture:
        assert picture.size == (8 * 16 * 3, 3 * 16 * 3)
    found = json.loads(cli("datasets", "fashion_mnist", "--json", "--picture", here / "tail.png")[1])
    assert sum(found["counts"]) == 2478


def test_plan_says_the_recipe_and_every_deviation(cli, here):
    said = "trained as seed-sit, but for batch 96 (there 48)"
    changes = ("--set", "train={preset: seed-sit, batch: 96, milestones: [5]}")
    assert said in cli("plan", "little.yaml", *changes)[1].splitlines()
    found = json.loads(cli("plan", "little.yaml", *changes, "--json")[1])["recipes"]
    assert found == [{"part": found[0]["part"], "preset": "seed-sit", "deviations": {"batch": [96, 48]}}]
    assert json.loads(cli("plan", "little.yaml", "--json")[1])["recipes"] == []


def test_benchmarks_and_schema(cli, here):
    (here / "benchmarks").mkdir()
    (here / "benchmarks" / "own.yaml").write_text(SPEC)
    found = {row["name"]: row["title"] for row in json.loads(cli("benchmarks", "--json")[1])}
    assert found["own"] == "A little benchmark"
    assert "quickstart" in found
    assert cli("plan", "own")[0] == 0, "a spec is found by its name"
    assert "properties" in json.loads(cli("schema")[1])
