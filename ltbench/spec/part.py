"""One part of a benchmark: its tree checked against the models, the plugins and the data, and turned into a `Part`."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from ltbench.errors import LtbenchError, Problem
from ltbench.spec import choices, models
from ltbench.spec.cells import excluded
from ltbench.spec.measures import MeasureReader
from ltbench.spec.networks import network_names, network_problem
from ltbench.spec.problems import Path, nearest, one_line, problem, problems_of, shorten, tuples, unknown_key
from ltbench.spec.resolved import Data, MethodRow, Part, Recipe
from ltbench.spec.short_forms import listed
from ltbench.spec.starts import Start, StartReader
from ltbench.spec.yaml_io import Node

OWN_AXES = ("method", "init", "resample", "seed")


class PartReader:
    """Reads one part. `problems` fills up; `read` gives None as soon as there is one."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.problems: list[Problem] = []
        self.bad: set[str] = set()  # sections that the models refused

    def read(self) -> Part | None:
        """The part, or None with `problems` saying why."""
        self._check_models()
        pipeline = None if "pipeline" in self.bad else self.node.value["pipeline"].value
        self.start_reader = StartReader(self.node, pipeline)
        starts = self._starts()
        axes = self._axes(tuple(start.label if start else None for start in starts.values()))
        methods = self._methods(pipeline)
        data = self._data(axes)
        recipes = self._recipes(pipeline, axes)
        measures = MeasureReader(self.node)
        entries = measures.entries(pipeline)
        starts, methods = self._completed(starts, methods, axes, data)
        evaluations = {key: measures.evaluations(entries, item) for key, item in data.items()}
        self.problems += measures.problems
        self._check_batches(data, recipes)
        self._check_networks(axes, data)
        self._check_latents(data, recipes)
        exclude = self._exclude(axes, methods) if not self.bad & {"grid", "exclude"} else ()
        if self.problems or pipeline is None:
            return None
        plain = self.node.plain()
        part = Part(
            name=str(plain.get("name")),
            title=plain.get("title"),
            pipeline=pipeline,
            axes={"method": tuple(range(len(methods))), **axes},
            methods=methods,
            recipes=recipes,
            data=data,
            evaluations=evaluations,
            exclude=exclude,
            starts={start.label if start else None: start for start in starts.values()},
        )
        return None if self.problems else part

    def _add(self, path: Path, message: str, *, key: bool = False, **more: str | None) -> None:
        self.problems.append(problem(self.node, path, message, key=key, **more))

    # --- shapes -----------------------------------------------------------------------------------------------------

    def _check_models(self) -> None:
        try:
            # The name was checked with the benchmark's own; a bad one is not reported twice.
            models.Part.model_validate({**tuples(self.node.plain()), "name": "part"})
        except ValidationError as error:
            self.problems += problems_of(error, models.Part, self.node)
            self.bad = {str(detail["loc"][0]) for detail in error.errors()}

    def _axes(self, starts: tuple[str | None, ...]) -> dict[str, tuple[Any, ...]]:
        """Every axis but `method`, converted, in the order of listings: network, dataset, train, init, resample, seed."""
        grid = self.node.find(("grid",))
        found = dict(grid.value) if grid is not None and isinstance(grid.value, dict) else {}
        axes = {"network": self._networks(found)}
        for axis in sorted(a for a in found if a not in (*OWN_AXES, "network")):
            values = self._extra_axis(axis, found[axis])
            if values is not None:
                axes[axis] = values
        if starts:
            axes["init"] = starts
        for axis, default in (("resample", (None,)), ("seed", (0,))):
            axes[axis] = tuple(n.plain() for n in found[axis].value) if axis in found else default
        axes["resample"] = tuple(map(choices.resampling, axes["resample"]))
        for axis, values in axes.items():
            self._check_twice(axis, values)
        return axes

    def _networks(self, found: dict[str, Node]) -> tuple[Any, ...]:
        if "network" in found:
            return tuple(item.plain() for item in found["network"].value)
        own = self.node.find(("network",))
        if own is None:
            self._add((), "the benchmark needs the key 'network'")
        return () if own is None else (own.plain(),)

    def _extra_axis(self, axis: str, node: Node) -> tuple[Any, ...] | None:
        section, _, key = axis.partition(".")
        before = len(self.problems)
        if not node.value:
            self._add(("grid", axis), f"{axis} is empty; it needs at least one value", key=True)
        values: tuple[Any, ...] | None = None
        if section == "train" and (key in models.SETTINGS or key == "preset"):
            values = tuple(self._train_value(axis, key, i) for i in range(len(node.value)))
        if section == "dataset" and key and key != "name":
            values = tuple(self._dataset_value(axis, key, i) for i in range(len(node.value)))
        if values is not None:
            return values if len(self.problems) == before else None
        dataset = choices.plugin_of("datasets", self.node.find(("dataset", "name")))
        known = [*OWN_AXES, "network", "train.preset", *(f"train.{key}" for key in models.SETTINGS)]
        known += (
            [f"dataset.{name}" for name in (*dataset.defaults, "latents")] if dataset else ["dataset.KEY"]
        )
        self.problems.append(unknown_key(self.node, ("grid", axis), "grid", known))
        return None

    def _train_value(self, axis: str, key: str, index: int) -> Any:
        path = ("grid", axis, index)
        node = self.node.find(path)
        assert node is not None, "the index comes from the list itself"
        try:
            model = models.Train.model_validate({"milestones": (1,), key: tuples(node.plain())})
        except ValidationError as error:
            for found in problems_of(error, models.Train, Node({key: node}, node.where, {key: node.where})):
                self.problems.append(found)
            return None
        return getattr(model, key)

    def _dataset_value(self, axis: str, key: str, index: int) -> Any:
        node = self.node.find(("grid", axis, index))
        assert node is not None, "the index comes from the list itself"
        plugin = choices.plugin_of("datasets", self.node.find(("dataset", "name")))
        if plugin is None:
            return node.plain()  # the unknown data set is reported where it is named
        item = Node({"name": Node(plugin.name, node.where), key: node}, node.where, {key: node.where})
        given, problems = choices.parameters(plugin, item, "data set")
        self.problems += problems
        return choices.frozen(given.get(key))

    def _check_twice(self, axis: str, values: tuple[Any, ...]) -> None:
        with contextlib.suppress(TypeError):  # a mapping has no hash
            if len(set(values)) == len(values):
                return
        for i, value in enumerate(values):
            # None stands for a value that has been refused already, unless it is written there.
            written = self.node.find(("grid", axis, i))
            if value in values[:i] and (value is not None or (written is not None and written.value is None)):
                self._add(("grid", axis, i), f"{axis} holds {shorten(value)} twice")

    # --- starts -----------------------------------------------------------------------------------------------------

    def _starts(self) -> dict[Path, Start | None]:
        """Where cells begin, by the place where it is written: the axis if there is one, else the part's own; empty without either."""
        axis = self.node.find(("grid", "init"))
        paths: list[Path] = [("grid", "init", i) for i in range(len(axis.value))] if axis is not None else []
        if not paths and self.node.find(("init",)) is not None:
            paths = [("init",)]
        if axis is not None and not paths:
            self._add(("grid", "init"), "init is empty; it needs at least one value", key=True)
        found = {path: self.start_reader.read(path) for path in paths}
        self._take_start_problems()
        return found

    def _row_start(self, path: Path, row: MethodRow) -> MethodRow:
        """The row with its own start, if it has one."""
        if self.node.find((*path, "init")) is None:
            return row
        if self.node.find(("grid", "init")) is not None:
            message = "a method has its own init while grid.init is an axis: say it in one of the two places"
            self._add((*path, "init"), message, key=True)
        start = self.start_reader.read((*path, "init"))
        self._take_start_problems()
        head, _, inner = row.label.removesuffix(")").partition(" (")
        said = f"init={start.label if start else 'none'}"
        label = f"{head} ({', '.join([inner, said] if inner else [said])})"
        return replace(row, label=label, starts=True, start=start)

    def _completed(
        self,
        starts: dict[Path, Start | None],
        methods: tuple[MethodRow, ...],
        axes: dict[str, tuple[Any, ...]],
        data: dict[tuple[Any, ...], Data],
    ) -> tuple[dict[Path, Start | None], tuple[MethodRow, ...]]:
        """All starts with the data and recipes of their sources, once those of the part are known."""
        complete = self.start_reader.complete
        starts = {path: complete(start, path, axes, data) for path, start in starts.items()}
        if any(row.starts for row in methods) and not self.problems:  # rows and their places still correspond
            paths: list[Path] = [("grid", "method", i, "init") for i in range(len(methods))]
            methods = tuple(
                replace(row, start=complete(row.start, path, axes, data))
                for row, path in zip(methods, paths, strict=True)
            )
        self._take_start_problems()
        return starts, methods

    def _take_start_problems(self) -> None:
        self.problems += self.start_reader.problems
        self.start_reader.problems = []

    # --- plugins ----------------------------------------------------------------------------------------------------

    def _methods(self, pipeline: str | None) -> tuple[MethodRow, ...]:
        listed = self.node.find(("grid", "method"))
        rows: list[MethodRow] = []
        for i, item in enumerate(listed.value if listed is not None else []):
            row, problems = choices.method_row(item, pipeline)
            self.problems += problems
            if row is None:
                continue
            row = self._row_start(("grid", "method", i), row)
            twin = next((other for other in rows if _same_row(other, row)), None)
            if twin is not None:
                self._add(
                    ("grid", "method", i),
                    f"'{row.label}' has the settings of '{twin.label}': the same cells twice",
                )
            rows.append(row)
        return tuple(rows)

    def _data(self, axes: dict[str, tuple[Any, ...]]) -> dict[tuple[Any, ...], Data]:
        node = self.node.find(("dataset",))
        if node is None or not isinstance(node.value, dict):
            return {}
        plugin, problems = choices.plugin_at("datasets", node)
        given: dict[str, Any] = {}
        if plugin is not None:
            given, more = choices.parameters(plugin, node, "data set")
            problems += more
        self.problems += problems
        if plugin is None or problems:
            return {}
        found = {}
        for key, changed in choices.variants(axes, "dataset."):
            try:
                found[key] = choices.read_data(plugin, {**given, **changed})
            except LtbenchError as error:
                self._data_problem(error, changed)
        return found

    def _data_problem(self, error: LtbenchError, changed: dict[str, Any]) -> None:
        """At the parameter that the message speaks of, where it is written."""
        node = self.node.find(("dataset",))
        assert node is not None, "the data set was read from it"
        spoken = [key for key in (*changed, *node.value) if key != "name" and key in error.message]
        path: Path = ("dataset",)
        if spoken and spoken[0] in changed:
            axis = f"dataset.{spoken[0]}"
            values = self.node.find(("grid", axis))
            assert values is not None, "the variant came from this axis"
            index = [choices.frozen(v) for v in values.plain()].index(changed[spoken[0]])
            path = ("grid", axis, index)
        elif spoken:
            path = ("dataset", spoken[0])
        self._add(path, one_line(error))

    # --- training ---------------------------------------------------------------------------------------------------

    def _recipes(
        self, pipeline: str | None, axes: dict[str, tuple[Any, ...]]
    ) -> dict[tuple[Any, ...], Recipe]:
        node = self.node.find(("train",))
        if node is None or "train" in self.bad or pipeline is None:
            return {}
        found = {}
        for key, changed in choices.variants(axes, "train."):
            recipe, problems = choices.recipe(self.node, pipeline, changed)
            self.problems += problems
            if recipe is not None:
                found[key] = recipe
        return found

    def _check_batches(
        self, data: dict[tuple[Any, ...], Data], recipes: dict[tuple[Any, ...], Recipe]
    ) -> None:
        smallest = min((sum(item.counts) for item in data.values()), default=None)
        for recipe in recipes.values():
            batch = recipe.settings["batch"]
            if smallest is not None and batch > smallest:
                path = ("train", "batch") if self.node.find(("train", "batch")) else ("train",)
                self._add(
                    path,
                    f"batch {batch} is larger than the training data",
                    allowed=f"at most {smallest} images",
                )

    def _check_networks(self, axes: dict[str, tuple[Any, ...]], data: dict[tuple[Any, ...], Data]) -> None:
        axis = self.node.find(("grid", "network"))
        for i, name in enumerate(axes["network"]):
            path: Path = ("grid", "network", i) if axis else ("network",)
            if not isinstance(name, str):
                if axis:
                    self._add(path, "network expects text", value=shorten(name))
                continue
            # Without data the name can still be checked: for a size that suits every network.
            for resolution in dict.fromkeys(item.side for item in data.values()) or [_any_size(name)]:
                found = network_problem(name, resolution)
                if found is not None:
                    self._add(path, found, suggestion=nearest(name, network_names(name)))

    def _check_latents(
        self, data: dict[tuple[Any, ...], Data], recipes: dict[tuple[Any, ...], Recipe]
    ) -> None:
        """Latents are encoded once: what moves pixels at every step is refused beside them."""
        name = next((item.latents for item in data.values() if item.latents), None)
        moved = {recipe.settings["augment"] for recipe in recipes.values()} - {"none"}
        if name is None or not moved:
            return
        paths: tuple[Path, ...] = (("train", "augment"), ("grid", "train.augment"), ("train",))
        path = next(path for path in paths if self.node.find(path))
        self._add(
            path,
            f"augment: {', '.join(sorted(moved))} moves the pixels of every batch, and latents ({name}) are encoded once",
            key=True,
            allowed="augment: none with latents, or a benchmark of its own on pixels",
        )

    # --- exclusions -------------------------------------------------------------------------------------------------

    def _exclude(
        self, axes: dict[str, tuple[Any, ...]], methods: tuple[MethodRow, ...]
    ) -> tuple[dict[str, Any], ...]:
        node = self.node.find(("exclude",))
        entries = []
        for i, item in enumerate(node.value if node is not None else []):
            entry: dict[str, Any] = {}
            for key, value in item.value.items():
                path = ("exclude", i, key)
                if key == "method":
                    entry[key] = self._excluded_methods(path, value, methods)
                elif key in axes:
                    entry[key] = self._excluded_values(path, value, axes[key])
                else:
                    self.problems.append(unknown_key(self.node, path, "exclude", ["method", *axes]))
            if not item.value:
                self._add(("exclude", i), "an exclusion names at least one axis and its value")
            entries.append(entry)
        combinations = (
            dict(zip(("method", *axes), values, strict=True))
            for values in itertools.product(range(len(methods)), *axes.values())
        )
        if entries and not self.problems and all(any(excluded(e, c) for e in entries) for c in combinations):
            self._add(("exclude",), "no cell is left", key=True)
        return tuple(entries)

    def _excluded_methods(self, path: Path, node: Node, methods: tuple[MethodRow, ...]) -> tuple[int, ...]:
        chosen: list[int] = []
        for wanted in node.plain() if isinstance(node.value, list) else [node.plain()]:
            fields = wanted if isinstance(wanted, dict) else {"name": wanted}
            found = [
                i
                for i, row in enumerate(methods)
                if fields.items() <= row.settings.items() or wanted == row.label
            ]
            if not found and len(methods) == len(self.node.find(("grid", "method")).value):  # pyright: ignore[reportOptionalMemberAccess]
                rows = [row.label for row in methods]
                near = nearest(fields.get("name"), rows)
                self._add(
                    path,
                    "excludes no method",
                    value=shorten(wanted),
                    allowed=", ".join(rows),
                    suggestion=near,
                )
            chosen += found
        return tuple(chosen)

    def _excluded_values(self, path: Path, node: Node, values: tuple[Any, ...]) -> tuple[Any, ...]:
        wanted = [None if value == "none" else choices.frozen(value) for value in listed(node).plain()]
        if path[-1] == "resample":
            wanted = list(map(choices.resampling, wanted))
        for value in wanted:
            if value not in values:
                self._add(
                    path, "excludes nothing", value=shorten(value), allowed=", ".join(map(shorten, values))
                )
        return tuple(wanted)


def _same_row(one: MethodRow, other: MethodRow) -> bool:
    """Whether two rows mean the same cells."""
    starts = [(row.starts, row.start.label if row.start else None) for row in (one, other)]
    return one.identity == other.identity and starts[0] == starts[1]


def _any_size(name: object) -> int:
    """A resolution that the network `name` accepts if it exists at all."""
    patch = str(name).partition("/")[2]
    return int(patch) if patch.isdecimal() and int(patch) else 1024
