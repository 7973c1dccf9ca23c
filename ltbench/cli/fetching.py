"""`fetch`: every weight and archive that a benchmark needs, brought while there is a network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ltbench.cli.options import (
    AsJson,
    Changes,
    Filters,
    Plugins,
    ScratchAt,
    SpecName,
    WithMethods,
    place,
)
from ltbench.cli.output import clip, dump, out, plural, say, table
from ltbench.errors import EnvironmentProblem, LtbenchError

if TYPE_CHECKING:
    from ltbench.download import Fetched
    from ltbench.needs import Hub, Need


def fetch(
    spec: SpecName,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be downloaded.")] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", "-p", metavar="NAME", help="Into the scratch folder that this profile names."
        ),
    ] = None,
    json: AsJson = False,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Bring every weight and archive that a benchmark needs to where its jobs look for it.

    Downloads are resumed by the same command and checked before they get their name. Weights go into the first folder of
    LTBENCH_WEIGHTS or into caches under the scratch root (HF_HOME and TORCH_HOME win), data into LTBENCH_DATA. Where a profile
    names its own scratch folder, --profile brings things there. What needs a registration is named and left to you. Exit code 4
    while something is missing.

    \b
    Example:
      python harness.py fetch table1 --dry-run
      python harness.py fetch table1
      python harness.py fetch table1 --profile mine
    """
    from ltbench import caches
    from ltbench.cli import jobs, stores, targets
    from ltbench.needs import needs

    if profile is not None:
        jobs.cluster(profile, scratch)
    place(None, scratch, plugins)
    benchmark = targets.load(spec, set_ or [], with_ or [])
    cells = targets.cells_of(benchmark, filter_ or [])
    root = stores.scratch_root()
    if dry_run:
        os.environ.update(caches.environment(root))
    else:
        caches.use(root)
    wanted = needs(cells)
    failed = [] if dry_run else _bring([need for need in wanted if need.problem and need.fetchable])
    wanted = wanted if dry_run else needs(cells)
    missing = [need for need in wanted if need.problem]
    if json:
        dump([need.json() for need in wanted])
    else:
        _show(wanted, benchmark.name)
    for line in failed:
        say(f"error: {line}")
    raise typer.Exit(EnvironmentProblem.exit_code if missing and not dry_run else 0)


def _bring(wanted: Sequence[Need]) -> list[str]:
    """Download them one after another; why some could not be."""
    from ltbench.download import Asset, Bar, fetch

    failed = []
    for need in wanted:
        say(f"fetching {need.what}")
        try:
            if isinstance(need.source, Asset):
                _check(need, fetch(need.source, Bar(need.what)))
            elif need.source is not None:
                from_hub(need.source)
        except LtbenchError as error:
            failed.append(f"{error.message}" + (f"\n  {error.hint}" if error.hint else ""))
    return failed


def _check(need: Need, got: Fetched) -> None:
    """Of some files only the first digits of the hash are known. Raises EnvironmentProblem; what was just downloaded goes."""
    if need.kind != "weights" or got.sha256.startswith(need.sha256):
        return
    if got.downloaded:
        got.path.unlink(missing_ok=True)
    raise EnvironmentProblem(
        f"{got.path}: sha256 is {got.sha256[:12]}..., that of {need.what} begins {need.sha256}: another file",
        f"get the right one elsewhere and put it at {got.path}",
    )


def from_hub(hub: Hub) -> list[Path]:
    """Download files of a repository into Hugging Face's cache, whose library resumes and checks them and shows a bar.

    Raises EnvironmentProblem with its reason.
    """
    try:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise EnvironmentProblem(
            f"{hub.repository} is fetched by a package that is not installed", "pip install huggingface_hub"
        ) from None
    cache = Path(os.environ["HF_HUB_CACHE"]) if "HF_HUB_CACHE" in os.environ else None
    # the library read its variables when it was imported; where this command puts caches must count all the same
    cache = cache or Path(os.environ["HF_HOME"]).expanduser() / "hub"
    try:
        return [Path(hf_hub_download(hub.repository, file, cache_dir=str(cache))) for file in hub.files]
    except Exception as error:  # a hub, a network and a disk fail in ways of their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EnvironmentProblem(
            f"{hub.repository} cannot be downloaded: {clip(first, 200)}",
            "run the same command where there is a network; it goes on where it stopped",
        ) from None


def _show(wanted: Sequence[Need], name: str) -> None:
    if not wanted:
        out(f"{name} needs nothing from elsewhere")
        return
    from ltbench.cli.costing import bytes_text

    table(
        ("what", "size", "licence", "checksum", "state", "place"),
        (
            (
                need.what,
                "?" if need.bytes is None else bytes_text(need.bytes),
                clip(need.licence, 40) or "?",
                need.sha256[:12] or "not known",
                _state(need),
                need.place or "",
            )
            for need in wanted
        ),
        right=("size",),
    )
    missing = [need for need in wanted if need.problem]
    size = sum(need.bytes or 0 for need in missing if need.fetchable)
    if missing:
        out(f"{plural(len(missing), 'thing')} missing; at least {bytes_text(size)} to download")
    by_hand = [need for need in missing if not need.fetchable]
    for need in by_hand:
        out(f"by hand: {need.what}: {_how(need)}")


def _state(need: Need) -> str:
    return "here" if need.problem is None else "missing" if need.fetchable else "missing, by hand"


def _how(need: Need) -> str:
    from ltbench.download import Asset

    if isinstance(need.source, Asset) and need.source.ask:
        return f"register at {need.source.ask}, then put it at {need.place}"
    return need.problem or ""
