"""Options that several verbs share, spelled once. Flags win over the environment, which wins over the defaults."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

SpecName = Annotated[
    str, typer.Argument(metavar="SPEC", help="A spec: its path, or the name of a file in benchmarks/.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Ask = Annotated[
    bool,
    typer.Option(
        "--ask/--no-ask",
        envvar="LTBENCH_ASK",
        help="Ask a child process what cannot run, where that is not known yet.",
    ),
]
StoreAt = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="Where records are. [LTBENCH_STORE, results/store]"),
]
ScratchAt = Annotated[
    Path | None,
    typer.Option("--scratch", metavar="DIR", help="Where weights are. [LTBENCH_SCRATCH, results/scratch]"),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugins", metavar="PATH", help="A folder or file with further plugins; repeatable."),
]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter", "-f", metavar="KEY=VALUE", help="Only cells like this, e.g. method=ccua; repeatable."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Change the spec, e.g. train.batch=32; repeatable."
    ),
]
WithMethods = Annotated[
    list[str] | None,
    typer.Option("--with", "-w", metavar="METHOD", help="Add a method to the grid; repeatable."),
]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke",
        help="The benchmark made small, as NAME-smoke: stand-in data, narrow networks, a few steps, about a minute on a CPU.",
    ),
]

# What `run`, `evaluate`, `submit` and `sample` are told of how work is done.
Threads = Annotated[int | None, typer.Option(help="Threads per worker. [cores / workers]")]
Device = Annotated[str | None, typer.Option(metavar="cpu|cuda", help="Where. [a GPU if there is one]")]
Split = Annotated[int, typer.Option(metavar="N", min=1, help="Jobs that share the images of one evaluation.")]
KeepSamples = Annotated[
    bool, typer.Option("--keep-samples", help="Keep generated images in the scratch folder.")
]
ReportAfter = Annotated[bool, typer.Option("--report", help="Build the report at the end.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try cells again whose loss was not finite.")
]


def place(store: Path | None = None, scratch: Path | None = None, plugins: list[str] | None = None) -> None:
    """Put the flags where everything looks: the environment of this process, which its children inherit."""
    if store is not None:
        os.environ["LTBENCH_STORE"] = str(store)
    if scratch is not None:
        os.environ["LTBENCH_SCRATCH"] = str(scratch)
    if plugins:
        from ltbench import plugins as registry

        registry.use(plugins)
    from ltbench import caches
    from ltbench.cli.stores import scratch_root

    caches.use_if_there(scratch_root())
