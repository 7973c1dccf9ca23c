"""`doctor`: what this machine, or a cluster, can do, and what will go wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltbench.cli.options import AsJson, Plugins, ScratchAt, StoreAt, place
from ltbench.cli.output import console, dump, out, plural, say
from ltbench.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from ltbench.doctor.findings import Finding
    from ltbench.profiles import Profile

STYLES = {"ok": "green", "warning": "yellow", "will fail": "bold red"}


def doctor(
    profile: Annotated[
        str | None,
        typer.Option("--profile", "-p", metavar="NAME", help="Also look at the cluster of this profile."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Send a real job of 5 minutes: does a node see the store, and a GPU?"),
    ] = False,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """What this machine, or a cluster, can do, and what will go wrong there, each with its remedy.

    It leaves no file behind and submits nothing unless --probe is given. Exit code 4 when something will fail.

    \b
    Example:
      python harness.py doctor
      python harness.py doctor --profile mycluster
      python harness.py doctor --profile mycluster --probe --json
    """
    place(store, scratch, plugins)
    if probe and profile is None:
        raise UsageError("--probe sends a job: it needs --profile NAME")
    cluster = _profile(profile)
    found: list[Finding] = []
    for finding in _examine(cluster, probe):
        found.append(finding)
        if not json:
            _tell(finding)
    bad = sum(finding.level == "will fail" for finding in found)
    warned = sum(finding.level == "warning" for finding in found)
    if json:
        counts = {"will fail": bad, "warning": warned, "ok": len(found) - bad - warned}
        dump({"counts": counts, "findings": [finding.json() for finding in found]})
    else:
        out(
            f"{plural(bad, 'thing')} will fail, {plural(warned, 'warning')}"
            if bad or warned
            else "nothing will fail"
        )
        if cluster is not None and not probe:
            say(
                "no node was asked: --probe sends a job that tries python, modules, setup and container there"
            )
    raise typer.Exit(EnvironmentProblem.exit_code if bad else 0)


def _profile(name: str | None) -> Profile | None:
    """The profile; its scratch folder is the one that is looked at, unless a flag or the environment names another."""
    if name is None:
        return None
    from ltbench import profiles

    found = profiles.load(name)
    if found.scratch and not os.environ.get("LTBENCH_SCRATCH"):
        place(scratch=Path(found.scratch))
    return found


def _examine(profile: Profile | None, probe: bool) -> Iterator[Finding]:
    from ltbench.cli.stores import scratch_root, store_root
    from ltbench.doctor import cluster, filesystem, machine, trial

    places = {"store": store_root(), "scratch": scratch_root()}
    if data := os.environ.get("LTBENCH_DATA"):
        places["data"] = Path(data)
    yield from machine.python()
    yield from machine.torch()
    yield from machine.threads()
    for topic, folder in places.items():
        yield from filesystem.room(topic, folder)
        yield from filesystem.quota(topic, folder)
        if topic != "data":
            yield from filesystem.promises(topic, folder)
    yield from machine.home(places["scratch"])
    yield from machine.weights()
    yield from machine.plugins(_plugin_problems())
    yield from machine.terminal()
    if profile is not None:
        yield from cluster.examine(profile)
        if probe:
            say("waiting for the probe job; Ctrl-C gives up")
            yield from trial.probe(profile, places["store"], places["scratch"])


def _plugin_problems() -> dict[str, dict[str, str | None]]:
    from ltbench import plugins
    from ltbench.cli.probe import probe

    return {kind: probe(kind, list(plugins.find(kind))) for kind in ("methods", "datasets")}


def _tell(finding: Finding) -> None:
    from rich.text import Text

    line = Text(f"{finding.level:<9}  ", style=STYLES[finding.level])
    line.append(f"{finding.topic:<11}{finding.message}", style="default")
    console().print(line, soft_wrap=True)
    if finding.remedy:
        out(f"{'':<22}-> {finding.remedy}")
