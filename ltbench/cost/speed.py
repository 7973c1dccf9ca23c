"""Seconds of a training step and of an evaluation on a machine: measured there, scaled from another measurement, or estimated.

Asked in this order, for a training step: a calibration of the same settings on this device by the present code; records of the same
settings on this device; another calibration on this device, scaled by the operations of both; operations over an assumed rate.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ltbench.canonical import canonical_json
from ltbench.cost.calibrations import (
    Calibration,
    Question,
    extract_question,
    key_of,
    sample_question,
    train_question,
)
from ltbench.cost.figures import BASES, Figure, figure, total
from ltbench.cost.machine import Machine
from ltbench.cost.rates import assumed
from ltbench.cost.size import BACKWARD, Shape, depth, forward_operations
from ltbench.cost.work import (
    DOPRI5_CALLS,
    DataShape,
    data_shape,
    declared_rows,
    decode_operations,
    encode_operations,
    feature_numbers,
    padded,
    real_images,
    rows_per_call,
    rows_per_image,
)
from ltbench.protocols import sampled_in
from ltbench.searching import rounds

NEIGHBOURS = {"precision", "recall", "density", "coverage", "CT", "copied", "authenticity"}
EXTRACT = (
    11.4e9  # operations per image, of Inception: what is assumed of every extractor but the embedded ones
)
SMALL_EXTRACT = 0.05e9
FOLDS, GROUPS = 10, 4
Threaded = TypeVar("Threaded", Calibration, "Observed")


@dataclass(frozen=True)
class Observed:
    """What the records of a cell tell: seconds of a step of a question, or of a whole evaluation, on a device."""

    question: str
    device: str
    threads: int
    seconds: float
    cell: str


@dataclass
class Speeds:
    """What is known about a machine."""

    machine: Machine
    calibrations: Iterable[Calibration] = ()
    observed: Iterable[Observed] = ()
    calls: Mapping[str, float] = field(
        default_factory=dict
    )  # evaluation id -> rows per image that records tell

    def __post_init__(self) -> None:
        self._mine: dict[str, list[Calibration]] = {}
        self._here: dict[str, list[Calibration]] = {}
        self._rows: dict[bytes, float] = {}
        self._counted: dict[bytes, dict[str, Any]] = {}
        self._real: dict[str, dict[str, int]] = {}
        for each in self.calibrations:
            if self.machine.matches(each.device):
                self._mine.setdefault(each.question, []).append(each)
                self._here.setdefault(each.kind, []).append(each)
            if each.kind == "extract" and each.result.get("real"):
                self._real[each.question] = each.result["real"]
            if each.kind == "train":
                self._rows[self._method_key(each.what)] = each.result["rows"]
                self._counted[self._method_key(each.what)] = each.result
        self._seen: dict[str, list[Observed]] = {}
        for seen in self.observed:
            if self.machine.matches(seen.device):
                self._seen.setdefault(seen.question, []).append(seen)

    # --- training ----------------------------------------------------------------------------------------------------

    def step(
        self, settings: Mapping[str, Any], micro_batch: int | None = None, recompute: bool = False
    ) -> Figure:
        """One training step. With several ranks, each has its share of the batch, and talking is not counted."""
        question = train_question(settings, micro_batch, recompute)
        share = 1 / self.machine.ranks
        known = (self._measured(question, "seconds_per_step"), self._recorded(question.id, "records"))
        found = min(filter(None, known), key=lambda each: BASES.index(each.basis), default=None)
        if found is not None:
            return found if share == 1 else Figure(found.seconds * share, "scaled", _rebased(found.sources))
        operations, note = self._step_operations(settings, recompute=recompute)
        near = self._nearest(question)
        if near is not None:
            theirs, _ = self._step_operations(near.what, near.what["data"], _recomputes(near.what))
            ratio = operations / theirs * self._thread_ratio(near.threads) * share
            words = f"calibration {near.name} of {_named(near.what)} on {near.device}, by operations{note}{self._of_threads(near.threads)}"
            return figure(near.result["seconds_per_step"] * ratio, "scaled", words)
        rate = assumed(self.machine.device, settings["train"]["precision"], self.machine.threads)
        shape = data_shape(settings["dataset"]).network(settings["train"])
        least = rate.launch * depth(settings["network"], shape) * self._rows_of(settings)[0]
        seconds = max(operations * share / rate.operations, least)
        return figure(seconds, "estimated", rate.words + note)

    def _step_operations(
        self, what: Mapping[str, Any], seen: Mapping[str, int] | None = None, recompute: bool = False
    ) -> tuple[float, str]:
        """Operations of a step of a cell, or of a calibration (`seen`: its data), and a remark on the passes. recompute: there is one
        more forward pass."""
        recipe = what["train"] if seen is None else what["recipe"]
        if seen is None:
            shape = data_shape(what["dataset"]).network(recipe)
        else:
            shape = Shape(**seen, augmented=recipe.get("augment", "none") != "none")
        rows, note = self._rows_of(what)
        passes = BACKWARD + recompute
        return passes * forward_operations(what["network"], shape) * recipe["batch"] * rows, note

    def _rows_of(self, what: Mapping[str, Any]) -> tuple[float, str]:
        """Network rows per image that a method asks for."""
        known = self._rows.get(self._method_key(what))
        if known is not None:
            return known, ""
        name, rows = what["method"]["name"], declared_rows(what)
        if rows is None:
            return 1.0, f", passes of {name} not known: one"
        return rows, f", {rows:g} passes as {name} declares" if rows != 1 else ""

    @staticmethod
    def _method_key(what: Mapping[str, Any]) -> bytes:
        return canonical_json([what["pipeline"], what["method"]])

    def _nearest(self, question: Question) -> Calibration | None:
        """The training measurement on this device that is most like a question."""
        recipe = question.what["recipe"]

        def likeness(each: Calibration) -> tuple[bool, ...]:
            theirs = each.what
            return (
                theirs["network"] == question.what["network"],
                theirs["data"] == question.what["data"],
                theirs["pipeline"] == question.what["pipeline"],
                theirs["method"] == question.what["method"],
                theirs["recipe"]["batch"] == recipe["batch"],
                _recomputes(theirs) == _recomputes(question.what),
            )

        fitting = [
            each
            for each in self._here.get("train", ())
            if each.what["recipe"]["precision"] == recipe["precision"]
        ]
        return max(fitting, key=likeness, default=None)

    def encoding(self, settings: Mapping[str, Any]) -> Figure:
        """The latents of a training set, made once; no time for pixels. Not calibrated."""
        rate = assumed(self.machine.device, "fp32", self.machine.threads)
        seconds = encode_operations(data_shape(settings["dataset"])) / rate.operations
        return figure(seconds, "estimated", f"encoding: {rate.words}")

    # --- evaluation --------------------------------------------------------------------------------------------------

    def evaluation(self, settings: Mapping[str, Any], evaluation: Mapping[str, Any], id_: str) -> Figure:
        """One evaluation of one milestone: images, features and numbers, all rounds of a search included."""
        seen = self._recorded(observed_evaluation(settings, id_), "records")
        if seen is not None:
            return seen
        data = data_shape(settings["dataset"])
        parts = [self._round(settings, each, data, n, id_) for each, n in rounds(evaluation)]
        return total(parts)

    def _round(
        self, settings: Mapping[str, Any], evaluation: Mapping[str, Any], data: DataShape, n: int, id_: str
    ) -> Figure:
        images = padded(n, int(evaluation["block"]))
        rows, note = rows_per_image(evaluation), ""
        if rows is None:
            rows = self.calls.get(id_)
            if rows is None:
                rows = DOPRI5_CALLS * rows_per_call(evaluation)
                note = f", {DOPRI5_CALLS} calls of dopri5 assumed"
        return total(
            [
                self._sampling(settings, evaluation, data, images, rows, note),
                self._looking(settings, evaluation, images),
                self._numbers(evaluation, self.real(settings, evaluation), n),
            ]
        )

    def _sampling(
        self,
        settings: Mapping[str, Any],
        evaluation: Mapping[str, Any],
        data: DataShape,
        images: int,
        rows: float,
        note: str,
    ) -> Figure:
        question = sample_question(settings, evaluation)
        row, image = (self._measured(question, f"seconds_per_{what}") for what in ("row", "image"))
        if row is not None and image is not None:
            basis = "scaled" if note else row.basis
            sources = tuple((basis, source + note) for _, source in row.sources)
            return Figure(images * (rows * row.seconds + image.seconds), basis, sources)
        train = settings["train"]
        forward = forward_operations(settings["network"], data.network(train))
        precision = sampled_in(evaluation, train["precision"])
        rate = assumed(self.machine.device, precision, self.machine.threads)
        float32 = (
            "fp32" if precision == "fp32" else "tf32"
        )  # sampling.multiplying: the decoder is under no autocast
        decode = (
            decode_operations(data) / assumed(self.machine.device, float32, self.machine.threads).operations
        )
        near = self._nearest_sampling(question)
        if near is not None:
            theirs = Shape(**near.what["data"], augmented=near.what["augmented"])
            ratio = forward / forward_operations(near.what["network"], theirs)
            ratio *= self._thread_ratio(near.threads)
            words = f"calibration {near.name} of sampling with {near.what['network']} on {near.device}, by operations{note}"
            words += self._of_threads(near.threads)
            each = rows * near.result["seconds_per_row"] * ratio + near.result["seconds_per_image"] + decode
            return figure(images * each, "scaled", words)
        least = rate.launch / BACKWARD * depth(settings["network"], data.network(train)) / evaluation["block"]
        seconds = images * (rows * max(forward / rate.operations, least) + decode)
        return figure(seconds, "estimated", rate.words + note)

    def _nearest_sampling(self, question: Question) -> Calibration | None:
        what = question.what

        def likeness(each: Calibration) -> tuple[bool, ...]:
            return (
                each.what["network"] == what["network"],
                each.what["data"] == what["data"],
                each.what["pipeline"] == what["pipeline"],
                each.what["block"] == what["block"],
            )

        fitting = [c for c in self._here.get("sample", ()) if c.what["precision"] == what["precision"]]
        return max(fitting, key=likeness, default=None)

    def _looking(self, settings: Mapping[str, Any], evaluation: Mapping[str, Any], images: int) -> Figure:
        measured = self._measured(extract_question(settings, evaluation), "seconds_per_image")
        if measured is not None:
            return measured * images
        small = evaluation["extractor"]["name"].endswith("-cnn-v1")
        rate = assumed(self.machine.device, "fp32", self.machine.threads)
        each = (SMALL_EXTRACT if small else EXTRACT) / rate.operations
        return figure(images * each, "estimated", f"extractor: {rate.words}")

    def real(self, settings: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, int]:
        """Images in each set of real images: counted by a calibration anywhere, else as many as there can be."""
        counted = self._real.get(extract_question(settings, evaluation).id)
        sets = real_images(data_shape(settings["dataset"]), evaluation)
        return {name: (counted or sets).get(name, count) for name, count in sets.items()}

    def _numbers(self, evaluation: Mapping[str, Any], sets: Mapping[str, int], n: int) -> Figure:
        """Metrics from features: pairs of images for neighbours and kernels, decompositions of covariances for Frechet distances.
        No part of it is calibrated."""
        width = min(feature_numbers(evaluation["extractor"]), 2048)
        metrics = set(evaluation["metrics"])
        reference = min(sets["reference"], evaluation["estimators"].get("reference_cap") or sets["reference"])
        pairs = 2.0 * width * (n + reference) ** 2
        operations = pairs * (len(metrics & NEIGHBOURS) / 2 + 2 * bool(metrics & {"KD", "KD-subsets"}))
        if "FD" in metrics:
            operations += GROUPS * (FOLDS + 1) * 25.0 * min(width, n) * width**2
        rate = assumed(self.machine.device, "fp32", self.machine.threads)
        return figure(operations / rate.operations, "estimated", f"metrics: {rate.words}")

    def calibrated(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a calibration of a cell's training, on whatever device, counted beside the time; {} without one."""
        what = train_question(settings).what
        mine = self._counted.get(self._method_key(what))
        return mine or {}

    # --- lookup ------------------------------------------------------------------------------------------------------

    def _measured(self, question: Question, value: str) -> Figure | None:
        """A calibration of exactly this question on this device; by other code, or with other threads, it counts as scaled."""
        every = self._mine.get(question.id, ())
        fitting = [c for c in every if self._same_threads(c.threads)] or self._nearest_threads(every)
        if not fitting:
            return None
        code = question.code()
        good = [
            c for c in fitting if c.key == key_of(question.id, c.device, c.threads, code)
        ]  # the present code's
        best = (good or fitting)[-1]
        basis = "measured" if good and self._same_threads(best.threads) else "scaled"
        words = f"calibration {best.name} on {best.device}" + ("" if good else ", by older code")
        seconds = best.result[value] * self._thread_ratio(best.threads)
        return figure(seconds, basis, words + self._of_threads(best.threads))

    def _recorded(self, question: str, what: str) -> Figure | None:
        """What records tell; of another number of threads it is no measurement of this one."""
        every = self._seen.get(question, [])
        seen = [each for each in every if self._same_threads(each.threads)] or self._nearest_threads(every)
        if not seen:
            return None
        threads, count = seen[0].threads, len({s.cell for s in seen})
        words = f"{what} of {count} cell{'s' * (count > 1)} on {seen[0].device}{self._of_threads(threads)}"
        basis = "measured" if self._same_threads(threads) else "scaled"
        seconds = statistics.median(s.seconds for s in seen) * self._thread_ratio(threads)
        return figure(seconds, basis, words)

    def _same_threads(self, threads: int) -> bool:
        return self.machine.gpu or threads == self.machine.threads

    def _nearest_threads(self, found: Sequence[Threaded]) -> list[Threaded]:
        """Those of the one number of threads that is nearest to the machine's."""
        numbers = {each.threads for each in found}
        nearest = min(numbers, key=lambda n: (abs(n - self.machine.threads), -n), default=0)
        return [each for each in found if each.threads == nearest]

    def _thread_ratio(self, threads: int) -> float:
        """How many times as long as with `threads` it takes here, at most: fewer threads share the work at worst as their number
        says, and that more of them bring anything is not known before it is measured."""
        return 1.0 if self.machine.gpu else max(1.0, threads / self.machine.threads)

    def _of_threads(self, threads: int) -> str:
        """How `_thread_ratio` came about, for people; "" where the threads are the same."""
        if self._same_threads(threads):
            return ""
        own, ratio = self.machine.threads, self._thread_ratio(threads)
        how = f"taken times {ratio:g} for {own}" if ratio > 1 else f"{own} may be faster"
        return f", with {threads} thread{'s' * (threads > 1)} ({how})"


def observed_evaluation(settings: Mapping[str, Any], evaluation: str) -> str:
    """What two evaluations that take equally long have in common."""
    return f"{evaluation}/{settings['pipeline']}/{settings['network']}/{settings['train']['precision']}"


def _rebased(sources: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(("scaled", f"{source}, shared by the ranks") for _, source in sources)


def _named(what: Mapping[str, Any]) -> str:
    again = ", activations made again" if _recomputes(what) else ""
    return f"{what['method']['name']} with {what['network']}, batch {what['recipe']['batch']}{again}"


def _recomputes(what: Mapping[str, Any]) -> bool:
    """Whether a training question is of a step that makes activations again."""
    return what.get("recompute", False)
