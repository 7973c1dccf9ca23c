"""The evaluations of a staged search for the guidance, which values go on, and how it is told; readable without torch.

Every value is measured on few images, the best are measured on more, and the winner is evaluated on images of another seed. The
first round may have a cheaper sampler of its own (`coarse`). Its optimum may lie beside the final sampler's, so it does not
choose: it says around which value the final sampler looks. No value is ever compared with one of another round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ltbench.protocols import OPTIONS, at_guidance

Measured = Sequence[tuple[float, float]]
"""(guidance, value, signed so that lower is better), one of each guidance."""


def first_round(description: Mapping[str, Any], w: float) -> dict[str, Any]:
    """The evaluation by which a search looks at one of its values first."""
    coarse = description["search"].get("coarse")
    if coarse is None:
        return _point(description, w, description["search"]["samples"])
    own = OPTIONS.get(description["sampler"], {})
    rest = {key: value for key, value in description.items() if key not in own}
    return {**_point(rest, w, description["search"]["samples"]), **coarse}


def last_round(description: Mapping[str, Any], w: float) -> dict[str, Any]:
    """The evaluation by which a search compares the values that it kept."""
    return _point(description, w, _kept_samples(description))


def _point(description: Mapping[str, Any], w: float, samples: int) -> dict[str, Any]:
    """Measured by the search's metric alone: pairs with 1.8 million reference images take longer than sampling does."""
    how = description["search"]
    return at_guidance(description, w, samples=samples, seed=how["seed"], metrics=[how["metric"]])


def rounds(description: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """(evaluation at one guidance, images to make) of all that one description asks for, the reported evaluation last.

    Images of a finalist begin with those of the first round where the sampler is the same. Which values win is not known: the
    last of those given stand for them.
    """
    how = description.get("search")
    if how is None:
        return [(dict(description), int(description["samples"]))]
    values = how["guidance"]
    first = [first_round(description, w) for w in values]
    last = [last_round(description, w) for w in values[-how["keep"] :]]
    there = 0 if how.get("coarse") else int(how["samples"])
    final = at_guidance(description, values[-1])
    made = [
        *((each, int(each["samples"])) for each in first),
        *((each, int(each["samples"]) - there) for each in last),
        (final, int(final["samples"])),
    ]
    return [(each, images) for each, images in made if images]


def kept(found: Measured, how: Mapping[str, Any]) -> list[float]:
    """The values that go on, in rising order: the best of the first round, or with a coarse sampler those nearest to the best one
    on the grid, which has as many on either side as there are."""
    if not how.get("coarse"):
        return best(found, how["keep"])
    grid = sorted(found)
    at = min(range(len(grid)), key=lambda i: grid[i][1])
    near = sorted(range(len(grid)), key=lambda i: (abs(i - at), grid[i][1]))
    return sorted(grid[i][0] for i in near[: how["keep"]])


def best(found: Measured, keep: int) -> list[float]:
    """The guidance of the `keep` lowest values, in rising order; of equal ones the smaller guidance."""
    return sorted(w for w, _ in sorted(found, key=lambda each: (each[1], each[0]))[:keep])


def rule(description: Mapping[str, Any]) -> str:
    """The rule's name, which says all of it: two selections by one name were made alike."""
    how = description["search"]
    last, seed = _kept_samples(description), how["seed"]
    if (coarse := how.get("coarse")) is None:
        return f"staged-{how['samples']}-top{how['keep']}-{last}-seed{seed}"
    sampler = f"{coarse['sampler']}{coarse['steps']}"
    return f"coarse-{sampler}-{how['samples']}-around{how['keep']}-{last}-seed{seed}"


def told(description: Mapping[str, Any]) -> str:
    """How a search went about it, in words: "8 values on 1000 images each, the best 2 on 5000"."""
    how = description["search"]
    first = f"{len(how['guidance'])} values on {how['samples']} images each"
    last = f"{how['keep']} on {_kept_samples(description)}"
    if (coarse := how.get("coarse")) is None:
        return f"{first}, the best {last}"
    return f"{first} by {coarse_text(coarse)}, the nearest {last} by its own sampler"


def coarse_text(point: Mapping[str, Any]) -> str:
    """The sampler of a first round, or of a candidate that was measured by one: "euler 20 steps"; "" for the search's own."""
    return f"{point['sampler']} {point['steps']} steps" if "sampler" in point else ""


def _kept_samples(description: Mapping[str, Any]) -> int:
    return int(description["search"].get("kept_samples") or description["samples"])
