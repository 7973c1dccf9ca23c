"""Sections at the guidance that was chosen for each row, or at one common to all; by a named rule on independent samples only."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ltbench.canonical import canonical_json
from ltbench.protocols import at_guidance
from ltbench.report.axes import SectionPlan, section_title
from ltbench.report.definition import TableDefinition
from ltbench.report.identity import differing, family_id, section_id, section_of
from ltbench.report.select import Record, Selected
from ltbench.searching import coarse_text, told

WHY = "the values that a table reports flatter whatever was chosen by them"
NEEDS_BEST = f"Guidance: best is refused without records of a selection on independent samples, since {WHY}."
NEEDS_COMMON = (
    "Guidance: common is refused without common_guidance in the report's definition or selection records of every row on "
    f"independent samples, since {WHY}."
)

Asked = tuple[str, str, str]  # rule, metric, group of a selection


def arranged(plans: Sequence[SectionPlan], selected: Selected, table: TableDefinition) -> list[SectionPlan]:
    """The sections as `table.guidance` asks. `each`: as planned, a search at what it chose for each row; `best` and `common` make
    one of every family of sections that differ in nothing but their guidance. A family of one guidance for which nothing was
    chosen stays as it is."""
    if table.guidance == "each":
        return [_found(plan, selected) if _searches(plan) else plan for plan in plans]
    families: dict[tuple[str, bytes, str], list[SectionPlan]] = defaultdict(list)
    for plan in plans:
        key = plan.part, canonical_json(plan.dataset), family_id(plan.evaluation)
        families[key].append(plan)
    make = _best if table.guidance == "best" else _common
    return [make(family, selected, table) for family in families.values()]


def _searches(plan: SectionPlan) -> bool:
    return "search" in plan.evaluation


def _base(plan: SectionPlan) -> dict[str, Any]:
    """What a section's family shares."""
    return {key: value for key, value in plan.evaluation.items() if key not in ("id", "guidance", "search")}


# --- selections -----------------------------------------------------------------------------------------------------


def asked(selection: Record) -> Asked:
    """(rule, metric, group) that a selection went by."""
    body = selection["body"]
    return str(body["rule"]), str(body["metric"]), str(body["group"])


def selections_of(
    family: str, cell: str, step: int, selected: Selected, rule: str | None = None
) -> list[Record]:
    """The selections of a cell whose final evaluation is in the store and of this family, the latest first; `rule` as `rule` or
    `rule/metric/group`."""
    found = []
    for selection in selected.selections.get((cell, step), []):
        final = selected.named.get((cell, step, selection["body"]["final"]))
        if final is None:
            continue
        described = selection["body"][
            "evaluation"
        ]  # schedules may change nothing at w = 1, and be left out there
        source = described if "search" in described else final["body"]["evaluation"]
        if family_id(source) == family and rule in (
            None,
            selection["body"]["rule"],
            "/".join(asked(selection)),
        ):
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
    if len(family) == 1 and _searches(family[0]) and table.rule is None:
        return _found(family[0], selected)
    base = _base(family[0])
    found = {place: selections_of(family_id(base), *place, selected, table.rule) for place in _places(family)}
    rules = Counter(rule for selections in found.values() for rule in {asked(s) for s in selections})
    if not rules:
        if len(family) == 1:
            return family[0]
        gaps = dict.fromkeys(found, "no selection record")
        return replace(_merged(family, base), picks={}, gaps=gaps, chosen_by=NEEDS_BEST)
    main = min(rules, key=lambda rule: (-rules[rule], rule))
    chosen = {
        place: next((selection for selection in selections if asked(selection) == main), None)
        for place, selections in found.items()
    }
    gaps = {place: _unchosen(found[place], main) for place, selection in chosen.items() if selection is None}
    text = f"Each row at the guidance w that {_rule_text(main)} chose for it on independent samples."
    if len(rules) > 1 and table.rule is None:
        text += f" Other selections are in the store ({'; '.join(_rule_text(r) for r in sorted(rules) if r != main)})."
    ids = sorted({selection["body"]["final"] for selection in chosen.values() if selection})
    merged = replace(_merged(family, base), ids=tuple(ids), chosen_by=text)
    return _picked(merged, {place: s for place, s in chosen.items() if s}, gaps, selected)


def _unchosen(others: Sequence[Record], main: Asked) -> str:
    if not others:
        return "no selection record"
    rules = "; ".join(sorted(_rule_text(asked(selection)) for selection in others))
    return f"chosen by {rules}, not by {_rule_text(main)}"


