"""The network of FID, on random weights in the format of the real file: torch-fidelity and pytorch-fid are the oracles.

No weights of 2015-12-05 are here. The loader takes these only while `INCEPTION_SHA256` is set to their hash, and even then their
scores cannot be called FID: the name has the real digits of its own.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ltbench import extractors
from ltbench.errors import EnvironmentProblem, UsageError
from ltbench.extractors import INCEPTION_FILES, extractor, extractor_problem
from ltbench.metrics.extractor import load_extractor
from ltbench.metrics.frechet import frechet
from ltbench.metrics.inception import prepare_tf1, prepare_torch
from ltbench.metrics.kernel import kernel
from ltbench.metrics.naming import KINDS, metric_name

fidelity: Any = pytest.importorskip("torch_fidelity")
from torch_fidelity import feature_extractor_inceptionv3 as theirs  # noqa: E402

NAME, TORCH = "inception-2015-12-05", "inception-2015-12-05-torch"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_state() -> dict[str, Tensor]:
    """A state dict of torch-fidelity's network whose activations keep their size, so that every output says something."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = theirs.FeatureExtractorInceptionV3("random", ["2048"])
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        nn.init.normal_(network.fc.weight, std=0.05)
        nn.init.normal_(network.fc.bias)
    return network.state_dict()


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory) -> Path:
    assert extractors.extractors()[NAME].sha256 == "6726825d"  # kept from now on, whatever a test sets
    path = tmp_path_factory.mktemp("weights") / INCEPTION_FILES[0]
    torch.save(state, path)
    return path


@pytest.fixture
def accepted(file, monkeypatch):
    """The random file in a folder of weights, its hash taken for the right one."""
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha8(file))
    monkeypatch.setenv("LTBENCH_WEIGHTS", str(file.parent))
    return file


