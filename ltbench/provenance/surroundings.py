"""What surrounded the making of a result: the commit, the versions of the tools, and a few variables of the environment."""

from __future__ import annotations

import functools
import os
import platform
import re
from typing import Any

from ltbench import plugins

ENVIRONMENT = (
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
    "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_PARTITION",
)  # fmt: skip
PACKAGES = ("ltbench", "torch", "numpy", "safetensors", "torchdiffeq")


def environment() -> dict[str, Any]:
    """{"commit", "dirty", "remote", "versions", "environment"}: circumstances for a record's envelope."""
    return {
        **git_state(),
        "versions": versions(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on, without importing them."""
    from importlib import metadata  # takes as long to import as all of a look's own modules

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_state() -> dict[str, Any]:
    """{"commit": 40 hex or None, "dirty": changed tracked files, or None outside git, "remote": without credentials}.

    Of a snapshot: as it was where and when that was made.
    """
    if (taken := plugins.snapshot()) is not None:
        return taken["git"]
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--untracked-files=no")
    remote = _git("remote", "get-url", "origin")
    return {
        "commit": commit or None,
        "dirty": None if status is None or not commit else bool(status),
        "remote": clean_remote(remote) if remote else None,
    }


def _git(*words: str) -> str | None:
    import subprocess  # no look asks for the commit

    try:
        done = subprocess.run(
            ["git", "-C", str(plugins.PACKAGE.parent), *words],
            capture_output=True,
            text=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def clean_remote(url: str) -> str:
    """A remote's address without user, password, query and fragment."""
    url = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, separator, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


CACHED = (git_state,)
