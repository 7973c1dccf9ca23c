"""From work to arrays, and from an array to sbatch's text; no SLURM is asked."""

from __future__ import annotations

import base64
import pickle
import re
from dataclasses import dataclass, field

import pytest

from ltbench.launch.slurm import layout, resources, sbatch
from ltbench.launch.slurm.task import run_task
from ltbench.plan.work import Work
from ltbench.profiles import Profile


@dataclass
class FakeCell:
    id: str
    seed: int = 0
    options: dict = field(default_factory=dict)
    evaluations: dict = field(default_factory=dict)
    identity: dict = field(default_factory=dict)

    @property
    def settings(self):
        return {"seed": self.seed, "method": {"name": "sit"}, "train": {"batch": 32}}


def work(name, *stages, seed=0, after=None):
    return Work(FakeCell(name, seed), "run" + name, stages, after)  # pyright: ignore[reportArgumentType]


def divide(items, profile=None, limit=1000, elsewhere=()):
    profile = Profile.from_plain(profile or {})
    return resources.arrays(items, [item.cell.id for item in items], profile, limit, elsewhere)


def shape(wanted):
    return [(each.job_class, [[entry.cell for entry in task] for task in each.tasks]) for each in wanted]


def test_small_cells_share_a_job_and_seed_0_goes_first():
    items = [work(f"c{n}s{s}", "train:4", seed=s) for n in range(3) for s in (1, 0)]
    wanted, _ = divide(items, {"training": {"pack": 2}}, limit=2)
    assert shape(wanted) == [
        ("training", [["c0s0", "c1s0"], ["c2s0", "c0s1"]]),
        ("training", [["c1s1", "c2s1"]]),
    ]


def test_what_works_at_once_and_what_trainings_will_submit_are_counted():
    stages = ("reference:e", "train:4,8", "evaluate:4:e", "evaluate:8:e", "evaluate:8:f")
    items = [work(f"c{n}", *(stages if n == 0 else stages[1:])) for n in range(5)]
    packed = {"training": {"pack": 2}}

    def counts(profile, limit=1000):
        chosen, (wanted, _) = Profile.from_plain(profile), divide(items, profile, limit)
        return resources.slots(wanted, chosen), resources.to_follow(wanted)

    assert counts({}) == (5, 10)
    assert counts(packed) == (5, 10)
    assert counts(packed | {"at_once": 1}) == (2, 10)
    assert counts(packed | {"at_once": 1}, limit=2) == (3, 10), "of each array"
    assert counts(packed | {"submit_from_jobs": False}) == (5, 0)
    measured, _ = divide([work("m", "evaluate:4:e"), work("n", "evaluate:4:e")])
    assert resources.slots(measured, Profile.from_plain({})) == 2
    assert resources.slots([], Profile.from_plain({})) == 1


def test_milestones_that_are_there_are_evaluated_early_ones_first_and_behind_the_features_of_real_images():
    items = [
        work("a", "evaluate:8:e", "evaluate:4:e"),
        work("b", "reference:e", "train:8", "evaluate:4:e", "evaluate:8:e"),
    ]
    wanted, _ = divide(items)
    assert shape(wanted) == [
        ("helper", [["b"]]),
        ("training", [["b"]]),
        ("evaluation", [["a"], ["b"], ["a"]]),
    ]
    assert wanted[1].tasks[0][0].stages == ("train:8", "evaluate:8:e")  # its milestone is to come
    assert [task[0].stages for task in wanted[2].tasks] == [
        ("evaluate:4:e",),
        ("evaluate:4:e",),
        ("evaluate:8:e",),
    ]
    assert (wanted[1].behind, wanted[2].behind) == ((), (0,))


def test_evaluations_that_jobs_may_not_submit_have_the_index_of_their_training():
    items = [work(f"c{n}", "train:4,8", "evaluate:4:e", "evaluate:8:e") for n in range(3)] + [
        work("d", "train:4")
    ]
    wanted, _ = divide(items, {"submit_from_jobs": False})
    assert [each.job_class for each in wanted] == ["training", "evaluation", "evaluation"]
    assert [entry.stages for entry in wanted[0].cells()] == [("train:4,8",)] * 3 + [("train:4",)]
    for each, step in zip(wanted[1:], (4, 8), strict=True):
        assert each.corresponding == 0
        assert each.indices == [0, 1, 2]
        assert [(e.cell, e.stages) for e in each.cells()] == [
            (f"c{n}", (f"evaluate:{step}:e",)) for n in range(3)
        ]


def test_cells_that_begin_at_a_milestone_of_another_follow_it_at_its_index():
    items = [
        work("leaf", "train:4", after=("mid", 4)),
        work("mid", "train:4", after=("root2", 4)),
        work("twin", "train:4", after=("root2", 4)),
        *(work(f"root{n}", "train:4") for n in range(3)),
        work("free", "train:4", after=("done", 4)),
    ]
    wanted, late = divide(items)
    assert late == []
    assert shape(wanted[:1]) == [("training", [["root0"], ["root1"], ["root2"], ["free"]])]
    follow = {each.tasks[-1][0].cell: (each.corresponding, each.indices) for each in wanted[1:]}
    mid = next(n for n, each in enumerate(wanted) if each.tasks[-1][0].cell == "mid")
    assert follow == {"mid": (0, [2]), "twin": (0, [2]), "leaf": (mid, [2])}


