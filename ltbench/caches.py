"""Where libraries keep what they download and compile: under the scratch root, not in $HOME, for jobs and for `fetch` alike.

    SCRATCH/caches/huggingface, torch         downloaded weights
    SCRATCH/caches/triton, inductor, cuda, matplotlib     what is compiled or drawn once

A variable that the user has set stays as it is: HF_HOME names their cache, and what lies there is found there. What lies in the
default places below ~/.cache stays there and is linked into ours, so that nothing is downloaded twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

FOLDER = "caches"
# variable -> folder under SCRATCH/caches; the first two hold downloads
PLACES = {
    "HF_HOME": "huggingface",
    "TORCH_HOME": "torch",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
MARK = "LTBENCH_CACHES"  # says which of the variables are ours: a child with another scratch root moves them along


def root() -> Path | None:
    """Where our own commands keep what makes them faster: LTBENCH_CACHE, else below ~/.cache; None (empty) where nothing is kept."""
    named = os.environ.get("LTBENCH_CACHE")
    if named is not None:
        return Path(named) if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ltbench"


def environment(
    scratch: Path, *, offline: bool = False, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables of a process that keeps its caches under `scratch`; those that the user has set are left out.

    offline: for nodes without a network; the Hugging Face libraries then look into their cache and nowhere else.
    """
    known = os.environ if given is None else given
    ours = known.get(MARK, "").split(",")
    root = scratch.absolute() / FOLDER
    found = {name: str(root / folder) for name, folder in PLACES.items() if name not in known or name in ours}
    return {**found, MARK: ",".join(sorted(found)), **(OFFLINE if offline else {})}


def use(scratch: Path, *, offline: bool = False) -> None:
    """Let this process and its children keep their caches under `scratch`, with what is in the default places linked in."""
    adopt(scratch)
    os.environ.update(environment(scratch, offline=offline))


def use_if_there(scratch: Path) -> None:
    """For commands that only look: as `use` where there are such caches, so that what `fetch` brought is found; else nothing."""
    if (scratch / FOLDER).is_dir():
        use(scratch)


def adopt(scratch: Path) -> list[Path]:
    """Link downloads from the default places below ~/.cache into the caches under `scratch`; the new links.

    Nothing is moved or copied, and what is in ours already stays. A user who has set HF_HOME or TORCH_HOME is left alone.
    """
    places = environment(scratch)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    made: list[Path] = []
    if "HF_HOME" in places and "HF_HUB_CACHE" not in os.environ:
        own = Path(places["HF_HOME"]) / "hub"
        made += _link_all((cache / "huggingface" / "hub").glob("models--*"), own)
    if "TORCH_HOME" in places:
        own = Path(places["TORCH_HOME"]) / "hub" / "checkpoints"
        made += _link_all((cache / "torch" / "hub" / "checkpoints").glob("*.pth"), own)
    return made


def _link_all(there: Iterable[Path], own: Path) -> list[Path]:
    made = []
    for path in sorted(there):
        link = own / path.name
        if os.path.lexists(link):
            continue
        own.mkdir(parents=True, exist_ok=True)
        try:
            link.symlink_to(path.absolute())
        except FileExistsError:  # another process was quicker
            continue
        made.append(link)
    return made
