"""Verbs with --profile: the same command as a job on a cluster, and what every submission says of itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.output import dump, out, say
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.launch.slurm.commands import Command
    from ltbench.launch.slurm.layout import Submission
    from ltbench.launch.slurm.submit import Flight, Sender
    from ltbench.profiles import Profile
    from ltbench.store import Store

OnCluster = Annotated[
    str | None,
    typer.Option("--profile", "-p", metavar="NAME", help="As a job on this cluster. [on this machine]"),
]


def cluster(name: str, scratch: Path | None = None) -> Profile:
    """The profile of this name; its scratch folder counts unless the command or the environment names one."""
    from ltbench import profiles

    chosen = profiles.load(name)
    if chosen.scratch is not None and scratch is None and not os.environ.get("LTBENCH_SCRATCH"):
        os.environ["LTBENCH_SCRATCH"] = chosen.scratch
    return chosen


def begin(house: Store, profile: Profile, name: str, **own: Any) -> tuple[Submission, dict[str, str]]:
    """A fresh submission with a copy of the code, and the environment of its jobs. name: of the profile, as typed. own: benchmark,
    spec, filters, and whatever else submission.json is to say."""
    from ltbench import profiles
    from ltbench.launch.slurm import layout, snapshot
    from ltbench.store import owner as owners

    _remember(house, profile)
    code = snapshot.take(house.scratch)
    environment = environment_of(house, code)
    info = {
        "profile": name,
        "profile_file": str(profiles.find(name).absolute()),
        "resolved": profile.plain(),
        "snapshot": str(code),
        "store": str(house.root),
        "scratch": str(house.scratch),
        "cwd": str(Path.cwd()),
        "environment": environment,
        "exclude": [],
        "helpers": [],
        "driver": owners.here().json(),
        **own,
    }
    return layout.create(house.scratch, info), environment


def _remember(house: Store, profile: Profile) -> None:
    """A scratch folder that only the profile names: `status` is typed without it."""
    from ltbench.cli import stores

    if profile.scratch is not None and Path(profile.scratch) == house.scratch:
        stores.remember(house)


def environment_of(house: Store, snapshot: Path) -> dict[str, str]:
    """What jobs with the code of `snapshot` need in their environment: places, and caches that ask no network."""
    from ltbench import caches
    from ltbench.launch.slurm.snapshot import environment

    given = {name: os.environ[name] for name in caches.PLACES if name in os.environ}
    kept = {**given, **caches.environment(house.scratch, offline=True)}
    own = environment(snapshot, house.scratch)
    return {**kept, **own, "LTBENCH_STORE": os.pathsep.join(map(str, house.layers))}


# --- one command as a job -------------------------------------------------------------------------------------------------


def submit_command(profile: Profile, name: str, command: Command, *, json: bool = False) -> int:
    """Put `command` into the queue, unless it waits or runs there already, and say how to follow it; 0."""
    from ltbench.cli import stores
    from ltbench.launch.slurm import commands, task
    from ltbench.launch.slurm import submit as slurm

    house = stores.open_store(write=True)
    flight = slurm.in_flight(house)
    if (going := coming(flight).get(command.words)) is not None:
        submission, job = going
        say(f"{command.title} is on its way already")
    else:
        made, environment = begin(house, profile, name, benchmark=command.title, spec="", filters=[])
        sender: Sender = slurm.Sender(made, profile, slug(command.title), task.run_task, environment)
        submission, job = made.id, commands.queue(sender, command)
    if json:
        dump({"submission": submission, "jobs": [job], "command": list(command.words)})
        return 0
    out(f"{command.title}: job {job}, submission {submission}")
    out(f"next: python harness.py logs {submission} -f")
    return 0


def coming(flight: Flight) -> dict[tuple[str, ...], tuple[str, str]]:
    """Commands that wait or run: their words -> (submission, job)."""
    return {command.words: (submission, job) for command, submission, job in flight.commands}


def slug(title: str) -> str:
    """A title as the name of a job."""
    return "-".join(title.split())


def typed(
    drop: Sequence[str] = (), argv: Sequence[str] | None = None, options: Sequence[str] = ()
) -> list[str]:
    """What was typed after the program's name, without --profile, the flags in `drop`, and `options` with their values."""
    words = list(sys.argv[1:] if argv is None else argv)
    found: list[str] = []
    while words:
        word = words.pop(0)
        if word == "--":
            return [*found, word, *words]
        if word in ("--profile", "-p", *options):
            words[:1] = []
        elif not word.startswith(("--profile=", "-p", *(f"{o}=" for o in options))) and word not in drop:
            found.append(word)
    return found


def refuse_local(**given: Any) -> None:
    """Options of a run on this machine make no sense for a job. Raises UsageError."""
    if named := [f"--{name.replace('_', '-')}" for name, value in given.items() if value]:
        raise UsageError(
            f"{', '.join(named)} is for a run on this machine; the profile says what a job gets",
            "leave it away, or change the profile",
        )
