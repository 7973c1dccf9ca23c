"""`run` and what follows from it, against a job that writes real records without training anything."""

from __future__ import annotations

import json
import re

from ltbench import provenance
from ltbench.provenance import syntax
from tests import cli_world
from tests.cli_world import MINE, SPEC, fake, stages

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures

# -- plan, run, rerun ---------------------------------------------------------------------------------------------------


def test_plan_counts_and_run_does_it_once(cli, run):
    code, out, _ = cli("plan", "little.yaml")
    assert code == 0
    assert "4 trainings (up to 160 steps), 8 evaluations (400 images)" in out
    code, out, err = run()
    assert code == 0
    assert "4 cells of little: 4 done" in out
    assert len(stages(err)) == 12
    code, out, err = run()
    assert code == 0
    assert stages(err) == []
    assert "nothing to do" in cli("plan", "little.yaml")[1]


def test_seed_zero_and_early_milestones_come_first(run):
    done = stages(run("--workers", "1")[2])
    seeds = [cell.rpartition(" ")[2] for cell, _ in done]
    assert seeds == ["0"] * 6 + ["1"] * 6
    assert [stage for _, stage in done[:3]] == ["train", "evaluate 20", "evaluate 40"]


def test_a_changed_evaluation_trains_nothing(run):
    run()
    other = (
        "evaluate=[{protocol: small-data, sampler: euler, steps: 5, guidance: 2.0, samples: 50, block: 50}]"
    )
    _, _, err = run("--set", other)
    assert {stage for _, stage in stages(err)} == {"evaluate 20", "evaluate 40"}


def test_a_further_milestone_continues_and_a_changed_setting_begins_anew(cli, run):
    run()
    cells = {c["cell"] for c in json.loads(cli("plan", "little.yaml", "--json")[1])["cells"]}
    more = json.loads(cli("plan", "little.yaml", "--set", "train.milestones=[20,40,60]", "--json")[1])
    other = json.loads(cli("plan", "little.yaml", "--set", "train.lr=0.5", "--json")[1])
    assert {c["cell"] for c in more["cells"]} == cells
    assert {c["cell"] for c in other["cells"]}.isdisjoint(cells)
    assert other["counts"] == {"new": 4}
    done = stages(
        run("--set", "train.milestones=[20,40,60]", "--filter", "seed=0", "--filter", "method=sit")[2]
    )
    assert done == [("sit seed 0", "train"), ("sit seed 0", "evaluate 60")]


def test_a_derived_spec_is_kept_and_can_be_named(cli, run):
    _, out, err = run("--set", "train.lr=0.5", "--filter", "seed=0")
    name = re.search(r"its name is (\S+)", err)[1]
    assert f"report {name}" in out
    code, out, _ = cli("plan", name, "--filter", "seed=0")
    assert code == 0
    assert "nothing to do" in out


def test_a_derived_spec_of_a_layer_can_be_named(cli, run, here, monkeypatch):
    name = re.search(r"its name is (\S+)", run("--set", "train.lr=0.5", "--filter", "seed=0")[2])[1]
    monkeypatch.setenv("LTBENCH_STORE", f"{here / 'own'}:{here / 'store'}")
    code, out, _ = cli("plan", name, "--filter", "seed=0")
    assert code == 0
    assert "nothing to do" in out
    assert cli("report", name, "--format", "md")[0] == 0


def test_filters_choose_cells(cli):
    found = json.loads(
        cli("plan", "little.yaml", "--filter", "method=ccua", "--filter", "seed=1", "--json")[1]
    )
    assert [(c["label"], c["axes"]["seed"]) for c in found["cells"]] == [("ccua", 1)]
    cell = found["cells"][0]["cell"]
    assert json.loads(cli("plan", "little.yaml", "-f", f"cell={cell[:9]}", "--json")[1])["total"] == 1


# -- failures -----------------------------------------------------------------------------------------------------------


