"""Report definitions: which benchmarks, which rows and columns, at which step, and which figures. Strict YAML in reports/*.yaml."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ltbench.errors import Problem, SpecError
from ltbench.metrics import naming
from ltbench.report.figure_kinds import KINDS, FigureDefinition
from ltbench.spec.yaml_io import Node, read_yaml

Group = Literal["all", "head", "body", "tail"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _known_kind(name: str) -> str:
    """The kind of a metric. Raises ValueError for another word, also for what papers call a kind."""
    if name in naming.KINDS:
        return name
    meant = [kind for kind, (said, _) in naming.RESERVED.items() if said == name]
    near = meant or difflib.get_close_matches(name, naming.KINDS, 1)
    raise ValueError(
        f"no metric is called {name!r} here; "
        + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(naming.KINDS)}")
    )


Kind = Annotated[str, AfterValidator(_known_kind)]


class TableDefinition(_Strict):
    """Columns are metrics x groups; rows and sections come from the benchmark."""

    metrics: list[Kind] | None = None  # kinds in order; None: all that the records hold
    groups: list[Group] = ["all", "head", "body", "tail"]
    step: Literal["last"] | int = "last"
    decimals: dict[Kind, int] = {}  # of the printed value, by kind
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


Selector = dict[str, str | int | float | bool | None]
"""What must be equal: settings of our cells and evaluations, or columns and variant words of a published file. null: not there."""

CITE = r"^[A-Za-z0-9._:+/-]+(,[A-Za-z0-9._:+/-]+)*$"

# Keys of a selector of ours that speak of the number, not of a setting of the cell.
VALUE_KEYS = ("metric", "group", "step", "train")
EVALUATION_KEYS = (
    "protocol",
    "sampler",
    "steps",
    "samples",
    "labels",
    "schedule",
    "guidance",
    "guidance_channels",
    "precision",
    "reference",
)
TRAIN_VALUES = ("steps_per_s", "GB_per_image")  # of a training record instead of an evaluation's


class Tolerance(_Strict):
    """How far ours may be from a published number: the larger of the two, in printed units and as a share of the published."""

    absolute: float = Field(default=0.0, ge=0)
    relative: float = Field(default=0.0, ge=0)


class SheetColumn(_Strict):
    """One printed column. Ours stands in it only where it is measured by the published weights."""

    name: str
    ours: Selector = {}
    theirs: Selector = {}
    decimals: int = Field(default=2, ge=0, le=6)
    scale: float | None = None  # printed = scale * value; None: the record's own
    better: Literal["lower", "higher"] | None = None  # known before any record is
    improvement: bool = False  # rows with `against` have the difference in parentheses
    tolerance: Tolerance | None = None  # None: no verdict

    @field_validator("ours")
    @classmethod
    def _measured(cls, ours: Selector) -> Selector:
        if "metric" in ours:
            _known_kind(str(ours["metric"]))
        return ours


class SheetRow(_Strict):
    """One printed row: the published line, ours below it, or only one of them."""

    name: str
    # a key of results/published/references.bib, or several; LaTeX takes it as it is
    cite: str | None = Field(default=None, pattern=CITE)
    ours: Selector | None = None
    theirs: Selector | None = None
    against: str | None = None  # the row whose value parentheses subtract
    reference: bool = False  # trained on other data by intent (a balanced set): shown, never ranked


class SheetBlock(_Strict):
    """Rows of one step or data set, under a title."""

    title: str = ""
    rows: list[str] | None = None  # names of those that it has; None: all
    ours: Selector = {}
    theirs: Selector = {}

    def shown(self, rows: Sequence[SheetRow]) -> list[SheetRow]:
        """Its rows, in the sheet's order."""
        return [row for row in rows if self.rows is None or row.name in self.rows]


