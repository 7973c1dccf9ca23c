"""Every metric there is, in one table: which way is better, how it is printed, what it needs; and the choices a protocol makes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ltbench.metrics.blocks import Precision
from ltbench.metrics.inception_score import SPLITS_10, ISRule

Need = Literal["pool", "spatial", "logits", "train"]


@dataclass(frozen=True)
class Metric:
    """One kind of row. needs: what it reads beside labels. takes_k: whether it counts neighbours. scale: factor in print.

    statistics: whether mean and covariance of the reference are enough. per_class: whether a value for one class means
    something; where `corrected` matters most, as for FD, read such a value against its floor at equal n alone.
    """

    kind: str
    better: Literal["lower", "higher", "zero", ""]
    needs: tuple[Need, ...] = ("pool",)
    scale: int = 1
    takes_k: bool = False
    statistics: bool = False
    per_class: bool = True


CATALOGUE = {
    metric.kind: metric
    for metric in (
        Metric("FD", "lower", statistics=True),
        # 50 images in 2023 dimensions are all bias, and its covariances double the work
        Metric("sFD", "lower", needs=("spatial",), statistics=True, per_class=False),
        # asks for many predicted classes, which one class should not have
        Metric("CS", "higher", needs=("logits",), statistics=True, per_class=False),
        Metric("KD", "lower", scale=1000),
        Metric("KD-subsets", "lower", scale=1000, per_class=False),  # for parity with tables
        Metric("precision", "higher", takes_k=True),
        Metric("recall", "higher", takes_k=True),
        Metric("density", "higher", takes_k=True),
        Metric("coverage", "higher", takes_k=True),
        Metric("CT", "zero", needs=("pool", "train")),
        Metric("copied", "lower", needs=("pool", "train")),
        Metric("authenticity", "", needs=("pool", "train")),  # noise is authentic too: neither way is better
        Metric("vendi", ""),  # below the real images' value it is collapse, above it noise
    )
}
DEFAULT = ("FD", "KD", "precision", "recall")


@dataclass(frozen=True)
class Estimators:
    """How a protocol computes what it names; part of what makes two numbers comparable.

    k and boundary: neighbours per ball, and whether a tie is inside (Kynkäänniemi, ADM: 3, "<="; CBDM and prdc: 5, "<").
    distances: the arithmetic of neighbours; fp16-adm is ADM's, which raises recall by 0.002 to 0.003, for parity alone.
    reference_cap: at most so many reference images meet pairwise metrics (ADM's precision and recall: 10,000); every class
    gives as many as the others. inception_score: its chunks. kd_subset: images per subset of KD-subsets (1000 in the
    literature), by default 1000 or half the smaller set.
    """

    k: int = 3
    boundary: Literal["<=", "<"] = "<="
    distances: Precision = "float64"
    reference_cap: int | None = None
    inception_score: ISRule = field(default=SPLITS_10)
    kd_subset: int | None = None
