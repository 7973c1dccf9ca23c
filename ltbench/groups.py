"""Head, body and tail: thirds of the classes ranked by their number of training images (design: nouns)."""

from __future__ import annotations

from collections.abc import Sequence

from ltbench.errors import LtbenchError

GROUPS = ("head", "body", "tail")


def groups(train_counts: Sequence[int]) -> dict[str, list[int]]:
    """Class ids of head, body and tail, each in rank order.

    `train_counts` (K,) are images per class before any resampling. Classes are ranked by count, largest first, ties by id;
    head is the first floor(K/3), tail the last floor(K/3), body the rest, so K = 100 gives 33/34/33. The seed's two scripts
    disagree on the body and one of them leaves two classes in no group (reference code: C-Fun/CCUA, sample_ddp_per_class_fid.py).

    Raises LtbenchError below 3 classes (a third would be empty) and for a negative count.
    """
    classes = len(train_counts)
    if classes < 3:
        raise LtbenchError(f"head, body and tail need at least 3 classes; this data set has {classes}")
    if bad := [(k, n) for k, n in enumerate(train_counts) if n < 0]:
        raise LtbenchError(f"class {bad[0][0]} has {bad[0][1]} training images; a count is 0 or more")
    ranked = sorted(range(classes), key=lambda k: (-train_counts[k], k))
    third = classes // 3
    return {
        "head": ranked[:third],
        "body": ranked[third : classes - third],
        "tail": ranked[classes - third :],
    }
