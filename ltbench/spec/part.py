"""One part of a benchmark: its tree checked against the models, the plugins and the data, and turned into a `Part`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from ltbench.errors import LtbenchError, Problem
from ltbench.protocols import (
    METRICS,
    PROTOCOLS,
    class_groups,
    extractor,
    extractors,
    guidance_problems,
    sampled_classes,
    sampler_problems,
)
from ltbench.spec import choices, models
from ltbench.spec.cells import excluded
from ltbench.spec.networks import network_names, network_problem
from ltbench.spec.problems import Path, nearest, one_line, problem, problems_of, shorten, tuples, unknown_key
from ltbench.spec.resolved import Data, MethodRow, Part, Recipe
from ltbench.spec.yaml_io import Node

OWN_AXES = ("method", "resample", "seed")


def normalise(node: Node) -> Node:
    """A copy in which every short form is written out: a lone value is a list of one, a method's name a mapping."""
    values = dict(node.value)
    if (grid := values.get("grid")) is not None and isinstance(grid.value, dict):
        axes = {axis: _axis(axis, axis_node) for axis, axis_node in grid.value.items()}
        values["grid"] = Node(axes, grid.where, grid.keys)
    if (
        (train := values.get("train")) is not None
        and isinstance(train.value, dict)
        and "milestones" in train.value
    ):
        train_values = {**train.value, "milestones": _listed(train.value["milestones"])}
        values["train"] = Node(train_values, train.where, train.keys)
    if "evaluate" in values:
        entries = _listed(values["evaluate"])
        values["evaluate"] = Node([_evaluate(entry) for entry in entries.value], entries.where)
    if "exclude" in values:
        values["exclude"] = _listed(values["exclude"])
    return Node(values, node.where, node.keys)


def _listed(node: Node) -> Node:
    return node if isinstance(node.value, list) else Node([node], node.where)


def _axis(axis: str, node: Node) -> Node:
    items = _listed(node).value
    if axis == "method":
        items = [_named(item) if isinstance(item.value, str) else item for item in items]
    if axis == "resample":
        items = [_resample(item) for item in items]
    return Node(items, node.where)


def _resample(item: Node) -> Node:
    if item.value is None or item.value == "none":
        return Node(None, item.where)
    return (
        item if isinstance(item.value, dict) else Node({"factor": item}, item.where, {"factor": item.where})
    )


def _named(item: Node) -> Node:
    return Node({"name": item}, item.where, {"name": item.where})