def sha8(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def pictures(n: int, side: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    numbers = np.random.default_rng(seed).integers(0, 256, (n, channels, side, side), np.uint8)
    return torch.from_numpy(numbers)


# --- outputs --------------------------------------------------------------------------------------------------------


def test_it_is_torch_fidelitys_network_with_adms_map_and_scores(accepted):
    oracle: Any = theirs.FeatureExtractorInceptionV3(
        "oracle", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(accepted)
    )
    maps: list[Tensor] = []
    oracle.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, out: maps.append(out))
    images = pictures(2)
    with torch.no_grad():
        pool, logits = oracle(images)
    ours = load_extractor(NAME)
    found = ours.features(images, batch=2)
    assert {key: values.shape for key, values in found.items()} == {
        "pool": (2, 2048),
        "spatial": (2, 2023),
        "logits": (2, 1008),
    }
    assert ours.dims == {key: values.shape[1] for key, values in found.items()}
    assert torch.equal(found["pool"], pool)
    assert torch.equal(found["logits"], logits)
    assert maps[0].shape == (2, 192, 17, 17)
    assert torch.equal(found["spatial"], maps[0][:, :7].flatten(1))
    assert maps[0].min() == 0, "after ReLU"
    biased = pool @ oracle.fc.weight.T + oracle.fc.bias
    assert (found["logits"] - biased).abs().max() > 1, "the bias of the classifier is left out"
    assert min(values.std() for values in found.values()) > 0.01, "random weights that say something"


def test_the_other_preparation_is_pytorch_fids(accepted, state, monkeypatch):
    pytorch_fid = pytest.importorskip("pytorch_fid.inception")
    monkeypatch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *args, **kwargs: dict(state))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its use of torchvision
        oracle = pytorch_fid.InceptionV3([pytorch_fid.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    images = pictures(2)
    with torch.no_grad():
        expected = oracle(images.float() / 255)[0].flatten(1)
    ours = load_extractor(TORCH)
    found = ours.features(images, batch=2)["pool"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    floats = ours.features(images.double() / 255, batch=2)["pool"]
    torch.testing.assert_close(floats, found, rtol=1e-5, atol=1e-5)
    between = ours.features((images.float() / 255 + 0.001).clamp(0, 1), batch=2)["pool"]
    assert (between - found).abs().max() > 1e-4, "floats are not rounded to 256 levels"
    other = load_extractor(NAME).features(images, batch=2)["pool"]
    assert (other - found).abs().max() > 0.01


def test_preparations_differ_where_it_is_known_and_agree_on_a_flat_image():
    flat = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
    assert torch.equal(prepare_tf1(flat), torch.full((1, 3, 299, 299), 72 / 128))
    torch.testing.assert_close(prepare_torch(flat), torch.full((1, 3, 299, 299), 400 / 255 - 1))
    ramp = torch.arange(32, dtype=torch.uint8).expand(1, 3, 32, 32)
    tf1, torchs = prepare_tf1(ramp)[0, 0, 0] * 128 + 128, (prepare_torch(ramp)[0, 0, 0] + 1) * 127.5
    # TensorFlow 1: output pixel i looks at i * 32 / 299. torch: pixel centres, a shift of half a pixel's difference.
    at = torch.arange(299) * 32 / 299
    torch.testing.assert_close(tf1, at.clamp(max=31), rtol=0, atol=1e-3)
    centres = ((torch.arange(299) + 0.5) * 32 / 299 - 0.5).clamp(0, 31)
    torch.testing.assert_close(torchs, centres, rtol=0, atol=1e-3)


def test_what_it_takes_is_said(accepted):
    standard, other = load_extractor(NAME), load_extractor(TORCH)
    grey = pictures(1, channels=1)
    assert torch.equal(
        standard.features(grey, batch=1)["pool"],
        standard.features(grey.expand(-1, 3, -1, -1), batch=1)["pool"],
    )
    with pytest.raises(UsageError, match=r"takes \(B, 1 or 3, H, H\) uint8, got .* torch.float32"):
        standard.features(pictures(1).float() / 255)
    for wrong in (pictures(1).float(), torch.full((1, 3, 8, 8), float("nan")), -torch.ones(1, 3, 8, 8)):
        with pytest.raises(UsageError, match=r"float in \[0, 1\]; some values are outside"):
            other.features(wrong)


# --- weights --------------------------------------------------------------------------------------------------------


def test_other_weights_are_refused_and_could_not_be_called_fid(file, monkeypatch):
    monkeypatch.setenv("LTBENCH_WEIGHTS", str(file.parent))
    for name in (NAME, TORCH, f"{NAME}@{file}"):
        problem = extractor_problem(name)
        assert problem is not None
        assert f"{file}: sha256 is {sha8(file)}" in problem
        assert "not 6726825d" in problem
        assert "\n" not in problem
        with pytest.raises(EnvironmentProblem, match="not the weights"):
            load_extractor(name)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha8(file))
    for name in (f"{NAME}@{file}", TORCH):
        identity = load_extractor(name).identity
        for kind in KINDS:
            printed = metric_name(kind, f"{identity['name']}@{identity['sha256']}")
            assert printed == f"{kind}[{name.partition('@')[0]}@{sha8(file)}]"
            assert not re.search(r"\b(FID|sFID|IS|KID)\b", printed)


def test_planning_needs_neither_file_nor_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("LTBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert extractor(NAME) == {"name": NAME, "sha256": "6726825d"}
    problem = extractor_problem(NAME)
    assert problem is not None
    assert "there are no weights here" in problem
    assert f"python harness.py extractors {NAME} --download" in problem
    assert INCEPTION_FILES[0] in problem
    with pytest.raises(EnvironmentProblem, match="LTBENCH_WEIGHTS"):
        load_extractor(NAME)


def test_a_folder_of_ones_own_comes_before_torchs_cache(accepted, monkeypatch, tmp_path):
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    (cache / INCEPTION_FILES[1]).write_bytes(b"something else")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert extractor_problem(NAME) is None
    monkeypatch.delenv("LTBENCH_WEIGHTS")
    problem = extractor_problem(NAME)
    assert problem is not None
    assert str(cache / INCEPTION_FILES[1]) in problem, (
        "the cache is looked into, under pytorch-fid's name too"
    )


def test_a_file_without_batch_counts_is_read_and_one_that_runs_code_is_not(state, monkeypatch, tmp_path):
    """The published file is older than `num_batches_tracked`."""
    path, ran = tmp_path / INCEPTION_FILES[0], tmp_path / "ran"
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, path)
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha8(path))
    assert load_extractor(f"{NAME}@{path}").dims["pool"] == 2048

    class Bomb:
        def __reduce__(self):
            return Path.touch, (ran,)

    path.write_bytes(pickle.dumps({"fc.bias": Bomb()}, protocol=2))
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha8(path))
    with pytest.raises(EnvironmentProblem, match=f"{path}: cannot read the weights"):
        load_extractor(f"{NAME}@{path}")
    assert not ran.exists()


