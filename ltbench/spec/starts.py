"""`init`: where the weights of a cell begin, read from a spec, and the checks that need more than one value of it.

    init: {method: ddpm, step: 200000}                          # a milestone of the same cell with another method
    init: {checkpoint: ddpm.pt, sha256: ..., prior_steps: 200000}    # somebody else's weights

It stands at the top of a part, on a row of grid.method (which wins), or as the axis grid.init. A source begins nowhere unless its own
`init` says so: what is written down is a finite tree, so no cell can come to start from itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from ltbench.errors import LtbenchError, Problem, SpecError
from ltbench.files import sha256_file
from ltbench.spec import choices, models
from ltbench.spec.cells import Cell, expand_part
from ltbench.spec.problems import Path, one_line, problem, problems_of, tuples
from ltbench.spec.resolved import CellStart, Data, FileStart, Part, Recipe
from ltbench.spec.types import spell
from ltbench.spec.yaml_io import Node

Start = CellStart | FileStart
OF_A_CELL = ("method", "step", "resample", "seed", "train", "dataset", "init")
OF_A_FILE = ("checkpoint", "sha256", "weights", "family", "prior_steps")
SUFFIXES = (".pt", ".pth", ".safetensors")  # what ltbench.external reads


def normalised(node: Node) -> Node:
    """`none` as null, a method's bare name as a mapping."""
    if node.value == "none":
        return Node(None, node.where)
    if not isinstance(node.value, dict):
        return node
    values = dict(node.value)
    if (method := values.get("method")) is not None and isinstance(method.value, str):
        values["method"] = Node({"name": method}, method.where, {"name": method.where})
    if (below := values.get("init")) is not None:
        values["init"] = normalised(below)
    if (resample := values.get("resample")) is not None and resample.value == "none":
        values["resample"] = Node(None, resample.where)
    return Node(values, node.where, node.keys)