def test_cells_whose_source_trains_in_an_earlier_submission_wait():
    items = [
        work("a", "train:4", after=("far", 4)),
        work("b", "train:4", after=("a", 4)),
        work("c", "train:4"),
    ]
    wanted, late = divide(items, elsewhere=["far"])
    assert shape(wanted) == [("training", [["c"]])]
    assert sorted(entry.cell for entry in late) == ["a", "b"]


@pytest.fixture
def submission(tmp_path):
    return layout.create(tmp_path, {"benchmark": "little"})


def script(submission, profile, **more):
    chosen = Profile.from_plain(profile)
    call = sbatch.Call(run_task, submission.folder, 3)
    asked = chosen.resources("training")
    told = {"name": "ltbench-little", "indices": [0, 1, 2, 5], "environment": {"A": "b c"}, **more}
    return sbatch.script(call, submission, chosen, asked, **told)


def test_the_script_asks_for_what_the_profile_says(submission):
    text = script(
        submission,
        {
            "gpus": 2, "gpu_type": "a100", "cpus_per_gpu": 8, "memory_per_gpu_gb": 60.5, "time": 90, "partition": "low",
            "account": "lab", "qos": "long", "constraint": "ib", "exclude_nodes": ("n7",), "at_once": 4, "modules": ("cuda/12",),
            "setup": ("source env.sh",), "container": "apptainer exec --nv i.sif", "python": "python3", "signal_seconds": 100,
            "sbatch": {"mail-type": "FAIL", "exclusive": True}, "training": {"ranks": 2},
        },
        exclude=["n3"], dependency="aftercorr:9",
    )  # fmt: skip
    flags = set(re.findall(r"#SBATCH --(.*)", text))
    assert flags >= {
        "array=0-2,5%4", "gres=gpu:a100:2", "cpus-per-task=8", "ntasks-per-node=2", "mem=123904M", "time=90", "partition=low",
        "account=lab", "qos=long", "constraint=ib", "exclude=n3,n7", "signal=USR2@100", "requeue", "kill-on-invalid-dep=yes",
        f"comment={submission.token(3)}", "dependency=aftercorr:9", "mail-type=FAIL", "exclusive", "open-mode=append",
    }  # fmt: skip
    assert not any(flag.startswith("wckey") for flag in flags)
    order = ["module load cuda/12", "source env.sh", "export A='b c'", "export SRUN_CPUS_PER_TASK=8", "srun "]
    assert [text.index(each) for each in order] == sorted(text.index(each) for each in order)
    assert "--kill-on-bad-exit=1" in text
    deaf = 'sh -c \'trap "" USR2 TERM; exec "$@"\' sh'
    assert f"{deaf} apptainer exec --nv i.sif python3 -P -u -m submitit.core._submit" in text


def test_a_cluster_without_gpus_is_asked_for_none(submission):
    text = script(submission, {"gpus": 0, "cpus": 3, "requeue": False})
    assert "gres" not in text
    assert "#SBATCH --cpus-per-task=3\n" in text
    assert "#SBATCH --no-requeue\n" in text
    assert "--mem" not in text


def test_the_call_in_the_script_is_a_function_and_two_strings(submission):
    found = re.search(
        r"echo '([A-Za-z0-9+/=]+)' \| base64 -d", script(submission, {"max_timeouts": 7, "time": 90})
    )
    call = pickle.loads(base64.b64decode(found[1]))
    assert (call.function, call.args) == (run_task, (str(submission.folder), "3"))
    assert (call._timeout_min, call._timeout_countdown) == (90, 7)


def test_an_array_that_was_written_is_read_back_the_same(submission):
    entries = [
        layout.Entry(
            f"cell{n}", f"row seed {n}", n, "run", ("train:4", "evaluate:4:e1"), {"threads": 2}, ("other", 4), "place",
            {"seed": n, "method": {"name": "sit"}, "resample": None}, {"seed": n, "method": {"name": "sit"}}, {"e1": {"samples": 5}},
        )
        for n in range(3)
    ]  # fmt: skip
    made = submission.add_array({"class": "training"}, [entries[:2], (), entries[2:]])
    again = submission.array(made.number)
    assert again.tasks == (tuple(entries[:2]), (), tuple(entries[2:]))
    assert again.indices == [0, 2]
    assert submission.add_array({"class": "helper"}, []).number == made.number + 1


def test_submissions_are_ordered_by_time_within_a_second(tmp_path):
    made = [layout.create(tmp_path, {"benchmark": "b"}).id for _ in range(100)]
    assert [each.id for each in layout.submissions(tmp_path)] == made[::-1]
    assert all(map(layout.named, made))
