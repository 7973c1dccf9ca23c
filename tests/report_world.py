"""A benchmark that was never run: planned cells and records in the documented form, for tests of the report."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ltbench.canonical import digest
from ltbench.report.table import Inputs

SHA = "1a2b3c4d" + 56 * "0"
NAMES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
COUNTS = [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]
GROUPS = {"head": [0, 1, 2], "body": [3, 4, 5, 6], "tail": [7, 8, 9]}
STEPS = (280, 560)
_KINDS = (
    ("FD", "lower", 1, None, 12.0),
    ("KD", "lower", 1000, None, 0.02),
    ("precision", "higher", 1, 3, 0.6),
    ("recall", "higher", 1, 3, 0.4),
)
_GROUP_FACTOR = {"all": 1.0, "head": 0.8, "body": 1.1, "tail": 2.2}


def evaluation(
    sampler: str = "euler", guidance: float = 1.5, extractor: str = "fashion-cnn-v1"
) -> dict[str, Any]:
    """An evaluation with its id."""
    core = {
        "protocol": "small-data",
        "samples": 500,
        "labels": "balanced",
        "sampler": sampler,
        "steps": 20,
        "guidance": guidance,
        "block": 100,
        "seed": 0,
        "quantise": "round",
        "extractor": {"name": extractor, "sha256": SHA},
        "reference": "fashion_mnist:test-balanced",
    }
    return {"id": digest(core)[:12], **core}


def settings(method: str, seed: int, pipeline: str = "sit", **more: Any) -> dict[str, Any]:
    """Resolved settings of a cell; `more` overrides top-level keys."""
    return {
        "dataset": {"name": "fashion_mnist", "source": "embedded", "imbalance": 0.01, "resolution": 32},
        "pipeline": pipeline,
        "network": "SiT-T/8" if pipeline == "sit" else "UNet-32",
        "method": {"name": method},
        "resample": None,
        "seed": seed,
        "train": {"batch": 64, "lr": 0.002, "betas": [0.9, 0.999]},
        **more,
    }


def planned(
    method: str, seed: int, pipeline: str = "sit", label: str | None = None, **more: Any
) -> dict[str, Any]:
    """A planned cell; `more` goes to its settings, except evaluations, unsupported and the
    method's parameters."""
    evaluations = more.pop("evaluations", None) or [evaluation("euler" if pipeline == "sit" else "ddim")]
    unsupported, parameters = more.pop("unsupported", None), more.pop("parameters", {})
    known = settings(method, seed, pipeline, **more)
    known["method"] |= parameters
    return {
        "cell": digest(known),
        "label": label or method,
        "part": pipeline,
        "settings": known,
        "milestones": list(STEPS),
        "evaluations": evaluations,
        "unsupported": unsupported,
    }


def _hash(*parts: Any) -> float:
    """A number in [0, 1) that depends on the parts only."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


def value_of(kind: str, group: str, label: str, seed: int, step: int, spread: float = 0.05) -> float:
    """A metric value; later steps are better, each label has its level, seeds spread by `spread`."""
    better, base = next((b, base) for k, b, _, _, base in _KINDS if k == kind)
    level = 0.7 + 0.6 * _hash(label) + spread * (_hash(label, seed, kind, group) - 0.5)
    late = 1.0 if step == STEPS[-1] else 1.4
    factor = level * late * _GROUP_FACTOR[group]
    return base * factor if better == "lower" else base / factor


def noise_of(kind: str, group: str, label: str, seed: int, step: int) -> dict[str, Any]:
    """se, corrected and ten folds of a value; folds share most of their noise between labels, as paired samples do."""
    value = value_of(kind, group, label, seed, step)
    shifts = [0.002 * _hash(f, kind, group) + 0.0004 * _hash(f, kind, group, label, seed) for f in range(10)]
    folds = [value * (1 + shift - 0.0012) for shift in shifts]
    mean = sum(folds) / 10
    error = (0.9 * sum((fold - mean) ** 2 for fold in folds)) ** 0.5
    return {"se": error, "corrected": 10 * value - 9 * mean if kind == "FD" else None, "folds": folds}


def record(
    cell: dict[str, Any], step: int, which: dict[str, Any] | None = None, **body: Any
) -> dict[str, Any]:
    """An evaluation record of a planned cell; `body` overrides keys of its body."""
    which = cell["evaluations"][0] if which is None else which
    assert which is not None
    extractor = f"{which['extractor']['name']}@{which['extractor']['sha256'][:8]}"
    seed = cell["settings"]["seed"]
    rows = []
    for kind, better, scale, k, base in _KINDS:
        for group, size in (("all", 10), *((name, len(ids)) for name, ids in GROUPS.items())):
            floor = base * 0.1 if better == "lower" else base * 1.4
            rows.append({"metric": kind, "name": f"{kind}[{extractor}]", "group": group, "better": better})  # fmt: skip
            rows[-1] |= {"value": value_of(kind, group, cell["label"], seed, step), "floor": floor, "k": k}
            rows[-1] |= noise_of(kind, group, cell["label"], seed, step) | {"estimator": f"{kind} by hand"}
            rows[-1] |= {"n_gen": 50 * size, "n_ref": 200 * size, "n_floor": 50 * size, "scale": scale}
    per_class = {
        f"{kind}[{extractor}]": [
            base
            * (0.6 + 0.8 * _hash(cell["label"], seed, kind, c))
            * (0.5 + c / 8 if better == "lower" else 1.2 - c / 12)
            for c in range(10)
        ]
        for kind, better, _, _, base in _KINDS
        if kind != "FD"
    }
    known = {
        "format": 1,
        "kind": "evaluation",
        "cell": cell["cell"],
        "run": "0" * 12,
        "settings": cell["settings"],
        "code": dict.fromkeys(("trainer", "network", "data", "evaluation"), 64 * "a")
        | {"method": digest(cell["settings"]["method"]["name"])},
        "step": step,
        "images_seen": 64 * step,
        "milestone": digest([cell["cell"], step]),
        "data_sha256": 64 * "d",
        "evaluation": which,
        "nfe": 40,
        "classes": list(NAMES),
        "train_counts": COUNTS,
        "groups": GROUPS,
        "rows": rows,
        "per_class": {
            "classes": list(range(10)),
            "metrics": per_class,
            "floor": {name: [0.5] * 10 for name in per_class},
            "reason": {name: [None] * 10 for name in per_class},
            "n_gen": [50] * 10,
            "n_ref": [200] * 10,
        },
        "facts": {
            "samples": {
                "file": f"{cell['label']}-{seed}.png",
                "tile": 32,
                "rows": list(range(10)),
                "columns": list(range(8)),
            },
            "reference": {"file": "real.png", "tile": 32, "rows": list(range(10)), "columns": list(range(8))},
        },
        **body,
    }
    return {"body": known, "digest": digest(known), "envelope": {"finished": 1.0 + seed, "attempt": 1}}


def external(
    name: str = "adm",
    which: dict[str, Any] | None = None,
    declared: dict[str, Any] | None = None,
    **body: Any,
) -> dict[str, Any]:
    """An evaluation record of somebody's samples; its evaluation says nothing about how they were sampled."""
    which = evaluation() if which is None else which
    told = {"name": name, "kind": "samples", "sha256": digest(name), "declared": declared or {}}
    sampling = ("sampler", "steps", "guidance", "seed", "block")
    measured = {key: value for key, value in which.items() if key not in (*sampling, "id")}
    cell = planned(name, 0, evaluations=[which])
    settings_ = {"dataset": cell["settings"]["dataset"], **told["declared"]}
    made = record(cell, 0, {"id": digest(measured)[:12], **measured})["body"] | {
        "cell": digest(told),
        "external": told,
        "settings": settings_,
        "nfe": None,
        "code": {"evaluation": 64 * "a"},
        "facts": {},
        **body,
    }
    return {"body": made, "digest": digest(made), "envelope": {"finished": 1.0, "attempt": 1}}


