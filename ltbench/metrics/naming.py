"""What a metric may be called: four names belong to one file of weights and to nothing else (design: metric identity)."""

from __future__ import annotations

import re
from collections.abc import Mapping

INCEPTION_NAME = "inception-2015-12-05"
INCEPTION_SHA256 = (
    "6726825d"  # the first digits of the weights' sha256, as their official file name carries them
)
_RESERVED = {"FD": "FID", "sFD": "sFID", "CS": "IS", "KD": "KID"}
_PLAIN = ("precision", "recall")


def extractor_id(extractor: Mapping[str, str]) -> str:
    """ "name@sha8" of an evaluation's extractor {"name", "sha256"}."""
    return f"{extractor['name']}@{extractor['sha256'][:8]}"


def metric_name(kind: str, extractor: str) -> str:
    """The printed name of `kind` ("FD", "KD", "sFD", "CS", "precision", "recall") on the features of `extractor`.

    `extractor` is "name@sha256" with at least the first 8 hex digits of its weights' sha256. Inception-2015-12-05 with its own
    weights gives the names of the literature; any other extractor gives "FD[name@sha8]", so that no column can be mistaken
    for them. Raises ValueError for an unknown kind or an extractor without a digest.
    """
    if kind not in _RESERVED and kind not in _PLAIN:
        allowed = ", ".join([*_RESERVED, *_PLAIN])
        raise ValueError(f"no metric is called {kind!r}; there are {allowed}")
    name, _, sha256 = extractor.rpartition("@")
    if not name or not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise ValueError(f"an extractor is written name@sha256 (8 hex digits or more), not {extractor!r}")
    if name == INCEPTION_NAME and sha256.startswith(INCEPTION_SHA256):
        return _RESERVED.get(kind, kind)
    return f"{kind}[{name}@{sha256[:8]}]"