def test_a_nan_is_told_once_and_not_retried_until_asked(cli, run, monkeypatch):
    fake(monkeypatch, "ccua:1=nan")
    code, out, err = run()
    assert code == 1
    assert "3 done, 1 failed" in out
    assert "FAILED   ccua seed 1, train: nan" in err
    assert "FAIL nan" in cli("status", "little.yaml")[1]
    fake(monkeypatch, "")
    code, out, err = run()
    assert (code, stages(err)) == (1, [])
    assert "--retry-failed" in err
    code, out, err = run("--retry-failed")
    assert code == 0
    assert len(stages(err)) == 3


def test_a_crash_is_recorded_by_the_driver_and_retried(cli, run, monkeypatch):
    fake(monkeypatch, "ccua:0=crash")
    code, out, _ = run()
    assert code == 1
    cell = re.search(r"why ([0-9a-f]{12})", out)[1]
    code, out, _ = cli("why", cell)
    assert "the worker exited with code 9" in out
    assert "train, attempt 1: failed" in out
    fake(monkeypatch, "")
    assert run()[0] == 0
    assert "attempt 2 came after it: done" in cli("why", cell)[1]


def test_show_tells_settings_records_and_files(cli, run):
    run("--filter", "method=ccua", "--filter", "seed=0")
    cell = json.loads(cli("status", "--json")[1])["cells"][0]["cell"]
    code, out, _ = cli("show", cell[:8])
    assert code == 0
    for word in (cell, "method.alpha", "train.batch", "evaluate-000000040", "FD[fashion-cnn-v1@"):
        assert word in out
    shown = json.loads(cli("show", cell, "--json")[1])
    assert len(shown["runs"][0]["records"]) == 4


def test_changed_code_is_stale_explained_and_acceptable(cli, run, here):
    """A method file changes: its cells are stale, `why` names the function, `accept` keeps the results."""
    plugins = here / "plugins" / "methods"
    plugins.mkdir(parents=True)
    mine = plugins / "mine.py"
    mine.write_text(MINE)
    words = ["--plugins", plugins.parent, "--with", "mine", "--filter", "method=mine", "--filter", "seed=0"]
    assert run(*words)[0] == 0
    plan = ["plan", "little.yaml", *words, "--json"]
    cell = json.loads(cli(*plan)[1])["cells"][0]
    assert cell["state"] == "done"
    mine.write_text(MINE.replace("# a comment", "# another comment"))
    provenance.forget()
    assert json.loads(cli(*plan)[1])["cells"][0]["state"] == "done", "a comment changes nothing"
    mine.write_text(MINE.replace("2.0 *", "3.0 *"))
    provenance.forget()
    stale = json.loads(cli(*plan)[1])["cells"][0]
    assert stale["state"] == "stale"
    assert "Mine.loss" in stale["reason"]
    assert "Mine.loss" in cli("why", cell["cell"], "--plugins", plugins.parent)[1]
    code, _, err = cli(
        "accept", cell["cell"], "--because", "a factor of no importance", "--plugins", plugins.parent
    )
    assert (code, err) == (0, "")
    provenance.forget()
    assert json.loads(cli(*plan)[1])["cells"][0]["state"] == "done"
    assert cli("accept", cell["cell"], "--because", " ")[0] == 2


def test_looks_after_a_run_or_a_submission_parse_no_code(cli, run, here, monkeypatch):
    (here / "little.yaml").write_text(SPEC.replace("[sit, ccua]", "[sit]").replace("[0, 1]", "[0]"))
    for act in (run, lambda: cli("submit", "little.yaml", "--profile", "example", "--dry-run")):
        monkeypatch.setenv("LTBENCH_CACHE", str(here / f"cache {act}"))
        assert act()[0] == 0
        for words in (("plan", "little.yaml", "--json"), ("status", "little.yaml"), ("status",)):
            provenance.forget()
            with monkeypatch.context() as change:
                change.setattr(syntax, "parsed", None)
                assert cli(*words)[0] == 0
        provenance.forget()