def selection(
    cell: dict[str, Any],
    step: int,
    which: dict[str, Any],
    candidates: dict[float, float],
    rule: str = "min-of-search",
    **body: Any,
) -> dict[str, Any]:
    """A selection record: the guidance of `which` was chosen among {w: value} on 100 independent images each."""
    tried = [{"guidance": w, "value": value, "se": 0.1, "n": 100} for w, value in candidates.items()]
    known = {
        "format": 1,
        "kind": "selection",
        "cell": cell["cell"],
        "run": "0" * 12,
        "step": step,
        "rule": rule,
    }
    known |= {
        "metric": "FD",
        "group": "tail",
        "candidates": tried,
        "chosen": which["guidance"],
        "evaluation": which["id"],
    }
    known |= body
    return {"body": known, "digest": digest(known), "envelope": {"finished": 5.0, "attempt": 1}}


def train_record(cell: dict[str, Any], step: int) -> dict[str, Any]:
    """A training record with a curve up to `step`."""
    steps = list(range(20, step + 1, 20))
    seed, label = cell["settings"]["seed"], cell["label"]

    def term(group: str, factor: float) -> list[float | None]:
        return [
            factor * (0.9 + 0.2 * _hash(label)) * (0.2 + 1.2 / (1 + s / 60))
            + 0.05 * _hash(label, seed, s, group)
            for s in steps
        ]

    terms = {"denoise": term("", 1), "denoise/head": term("h", 0.95), "denoise/tail": term("t", 1.3)}
    terms["denoise/tail"][1] = None  # a window that saw no tail image
    known = {
        "format": 1,
        "kind": "train",
        "cell": cell["cell"],
        "run": "0" * 12,
        "settings": cell["settings"],
        "step": step,
        "log_every": 20,
        "train_counts": COUNTS,
        "curve": {"step": steps, "terms": terms, "loss": terms["denoise"], "grad_norm": terms["denoise"]},
        "facts": {},
    }
    return {"body": known, "digest": digest(known), "envelope": {"finished": 1.0 + seed, "attempt": 1}}


def quickstart() -> Inputs:
    """Four methods with two seeds and two with one, all done."""
    cells = [planned(m, s) for m in ("sit", "cbdm", "dispersive", "ccua") for s in (0, 1)]
    cells += [planned(m, 0, "ddpm") for m in ("ddpm", "ccua")]
    records = [record(cell, step) for cell in cells for step in STEPS]
    records += [train_record(cell, step) for cell in cells for step in STEPS]
    return Inputs("quickstart", "Quickstart: long-tailed Fashion-MNIST", cells, records)


def fact(name: str) -> bytes:
    """A grid of 10 x 8 tiles; each file has its own shade."""
    from ltbench.tiles import grid_png

    shade = np.random.default_rng(int(_hash(name) * 2**32))
    rows = np.linspace(0, 180, 10)[:, None, None, None, None]
    noise = shade.integers(0, 60, (10, 8, 1, 32, 32))
    return grid_png((rows + noise).astype(np.uint8))