class StartReader:
    """Reads the starts of one part. `problems` fills up; what is wrong gives None."""

    def __init__(self, part: Node, pipeline: str | None) -> None:
        self.part, self.pipeline = part, pipeline
        self.problems: list[Problem] = []

    def _add(self, path: Path, message: str, *, key: bool = False, **more: str | None) -> None:
        self.problems.append(problem(self.part, path, message, key=key, **more))

    # --- one start --------------------------------------------------------------------------------------------------

    def read(self, path: Path) -> Start | None:
        """The start written at `path`, without the source's data and recipes; None for `none` and for a wrong one."""
        node = self.part.find(path)
        if node is None or node.value is None:
            return None
        if not isinstance(node.value, dict):
            self._add(path, "init expects none or a mapping", value=spell(node.plain()))
            return None
        if "network" in node.value:
            message = "init cannot name another network: weights pass between cells of one network, tensor by tensor"
            self._add((*path, "network"), message, key=True)
            return None
        try:
            given = models.Init.model_validate(tuples(node.plain()))
        except ValidationError as error:
            self.problems += [_nicer(found) for found in problems_of(error, models.Init, self.part, path)]
            return None
        if not self._one_kind(path, node):
            return None
        return self._file(path, given) if given.checkpoint is not None else self._cell(path, node, given)

    def _one_kind(self, path: Path, node: Node) -> bool:
        """Exactly the keys of a cell, or exactly those of a file."""
        is_file = "checkpoint" in node.value
        foreign, wanted = (OF_A_CELL, OF_A_FILE) if is_file else (OF_A_FILE, OF_A_CELL)
        this, other = ("a file", "a cell") if is_file else ("a cell", "a file")
        before = len(self.problems)
        for key in foreign:
            if key in node.value:
                allowed = ", ".join((*wanted, "classes"))
                self._add(
                    (*path, key),
                    f"init starts from {this}, and {key} is of {other}",
                    key=True,
                    allowed=allowed,
                )
        needed = ("checkpoint", "sha256", "prior_steps") if is_file else ("method", "step")
        missing = [key for key in needed if key not in node.value or node.value[key].value is None]
        if missing:
            message = f"an init from {this} needs {' and '.join(missing)}"
            if not is_file and "method" in missing:
                message += "; one from a file needs checkpoint, sha256 and prior_steps"
            self._add(path, message)
        return len(self.problems) == before

    def _file(self, path: Path, given: models.Init) -> FileStart | None:
        assert given.checkpoint is not None, "asked before"
        assert given.sha256 is not None, "asked before"
        if not given.checkpoint.endswith(SUFFIXES):
            self._add(
                (*path, "checkpoint"),
                "this is no weights file",
                value=given.checkpoint,
                allowed=", ".join(SUFFIXES),
            )
            return None
        sha = given.sha256.lower()
        return FileStart(
            label=f"file {sha[:8]}@{given.prior_steps}"
            + _said({"weights": given.weights, "family": given.family}, given),
            classes=given.classes,
            where=self.part.place((*path, "checkpoint")),
            path=given.checkpoint,
            sha256=sha,
            weights=given.weights,
            family=given.family,
            prior_steps=given.prior_steps or 0,
        )

    def _cell(self, path: Path, node: Node, given: models.Init) -> CellStart | None:
        before = len(self.problems)
        method, problems = choices.method_row(node.value["method"], self.pipeline)
        self.problems += problems
        if "init" in node.value["method"].value:
            self._add(
                (*path, "method", "init"),
                "the source's own start is init.init, not init.method.init",
                key=True,
            )
        if "seed" in node.value and given.seed is None:
            self._add((*path, "seed"), "seed expects a whole number")
        self._check_train(path, node.value.get("train"))
        below = self.read((*path, "init"))
        if method is None or given.step is None or len(self.problems) > before:
            return None
        axes = {key: node.value[key].value for key in ("resample", "seed") if key in node.value}
        differs = {**axes, **{f"train.{k}": v for k, v in given.train.items()}}
        differs |= {f"dataset.{k}": v for k, v in given.dataset.items()}
        differs["init"] = None if below is None else f"[{below.label}]"
        return CellStart(
            label=f"{method.label}@{given.step}" + _said(differs, given),
            classes=given.classes,
            where=self.part.place((*path, "step")),
            step=given.step,
            method=method,
            axes=axes,
            below=below,
        )

    def _check_train(self, path: Path, node: Node | None) -> None:
        """Each key by itself; whether the sizes fit each other is asked with the rest of the recipe."""
        if node is None or not isinstance(node.value, dict):
            return
        known = ("preset", *models.SETTINGS)
        for key in node.value:
            if key not in known:
                message = f"init.train cannot set {key}: only what decides the source's weights"
                self._add((*path, "train", key), message, key=True, allowed=", ".join(known))
                continue
            try:
                models.Train.model_validate({"milestones": (1,), key: tuples(node.value[key].plain())})
            except ValidationError as error:
                self.problems += problems_of(error, models.Train, self.part, (*path, "train"))

    # --- the source's data and recipe -------------------------------------------------------------------------------

    def complete(
        self,
        start: Start | None,
        path: Path,
        axes: Mapping[str, tuple[Any, ...]],
        data: Mapping[tuple[Any, ...], Data],
        inherited: Mapping[tuple[Any, ...], Data] | None = None,
    ) -> Start | None:
        """The start with what its source trains on and how, where that differs; and whether classes can be kept."""
        if not isinstance(start, CellStart):
            return start
        node = self.part.find(path)
        assert node is not None, "the start was read from it"
        inherited = data if inherited is None else inherited
        sets = self._data((*path, "dataset"), node, axes) if "dataset" in node.value else None
        recipes = self._recipes((*path, "train"), node, axes) if "train" in node.value else None
        if start.classes == "keep" and sets is not None:
            self._check_classes(path, sets, inherited)
        below = self.complete(start.below, (*path, "init"), axes, data, sets or inherited)
        return replace(start, data=sets, recipes=recipes, below=below)

    def _recipes(
        self, path: Path, node: Node, axes: Mapping[str, tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], Recipe]:
        given = tuples(node.value["train"].plain())
        found = {}
        for key, changed in choices.variants(axes, "train."):
            if self.pipeline is None or self.part.find(("train",)) is None:
                continue
            recipe, problems = choices.recipe(self.part, self.pipeline, {**changed, **given})
            self.problems += [
                replace(p, **_at(self.part, path), message=f"init.train: {p.message}") for p in problems
            ]
            if recipe is not None:
                found[key] = recipe
        return found

    def _data(
        self, path: Path, node: Node, axes: Mapping[str, tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], Data]:
        own, base = node.value["dataset"], self.part.find(("dataset",))
        if base is None or not isinstance(base.value, dict) or not isinstance(own.value, dict):
            return {}
        other = "name" in own.value and own.value["name"].value != base.value.get("name", own).value
        item = own if other else Node({**base.value, **own.value}, own.where, {**base.keys, **own.keys})
        plugin, problems = choices.plugin_at("datasets", item)
        given: dict[str, Any] = {}
        if plugin is not None:
            given, more = choices.parameters(plugin, item, "data set")
            problems = problems + more
        self.problems += problems
        found = {}
        for key, changed in choices.variants(axes, "dataset."):
            if plugin is None or problems:
                break
            kept = {} if other else {name: value for name, value in changed.items() if name not in own.value}
            try:
                found[key] = choices.read_data(plugin, {**given, **kept})
            except LtbenchError as error:
                self._add(path, f"init.dataset: {one_line(error)}")
        return found

    def _check_classes(
        self, path: Path, sets: Mapping[tuple[Any, ...], Data], data: Mapping[tuple[Any, ...], Data]
    ) -> None:
        for key, source in sets.items():
            if key in data and source.classes != data[key].classes:
                message = (
                    f"classes: keep needs the classes of the source ({len(source.classes)}) to be those of the cell "
                    f"({len(data[key].classes)}), by name and order"
                )
                self._add(path, message, allowed="classes: mean, classes: fresh")


