"""Sections at the guidance that was chosen for each row, or at one common to all; by a named rule on independent samples only."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ltbench.canonical import canonical_json
from ltbench.report.axes import SectionPlan, section_title
from ltbench.report.definition import TableDefinition
from ltbench.report.identity import family_id, section_id, section_of
from ltbench.report.select import Record, Selected

WHY = "the values that a table reports flatter whatever was chosen by them"
NEEDS_BEST = f"Guidance: best is refused without records of a selection on independent samples, since {WHY}."
NEEDS_COMMON = (
    "Guidance: common is refused without common_guidance in the report's definition or selection records of every row on "
    f"independent samples, since {WHY}."
)

Asked = tuple[str, str, str]  # rule, metric, group of a selection


def arranged(plans: Sequence[SectionPlan], selected: Selected, table: TableDefinition) -> list[SectionPlan]:
    """The sections as `table.guidance` asks: `each` as planned; `best` and `common` make one of every family of sections that
    differ in nothing but their guidance. A family of one guidance for which nothing was chosen stays as it is."""
    if table.guidance == "each":
        return list(plans)
    families: dict[tuple[str, bytes, str], list[SectionPlan]] = defaultdict(list)
    for plan in plans:
        key = plan.part, canonical_json(plan.dataset), family_id(plan.evaluation)
        families[key].append(plan)
    make = _best if table.guidance == "best" else _common
    return [make(family, selected, table) for family in families.values()]


# --- selections -----------------------------------------------------------------------------------------------------


def asked(selection: Record) -> Asked:
    """(rule, metric, group) that a selection went by."""
    body = selection["body"]
    return str(body["rule"]), str(body["metric"]), str(body["group"])


def selections_of(
    family: str, cell: str, step: int, selected: Selected, rule: str | None = None
) -> list[Record]:
    """The selections of a cell whose final evaluation is in the store and of this family; `rule` as `rule` or `rule/metric/group`."""
    found = []
    for selection in selected.selections.get((cell, step), []):
        final = selected.named.get((cell, step, selection["body"]["evaluation"]))
        known = final is not None and family_id(final["body"]["evaluation"]) == family
        if known and rule in (None, selection["body"]["rule"], "/".join(asked(selection))):
            found.append(selection)
    return found


def _places(family: Sequence[SectionPlan]) -> list[tuple[str, int]]:
    """Every planned (cell, milestone) of a family, once."""
    return list(
        dict.fromkeys((c["cell"], int(s)) for plan in family for c in plan.cells for s in c["milestones"])
    )


def _merged(family: Sequence[SectionPlan], evaluation: Mapping[str, Any]) -> SectionPlan:
    """One section with the cells of all; `evaluation` without its id."""
    cells = {canonical_json([c["cell"], c["label"]]): c for plan in family for c in plan.cells}
    return replace(
        family[0],
        title=section_title(family[0].part, family[0].cells[0], evaluation),
        evaluation={**evaluation, "id": section_id(evaluation)},
        ids=tuple(dict.fromkeys(name for plan in family for name in plan.ids)),
        cells=tuple(cells.values()),
    )


def _rule_text(rule: Asked) -> str:
    return f"rule {rule[0]} on {rule[1]}, {rule[2]}"


# --- best per row ---------------------------------------------------------------------------------------------------


def _best(family: Sequence[SectionPlan], selected: Selected, table: TableDefinition) -> SectionPlan:
    base = {key: value for key, value in family[0].evaluation.items() if key not in ("id", "guidance")}
    found = {place: selections_of(family_id(base), *place, selected, table.rule) for place in _places(family)}
    rules = Counter(rule for selections in found.values() for rule in {asked(s) for s in selections})
    if not rules:
        if len(family) == 1:
            return family[0]
        gaps = dict.fromkeys(found, "no selection record")
        return replace(_merged(family, base), picks={}, gaps=gaps, chosen_by=NEEDS_BEST)
    main = min(rules, key=lambda rule: (-rules[rule], rule))
    picks, gaps, weights = {}, {}, {}
    for place, selections in found.items():
        mine = [selection for selection in selections if asked(selection) == main]
        others = "; ".join(sorted(_rule_text(asked(selection)) for selection in selections))
        final = selected.named[(*place, mine[0]["body"]["evaluation"])] if mine else None
        if final is None:
            gaps[place] = (
                f"chosen by {others}, not by {_rule_text(main)}" if others else "no selection record"
            )
        elif (w := final["body"]["evaluation"]["guidance"]) != mine[0]["body"]["chosen"]:
            chosen = f"guidance {mine[0]['body']['chosen']:g} was chosen"
            gaps[place] = f"{chosen}, but its evaluation {mine[0]['body']['evaluation']} sampled at {w:g}"
        else:
            picks[place], weights[place] = section_of(final), float(w)
    text = f"Each row at the guidance w that {_rule_text(main)} chose for it on independent samples."
    if len(rules) > 1 and table.rule is None:
        text += f" Other selections are in the store ({'; '.join(_rule_text(r) for r in sorted(rules) if r != main)})."
    ids = sorted(
        {
            selection["body"]["evaluation"]
            for each in found.values()
            for selection in each
            if asked(selection) == main
        }
    )
    merged = replace(_merged(family, base), ids=tuple(ids))
    return replace(merged, picks=picks, gaps=gaps, weights=weights, chosen_by=text)


# --- common to all --------------------------------------------------------------------------------------------------


def _common(family: Sequence[SectionPlan], selected: Selected, table: TableDefinition) -> SectionPlan:
    if family[0].evaluation.get("guidance") is None:
        return family[0]
    base = {key: value for key, value in family[0].evaluation.items() if key != "id"}
    if table.common_guidance is not None:
        w, text = table.common_guidance, "Guidance common to all rows, named by the report's definition."
    elif (found := _common_choice(family, selected, table)) is not None:
        w, text = found
    elif len(family) == 1:
        return family[0]
    else:
        gaps = dict.fromkeys(_places(family), "no common guidance")
        del base["guidance"]
        return replace(_merged(family, base), picks={}, gaps=gaps, chosen_by=NEEDS_COMMON)
    same = [plan for plan in family if plan.evaluation["guidance"] == w]
    plan = _merged(family, {**base, "guidance": w})
    return replace(plan, ids=same[0].ids if same else (plan.evaluation["id"],), chosen_by=text)


def _common_choice(
    family: Sequence[SectionPlan], selected: Selected, table: TableDefinition
) -> tuple[float, str] | None:
    """The candidate with the best mean over all cells, among those that every cell tried on equally many images."""
    step = max(step for _, step in _places(family)) if table.step == "last" else int(table.step)
    cells = [cell for cell, milestone in _places(family) if milestone == step]
    kind = family_id(family[0].evaluation)
    found = [selections_of(kind, cell, step, selected, table.rule) for cell in cells]
    rules = set.intersection(*({asked(s) for s in selections} for selections in found)) if found else set()
    if not rules:
        return None
    main = min(rules)
    tried = [_candidates(next(s for s in selections if asked(s) == main)) for selections in found]
    shared = set.intersection(*(set(values) for values in tried))
    better = _direction(main[1], selected, cells, step)
    if not shared or better is None:
        return None
    counts = Counter(n for n, _ in shared)
    n = max(
        counts, key=lambda count: (counts[count], count)
    )  # the stage with most candidates, then with most images
    means = {w: math.fsum(values[n, w] for values in tried) / len(tried) for count, w in shared if count == n}
    turn = {"lower": lambda v: v, "higher": lambda v: -v, "zero": abs}[better]
    w = min(means, key=lambda each: (turn(means[each]), each))
    text = (
        f"Guidance {w:g} is common to all rows: the best mean of {main[1]}, {main[2]} over them among "
        f"{len(means)} candidates ({_list(means)}) on {n} independent images each."
    )
    return w, text


def _candidates(selection: Record) -> dict[tuple[int, float], float]:
    return {
        (int(each["n"]), float(each["guidance"])): float(each["value"])
        for each in selection["body"]["candidates"]
        if each["value"] is not None
    }


def _direction(metric: str, selected: Selected, cells: Iterable[str], step: int) -> str | None:
    """Which way a metric is better, as records of these cells say."""
    for cell in cells:
        for where in selected.points.get((cell, step), []):
            for record in selected.at(cell, step, where):
                for row in record["body"]["rows"]:
                    if row["metric"] == metric and row["better"]:
                        return row["better"]
    return None


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))
