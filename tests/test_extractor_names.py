"""Extractors by name, without torch: who they are, what they may print, and what cannot be written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ltbench.errors import UsageError
from ltbench.extractors import extractor, extractor_family, extractor_problem, extractors, named, parse
from ltbench.metrics.extractor import load_extractor
from ltbench.metrics.naming import KINDS, metric_name

REAL = "inception-2015-12-05@6726825d"
RESERVED = re.compile(r"\b(FID|sFID|IS|KID)\b")


def test_the_names_of_the_literature_tell_their_estimators_apart():
    assert [metric_name(kind, REAL) for kind in ("FD", "sFD", "CS", "KD", "KD-subsets")] == [
        "FID", "sFID", "IS", "KID", "KID (subsets)",
    ]  # fmt: skip
    other = REAL.replace("@", "-torch@")
    assert [metric_name(kind, other) for kind in ("FD", "KD-subsets", "recall")] == [
        "FID (torch resize)", "KID (subsets, torch resize)", "recall (torch resize)",
    ]  # fmt: skip
    plain = ("precision", "recall", "density", "coverage", "CT", "copied", "authenticity", "vendi")
    assert [metric_name(kind, REAL) for kind in plain] == list(plain)
    for extractor_name in (REAL, other, "x@12345678"):
        printed = [metric_name(kind, extractor_name) for kind in KINDS]
        assert len(set(printed)) == len(KINDS), "no two kinds share a name"


@pytest.mark.parametrize(
    "name",
    [
        "lite0@57934424",
        "timm:inception_v3.tf_in1k@6726825d",
        "inception-2015-12-05@67268250",
    ],
)
def test_no_other_weights_print_a_name_of_the_literature(name):
    for kind in KINDS:
        printed = metric_name(kind, name)
        assert printed == f"{kind}[{name}]"
        assert not RESERVED.search(printed.partition("[")[0])


def test_every_extractor_with_a_name_is_what_the_list_says():
    """What can be loaded here is loaded; its dimensions, channels and identity are those of the list."""
    assert sorted(extractors()) == [
        "digits-cnn-v1", "fashion-cnn-v1", "inception-2015-12-05", "inception-2015-12-05-torch", "lite0",
    ]  # fmt: skip
    for name, known in extractors().items():
        assert named(extractor(name)) == name
        assert len(known.sha256) == (8 if "inception" in name else 64)
        if extractor_problem(name) is None:
            loaded = load_extractor(name)
            dims = {"pool": known.pool, "spatial": known.spatial, "logits": known.logits}
            assert loaded.dims == {key: dim for key, dim in dims.items() if dim}
            assert (loaded.channels, loaded.unquantised) == (known.channels, known.unquantised)
            assert loaded.identity == extractor(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nope", "unknown extractor 'nope'"),
        ("timm:", "unknown extractor"),
        ("", "unknown extractor ''"),
        ("Inception-2015-12-05", "there are digits-cnn-v1"),
        ("lite0@/tmp/x.pth", "comes with its weights: write lite0 alone"),
        ("digits-cnn-v1#12345678", "comes with its weights"),
        ("inception-2015-12-05#6726825d", "hash of 'inception-2015-12-05' is known"),
        ("timm:vit#123", "first 8 or more hex digits"),
        ("timm:vit#12345678z", "first 8 or more hex digits"),
    ],
)
def test_what_cannot_be_written_is_said(name, said):
    for ask in (parse, extractor, extractor_problem, load_extractor):
        with pytest.raises(UsageError) as caught:
            ask(name)
        assert said in str(caught.value)


def test_an_evaluation_knows_weights_by_hash_and_not_by_place(tmp_path):
    """Two machines, two folders, one evaluation id."""
    for name, short in {
        f"inception-2015-12-05@{tmp_path}/w.pth": "inception-2015-12-05",
        f"timm:vit@{tmp_path}/w.pth#ABCDEF0123": "timm:vit#abcdef0123",
    }.items():
        with pytest.raises(
            UsageError, match=f"not the place of their file\n.*write {short}, and put .*LTBENCH_WEIGHTS"
        ):
            extractor(name)
    assert extractor("timm:vit#ABCDEF0123") == extractor("timm:vit#abcdef01") == {
        "name": "timm:vit",
        "sha256": "abcdef01",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("timm:vit_base_patch14_dinov2.lvd142m", "dinov2"),
        ("timm:vit_large_patch14_reg4_dinov2.lvd142m#12345678", "dinov2"),
        ("timm:vit_small_patch16_224.dino", "dino"),
        ("timm:vit_small_patch16_dinov3.lvd1689m", "dinov3"),
        ("timm:vit_base_patch16_clip_224.openai", "clip"),
        ("timm:vit_base_patch16_siglip_224.webli", "siglip"),
        ("timm:resnet50.a1_in1k@/data/dinov2/w.pth#12345678", "resnet"),
        ("lite0", "efficientnet"),
        ("timm:tf_efficientnet_lite0.in1k", "efficientnet"),
        ("inception-2015-12-05", "inception"),
        ("inception-2015-12-05-torch", "inception"),
        ("random", "random"),
        ("1x", "1x"),
    ],
)
def test_the_family_of_a_network_is_read_from_its_name(name, family):
    assert extractor_family(name) == family


def test_names_and_their_problems_need_no_torch_and_nothing_heavy(tmp_path):
    code = (
        "import sys\n"
        "from ltbench.protocols import extractor, extractor_family, extractor_problem\n"
        "assert extractor('inception-2015-12-05')['sha256'] == '6726825d'\n"
        "assert extractor_problem('inception-2015-12-05')\n"
        "assert extractor_problem('digits-cnn-v1') is None\n"
        "extractor_problem('lite0'), extractor_problem('timm:x#12345678'), extractor_family('timm:x')\n"
        "import ltbench.metrics.naming\n"
        "heavy = {'torch', 'timm', 'torchvision', 'torch_fidelity', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "TORCH_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_loaders_module_needs_no_optional_package():
    code = (
        "import sys\n"
        "from ltbench.metrics.extractor import load_extractor\n"
        "load_extractor('digits-cnn-v1')\n"
        "import ltbench.metrics.inception, ltbench.metrics.pretrained, ltbench.metrics.downloads\n"
        "heavy = {'timm', 'torchvision', 'torch_fidelity', 'efficientnet_lite_pytorch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