class SheetDefinition(_Strict):
    """A table in a paper's form: blocks x rows x columns, published numbers beside ours."""

    published: str | None = None  # a file of results/published/, without .csv
    ours: Selector = {}
    theirs: Selector = {}
    blocks: list[SheetBlock] = [SheetBlock()]
    rows: list[SheetRow]
    columns: list[SheetColumn]
    baseline: str | None = None  # the row that the others' settings are held against; None: the first
    varies: list[str] = []  # settings that rows differ in by intent, besides the method's own
    bold: Literal["real", "printed"] = (
        "real"  # ours where the difference is real; published also, by their digits
    )

    @field_validator("rows", "columns")
    @classmethod
    def _names_once(cls, items: list[Any]) -> list[Any]:
        names = [item.name for item in items]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two of them are called {twice[0]!r}")
        if not items:
            raise ValueError("there is none")
        return items

    @field_validator("blocks")
    @classmethod
    def _titles_once(cls, blocks: list[SheetBlock]) -> list[SheetBlock]:
        titles = [block.title for block in blocks]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise ValueError(
                f"two blocks have the title {twice[0]!r}: a lock and a drift could not tell them apart"
            )
        return blocks

    @model_validator(mode="after")
    def _complete(self) -> SheetDefinition:
        names = [row.name for row in self.rows]
        for block in self.blocks:
            if unknown := [name for name in block.rows or () if name not in names]:
                raise ValueError(f"block {block.title!r}: {unknown[0]!r} is no row")
        if self.baseline is not None and self.baseline not in [row.name for row in self.rows]:
            raise ValueError(f"baseline {self.baseline!r} is no row")
        if self.published is None and any(row.theirs is not None for row in self.rows):
            raise ValueError("rows with `theirs` need the key 'published', a file of results/published/")
        return self

    @field_validator("rows")
    @classmethod
    def _against_rows(cls, rows: list[SheetRow]) -> list[SheetRow]:
        names = [row.name for row in rows]
        for row in rows:
            if row.against is not None and row.against not in names:
                raise ValueError(
                    f"{row.name}: against {row.against!r} is no row; rows are {', '.join(names)}"
                )
        return rows


class Definition(_Strict):
    """One file of reports/."""

    name: str
    title: str | None = None  # None: the benchmark's
    benchmark: str | list[str] | None = None  # specs whose cells it shows; None: of any, named by the caller
    table: TableDefinition = TableDefinition()
    sheet: SheetDefinition | None = None  # views print this instead of one table per evaluation
    figures: list[FigureDefinition] = []

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The specs that it names."""
        named = self.benchmark
        return () if named is None else (named,) if isinstance(named, str) else tuple(named)


def load_definition(path: Path) -> Definition:
    """Reads reports/NAME.yaml. Raises SpecError with every mistake of the file, each with its line."""
    tree = read_yaml(path)
    try:
        return Definition.model_validate(tree.plain())
    except ValidationError as error:
        raise SpecError([problem_of(tree, mistake, Definition) for mistake in error.errors()]) from error


def problem_of(tree: Node, mistake: Any, model: type[BaseModel]) -> Problem:
    """A mistake that pydantic found in a `model`, at its place in the file; an unknown key with what is allowed and meant."""
    loc = tuple(
        part for part in mistake["loc"] if part not in KINDS
    )  # pydantic adds the tag of a union to the path
    unknown = mistake["type"] == "extra_forbidden"
    of_key = loc[-1:] == ("[key]",)  # pydantic's word for the key of a mapping
    loc = loc[:-1] if of_key else loc
    where = tree.place(loc, key=unknown or of_key)
    value = mistake.get("input")
    shown = None if isinstance(value, dict | list | BaseModel) else repr(value)
    name = ".".join(str(part) for part in loc)
    found = Problem(f"{name}: {mistake['msg']}", where.file, where.line, where.column, value=shown)
    owner = _model_at(model, loc[:-1]) if unknown else None
    if owner is None:
        return found
    known = sorted(field.alias or key for key, field in owner.model_fields.items())
    near = difflib.get_close_matches(str(loc[-1]), known, 1)
    return replace(
        found,
        message=f"{name}: there is no such key",
        allowed=", ".join(known),
        suggestion=near[0] if near else None,
    )


def _model_at(model: type[BaseModel], loc: Sequence[Any]) -> type[BaseModel] | None:
    """The model at a path of keys and places below `model`; None where a union leaves it open."""
    for part in loc:
        if isinstance(part, str):
            inner = list(_models(model.model_fields[part].annotation)) if part in model.model_fields else []
            if len(inner) != 1:
                return None
            model = inner[0]
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