def _evaluate(entry: Node) -> Node:
    if not isinstance(entry.value, dict) or "guidance" not in entry.value:
        return entry
    given = entry.value["guidance"]
    if isinstance(given.value, dict):
        values = (
            {**given.value, "search": _listed(given.value["search"])}
            if "search" in given.value
            else given.value
        )
        guidance = Node(values, given.where, given.keys)
    else:
        guidance = _listed(given)
    return Node({**entry.value, "guidance": guidance}, entry.where, entry.keys)


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
        axes = self._axes()
        methods = self._methods(pipeline)
        data = self._data(axes)
        recipes = self._recipes(pipeline, axes)
        entries = self._entries(pipeline)
        evaluations = {key: self._evaluations(entries, item) for key, item in data.items()}
        self._check_batches(data, recipes)
        self._check_networks(axes, data)
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

    def _axes(self) -> dict[str, tuple[Any, ...]]:
        """Every axis but `method`, converted, in the order of listings: network, dataset, train, resample, seed."""
        grid = self.node.find(("grid",))
        found = dict(grid.value) if grid is not None and isinstance(grid.value, dict) else {}
        axes = {"network": self._networks(found)}
        for axis in sorted(a for a in found if a not in (*OWN_AXES, "network")):
            values = self._extra_axis(axis, found[axis])
            if values is not None:
                axes[axis] = values
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
        known += [f"dataset.{name}" for name in dataset.defaults] if dataset else ["dataset.KEY"]
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
        for i, value in enumerate(values):
            # Elsewhere None stands for a value that has been refused already.
            if value in values[:i] and (value is not None or axis == "resample"):
                self._add(("grid", axis, i), f"{axis} holds {shorten(value)} twice")

    # --- plugins ----------------------------------------------------------------------------------------------------

    def _methods(self, pipeline: str | None) -> tuple[MethodRow, ...]:
        listed = self.node.find(("grid", "method"))
        rows: list[MethodRow] = []
        for i, item in enumerate(listed.value if listed is not None else []):
            row, problems = choices.method_row(item, pipeline)
            self.problems += problems
            if row is None:
                continue
            twin = next((other for other in rows if other.identity == row.identity), None)
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
        for key, changed in _variants(axes, "dataset."):
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
        for key, changed in _variants(axes, "train."):
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
            for resolution in dict.fromkeys(item.resolution for item in data.values()) or [_any_size(name)]:
                found = network_problem(name, resolution)
                if found is not None:
                    self._add(path, found, suggestion=nearest(name, network_names(name)))

    # --- evaluation -------------------------------------------------------------------------------------------------

    def _entries(self, pipeline: str | None) -> list[tuple[int, models.Evaluate]]:
        """Entries of `evaluate` that are sound by themselves, with their places in the list."""
        node = self.node.find(("evaluate",))
        found = []
        for i, item in enumerate(node.value if node is not None else []):
            self._check_protocol(i, item)
            try:
                entry = models.Evaluate.model_validate(tuples(item.plain()))
            except ValidationError:
                continue  # reported with the other shapes
            given = entry.model_dump()
            wrong = sampler_problems(pipeline, given) if pipeline else []
            wrong += guidance_problems(given)
            for key, message in wrong:
                self._wrong_entry(("evaluate", i), item, key, message)
            if not wrong and entry.protocol in PROTOCOLS:
                found.append((i, entry))
        return found

    def _wrong_entry(self, path: Path, item: Node, key: str, message: str) -> None:
        """At the key where it is written, else at the entry."""
        inner = tuple(key.split(".")) if key else ()
        if inner and item.find(inner) is not None:
            self._add((*path, *inner), message)
        else:
            self._add(path, f"evaluate.{path[-1]}: {message}")

    def _check_protocol(self, index: int, item: Node) -> None:
        name = item.find(("protocol",))
        if name is not None and isinstance(name.value, str) and name.value not in PROTOCOLS:
            path = ("evaluate", index, "protocol")
            near = nearest(name.value, PROTOCOLS)
            self._add(path, f"unknown protocol '{name.value}'", allowed=", ".join(PROTOCOLS), suggestion=near)

    def _evaluations(
        self, entries: list[tuple[int, models.Evaluate]], data: Data
    ) -> tuple[dict[str, Any], ...]:
        found: list[dict[str, Any]] = []
        for i, entry in entries:
            if self._check_evaluate(("evaluate", i), entry, data):
                found += choices.evaluations(entry, data)
        for i, one in enumerate(found):
            if one in found[:i]:
                self._add(
                    ("evaluate",),
                    "holds the same evaluation twice",
                    key=True,
                    value=f"guidance {one['guidance']}",
                )
        return tuple(found)

    def _check_evaluate(self, path: Path, entry: models.Evaluate, data: Data) -> bool:
        before = len(self.problems)
        protocol = PROTOCOLS[entry.protocol]
        self._check_groups(path, entry, data)
        if len(self.problems) == before:
            self._check_samples(path, entry, data)
            self._check_search(path, entry, data)
        for i, name in enumerate(entry.metrics or ()):
            if name not in METRICS:
                near = nearest(name, METRICS)
                message = f"no metric is called '{name}'"
                self._add((*path, "metrics", i), message, allowed=", ".join(METRICS), suggestion=near)
        self._check_extractor(path, entry.extractor or protocol.extractor or data.extractor, data)
        return len(self.problems) == before

    def _check_search(self, path: Path, entry: models.Evaluate, data: Data) -> None:
        how = entry.guidance
        if not isinstance(how, models.Search):
            return
        protocol, at = PROTOCOLS[entry.protocol], (*path, "guidance")
        measured = entry.metrics or protocol.metrics
        rule = {"groups": choices.thawed_groups(entry.groups), "classes": protocol.classes}
        known = ["all", *class_groups(rule, data.counts)]
        full = entry.samples or protocol.samples
        if how.seed == entry.seed:
            message = f"the search's seed is {how.seed} like the entry's: what is chosen on the reported images flatters"
            self._add((*at, "seed") if self.node.find((*at, "seed")) else at, message)
        if how.metric not in measured:
            self._add((*at, "metric"), f"'{how.metric}' is not measured here", allowed=", ".join(measured))
        if how.group not in known:
            self._add((*at, "group"), f"there is no group '{how.group}'", allowed=", ".join(known))
        if how.samples > full:
            self._add((*at, "samples"), f"the first round has {how.samples} images, the last {full}")
        if how.keep >= len(how.search):
            message = f"keeps {how.keep} of {len(how.search)} values: nothing is left out"
            self._add((*at, "keep") if self.node.find((*at, "keep")) else at, message)

    def _check_groups(self, path: Path, entry: models.Evaluate, data: Data) -> None:
        rule = {"groups": choices.thawed_groups(entry.groups), "classes": PROTOCOLS[entry.protocol].classes}
        try:
            class_groups(rule, data.counts)
        except LtbenchError as error:
            at = (*path, "groups" if entry.groups != "thirds" else "protocol")
            self._add(at, one_line(error))

    def _check_samples(self, path: Path, entry: models.Evaluate, data: Data) -> None:
        """A protocol's own number need not be a multiple of the classes: 50,000 images of 365 classes are balanced up to one."""
        protocol = PROTOCOLS[entry.protocol]
        samples = entry.samples or protocol.samples
        classes = len(sampled_classes({"classes": protocol.classes, "groups": entry.groups}, data.counts))
        at = (*path, "samples" if entry.samples else "protocol")
        if entry.labels == "balanced" and entry.samples and samples % classes:
            self._add(at, f"{samples} samples are not a multiple of {classes} classes")
        elif entry.labels is not None and samples < 2 * classes:
            self._add(at, f"{samples} samples leave some of the {classes} classes with fewer than 2 images")

    def _check_extractor(self, path: Path, name: str, data: Data) -> None:
        try:
            extractor(name)
        except LtbenchError as error:
            self._add((*path, "extractor"), one_line(error))
            return
        known = extractors().get(name)
        if known is None or not known.datasets or data.settings["name"] in known.datasets:
            return
        message = (
            f"extractor '{name}' was made for {', '.join(known.datasets)}, not for {data.settings['name']}"
        )
        self._add((*path, "extractor"), message)

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
        wanted = [None if value == "none" else choices.frozen(value) for value in _listed(node).plain()]
        if path[-1] == "resample":
            wanted = list(map(choices.resampling, wanted))
        for value in wanted:
            if value not in values:
                self._add(
                    path, "excludes nothing", value=shorten(value), allowed=", ".join(map(shorten, values))
                )
        return tuple(wanted)


def _variants(
    axes: dict[str, tuple[Any, ...]], prefix: str
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """(values of the axes under `prefix`, what they change) for every combination; one empty combination without such axes."""
    names = [axis for axis in axes if axis.startswith(prefix)]
    for values in itertools.product(*(axes[name] for name in names)):
        yield values, {name.removeprefix(prefix): value for name, value in zip(names, values, strict=True)}


def _any_size(name: object) -> int:
    """A resolution that the network `name` accepts if it exists at all."""
    patch = str(name).partition("/")[2]
    return int(patch) if patch.isdecimal() and int(patch) else 1024
