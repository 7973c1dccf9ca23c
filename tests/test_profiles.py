"""Cluster profiles: what they say, where they are found, and what is wrong with them."""

from __future__ import annotations

import re

import pytest

from ltbench import profiles
from ltbench.errors import SpecError, UsageError
from ltbench.profiles import CHECKOUT, Profile, Request, minutes


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory, and a configuration folder of the user's own in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "ltbench" / "profiles").mkdir(parents=True)
    (tmp_path / "benchmarks" / "profiles").mkdir(parents=True)
    return tmp_path


def write(place, text, name="mine"):
    path = place / "config" / "ltbench" / "profiles" / f"{name}.yaml"
    path.write_text(text)
    return path


def problems(place, text):
    write(place, text)
    with pytest.raises(SpecError) as caught:
        profiles.load("mine")
    return str(caught.value)


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        ("1440", 1440),
        ("24:00:00", 1440),
        ("1-00:00", 1440),
        ("1-00", 1440),
        ("1-12:30:00", 2190),
        ('"90"', 90),
    ],
)
def test_times_are_minutes_however_they_are_spelled(place, spelled, meant):
    write(place, f"time: {spelled}")
    assert profiles.load("mine").resources("training").time == meant


@pytest.mark.parametrize("spelled", ["30:00", "1d", "0:00:30", "-5", "true", "1.5", "0", "24:00:00:00"])
def test_times_that_could_be_misread_are_refused_with_what_is_allowed(place, spelled):
    told = problems(place, f"time: {spelled}")
    assert re.search(r"mine\.yaml:1:7: time ", told)


def test_a_section_wins_over_the_profile_which_wins_over_defaults(place):
    write(place, "cpus_per_gpu: 8\ntime: 100\nconstraint: a\nevaluation: {time: 50, constraint: null}")
    profile = profiles.load("mine")
    training, evaluation = profile.resources("training"), profile.resources("evaluation")
    assert (training.time, training.cores, training.constraint, training.gpus) == (100, 8, "a", 1)
    assert (evaluation.time, evaluation.cores, evaluation.constraint) == (50, 8, None)


def test_memory_and_cores_are_per_gpu_where_there_are_any(place):
    write(place, "gpus: 4\ncpus_per_gpu: 8\nmemory_per_gpu_gb: 60\nmemory_gb: 7\nhelper: {gpus: 0, cpus: 3}")
    profile = profiles.load("mine")
    training, helper = profile.resources("training"), profile.resources("helper")
    assert (training.cores, training.memory, helper.cores, helper.memory) == (32, 240, 3, 7)


def test_every_mistake_is_told_with_its_place(place):
    told = problems(
        place,
        "partion: x\ngpus: two\nsbatch: {partition: x}\ntraining: {foo: 1, memory_gb: -1}\nscratch: $NOPE/x\n"
        'setup: ["a\\nb"]\n',
    )
    for words in (
        "mine.yaml:1:1: the profile has no key 'partion'",
        "did you mean 'partition'?",
        "mine.yaml:2:7: gpus expects a whole number",
        "mine.yaml:3:9: sbatch cannot hold 'partition': use the key partition",
        "training has no key 'foo'; allowed: account, at_once,",
        "training.memory_gb must be above 0",
        "mine.yaml:5:10: scratch names a variable that is not set here",
        "mine.yaml:6:9: setup.0 expects one line of text",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpus: 1\ntraining: {ranks: 2}", "mine.yaml:2:19: 2 ranks on 1 GPUs"),
        ("gpus: 0\ncpus: 3\ntraining: {ranks: 2}", "3 cores cannot be shared evenly by 2 ranks"),
        ("training: {gpus: 2, ranks: 2, pack: 2}", "cells of several ranks do not share a job"),
        ("time: 5", "mine.yaml:1:7: 5 minutes leave nothing beside the warning of 180 s"),
        ("- a", "a profile is a mapping of keys"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(place, text, words):
    assert words in problems(place, text)


def test_names_are_looked_up_here_and_in_the_users_folder(place):
    write(place, "title: own", "alpha")
    assert profiles.load("alpha").title == "own"
    with pytest.raises(UsageError, match="did you mean 'alpha'"):
        profiles.find("alhpa")
    (place / "benchmarks" / "profiles" / "alpha.yaml").write_text("title: other")
    with pytest.raises(UsageError, match="two profiles are called 'alpha'"):
        profiles.find("alpha")
    assert profiles.load(str(place / "benchmarks" / "profiles" / "alpha.yaml")).title == "other"


def test_a_profile_survives_the_way_through_json(place):
    write(
        place,
        "gpus: 2\nsetup: [a, b]\nsbatch: {mail-type: FAIL, exclusive: true}\nevaluation: {time: 2:00:00}",
    )
    profile = profiles.load("mine")
    assert Profile.from_plain(profile.plain()) == profile
    assert Profile.from_plain(profile.plain()).resources("evaluation") == profile.resources("evaluation")


def test_the_example_explains_every_key(place):
    text = (CHECKOUT / "benchmarks" / "profiles" / "example.yaml").read_text()
    missing = [key for key in (*Profile.model_fields, *Request.model_fields) if not re.search(rf"^ *{key}:", text, re.M)]  # fmt: skip
    assert missing == []
    assert [key for key, meaning in profiles.explain() if not meaning] == []
    profiles.load("example")


def test_minutes_reads_whole_numbers():
    assert minutes(7) == 7
