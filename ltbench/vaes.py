"""The autoencoders whose latents a benchmark can train on: what each is called, where it lies, what a latent measures. No torch.

    sd-vae-ft-ema, sd-vae-ft-mse   Stable Diffusion's VAE, fine-tuned (stabilityai on Hugging Face, MIT); SiT trains on ft-ema
    tiny-vae                       untrained, made from a fixed key: for smoke runs of the pipeline without a download
    NAME#SHA                       a diffusers AutoencoderKL of one's own. SHA: the first 12 hex digits of its content's digest

A spec may also give the path of a folder; it is turned into NAME#SHA, so that a cell's id knows content and no place. A folder
holds config.json and diffusion_pytorch_model.safetensors. NAME is looked for in the folders of LTBENCH_WEIGHTS, then where
Hugging Face keeps what it downloads. Shape letters: C channels, h w the latent's height and width.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltbench.canonical import digest
from ltbench.errors import UsageError
from ltbench.extractors import hub_folders, sha256_of

KEY = "latents"  # of the `dataset` part of a spec
WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY = "tiny-vae"
PACKAGE = "'diffusers>=0.30' (the extra `latent`)"
SCALE = 0.18215  # of both fine-tuned VAEs, and what diffusers assumes where a config says nothing
BYTES = 2  # of a number of a moment: float16 (reference: fp16 mean and deviation, 16 KB an image at 256 px)


@dataclass(frozen=True)
class Vae:
    """channels: of a latent. factor: pixels per latent, along one side. sha256: of the weights file, "" where it is not pinned.
    size: of that file in bytes, 0 if unknown. hub: its name on Hugging Face."""

    channels: int = 4
    factor: int = 8
    sha256: str = ""
    size: int = 0
    hub: str = ""
    licence: str = ""


KNOWN: Mapping[str, Vae] = {
    # The hash of ft-ema is not pinned: no source for it was at hand. Its size is, and records keep the hash that was found.
    "sd-vae-ft-ema": Vae(size=334_643_276, hub="stabilityai/sd-vae-ft-ema", licence="MIT"),
    "sd-vae-ft-mse": Vae(
        sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        size=334_643_276,
        hub="stabilityai/sd-vae-ft-mse",
        licence="MIT",
    ),
    TINY: Vae(licence="MIT"),
}


def resolve(text: str) -> tuple[str, str | None]:
    """(NAME or NAME#SHA, folder) of what a spec says; the folder is None unless the spec named it.

    Raises UsageError for a name that does not exist and for a folder that holds no AutoencoderKL.
    """
    if text in KNOWN:
        return text, None
    if os.sep in text or text.startswith(("~", ".")):
        folder = Path(text).expanduser().absolute()
        if wrong := _folder_problem(folder):
            raise UsageError(f"latents: {wrong}")
        name = f"{folder.name}#{content(folder)[:12]}"
        remember(name, folder)
        return name, str(folder)
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*#[0-9a-f]{12}", text):
        return text, None
    folder = find(text)
    known = f": write {text}#{content(folder)[:12]}" if folder and not _folder_problem(folder) else ""
    raise UsageError(
        f"latents: unknown VAE '{text}'{known}; there are {', '.join(KNOWN)}, NAME#SHA "
        "(12 hex digits, a folder in LTBENCH_WEIGHTS) and the path of a diffusers AutoencoderKL's folder"
    )


# NAME#SHA -> where a spec or a job said it lies. The content is checked all the same.
_SEEN: dict[str, Path] = {}


def remember(name: str, folder: Path) -> None:
    """Look for the VAE `name` in `folder` first, as long as this process lives."""
    _SEEN[name] = folder


def find(name: str) -> Path | None:
    """The folder of a VAE, whatever it holds: one that was named, else the first of LTBENCH_WEIGHTS and of Hugging Face's cache."""
    return next((place for place in _places(name) if place.is_dir()), None)


def _places(name: str) -> Iterator[Path]:
    bare = name.partition("#")[0]
    if name in _SEEN:
        yield _SEEN[name]
    for part in os.environ.get("LTBENCH_WEIGHTS", "").split(os.pathsep):
        if part:
            yield Path(part).expanduser() / bare
    if bare in KNOWN and KNOWN[bare].hub:
        yield from hub_folders(KNOWN[bare].hub)


def config_of(folder: Path) -> dict[str, Any]:
    """The config that diffusers wrote, without its notes about itself."""
    found = json.loads((folder / "config.json").read_text())
    return {key: value for key, value in found.items() if not key.startswith("_")}


def content(folder: Path) -> str:
    """64 hex digits of what a VAE computes: its config and its weights file."""
    return digest({"config": config_of(folder), "weights": sha256_of(folder / WEIGHTS)})


def vae(name: str) -> Vae:
    """What is known of a VAE; of one that is not here, what Stable Diffusion's have."""
    if name in KNOWN:
        return KNOWN[name]
    place = find(name)
    if place is None or _folder_problem(place):
        return Vae()
    config = config_of(place)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return Vae(int(config["latent_channels"]), factor, sha256_of(place / WEIGHTS))


def named(dataset: Mapping[str, Any]) -> str | None:
    """The VAE of a cell's `dataset` settings, None for pixels."""
    return dataset.get(KEY)


def network_shape(dataset: Mapping[str, Any], channels: int, resolution: int) -> tuple[int, int, int]:
    """(C, H, W) of what a network of these `dataset` settings works on: pixels, or latents."""
    name = named(dataset)
    if name is None:
        return (channels, resolution, resolution)
    found = vae(name)
    return (found.channels, resolution // found.factor, resolution // found.factor)


def latents_bytes(name: str, images: int, resolution: int) -> int:
    """Bytes of the cached latents of `images` pictures: mean and deviation of both flips, float16."""
    channels, height, width = network_shape({KEY: name}, 3, resolution)
    return images * 2 * 2 * channels * height * width * BYTES


def identity(name: str) -> str:
    """What a VAE computes: the digest of its content where it has files; the name alone of the one that is made."""
    place = None if name == TINY else find(name)
    return name if place is None else content(place)


def facts(name: str) -> dict[str, str]:
    """`{"name", "sha256"}` for records: of the weights file that is here; of tiny-vae, the version of its recipe."""
    if name == TINY:
        return {"name": name, "sha256": "made from a key"}
    place = find(name)
    return {"name": name, "sha256": sha256_of(place / WEIGHTS) if place else ""}


def problem(name: str) -> str | None:
    """None if the VAE can be used here, else why not and what to do, in one line."""
    if importlib.util.find_spec("diffusers") is None:
        return f"latents '{name}' need a package that is not installed: pip install {PACKAGE}"
    if name == TINY:
        return None
    place = find(name)
    if place is None:
        return f"latents: VAE '{name}' is not here; {_remedy(name)}"
    return _wrong(name, str(place), _stamp(place))


def _stamp(place: Path) -> tuple[float, ...]:
    """Changes when a file of the folder does."""
    files = [place / "config.json", place / WEIGHTS]
    return tuple(file.stat().st_mtime for file in files if file.is_file())


@functools.lru_cache(maxsize=32)
def _wrong(name: str, place: str, _stamp: tuple[float, ...]) -> str | None:
    folder = Path(place)
    if wrong := _folder_problem(folder):
        return f"{wrong}; {_remedy(name)}"
    if name not in KNOWN:
        found = content(folder)[:12]
        right = name.partition("#")[2]
        return None if found == right else f"{folder}: its content is {found}, not {right}: another VAE"
    known, config = KNOWN[name], config_of(folder)
    size = (folder / WEIGHTS).stat().st_size
    if size != known.size or (known.sha256 and sha256_of(folder / WEIGHTS) != known.sha256):
        return f"{folder / WEIGHTS}: not the weights of '{name}' ({size} bytes, expected {known.size}); {_remedy(name)}"
    shape = (config.get("latent_channels"), 2 ** (len(config["block_out_channels"]) - 1))
    if shape != (known.channels, known.factor):
        return f"{folder / 'config.json'}: not the config of '{name}'; {_remedy(name)}"
    return None


def _folder_problem(folder: Path) -> str | None:
    """Why a folder holds no AutoencoderKL of RGB images that can be read here."""
    if not folder.is_dir():
        return f"{folder} is no folder"
    try:
        config = config_of(folder)
        kind = json.loads((folder / "config.json").read_text()).get("_class_name", "AutoencoderKL")
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder / 'config.json'} cannot be read ({type(error).__name__})"
    if kind != "AutoencoderKL" or not {"block_out_channels", "latent_channels"} <= set(config):
        return f"{folder / 'config.json'} is no AutoencoderKL's ({kind})"
    if (config.get("in_channels", 3), config.get("out_channels", 3)) != (3, 3):
        return f"{folder / 'config.json'}: the VAE is not one of RGB images"
    if config.get("latents_mean") or config.get("latents_std"):
        return f"{folder / 'config.json'}: latents scaled channel by channel (latents_mean) are not supported"
    if not (folder / WEIGHTS).is_file():
        pickled = " (a .bin is a pickle and is not read)" if list(folder.glob("*.bin")) else ""
        return f"{folder} holds no {WEIGHTS}{pickled}"
    return None


def _remedy(name: str) -> str:
    bare = name.partition("#")[0]
    hub = KNOWN[name].hub if name in KNOWN else ""
    get = f"where there is a network: hf download {hub} config.json {WEIGHTS}; or " if hub else ""
    return f"{get}put a folder {bare} with config.json and {WEIGHTS} into a folder that LTBENCH_WEIGHTS names"
