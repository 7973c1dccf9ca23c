"""Report definitions: which columns, at which step, and which figures. Strict YAML in reports/*.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ltbench.errors import Problem, SpecError
from ltbench.report.figure_kinds import KINDS, FigureDefinition
from ltbench.spec.yaml_io import Node, read_yaml

Group = Literal["all", "head", "body", "tail"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TableDefinition(_Strict):
    """Columns are metrics x groups; rows and sections come from the benchmark."""

    metrics: list[str] | None = None  # kinds in order; None: all that the records hold
    groups: list[Group] = ["all", "head", "body", "tail"]
    step: Literal["last"] | int = "last"
    decimals: dict[str, int] = {}  # of the printed value, by kind
    guidance: Literal["each", "common", "best"] = (
        "each"  # sections per value; one for all rows; each row's own
    )
    common_guidance: float | None = (
        None  # with `common`: this value; None: the best on average by the selections' candidates
    )
    rule: str | None = (
        None  # of selections, `rule` or `rule/metric/group`; None: the one that most of them went by
    )
    differences: bool = (
        False  # also tables of paired differences against the pipeline's baseline (Markdown, HTML)
    )


class Definition(_Strict):
    """One file of reports/."""

    name: str
    title: str | None = None  # None: the benchmark's
    table: TableDefinition = TableDefinition()
    figures: list[FigureDefinition] = []


def load_definition(path: Path) -> Definition:
    """Reads reports/NAME.yaml. Raises SpecError with every mistake of the file, each with its line."""
    tree = read_yaml(path)
    try:
        return Definition.model_validate(tree.plain())
    except ValidationError as error:
        raise SpecError([_problem(tree, mistake) for mistake in error.errors()]) from error


def _problem(tree: Node, mistake: Any) -> Problem:
    loc = tuple(
        part for part in mistake["loc"] if part not in KINDS
    )  # pydantic adds the tag of a union to the path
    where = tree.place(loc, key=mistake["type"] == "extra_forbidden")
    value = mistake.get("input")
    shown = None if isinstance(value, dict | list) else repr(value)
    name = ".".join(str(part) for part in loc)
    return Problem(f"{name}: {mistake['msg']}", where.file, where.line, where.column, value=shown)
