"""One array to sbatch: the script's text, made by submitit, and the call. What runs in the job is one plain function with two
strings, pickled into the script itself: a job needs no file that its driver might not have come to write."""

from __future__ import annotations

import base64
import math
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltbench.errors import EnvironmentProblem
from ltbench.launch.signals import WARNING
from ltbench.launch.slurm.layout import Submission
from ltbench.profiles import Profile, Resources

MAX_ARRAY = 1001  # SLURM's default MaxArraySize
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")  # which cluster, not which job
PATIENCE = 300  # seconds for sbatch: a busy controller answers late
# A preemption, or a scancel, in the seconds before Python listens would kill the task: the job then counts as failed, and SLURM starts
# it no more. Ignored, it is followed up by SLURM's SIGKILL, after which SLURM itself requeues what it preempted.
DEAF = f'sh -c \'trap "" {WARNING.name.removeprefix("SIG")} TERM; exec "$@"\' sh'
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Call:
    """What an element runs: function(folder of the submission, number of the array)."""

    function: Callable[[str, str], Any]
    folder: Path
    array: int

    def text(self, minutes: int, timeouts: int) -> str:
        """submitit's pickle of the call in base64."""
        from submitit.core.utils import DelayedSubmission

        delayed = DelayedSubmission(self.function, str(self.folder), str(self.array))
        delayed.set_timeout(minutes, timeouts)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "call.pkl"
            delayed.dump(path)
            return base64.b64encode(path.read_bytes()).decode()


def script(
    call: Call,
    submission: Submission,
    profile: Profile,
    asked: Resources,
    *,
    name: str,
    indices: Sequence[int],
    environment: Mapping[str, str],
    dependency: str | None = None,
    exclude: Sequence[str] = (),
    begin: str | None = None,
) -> str:
    """The text that sbatch reads. environment: variables that the job must have. dependency, begin: as sbatch spells them."""
    from submitit.slurm.slurm import _make_sbatch_string

    log = f"{submission.logs}/{call.array}_%a.out"
    further: dict[str, Any] = {
        "array": array_ranges(indices) + (f"%{asked.at_once}" if asked.at_once else ""),
        "requeue" if profile.requeue else "no-requeue": True,
        "kill-on-invalid-dep": "yes",
        "output": log,
        **({"begin": begin} if begin else {}),
        **{key: value for key, value in (asked.sbatch or {}).items() if value is not False},
    }
    barred = sorted({*asked.exclude_nodes, *exclude})
    gpu = f"gpu:{asked.gpu_type}:{asked.gpus}" if asked.gpu_type else f"gpu:{asked.gpus}"
    return _make_sbatch_string(
        command=f"{DEAF} {_interpreter(profile)} -u -m submitit.core._submit {shlex.quote(str(submission.calls))}",
        folder=submission.calls,
        job_name=_UNSAFE.sub("-", name)[:64],
        partition=asked.partition,
        account=asked.account,
        qos=asked.qos,
        constraint=asked.constraint,
        exclude=",".join(barred) or None,
        time=asked.time,
        nodes=1,
        ntasks_per_node=asked.ranks,
        cpus_per_task=asked.cores // asked.ranks,
        gres=gpu if asked.gpus else None,
        mem=None if asked.memory is None else f"{math.ceil(asked.memory * 1024)}M",
        signal_delay_s=profile.signal_seconds,
        comment=submission.token(call.array),
        dependency=dependency,
        wckey=None,  # pyright: ignore[reportArgumentType]  a site that checks wckeys knows none of submitit's
        stderr_to_stdout=True,
        setup=_setup(call, submission, profile, asked, environment),
        srun_args=["--kill-on-bad-exit=1", "--open-mode=append", f"--output={log}"],
        additional_parameters=further,
    )


def _interpreter(profile: Profile) -> str:
    """-P: a folder `datasets` where the job starts must not hide Hugging Face's."""
    return " ".join(filter(None, (profile.container, profile.python or shlex.quote(sys.executable), "-P")))


def _setup(
    call: Call, submission: Submission, profile: Profile, asked: Resources, environment: Mapping[str, str]
) -> list[str]:
    """Lines before srun: the site's, then ours, then the call where submitit looks for it."""
    pickled = f"{submission.calls}/${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}_submitted.pkl"
    staging = [
        f'export LTBENCH_STAGED="{profile.staging}"',
        'mkdir -p "$LTBENCH_STAGED" && cp -Ru "${LTBENCH_DATA%%:*}/." "$LTBENCH_STAGED/" && export LTBENCH_DATA="$LTBENCH_STAGED:$LTBENCH_DATA"',
    ]
    return [
        *(f"module load {module}" for module in profile.modules),
        *profile.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())),
        # srun of SLURM 22.05 and later does not take sbatch's --cpus-per-task over.
        f"export SRUN_CPUS_PER_TASK={asked.cores // asked.ranks}",
        *(staging if profile.staging and "LTBENCH_DATA" in environment else []),
        # Anew at every start: what a killed start left of it, or somebody else put there, is not run.
        f'call="{pickled}"',
        f'echo \'{call.text(asked.time, profile.max_timeouts)}\' | base64 -d > "$call.$$" && mv -fT "$call.$$" "$call" || exit 1',
    ]


def array_ranges(indices: Sequence[int]) -> str:
    """Rising numbers as sbatch spells them: `0-3,7`."""
    found: list[list[int]] = []
    for index in indices:
        if found and index == found[-1][1] + 1:
            found[-1][1] = index
        else:
            found.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def send(text: str) -> str:
    """Submit a script; the job's number. Raises EnvironmentProblem with sbatch's own words."""
    from submitit.helpers import clean_env

    where = {name: value for name, value in os.environ.items() if name in KEPT}
    try:
        with clean_env():  # inside a job, what SLURM said of that job would count as options
            done = subprocess.run(
                ["sbatch", "--parsable"],
                input=text,
                env={**os.environ, **where},
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
    except FileNotFoundError:
        raise EnvironmentProblem(
            "there is no sbatch here", "submit from a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(f"sbatch did not answer within {PATIENCE} s") from None
    job = done.stdout.strip().partition(";")[0]
    if done.returncode or not job.isdecimal():
        raise EnvironmentProblem(f"sbatch refused the job: {(done.stderr or done.stdout).strip()}")
    return job


def max_array_size(profile: Profile) -> tuple[int, str]:
    """(elements of one array at most, who says so): the profile, else SLURM, else its default."""
    if profile.max_array_size is not None:
        return profile.max_array_size, "the profile"
    try:
        told = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=60
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", told, re.MULTILINE)
    return (int(found[1]), "scontrol") if found else (MAX_ARRAY, "SLURM's default: scontrol does not answer")