def test_a_download_is_asked_for_checked_and_kept(file, monkeypatch, tmp_path):
    monkeypatch.setattr(theirs, "URL_INCEPTION_V3", file.as_uri())
    monkeypatch.setenv("LTBENCH_WEIGHTS", str(tmp_path / "mine"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(EnvironmentProblem, match="there are no weights"):
        load_extractor(NAME)
    with pytest.raises(EnvironmentProblem, match="cannot be downloaded: invalid hash value"):
        load_extractor(NAME, download=True)
    assert list((tmp_path / "mine").iterdir()) == [], "bytes of another hash are not left behind"
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", sha8(file))
    monkeypatch.setattr("ltbench.metrics.downloads.INCEPTION_SHA256", sha8(file))
    assert load_extractor(NAME, download=True).name == NAME
    assert (tmp_path / "mine" / INCEPTION_FILES[0]).read_bytes() == file.read_bytes()
    (tmp_path / "mine" / INCEPTION_FILES[0]).unlink()
    monkeypatch.setattr(theirs, "URL_INCEPTION_V3", (tmp_path / "none").as_uri())
    with pytest.raises(EnvironmentProblem, match=r"cannot be downloaded: .*No such file"):
        load_extractor(NAME, download=True)


def test_a_torchvision_of_another_build_is_named(monkeypatch, accepted):
    real = __import__

    def broken(name, *args, **kwargs):
        if name.startswith("torch_fidelity."):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", broken)
    with pytest.raises(EnvironmentProblem, match=r"torchvision::nms does not exist\n.*together"):
        load_extractor(NAME)


# --- end to end -----------------------------------------------------------------------------------------------------


class Pictures(torch.utils.data.Dataset):
    """uint8 images as torch-fidelity's entry point takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


def scores(gen: Any, ref: Any, logits: Any) -> dict[str, float]:
    """FID, KID and IS of features as arrays; IS over one split."""
    p = torch.from_numpy(logits).double().softmax(1)
    inception_score = (p * (p.log() - p.mean(0).log())).sum(1).mean().exp()
    return {
        "frechet_inception_distance": frechet(gen, ref),
        "kernel_inception_distance_mean": kernel(gen, ref),
        "inception_score_mean": float(inception_score),
    }


def run_torch_fidelity(a: Tensor, b: Tensor, extractor: str, batch: int, **options: Any) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its data loaders
        return fidelity.calculate_metrics(
            input1=Pictures(a),
            input2=Pictures(b),
            cuda=False,
            batch_size=batch,
            isc=True,
            fid=True,
            kid=True,
            isc_splits=1,
            kid_subsets=1,
            kid_subset_size=len(a),  # one subset of everything: the unbiased estimator itself
            feature_extractor=extractor,
            cache=False,
            save_cpu_ram=True,
            verbose=False,
            **options,
        )


def agree(found: dict[str, float], expected: dict[str, float], kernel_size: float = 0.0) -> None:
    """To 1e-6. `kernel_size`: of the numbers whose difference KID is, where torch-fidelity took it in float32."""
    for key, value in expected.items():
        loose = 1e-6 * kernel_size if "kernel" in key else 0.0
        assert found[key] == pytest.approx(value, rel=1e-6, abs=loose), key


def test_torch_fidelity_with_its_own_network_gives_our_numbers(accepted):
    a, b = pictures(3, seed=1), pictures(3, seed=2) // 2
    found = run_torch_fidelity(a, b, "inception-v3-compat", 3, feature_extractor_weights_path=str(accepted))
    ours = load_extractor(NAME)
    one, two = (ours.features(images, batch=3) for images in (a, b))
    gen, ref = one["pool"].double().numpy(), two["pool"].double().numpy()
    kernel_size = float(((gen @ ref.T / 2048 + 1) ** 3).mean())
    agree(found, scores(gen, ref, one["logits"].numpy()), kernel_size)


def test_torch_fidelity_with_our_extractor_registered_gives_our_numbers():
    ours = load_extractor("digits-cnn-v1")

    class Registered(fidelity.FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list():
            return "pool", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return {"isc": "logits"}.get(metric, "pool")

        @staticmethod
        def can_be_compiled():
            return False

        @staticmethod
        def get_dummy_input_for_compile():
            return torch.zeros(1, 1, 8, 8, dtype=torch.uint8)

        def forward(self, images):
            found = ours.features(images)
            # In float64, because torch-fidelity computes KID in its features' precision.
            return tuple(found[key].double() for key in self.features_list)

    fidelity.register_feature_extractor("ltbench-digits", Registered)
    from ltbench.datasets import build_dataset

    real = torch.from_numpy(build_dataset({"name": "digits"}).reference().images)
    a, b = real[::2][:150], (real[1::2][:150] * 0.8).to(torch.uint8)
    found = run_torch_fidelity(a, b, "ltbench-digits", 50)
    one, two = ours.features(a), ours.features(b)
    agree(found, scores(one["pool"].double().numpy(), two["pool"].double().numpy(), one["logits"].numpy()))
