"""`evaluate`: how milestones are sampled and measured, read from a spec, and the checks that need the pipeline or the data."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from ltbench.errors import LtbenchError, Problem
from ltbench.protocols import (
    METRICS,
    PROTOCOLS,
    UNDIRECTED,
    class_groups,
    coarse_problems,
    extractor,
    extractors,
    guidance_problems,
    sampled_classes,
    sampler_problems,
)
from ltbench.spec import choices, models
from ltbench.spec.problems import Path, nearest, one_line, problem, tuples
from ltbench.spec.resolved import Data
from ltbench.spec.yaml_io import Node


class MeasureReader:
    """Reads the entries of `evaluate` of one part. `problems` fills up; what is wrong is left out."""

    def __init__(self, part: Node) -> None:
        self.part = part
        self.problems: list[Problem] = []

    def _add(self, path: Path, message: str, *, key: bool = False, **more: str | None) -> None:
        self.problems.append(problem(self.part, path, message, key=key, **more))

    def entries(self, pipeline: str | None) -> list[tuple[int, models.Evaluate]]:
        """Entries of `evaluate` that are sound by themselves, with their places in the list."""
        node = self.part.find(("evaluate",))
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
            wrong += coarse_problems(pipeline, given) if pipeline and not wrong else []
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

    def evaluations(
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
            self._check_illustrate(path, entry, data)
        for i, name in enumerate(entry.metrics or ()):
            if name not in METRICS:
                near = nearest(name, METRICS)
                message = f"no metric is called '{name}'"
                self._add((*path, "metrics", i), message, allowed=", ".join(METRICS), suggestion=near)
        self._check_extractor(path, entry.extractor or protocol.extractor or data.extractor, data)
        return len(self.problems) == before

    def _check_search(self, path: Path, entry: models.Evaluate, data: Data) -> None:
        how = entry.search
        if how is None:
            return
        protocol, at = PROTOCOLS[entry.protocol], (*path, "search")
        measured = [kind for kind in entry.metrics or protocol.metrics if kind not in UNDIRECTED]
        rule = {"groups": choices.thawed_groups(entry.groups), "classes": protocol.classes}
        known = ["all", *class_groups(rule, data.counts)]
        full = entry.samples or protocol.samples
        if how.seed == entry.seed:
            message = f"the search's seed is {how.seed} like the entry's: what is chosen on the reported images flatters"
            self._add((*at, "seed") if self.part.find((*at, "seed")) else at, message)
        if how.metric not in measured:
            self._add(
                (*at, "metric"),
                f"'{how.metric}' is not measured here, or has no better end",
                allowed=", ".join(measured),
            )
        if how.group not in known:
            self._add((*at, "group"), f"there is no group '{how.group}'", allowed=", ".join(known))
        self._check_rounds(at, how, full)
        if how.keep >= len(how.guidance):
            message = f"keeps {how.keep} of {len(how.guidance)} values: nothing is left out"
            self._add((*at, "keep") if self.part.find((*at, "keep")) else at, message)

    def _check_rounds(self, at: Path, how: models.Search, full: int) -> None:
        """Rounds grow. One of another sampler is compared with nothing, but is there to be cheap."""
        last = how.kept_samples or full
        if how.samples > full or (how.samples > last and how.coarse is None):
            self._add(
                (*at, "samples"), f"the first round has {how.samples} images, the last {min(last, full)}"
            )
        if last > full:
            message = f"the last round has {last} images, the reported evaluation {full}"
            self._add((*at, "kept_samples"), message)

    def _check_illustrate(self, path: Path, entry: models.Evaluate, data: Data) -> None:
        if entry.illustrate is None:
            return
        at = (*path, "illustrate")
        if entry.guidance is None:
            self._add(
                at, "illustrates classes at a given guidance: name guidance, with labels and without search"
            )
        try:
            choices.shown_ids(entry.illustrate, data)
        except LtbenchError as error:
            self._add((*at, "classes") if self.part.find((*at, "classes")) else at, one_line(error))

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
