"""`evaluate`: more measures of what is trained here, and numbers for images and weights that others made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.jobs import OnCluster
from ltbench.cli.options import (
    AsJson,
    Changes,
    Device,
    Filters,
    KeepSamples,
    Plugins,
    ReportAfter,
    ScratchAt,
    SpecName,
    Split,
    StoreAt,
    Threads,
    WithMethods,
    place,
)
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.profiles import Profile
    from ltbench.spec.resolved import Spec

Measures = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEYS", help="Each evaluation once more with these keys: 'metrics: [vendi]'; repeatable."
    ),
]
Workers = Annotated[int | None, typer.Option(help="Worker processes. [as in run]")]
External = Annotated[
    str | None, typer.Option(metavar="NAME", help="Whose images or weights these are: the row's name.")
]
SamplesAt = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz|FOLDER", help="Images: arr_0 and arr_1, or a folder of PNG."),
]
CheckpointAt = Annotated[
    Path | None,
    typer.Option(metavar="FILE.pt", help="Weights (SiT, REPA, CBDM, CCUA, ours), sampled here."),
]
Network = Annotated[str | None, typer.Option(help="The network of --checkpoint, e.g. SiT-S/2.")]
Weights = Annotated[str, typer.Option(metavar="ema|model", help="Which weights of --checkpoint.")]
Family = Annotated[str | None, typer.Option(help="Read --checkpoint as this family. [told from its names]")]
Declared = Annotated[
    list[str] | None,
    typer.Option("--declare", metavar="KEY=VALUE", help="What its authors say: sampler=dopri5; repeatable."),
]
ReferenceAt = Annotated[
    Path | None,
    typer.Option(metavar="STATS.npz", help="ADM statistics in the place of the reference images."),
]
Protocol = Annotated[str | None, typer.Option(help="Only this protocol. [all of the spec]")]
First = Annotated[int | None, typer.Option("--n", min=2, help="Only the first N of --samples. [all]")]


def evaluate(
    spec: SpecName,
    add: Measures = None,
    filter_: Filters = None,
    with_: WithMethods = None,
    workers: Workers = None,
    threads: Threads = None,
    split: Split = 1,
    keep_samples: KeepSamples = False,
    report: ReportAfter = False,
    external: External = None,
    samples: SamplesAt = None,
    checkpoint: CheckpointAt = None,
    network: Network = None,
    weights: Weights = "ema",
    family: Family = None,
    declare: Declared = None,
    reference: ReferenceAt = None,
    protocol: Protocol = None,
    n: First = None,
    device: Device = None,
    profile: OnCluster = None,
    set_: Changes = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Measure milestones that are there, in whatever way SPEC, --set and --add ask for; nothing is trained.

    Kept features serve new metrics and groups, kept images new extractors; else images are made again from their seeds. The
    changed spec is kept under its own name, which `report` takes. With --profile each milestone is measured by a job of its own.

    With --external it measures what was not trained here, as a benchmark measures its own: same protocols, extractor, real
    images. Reports show it as an external row with what was declared; it is never ranked. Weights are read as data: no
    code of the file runs.

    \b
    Example:
      python harness.py evaluate quickstart --add 'metrics: [vendi, CT]' --report
      python harness.py evaluate quickstart --add 'groups: shots'
      python harness.py evaluate table1 --add 'metrics: [KID]' --profile mine
      python harness.py evaluate table1 --external ADM --samples adm.npz
      python harness.py evaluate table1 --external SiT --checkpoint sit.pt \\
          --network SiT-S/2 --declare images=256000000
    """
    from ltbench.cli import foreign, jobs, running, targets

    cluster = None
    if profile is not None:
        jobs.refuse_local(workers=workers, threads=threads, split=split > 1, report=report)
        cluster = OfCluster(profile, jobs.cluster(profile, scratch))
    place(store, scratch, plugins)
    filters = tuple(filter_ or ())
    if external is None:
        _refuse_foreign(samples=samples, checkpoint=checkpoint, network=network, declare=declare, n=n, reference=reference)  # fmt: skip
        benchmark = targets.load(spec, set_ or [], with_ or [], add or [])
        if cluster is not None:
            jobs.refuse_local(device=device)
            raise typer.Exit(_submit(benchmark, cluster, spec, filters, keep_samples, json))
        pool = running.Pool(workers, threads, device, 1, None, split, keep_samples)
        asked = running.Asked("evaluate", spec, filters, report=report, json=json)
        raise typer.Exit(running.carry_out(benchmark, pool, asked))
    foreign.check(external, samples, checkpoint, network, reference, n)
    theirs = foreign.Theirs(external, samples, checkpoint, network, weights, family, reference, n)
    benchmark = targets.load(spec, set_ or [])
    declared = foreign.declarations(declare or [])
    if cluster is not None:
        _refuse_absent(samples, checkpoint, reference)
        raise typer.Exit(_as_job(cluster, external, device, json))
    raise typer.Exit(foreign.measure(benchmark, theirs, declared, protocol, device, json))


@dataclass(frozen=True)
class OfCluster:
    """A cluster by the name that was typed."""

    name: str
    profile: Profile


def _submit(
    benchmark: Spec,
    cluster: OfCluster,
    spec: str,
    filters: tuple[str, ...],
    keep_samples: bool,
    json: bool,
) -> int:
    """Jobs that measure what is trained; the exit code."""
    from ltbench.cli import submitting

    options = (("keep_samples", True),) if keep_samples else ()
    asked = submitting.Asked(spec, cluster.name, filters, json=json, verb="evaluate", options=options)
    return submitting.carry_out(benchmark, cluster.profile, asked)


def _as_job(cluster: OfCluster, external: str, device: str | None, json: bool) -> int:
    """The same command in SLURM's queue, on what an evaluation gets."""
    from ltbench.cli import jobs
    from ltbench.launch.slurm.commands import Command

    words = jobs.typed(drop=("--json",))
    if device is None and not cluster.profile.resources("evaluation").gpus:
        words += ["--device", "cpu"]
    command = Command(tuple(words), f"evaluate {external}", "evaluation")
    return jobs.submit_command(cluster.profile, cluster.name, command, json=json)


def _refuse_absent(*given: Path | None) -> None:
    """Files that a job would look for in vain, after it has waited for its turn."""
    if absent := [str(path) for path in given if path is not None and not path.exists()]:
        raise UsageError(
            f"there is no {' and no '.join(absent)}", "a path is taken from here, also in the job"
        )


def _refuse_foreign(**given: Any) -> None:
    """Options that say something of others' work make no sense without it."""
    if named := [f"--{name}" for name, value in given.items() if value]:
        raise UsageError(
            f"{', '.join(named)} belongs to what others made",
            "name the row with --external NAME, or leave it out to measure your own milestones",
        )