def _said(values: Mapping[str, Any], given: models.Init) -> str:
    """What a label tells beside the source: whatever is not a default."""
    said = {
        key: value
        for key, value in values.items()
        if value is not None and (key, value) != ("weights", "ema")
    }
    said |= {"resample": "none"} if "resample" in values and values["resample"] is None else {}
    said |= {} if given.classes == "keep" else {"classes": given.classes}
    return f" ({', '.join(f'{key}={spell(value)}' for key, value in said.items())})" if said else ""


def _nicer(found: Problem) -> Problem:
    """A pattern is no message."""
    if "pattern" not in found.message:
        return found
    return replace(found, message="sha256 expects the 64 hexadecimal digits that `sha256sum FILE` prints")


def _at(node: Node, path: Path) -> dict[str, Any]:
    where = node.place(path)
    return {"file": where.file, "line": where.line, "column": where.column}


# --- checks over a whole benchmark ------------------------------------------------------------------------------------


def step_problems(parts: Iterable[Part]) -> list[Problem]:
    """Steps that are no milestone of their source, for sources that are cells of the benchmark themselves."""
    parts = list(parts)
    if not any(part.starts or any(row.starts for row in part.methods) for part in parts):
        return []
    cells = [cell for part in parts for cell in expand_part(part)]
    kept: dict[str, set[int]] = {}
    for cell in cells:
        kept.setdefault(cell.id, set()).update(cell.milestones)
    found = []
    for source in (cell.source for cell in cells):
        while source is not None:
            if source.cell.id in kept and source.step not in kept[source.cell.id]:
                message = f"init: step {source.step} is no milestone of {source.cell.label}, a cell of this benchmark"
                steps = ", ".join(map(str, sorted(kept[source.cell.id])))
                where = source.where
                found.append(Problem(message, where.file, where.line, where.column, allowed=steps))
            source = source.cell.source
    return list(dict.fromkeys(found))


def check_files(cells: Iterable[Cell], sha256: Callable[[FilePath], tuple[str, int]] = sha256_file) -> None:
    """Whether the checkpoint files that cells start from are here and are the ones named. Raises SpecError with all problems.

    Asked before work is planned, not when a spec is read: a report needs no file, and hashing takes a second per gigabyte.
    """
    files = {(start.path, start.sha256): start for cell in cells for start in _files_of(cell)}
    problems = []
    for start in files.values():
        path, where = start.located(), start.where
        at = {"file": where.file, "line": where.line, "column": where.column}
        if not path.is_file():
            message = "init.checkpoint: there is no such file, neither in LTBENCH_DATA nor here"
            problems.append(Problem(message, **at, value=start.path))
        elif (found := sha256(path)[0]) != start.sha256:
            problems.append(
                Problem(f"init.checkpoint: {path} has sha256 {found}", **at, allowed=start.sha256)
            )
    if problems:
        raise SpecError(problems)


def _files_of(cell: Cell) -> Iterator[FileStart]:
    while cell.source is not None:
        cell = cell.source.cell
    if cell.file is not None:
        yield cell.file