def _found(plan: SectionPlan, selected: Selected) -> SectionPlan:
    """A planned search: each row at the guidance that the search of this section chose for it."""
    chosen = {}
    for place in _places([plan]):
        mine = [s for s in selected.selections.get(place, []) if s["body"]["evaluation"]["id"] in plan.ids]
        if mine:
            chosen[place] = mine[0]
    how = plan.evaluation["search"]
    text = (
        f"Each row at the guidance w that a search chose for it by {how['metric']}, {how['group']}, on images of its own (seed "
        f"{how['seed']}: {told(plan.evaluation)})."
    )
    merged = replace(_merged([plan], _base(plan)), title=plan.title, ids=plan.ids, chosen_by=text)
    return _picked(merged, chosen, {}, selected)


def _picked(
    plan: SectionPlan,
    chosen: Mapping[tuple[str, int], Record],
    gaps: Mapping[tuple[str, int], str],
    selected: Selected,
) -> SectionPlan:
    """The section with the final evaluation of every selection, or why it does not count."""
    picks, weights, reasons = {}, {}, {**gaps}
    for place, selection in chosen.items():
        body = selection["body"]
        final = selected.named.get((*place, body["final"]))
        if final is None:
            reasons[place] = (
                f"guidance {body['chosen']:g} was chosen, but its evaluation {body['final']} is not in the store"
            )
        elif (w := final["body"]["evaluation"]["guidance"]) != body["chosen"]:
            reasons[place] = (
                f"guidance {body['chosen']:g} was chosen, but its evaluation {body['final']} sampled at {w:g}"
            )
        elif texts := _strays(body, final):
            reasons[place] = f"the evaluation {body['final']} of its search has other {', '.join(texts)}"
        else:
            picks[place], weights[place] = section_of(final), float(w)
    return replace(plan, picks=picks, gaps=reasons, weights=weights)


def _strays(selection: Mapping[str, Any], final: Record) -> list[str]:
    """What a search's final evaluation has that the search did not ask for, in words."""
    described = selection["evaluation"]
    if "search" not in described:
        return []
    return differing(final["body"]["evaluation"], at_guidance(described, selection["chosen"]))


# --- common to all --------------------------------------------------------------------------------------------------


def _common(family: Sequence[SectionPlan], selected: Selected, table: TableDefinition) -> SectionPlan:
    base = _base(family[0])
    if table.common_guidance is not None:
        w, text = table.common_guidance, "Guidance common to all rows, named by the report's definition."
    elif (found := _common_choice(family, selected, table)) is not None:
        w, text = found
    elif len(family) == 1 and not _searches(family[0]):
        return family[0]
    else:
        gaps = dict.fromkeys(_places(family), "no common guidance")
        return replace(_merged(family, base), picks={}, gaps=gaps, chosen_by=NEEDS_COMMON)
    same = [plan for plan in family if plan.evaluation["guidance"] == w]
    plan = _merged(family, at_guidance(base, w))
    return replace(
        plan,
        ids=same[0].ids if same else (plan.evaluation["id"],),
        gaps=_not_there(family, w, selected),
        chosen_by=text,
    )


def _not_there(family: Sequence[SectionPlan], w: float, selected: Selected) -> dict[tuple[str, int], str]:
    """What to do about the places whose search evaluated its own choice only."""
    searched = [
        place
        for plan in family
        if _searches(plan)
        for place in _places([plan])
        if place in selected.selections
    ]
    return dict.fromkeys(
        searched,
        f"its search reports at the guidance of its own choice: evaluate SPEC --add 'guidance: {w:g}'",
    )


def _common_choice(
    family: Sequence[SectionPlan], selected: Selected, table: TableDefinition
) -> tuple[float, str] | None:
    """The candidate with the best mean over all cells, among those that every cell tried on equally many images of one sampler."""
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
    counts = Counter(stage for stage, _ in shared)
    # the round with most candidates, then with most images, then by the sampler of the table
    stage = max(counts, key=lambda each: (counts[each], each[0], not each[1]))
    means = {
        w: math.fsum(values[stage, w] for values in tried) / len(tried) for of, w in shared if of == stage
    }
    n, by = stage
    turn = {"lower": lambda v: v, "higher": lambda v: -v, "zero": abs}[better]
    w = min(means, key=lambda each: (turn(means[each]), each))
    text = (
        f"Guidance {w:g} is common to all rows: the best mean of {main[1]}, {main[2]} over them among "
        f"{len(means)} candidates ({_list(means)}) on {n} independent images each{by and f' by {by}'}."
    )
    return w, text


def _candidates(selection: Record) -> dict[tuple[tuple[int, str], float], float]:
    """((images, sampler of a coarse round or ""), guidance) -> value."""
    return {
        ((int(each["n"]), coarse_text(each)), float(each["guidance"])): float(each["value"])
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
