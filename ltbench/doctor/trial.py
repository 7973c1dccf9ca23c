"""One real job: does a compute node see the store, the scratch folder, the code and torch?"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ltbench.doctor.cluster import header
from ltbench.doctor.filesystem import existing
from ltbench.doctor.findings import Finding, call, failure, ok, warning
from ltbench.profiles import Profile

PATIENCE = 600.0  # seconds that the job may wait for its turn
PACKAGE = Path(__file__).resolve().parents[1]
SCRIPT = """
import json, os, socket, sys
found = {"node": socket.gethostname(), "torch": None, "gpus": 0, "paths": {}, "package": os.path.isdir(sys.argv[2])}
for path in sys.argv[3:]:
    place = os.path.join(path, ".ltbench-probe-" + str(os.getpid()))
    try:
        open(place, "w").close(); os.remove(place); found["paths"][path] = None
    except OSError as error:
        found["paths"][path] = error.strerror
try:
    import torch
    found["torch"] = torch.__version__
    found["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
with open(sys.argv[1] + ".part", "w") as file:
    json.dump(found, file)
os.replace(sys.argv[1] + ".part", sys.argv[1])
"""


def probe(profile: Profile, store: Path, scratch: Path, patience: float = PATIENCE) -> Iterator[Finding]:
    """Submit a job of five minutes that looks around, wait for it, and tell. Nothing of it stays."""
    folder = Path(tempfile.mkdtemp(prefix=".ltbench-probe-", dir=existing(scratch)))
    try:
        yield from _tried(profile, folder, [str(existing(place)) for place in (store, scratch)], patience)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tried(profile: Profile, folder: Path, places: list[str], patience: float) -> Iterator[Finding]:
    asked = profile.resources("training")
    (folder / "look.py").write_text(SCRIPT)
    answer = folder / "found.json"
    words = [str(answer), str(PACKAGE), *places]
    python = shlex.join([*shlex.split(profile.container or ""), profile.python or sys.executable])
    lines = [f"module load {name}" for name in profile.modules] + list(profile.setup)
    lines.append(f"{python} {shlex.join([str(folder / 'look.py'), *words])}")
    said = call(
        ["sbatch", "--parsable", "--no-requeue", f"--output={folder}/out", "--time=5"],
        60,
        header(profile, asked) + "\n".join(lines) + "\n",
    )
    if said is None or said.code:
        yield failure(
            "probe",
            f"the probe job was refused: {said.reason if said else 'no answer'}",
            "see what is said of the job classes above",
        )
        return
    job = said.out.strip().partition(";")[0]
    if not _wait(job, answer, patience):
        call(["scancel", job])
        if text := _printed(folder):
            yield failure(
                "probe",
                f"job {job} ended without an answer: {text[-1]}",
                "correct modules, setup, python or container in the profile",
            )
        else:
            yield warning(
                "probe",
                f"job {job} did not answer within {patience:.0f} s and was cancelled",
                "try again when the queue is shorter; a node that does not see scratch looks the same",
            )
        return
    yield from _told(json.loads(answer.read_text()), asked.gpus)
    if text := _printed(folder):  # a line of shell that fails does not end a job
        first = text[0] if len(text) == 1 else f"{text[0]} (first of {len(text)} lines)"
        remedy = "correct modules and setup in the profile if that was an error: jobs go on after it"
        yield warning("probe", f"modules and setup are not silent: {first}", remedy)


def _printed(folder: Path) -> list[str]:
    """What the job said, less what its answer holds."""
    log = folder / "out"
    return log.read_text(errors="replace").strip().splitlines() if log.is_file() else []


def _wait(job: str, answer: Path, patience: float) -> bool:
    """Whether the answer has come; gives up early when SLURM no longer has the job."""
    end, gone = time.monotonic() + patience, 0
    while time.monotonic() < end:
        if answer.exists():
            return True
        said = call(["squeue", "-h", "-j", job, "-o", "%T"])
        gone = gone + 1 if said is not None and (said.code or not said.out.strip()) else 0
        if gone >= 5:  # a shared file system may show the answer a little later
            return answer.exists()
        time.sleep(2.0)
    return answer.exists()


def _told(found: dict[str, object], wanted: int) -> Iterator[Finding]:
    node = found["node"]
    paths = found["paths"]
    assert isinstance(paths, dict), "written by SCRIPT"
    for path, why in paths.items():
        if why:
            yield failure(
                "probe",
                f"{node} cannot write {path}: {why}",
                "choose a folder on a file system that compute nodes share",
            )
        else:
            yield ok("probe", f"{node} can write {path}")
    if not found["package"]:
        yield failure(
            "probe",
            f"{node} does not see {PACKAGE}",
            "put the checkout on a file system that compute nodes share",
        )
    if found["torch"] is None:
        yield failure(
            "probe",
            f"torch cannot be imported on {node}: {found.get('error')}",
            "correct modules, setup or python in the profile",
        )
    elif wanted and not found["gpus"]:
        yield warning(
            "probe",
            f"torch {found['torch']} sees no GPU on {node}, and the job asked for {wanted}",
            "look at the driver there and at the torch that the job uses",
        )
    else:
        yield ok("probe", f"torch {found['torch']} on {node} sees {found['gpus']} GPU")
