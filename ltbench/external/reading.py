"""Somebody else's weights file as plain data: tensors, numbers, text. Nothing in the file is ever run.

`.safetensors` holds no code. `.pt` and `.pth` are pickles, and are read by torch's restricted unpickler (weights_only), which
builds tensors and containers and refuses everything else. One thing more is let through, because willisma/SiT:train.py and
sihyun-yu/REPA:train.py put their command line into the file: an `argparse.Namespace`, which becomes an `Arguments`, a bare holder
of values that is not argparse's class and runs nothing.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from ltbench.errors import LtbenchError

SUFFIXES = (".pt", ".pth", ".safetensors")
_CHUNK = 1 << 20
_REFUSED = re.compile(r"GLOBAL ([\w.]+)")


class WeightsRefused(LtbenchError):
    """A weights file that is missing, damaged, not the one that was named, or that would have to be executed to be read."""


class Arguments:
    """What stands in for an `argparse.Namespace`: its attributes, and nothing else."""


@dataclass(frozen=True)
class Contents:
    """A file's top level. sha256: of the file, 64 hex digits. value: tensors, dicts, lists, numbers, text and `Arguments`."""

    path: Path
    sha256: str
    value: dict[str, Any]


def read_contents(path: Path, sha256: str | None = None) -> Contents:
    """Read a weights file without executing it.

    With `sha256` (64 hex digits) any other file is refused before it is parsed; without it an archive's checksums are verified,
    which torch does not do. Raises WeightsRefused.
    """
    if path.suffix not in SUFFIXES:
        raise WeightsRefused(f"{path} is no weights file", f"expected {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise WeightsRefused(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            found = _sha256(file)
            if sha256 is not None and found != sha256.lower():
                raise WeightsRefused(
                    f"{path} has sha256 {found}, not {sha256}", "It is another file, or damaged."
                )
            if sha256 is None:
                _check_archive(file, path)
            return Contents(path, found, _parse(file, path))
    except OSError as error:
        raise WeightsRefused(f"{path} cannot be read: {error.strerror or error}") from error


def _sha256(file: IO[bytes]) -> str:
    hasher = hashlib.sha256()
    while data := file.read(_CHUNK):
        hasher.update(data)
    file.seek(0)
    return hasher.hexdigest()


def _check_archive(file: IO[bytes], path: Path) -> None:
    """Raise for a zip archive with a member whose bytes do not match its checksum."""
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            if bad := archive.testzip():
                raise WeightsRefused(f"{path} is damaged: {bad} does not match its checksum")
    file.seek(0)


def _parse(file: IO[bytes], path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load(file.read()))
        except Exception as error:  # its own error class, or whatever a damaged header leads to
            raise WeightsRefused(f"{path} cannot be read: {error}") from error
    with torch.serialization.safe_globals([(Arguments, "argparse.Namespace")]):
        _refuse_globals(file, path)
        try:
            value = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if named := _REFUSED.search(str(error)):
                raise _needs_code(path, [named[1]]) from error
            words = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0]
            raise WeightsRefused(f"{path} cannot be read as data: {words}") from error
        except Exception as error:  # a damaged or hostile file may raise anything
            raise WeightsRefused(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise WeightsRefused(f"{path} holds {type(value).__name__}, not a mapping of names to tensors")
    return {str(key): item for key, item in value.items()}


def _refuse_globals(file: IO[bytes], path: Path) -> None:
    """Name every global that the file asks for and that is not data: torch itself names only the first."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return  # the format from before torch 1.6 cannot be looked through without loading it
    file.seek(0)
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception as error:
        raise WeightsRefused(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if wanted:
        raise _needs_code(path, sorted(wanted))
    file.seek(0)


def _needs_code(path: Path, names: list[str]) -> WeightsRefused:
    return WeightsRefused(
        f"{path} would have to run code to be read: it asks for {', '.join(names)}",
        "Have its author save the state dict alone: torch.save(model.state_dict(), FILE), or safetensors.",
    )


def plain(value: Any) -> Any:
    """Numbers, text, lists and mappings of these, `Arguments` as a mapping; everything else (tensors too) as None."""
    if isinstance(value, Arguments):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else None


def tensors(value: Any) -> dict[str, Tensor] | None:
    """`value` as a state dict: names to tensors, all of them; None for anything else."""
    if (
        not isinstance(value, dict)
        or not value
        or not all(isinstance(item, Tensor) for item in value.values())
    ):
        return None
    found = {str(key): item for key, item in value.items()}
    for prefix in ("module.", "_orig_mod."):  # left by DistributedDataParallel and torch.compile
        if all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): item for key, item in found.items()}
    return found
