"""Checkpoints and milestones: directories of safetensors and JSON whose every byte is vouched for by a sealed manifest.

Neither torch nor safetensors notices a flipped bit (400 of 400 load silently), so nothing is loaded whose sha256 was not
compared first, and the bytes that were compared are the bytes that are loaded. No pickle.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ltbench import files
from ltbench.canonical import canonical_json
from ltbench.errors import LtbenchError
from ltbench.store import sealed

TensorGroups = dict[str, dict[str, Tensor]]

MANIFEST = "MANIFEST.json"

_NAME = re.compile(r"step-(?P<step>[0-9]{9,})\.a(?P<attempt>[0-9]+)")
_QUARANTINED = re.compile(r"damaged-step-(?P<step>[0-9]{9,})\.a[0-9]+(-[0-9]+)?")
_GROUP = re.compile(r"[a-z][a-z0-9_]*")
_FILE = re.compile(r"[a-z][a-z0-9_]*\.safetensors|state\.json")


@dataclass(frozen=True)
class Quarantined:
    """A damaged checkpoint, where it lies now, and what is wrong with it."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Loaded:
    """A verified checkpoint. `tensors` = {group: {name: CPU tensor}}; `quarantined` lists newer ones that were damaged."""

    path: Path
    step: int
    attempt: int
    tensors: TensorGroups
    state: dict[str, Any]
    quarantined: tuple[Quarantined, ...] = ()


class CheckpointDamaged(LtbenchError):
    """What a run stands on cannot be trusted; `quarantined` lists it. Never answered by starting again from step 0 unasked."""

    def __init__(self, message: str, quarantined: Sequence[Quarantined], hint: str) -> None:
        self.quarantined = tuple(quarantined)
        super().__init__(message + "".join(f"\n  {each}" for each in quarantined), hint)


