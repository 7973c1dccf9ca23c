"""Published sets in miniature, in their own formats: folders, zips, tars of tars, lists. An image's colour says which one it is."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

TINY = ("n01443537", "n01629819", "n01641577", "n01644900")
SYNSETS = ("n01440764", "n01443537", "n01484850", "n01491361")
SCENES = ("airfield", "arena-hockey", "desert-sand", "desert_road")
PER_CLASS, PER_HOLDOUT = 12, 3
WIDE = (48, 24)  # a photograph's width and height; its middle has another colour than its sides


def picture(label: int, number: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """JPEG whose middle is (50 * label, 15 * number, 0); the outer quarters of a wide one are blue."""
    image = Image.new("RGB", size, (0, 0, 250))
    side = min(size)
    left = (size[0] - side) // 2
    image.paste((50 * label, 15 * number, 0), (left, 0, left + side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()


def marks(images: np.ndarray) -> np.ndarray:
    """(n, 2): label and number that the middle pixel tells."""
    side = images.shape[-1] // 2
    colours = np.asarray(images[:, :2, side, side]).astype(float)
    return np.rint(colours / [50, 15]).astype(int)


def tiny() -> dict[str, bytes]:
    """Tiny ImageNet's files."""
    found = {"wnids.txt": "\n".join(reversed(TINY)).encode()}
    lines = []
    for label, name in enumerate(TINY):
        for i in range(PER_CLASS):
            found[f"train/{name}/images/{name}_{i}.JPEG"] = picture(label, i)
        found[f"train/{name}/{name}_boxes.txt"] = b"x\t0\t0\t63\t63\n"
        for i in range(PER_HOLDOUT):
            file = f"val_{3 * i + label}{label}.JPEG"
            found[f"val/images/{file}"] = picture(label, i)
            lines.append(f"{file}\t{name}\t0\t0\t63\t63")
    found["val/val_annotations.txt"] = "\n".join(lines).encode()
    found["test/images/test_0.JPEG"] = picture(0, 0)
    return {f"tiny-imagenet-200/{name}": data for name, data in found.items()}


def imagenet() -> dict[str, bytes]:
    """ImageNet's training images and validation images, both in folders."""
    found = {}
    for label, name in enumerate(SYNSETS):
        for i in range(PER_CLASS):
            found[f"train/{name}/{name}_{i}.JPEG"] = picture(label, i, WIDE)
        for i in range(PER_HOLDOUT):
            found[f"val/{name}/{_val(label, i)}"] = picture(label, i, WIDE)
    return found


def _val(label: int, i: int) -> str:
    return f"ILSVRC2012_val_{i * len(SYNSETS) + label + 1:08d}.JPEG"


def imagenet_tars(root: Path) -> None:
    """The same as the original archives: a tar of tars, a flat tar, and the devkit with its labels in another order of classes."""
    import scipy.io

    files = imagenet()
    inner = {}
    for name in reversed(SYNSETS):
        inner[f"{name}.tar"] = tar_bytes(
            {Path(p).name: data for p, data in files.items() if p.startswith(f"train/{name}/")}
        )
    tar(root / "ILSVRC2012_img_train.tar", inner)
    tar(root / "ILSVRC2012_img_val.tar", {Path(p).name: d for p, d in files.items() if p.startswith("val/")})
    ids = {label: 4 - label for label in range(4)}
    order = sorted((_val(label, i), ids[label]) for label in range(4) for i in range(PER_HOLDOUT))
    kind = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(ids[label], name, "x", 0) for label, name in enumerate(SYNSETS)] + [
        (1001, "n00001740", "entity", 3)
    ]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, dtype=kind)})
    base = "ILSVRC2012_devkit_t12"
    truth = "".join(f"{label}\n" for _, label in order).encode()
    kit = {
        f"{base}/data/ILSVRC2012_validation_ground_truth.txt": truth,
        f"{base}/data/meta.mat": meta.getvalue(),
    }
    tar(root / f"{base}.tar.gz", kit, "w:gz")


def places() -> dict[str, bytes]:
    """Places365 in its easy format."""
    found = {}
    for label, name in enumerate(SCENES):
        for i in range(PER_CLASS):
            found[f"places365_standard/train/{name}/{i + 1:08d}.jpg"] = picture(label, i)
        for i in range(PER_HOLDOUT):
            found[f"places365_standard/val/{name}/Places365_val_{10 * label + i:08d}.jpg"] = picture(label, i)
    return found


def places_tars(root: Path) -> None:
    """The same as torchvision downloads it: data_256/a/arena/hockey/..., flat validation images, lists."""
    train, val, lines = {}, {}, []
    for path, data in places().items():
        _, split, name, file = path.split("/")
        if split == "train":
            train[f"data_256/{name[0]}/{name.replace('-', '/')}/{file}"] = data
        else:
            val[f"val_256/{file}"] = data
            lines.append(f"{file} {SCENES.index(name)}")
    tar(root / "train_256_places365standard.tar", train)
    tar(root / "val_256.tar", val)
    tar(root / "filelist_places365-standard.tar", {"./places365_val.txt": "\n".join(lines).encode()})


def emoji(root: Path, bases: int = 4, tones: int = 2) -> None:
    """Both npm packages with so many emoji of each category; those of one category have skin tones, one vendor lacks an image."""
    from ltbench.datasets.emoji import CLASSES  # pyright: ignore[reportMissingImports]

    listed, images = [], {}
    for label, category in enumerate((*CLASSES, "Component")):
        for i in range(bases):
            code = f"{label:02X}{i:02X}"
            one = {"unified": code, "category": category, "image": f"{code.lower()}.png"}
            if category == "People & Body":
                one["skin_variations"] = {
                    f"T{t}": {"unified": f"{code}-T{t}", "image": f"{code.lower()}-t{t}.png"}
                    for t in range(tones)
                }
            listed.append(one)
            for each in (one, *one.get("skin_variations", {}).values()):
                images[each["image"]] = _icon(label, i)
    for vendor in ("google", "twitter"):
        files = {f"package/img/{vendor}/64/{name}": data for name, data in images.items()}
        files["package/emoji.json"] = json.dumps(listed).encode()
        files[f"package/img/{vendor}/sheets/64.png"] = b"a sheet"
        tar(root / f"emoji-datasource-{vendor}-16.0.0.tgz", files, "w:gz")


def _icon(label: int, number: int) -> bytes:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((25 * label, 15 * number, 0, 255), (16, 16, 48, 48))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def folder(root: Path, files: dict[str, bytes]) -> None:
    """The files below `root`."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def zipped(path: Path, files: dict[str, bytes]) -> None:
    """The files in a zip, in another order."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in reversed(files):
            archive.writestr(name, files[name])


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    """The files in a tar, in another order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files, mode))


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name in reversed(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            archive.addfile(info, io.BytesIO(files[name]))
    return out.getvalue()
