"""A staged search for the guidance of one milestone: few images of every value, more of the best, and one evaluation of the winner
on images that took no part in choosing it.

Every point is a record of its own. The rounds share a sampling seed: all values see the same noise, and a finalist's first images
are those of the first round, if that had the same sampler, and are not made again. The reported evaluation has another seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ltbench import provenance
from ltbench.errors import LtbenchError
from ltbench.protocols import at_guidance, evaluation_id
from ltbench.searching import best, first_round, kept, last_round, rule
from ltbench.stages.common import Stage, present, put

Measure = Callable[[Mapping[str, Any]], dict[str, Any]]  # an evaluation -> the body of its record


def search(stage: Stage, step: int, search_id: str, description: Mapping[str, Any], measure: Measure) -> None:
    """Run the rounds, evaluate the winner and write the selection. What is there already is not made again."""
    code = provenance.evaluation_code()["evaluation"]["digest"]
    if present(stage.run, "selection", step, search_id, code) is not None:
        return
    how = description["search"]
    points: list[dict[str, Any]] = []
    first = {w: first_round(description, w) for w in how["guidance"]}
    finalists = kept(_round(first, how, measure, points, how.get("coarse")), how)
    last = {w: last_round(description, w) for w in finalists}
    chosen = best(_round(last, how, measure, points), 1)[0]
    final = at_guidance(description, chosen)
    measure(final)
    body = {
        "format": 1,
        "kind": "selection",
        "cell": stage.run.cell,
        "run": stage.run.run,
        "step": step,
        "code": {"evaluation": code},
        "evaluation": {"id": search_id, **description},
        "rule": rule(description),
        "metric": how["metric"],
        "group": how["group"],
        "candidates": points,
        "chosen": float(chosen),
        "final": evaluation_id(final),
    }
    put(stage, body, search_id)


Measured = list[tuple[float, float]]  # (guidance, value, signed so that lower is better)


def _round(
    evaluations: Mapping[float, dict[str, Any]],
    how: Mapping[str, Any],
    measure: Measure,
    points: list[dict[str, Any]],
    coarse: Mapping[str, Any] | None = None,
) -> Measured:
    """Measure one evaluation per value; each becomes a point of the selection, one of a coarse sampler with its name."""
    found: Measured = []
    for w, evaluation in evaluations.items():
        row = _row(measure(evaluation), how)
        point = {"guidance": float(w), "value": row["value"], "se": row.get("se"), "n": evaluation["samples"]}
        points.append({**point, **(coarse or {}), "evaluation": evaluation_id(evaluation)})
        found.append((float(w), signed(row)))
    return found


def _row(body: Mapping[str, Any], how: Mapping[str, Any]) -> Mapping[str, Any]:
    for row in body["rows"]:
        if (row["metric"], row["group"]) == (how["metric"], how["group"]):
            if row["value"] is None:
                raise LtbenchError(
                    f"guidance {body['evaluation']['guidance']:g}: {how['metric']} of {how['group']} is undefined: "
                    f"{row.get('reason')}",
                    "give the search more samples",
                )
            return row
    raise LtbenchError(f"the search goes by {how['metric']} of {how['group']}, which was not measured")


def signed(row: Mapping[str, Any]) -> float:
    """The row's value, turned so that lower is better."""
    value = float(row["value"])
    return {"lower": value, "higher": -value, "zero": abs(value)}[row["better"]]