class CheckpointRefused(LtbenchError):
    """A sound checkpoint that is not for this run, or of a newer format."""


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    cell: str,
    run: str,
    attempt: int,
) -> Path:
    """Write `folder/step-<step>.a<attempt>/` with a safetensors file per group of `tensors` and state.json; return it.

    Written beside, fsynced, renamed, read back and compared. Tensors of any dtype, shape (also 0-d) and device; groups may be
    empty; `state` is JSON. Older checkpoints stay until `prune_checkpoints`. Raises ValueError for a state that JSON cannot
    hold, files.StorageProblem (partial files removed), CheckpointDamaged when the disk gives back other bytes.
    """
    content = {
        f"{group}.safetensors": _tensor_bytes(group, named) for group, named in sorted(tensors.items())
    }
    content["state.json"] = sealed.seal({"state": dict(state)})
    about = {"cell": cell, "run": run, "step": step, "attempt": attempt}
    final = folder / f"step-{step:09d}.a{attempt}"
    _publish(final, content, about)
    return final


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint or milestone all of whose bytes are as written. Raises files.Unreadable with the reason
    (sealed.NewerFormat for one of a later ltbench), FileNotFoundError when there is no such directory."""
    manifest = _read_manifest(path)
    for name, told in manifest["files"].items():
        _check(path / name, told, *_hash(path / name))
    return manifest


def newest_checkpoint(folder: Path, *, cell: str, run: str, at_most: int | None = None) -> Loaded | None:
    """The newest checkpoint that can be trusted, of step `at_most` or less; None where none was ever finished.

    Damaged ones are renamed to `damaged-...` and named in `.quarantined`. Raises CheckpointDamaged when up to that step there
    are only such, now or from before, and CheckpointRefused for a checkpoint of another cell or run or of a newer format.
    """
    quarantined: list[Quarantined] = []
    for path in _newest_first(folder, at_most):
        try:
            manifest = _read_manifest(path)
            _refuse_foreign(path, manifest, cell=cell, run=run)
            tensors, state = _load(path, manifest)
        except sealed.NewerFormat as problem:
            raise CheckpointRefused(f"checkpoint {path} {problem.reason}") from problem
        except (files.Unreadable, FileNotFoundError) as problem:
            quarantined.append(_quarantine(path, _what(problem)))
        else:
            return Loaded(path, manifest["step"], manifest["attempt"], tensors, state, tuple(quarantined))
    known = {each.path for each in quarantined}
    before = [path for path in _up_to(at_most, _quarantined(folder)) if path not in known]
    quarantined += [Quarantined(path, "found damaged before") for path in before]
    if quarantined:
        hint = f"Restore one from a backup, or remove {folder} to train this run again from step 0."
        raise CheckpointDamaged(f"every checkpoint in {folder} is damaged:", quarantined, hint)
    return None


def prune_checkpoints(folder: Path, keep: int = 2, *, at_most: int | None = None) -> list[Path]:
    """Remove all but the newest `keep` sound checkpoints, and damaged ones older than these; return what was removed.

    With `at_most` those of later steps neither count nor go: a run that makes a lost milestone again starts from before them,
    and must not lose what it has just saved to them.
    Sound means a sealed manifest and files of the sizes it tells. Raises ValueError for keep < 2: the newest may turn out to
    be damaged.
    """
    if keep < 2:
        raise ValueError(f"keep is {keep}: at least 2, for the newest checkpoint may turn out to be damaged")
    sound = [path for path in _newest_first(folder, at_most) if _looks_sound(path)]
    if len(sound) <= keep:
        return []
    oldest_kept = _step(sound[keep - 1])
    doomed = sound[keep:] + [path for path in _quarantined(folder) if _step(path) < oldest_kept]
    for path in doomed:
        files.remove_tree(path)
    return doomed


def save_milestone(folder: Path, step: int, ema: Mapping[str, Tensor], info: Mapping[str, Any]) -> str:
    """Keep EMA weights as `folder/step-<step>/` with `info` (JSON), and return `weights_sha256(ema)`.

    The same weights again are nothing; other weights (of a later attempt on another kind of machine) take the place of the
    old. Raises as `save_checkpoint`.
    """
    weights = weights_sha256(ema)
    content = {"ema.safetensors": _tensor_bytes("ema", ema), "state.json": sealed.seal({"state": dict(info)})}
    _publish(folder / f"step-{step:09d}", content, {"step": step, "weights": weights})
    return weights


def load_milestone(folder: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(EMA weights on the CPU, info with "sha256") of a step, verified. Raises LtbenchError when it is missing, CheckpointDamaged, or
    CheckpointRefused for a newer format."""
    path = folder / f"step-{step:09d}"
    if files.surely_missing(path):
        kept = ", ".join(each.name for each in sorted(folder.glob("step-*"))) or "none"
        raise LtbenchError(
            f"{path} does not exist (kept: {kept})", "Train the cell up to this step to make it."
        )
    try:
        manifest = _read_manifest(path)
        tensors, info = _load(path, manifest)
        if weights_sha256(tensors["ema"]) != manifest["weights"]:
            raise files.Unreadable(
                path / "ema.safetensors", "does not hold the weights that the manifest names"
            )
    except sealed.NewerFormat as problem:
        raise CheckpointRefused(f"milestone {path} {problem.reason}") from problem
    except (files.Unreadable, FileNotFoundError) as problem:
        hint = f"Restore it from a backup, or remove {folder.parent} to train this run again from step 0."
        raise CheckpointDamaged(
            "a milestone is damaged:", [Quarantined(path, _what(problem))], hint
        ) from problem
    return tensors["ema"], info | {"sha256": manifest["weights"]}


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over name, dtype, shape and little-endian bytes of each tensor, in the order of names; 64 hex digits."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(canonical_json([name, str(tensor.dtype), list(tensor.shape), tensor.nbytes]))
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


# --- inside ------------------------------------------------------------------------------------------------------------


def _publish(final: Path, content: dict[str, bytes], about: dict[str, Any]) -> None:
    told = {name: {"sha256": files.sha256_bytes(data), "bytes": len(data)} for name, data in content.items()}
    manifest = {"format": sealed.FORMAT, "files": told} | about
    if _holds(final, manifest):
        return
    files.make_directory(final.parent)
    files.sweep(final.parent, sole_owner=True)
    temporary = files.temporary_beside(final)
    try:
        files.make_directory(temporary)
        for name, data in content.items():
            files.replace(temporary / name, data)
        files.replace(temporary / MANIFEST, sealed.seal(manifest))
        _give_way(final)
        files.publish_directory(temporary, final)
    except BaseException:
        files.discard(temporary)
        raise
    try:
        verify_checkpoint(final)
    except files.Unreadable as problem:
        hint = (
            "The disk or its file server does not keep what it is given: move LTBENCH_SCRATCH to another one."
        )
        found = [_quarantine(final, _what(problem))]
        raise CheckpointDamaged("what was just written reads back differently:", found, hint) from problem


def _holds(path: Path, manifest: dict[str, Any]) -> bool:
    """Whether exactly this was saved before, by a process that died before it could go on."""
    try:
        return verify_checkpoint(path) == manifest
    except (files.Unreadable, FileNotFoundError):
        return False


def _give_way(final: Path) -> None:
    """Clear the final name of what an earlier life left there: other bytes, or damaged ones."""
    if final.exists():
        files.remove_tree(final)


