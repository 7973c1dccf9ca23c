"""What a training hands over when a milestone is there: the right stages, once, and nothing that keeps the training waiting."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ltbench.errors import EnvironmentProblem
from ltbench.launch.local import Outcome
from ltbench.launch.slurm import layout, submit, task
from ltbench.launch.slurm.element import Element, View
from ltbench.launch.slurm.evaluations import Submitter, of_milestone, training_only
from ltbench.launch.slurm.layout import Entry
from ltbench.profiles import Profile
from ltbench.store import sealed

STAGES = ("train:10,40", "evaluate:10:aaaaaaaaaaaa", "evaluate:40:aaaaaaaaaaaa", "evaluate:40:bbbbbbbbbbbb")
ENTRY = Entry(
    "c" * 64, "sit, seed 0", 0, "r" * 12, STAGES, {"threads": 4, "micro_batch": 6}, ("d" * 64, 20), "s"
)
PROFILE = Profile.model_validate({"gpus": 0, "cpus": 4, "evaluation": {"cpus": 2}})


def submission(folder: Path) -> layout.Submission:
    return layout.create(folder, {"benchmark": "b", "environment": {"A": "1"}, "resolved": PROFILE.plain()})


def test_a_milestone_is_measured_on_the_resources_of_evaluations() -> None:
    found = of_milestone(ENTRY, 40, PROFILE)
    assert found is not None
    assert found.stages == STAGES[2:]
    assert (found.options["threads"], found.options["micro_batch"]) == (2, 6)
    assert (found.after, found.start) == (None, None)
    assert of_milestone(ENTRY, 20, PROFILE) is None
    assert [entry.stages for entry in training_only([ENTRY])] == [STAGES[:1]]


def test_each_milestone_is_submitted_and_a_refusal_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, said, asked = submission(tmp_path), [], threading.Event()
    calls: list[tuple[Any, ...]] = []

    def add(to: Any, job_class: str, entries: Any, *, environment: Any, function: Any) -> tuple[int, str]:
        asked.wait(300)  # a controller that is slow
        calls.append((to.folder, job_class, [e.stages for e in entries], environment, function))
        if len(calls) > 1:
            raise EnvironmentProblem("sbatch refused the job: no network here")
        return 7, "123"

    monkeypatch.setattr(submit, "add", add)
    submitter = Submitter(made, PROFILE, [ENTRY], task.run_task, said.append)
    for step in (10, 20, 40, 40):
        submitter.reached(ENTRY.cell, step)
    submitter.reached("e" * 64, 10)
    assert calls == [], "the training goes on meanwhile"
    asked.set()
    submitter.close()
    common = (made.folder, "evaluation")
    assert [call[2] for call in calls] == [[STAGES[1:2]], [STAGES[2:]], [STAGES[2:]]]
    assert all(call[:2] == common and call[3:] == ({"A": "1"}, task.run_task) for call in calls)
    assert said == [
        "submitted the evaluation of sit, seed 0, step 10: job 123, array 7",
        "evaluations cannot be submitted from here: sbatch refused the job: no network here; the next `submit` does it",
    ]


def test_what_was_cancelled_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that is told to stop does so at a step, which may be a milestone."""
    made = submission(tmp_path)
    made.add_array({"class": "training"}, [[ENTRY]])
    asked: list[Any] = []
    monkeypatch.setattr(submit, "add", lambda *words, **_: (asked.append(words), "7"))
    here = task._Task(Element(made, 0, 0, 0, "9_0"), task.Heard())
    assert here.submitter is not None
    made.cancel(0, 0)
    here.submitter.reached(ENTRY.cell, 10)
    here.submitter.close()
    assert asked == []


def test_an_element_is_named_so_that_a_requeue_means_it_alone(tmp_path: Path) -> None:
    """The last element of an array has the array's own number in SLURM_JOB_ID."""
    made = submission(tmp_path)
    env = {
        "SLURM_JOB_ID": "77",
        "SLURM_ARRAY_JOB_ID": "77",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_RESTART_COUNT": "2",
    }
    here = Element.here(str(made.folder), "5", env)
    assert (here.job, here.array, here.index, here.restart) == ("77_3", 5, 3, 2)
    assert Element.here(str(made.folder), "0", {"SLURM_JOB_ID": "9"}).job == "9"


def test_a_cancelled_element_never_begins_nor_requeues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = submission(tmp_path)
    made.add_array({"class": "training"}, [[ENTRY]])
    made.cancel(0, 0)
    for name, value in {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Element, "requeue", lambda self: pytest.fail("it must not"))
    element = Element.here(str(made.folder), "0")
    heard = task.Heard()
    assert task._Task(element, heard).run() == 0
    assert made.started() == {}
    ((_, path),) = made.ended().items()
    assert b'"reason":"cancelled"' in path.read_bytes()


@pytest.mark.parametrize(
    ("fate", "reason", "requeues"), [("running", "preempted", 1), ("cancelled", "cancelled", 0)]
)
def test_what_another_rank_was_told_to_stop_is_not_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str, reason: str, requeues: int
) -> None:
    made = submission(tmp_path)
    made.add_array({"class": "evaluation"}, [[ENTRY]])
    asked: list[str] = []
    monkeypatch.setattr(task, "PATIENCE", 0.0)
    monkeypatch.setattr(Element, "view", lambda self: View(fate))
    monkeypatch.setattr(Element, "requeue", lambda self: asked.append(self.job))
    here = task._Task(Element(made, 0, 0, 0, "9_0"), task.Heard())
    assert here._conclude([Outcome(ENTRY.cell, ENTRY.label, "train:10", "preempted")]) == 0
    ((_, path),) = made.ended().items()
    assert sealed.read_sealed(path)["reason"] == reason
    assert len(asked) == requeues


def test_packed_cells_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert task.seats_of(3, 2, 4).devices == ("2", "5", "2")
    assert task.seats_of(2, 0, 1).devices == ("", ""), "a node may show GPUs that are not the job's"
