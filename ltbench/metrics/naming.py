"""What a metric may be called: four names belong to one file of weights and to nothing else (design: metric identity).

Imports no torch: reports and the command line use it too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

INCEPTION_NAME = "inception-2015-12-05"
INCEPTION_SHA256 = (
    "6726825d"  # the first digits of the weights' sha256, as their official file name carries them
)
# Names of extractors that hold these weights -> what is said of how they see images; the first is the literature's standard.
PREPARED = {INCEPTION_NAME: "", f"{INCEPTION_NAME}-torch": "torch resize"}
# kind -> its name in the literature, and what tells it from another estimator of that name
RESERVED = {
    "FD": ("FID", ""),
    "sFD": ("sFID", ""),
    "CS": ("IS", ""),
    "KD": ("KID", ""),
    "KD-subsets": ("KID", "subsets"),
}
PLAIN = ("precision", "recall", "density", "coverage", "CT", "copied", "authenticity", "vendi")
KINDS = (*RESERVED, *PLAIN)


def extractor_id(extractor: Mapping[str, str]) -> str:
    """ "name@sha8" of an evaluation's extractor {"name", "sha256"}."""
    return f"{extractor['name']}@{extractor['sha256'][:8]}"


def metric_name(kind: str, extractor: str) -> str:
    """The printed name of `kind`, one of `KINDS`, on the features of `extractor`.

    `extractor` is "name@sha256" with at least the first 8 hex digits of its weights' sha256. Inception-2015-12-05 with its own
    weights gives the names of the literature: FID, sFID, IS, KID, "KID (subsets)" for the mean over subsets, and
    "FID (torch resize)" where images reach it as in pytorch-fid. Any other extractor gives "FD[name@sha8]", so that no column
    can be mistaken for them. Raises ValueError for an unknown kind or an extractor without a digest.
    """
    if kind not in KINDS:
        raise ValueError(f"no metric is called {kind!r}; there are {', '.join(KINDS)}")
    name, _, sha256 = extractor.rpartition("@")
    if not name or not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise ValueError(f"an extractor is written name@sha256 (8 hex digits or more), not {extractor!r}")
    if name not in PREPARED or not sha256.startswith(INCEPTION_SHA256):
        return f"{kind}[{name}@{sha256[:8]}]"
    printed, estimator = RESERVED.get(kind, (kind, ""))
    said = ", ".join(part for part in (estimator, PREPARED[name]) if part)
    return f"{printed} ({said})" if said else printed