def _tensor_bytes(group: str, tensors: Mapping[str, Tensor]) -> bytes:
    if not _GROUP.fullmatch(group):
        raise ValueError(f"tensor group {group!r} is not lower-case letters, digits and '_'")
    seen: set[int] = set()
    flat: dict[str, Tensor] = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        flat[name] = (
            tensor.clone() if pointer in seen else tensor
        )  # safetensors refuses tensors that share memory
        seen.add(pointer)
    return safetensors.torch.save(flat)


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        manifest = sealed.read_sealed(path / MANIFEST)
    except FileNotFoundError:
        raise files.Unreadable(path / MANIFEST, "is missing") from None
    told = manifest.get("files")
    if (
        not isinstance(told, dict)
        or not all(_FILE.fullmatch(name) for name in told)
        or "state.json" not in told
    ):
        raise files.Unreadable(path / MANIFEST, "lists no files of a checkpoint")
    match = _NAME.fullmatch(path.name)
    if match and (int(match["step"]), int(match["attempt"])) != (
        manifest.get("step"),
        manifest.get("attempt"),
    ):
        raise files.Unreadable(
            path / MANIFEST, f"is of step {manifest.get('step')}.a{manifest.get('attempt')}"
        )
    return manifest


def _load(path: Path, manifest: dict[str, Any]) -> tuple[TensorGroups, dict[str, Any]]:
    tensors: TensorGroups = {}
    state: dict[str, Any] = {}
    for name, told in manifest["files"].items():
        data = _read(path / name, told["bytes"])
        _check(path / name, told, files.sha256_bytes(data), len(data))
        if name == "state.json":
            state = sealed.unseal(data)["state"]
            continue
        try:
            tensors[name.removesuffix(".safetensors")] = safetensors.torch.load(data)
        except SafetensorError as error:  # sound bytes that this safetensors cannot read
            raise files.Unreadable(path / name, f"safetensors cannot read it: {error}") from error
    return tensors, state


def _read(path: Path, size: int) -> bytes:
    try:
        return files.read_regular(path, max(size, files.READ_LIMIT))
    except FileNotFoundError:
        raise files.Unreadable(path, "is missing") from None


def _hash(path: Path) -> tuple[str, int]:
    try:
        return files.sha256_file(path)
    except FileNotFoundError:
        raise files.Unreadable(path, "is missing") from None


def _check(path: Path, told: dict[str, Any], sha256: str, size: int) -> None:
    if size != told["bytes"]:
        raise files.Unreadable(path, f"is {size:,} bytes, not {told['bytes']:,}")
    if sha256 != told["sha256"]:
        raise files.Unreadable(path, f"has sha256 {sha256[:12]}..., not {told['sha256'][:12]}...")


def _refuse_foreign(path: Path, manifest: dict[str, Any], *, cell: str, run: str) -> None:
    for noun, wanted in (("cell", cell), ("run", run)):
        if manifest[noun] != wanted:
            raise CheckpointRefused(
                f"checkpoint {path} is of {noun} {manifest[noun]}, not of {wanted}",
                "It was copied or moved here: put it back, or remove it.",
            )


def _newest_first(folder: Path, at_most: int | None = None) -> list[Path]:
    found = [path for path in _children(folder) if _NAME.fullmatch(path.name)]
    return sorted(_up_to(at_most, found), key=lambda path: (_step(path), _attempt(path)), reverse=True)


def _up_to(at_most: int | None, paths: list[Path]) -> list[Path]:
    return [path for path in paths if at_most is None or _step(path) <= at_most]


def _quarantined(folder: Path) -> list[Path]:
    return [path for path in _children(folder) if _QUARANTINED.fullmatch(path.name)]


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name) or _QUARANTINED.fullmatch(path.name)
    assert match is not None, f"{path} is not a checkpoint's name"
    return int(match["step"])


def _attempt(path: Path) -> int:
    return int(path.name.rpartition(".a")[2])


def _looks_sound(path: Path) -> bool:
    try:
        told = _read_manifest(path)["files"]
        return all((path / name).stat().st_size == each["bytes"] for name, each in told.items())
    except (files.Unreadable, OSError):
        return False


def _what(problem: files.Unreadable | FileNotFoundError) -> str:
    """Which file, and what is wrong with it."""
    return f"{problem.path.name} {problem.reason}" if isinstance(problem, files.Unreadable) else str(problem)


def _quarantine(path: Path, reason: str) -> Quarantined:
    """Move a damaged checkpoint aside; where that is refused it stays, and stays refused."""
    aside = path.with_name(f"damaged-{path.name}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"damaged-{path.name}-{number}")
    try:
        path.rename(aside)
        files.sync_directory(path.parent)
    except (OSError, files.StorageProblem):
        return Quarantined(path, reason)
    return Quarantined(aside, reason)
