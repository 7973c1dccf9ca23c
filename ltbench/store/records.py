"""Records: one file per evaluation or training milestone, a digested body and an envelope.

The body is what must come out the same when the work is done again; times, host and versions are in the envelope.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ltbench import files
from ltbench.canonical import canonical_json, digest
from ltbench.store import rows, sealed

NAME = re.compile(
    r"(?P<kind>[a-z]+)-(?P<step>[0-9]{9,})(-(?P<evaluation>[0-9a-f]{12}))?-(?P<sha>[0-9a-f]{16})\.json"
)

Slot = tuple[str, int, str | None, str | None]  # kind, step, evaluation, evaluation code

HEADS = (
    4096,
    65536,
)  # bytes of a record in which its code's digests mostly are; and are, whatever its classes are called
_CODE = re.compile(
    rb'"code":\{[^{}]*?"evaluation":"([0-9a-f]+)"'
)  # a body's keys are sorted: before anything like it


@dataclass(frozen=True)
class Record:
    """A verified record. `digest` is the sha256 of the canonical body."""

    path: Path
    body: dict[str, Any]
    envelope: dict[str, Any]
    digest: str

    @property
    def kind(self) -> str:
        return self.body["kind"]

    @property
    def cell(self) -> str:
        return self.body["cell"]

    @property
    def run(self) -> str:
        return self.body["run"]

    @property
    def step(self) -> int:
        return self.body["step"]

    @property
    def evaluation(self) -> str | None:
        """The evaluation's id; None for a training record."""
        return evaluation_of(self.body)

    @property
    def attempt(self) -> int:
        """The attempt that wrote it; 0 where none was told."""
        found = self.envelope.get("attempt")
        return found if isinstance(found, int) else 0

    @property
    def stage(self) -> str:
        return stage_name(self.kind, self.step, self.evaluation)

    @property
    def slot(self) -> tuple[str, int, str, str]:
        """What only one record may answer: (kind, step, evaluation id, digest of the evaluation code)."""
        return (self.kind, self.step, self.evaluation or "", str(self.evaluation_code))

    @property
    def evaluation_code(self) -> str | None:
        """Digest of the code that measured; None of training."""
        code = self.body.get("code")
        return code.get("evaluation") if isinstance(code, dict) else None


class Glimpse(NamedTuple):
    """A record by its file's name, and for an evaluation by the head of its file: not verified. For who looks at thousands.

    evaluation_code: digest of the code that measured, None of training.
    """

    place: str
    kind: str
    step: int
    evaluation: str | None
    evaluation_code: str | None

    @property
    def envelope(self) -> dict[str, Any]:
        """The whole record is read and verified for it. Raises FileNotFoundError or files.Unreadable."""
        return read_record(Path(self.place)).envelope


@dataclass(frozen=True)
class Damaged:
    """A file of the store that was skipped, and why."""

    path: Path
    reason: str


def damage(path: Path) -> list[Damaged]:
    """What is wrong with a sealed file; nothing when it is sound or absent."""
    try:
        sealed.read_sealed(path)
    except FileNotFoundError:
        return []
    except files.Unreadable as problem:
        return [Damaged(path, problem.reason)]
    return []


class Records(list[Record]):
    """The records that count, in a fixed order, and beside them those that do not.

    `damaged`: could not be trusted. `superseded`: another attempt's record of the same evaluation by the same code came
    later, or the writer had already lost its claim. `conflicts`: one attempt wrote two bodies; neither counts. `shadowed`: another
    layer of the store has a later record of the same evaluation by the same code.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        super().__init__(records)
        self.damaged: list[Damaged] = []
        self.superseded: list[Record] = []
        self.conflicts: list[Record] = []
        self.shadowed: list[Record] = []


def settle(candidates: Iterable[Record]) -> Records:
    """Apply the conflict rule: per (kind, step, evaluation, evaluation code) the latest attempt's body counts; equal bodies
    are one record; two bodies of the latest attempt are a conflict."""
    slots: dict[tuple[str, int, str, str], dict[str, Record]] = {}
    for record in sorted(candidates, key=lambda each: (each.digest, each.attempt)):
        slots.setdefault(record.slot, {})[record.digest] = (
            record  # of equal bodies the latest attempt's envelope
        )
    settled = Records()
    for slot in sorted(slots):
        records = list(slots[slot].values())
        latest = max(record.attempt for record in records)
        winners = [record for record in records if record.attempt == latest]
        (settled if len(winners) == 1 else settled.conflicts).extend(winners)
        settled.superseded.extend(record for record in records if record.attempt < latest)
    return settled


def unite(layers: Iterable[Records]) -> Records:
    """The records that count in each layer of a store as one list, whatever the order of the layers.

    Equal bodies are one record. Attempts mean something inside a layer only, so of two bodies in one slot the one that was
    finished later counts, by its own envelope, then the one of the higher digest.
    """
    slots: dict[tuple[str, int, str, str], dict[str, Record]] = {}
    whole = Records()
    for layer in layers:
        for name in ("damaged", "superseded", "conflicts"):
            getattr(whole, name).extend(getattr(layer, name))
        for record in layer:
            same = slots.setdefault(record.slot, {})
            known = same.get(record.digest)
            same[record.digest] = record if known is None else max(known, record, key=_standing)
    for slot in sorted(slots):
        *others, winner = sorted(slots[slot].values(), key=_standing)
        whole.append(winner)
        whole.shadowed.extend(others)
    return whole


def _standing(record: Record) -> tuple[float, str, bytes]:
    finished = record.envelope.get("finished")
    return (
        float(finished) if isinstance(finished, int | float) else 0.0,
        record.digest,
        canonical_json(record.envelope),
    )


def stage_name(kind: str, step: int, evaluation: str | None) -> str:
    """The stage that makes such a record: "train", or "evaluate-<step>-<evaluation id>"."""
    return kind if evaluation is None else f"evaluate-{step:09d}-{evaluation}"


def evaluation_of(body: dict[str, Any]) -> str | None:
    """The evaluation id in a body."""
    found = body.get("evaluation")
    return found.get("id") if isinstance(found, dict) else None


def record_file(body: dict[str, Any], envelope: dict[str, Any]) -> tuple[str, bytes]:
    """(name under `records/`, bytes) of a record. Raises ValueError naming a NaN's place."""
    if isinstance(body.get("rows"), rows.Rows):
        body = {**body, "rows": list(body["rows"])}
    found = sealed.checked_digest(body)
    middle = f"-{evaluation}" if (evaluation := evaluation_of(body)) else ""
    name = f"{body['kind']}-{body['step']:09d}{middle}-{found[:16]}.json"
    return name, sealed.seal({"body": body, "digest": found, "envelope": envelope})


def read_record(path: Path, *, lazy: bool = False) -> Record:
    """Raises FileNotFoundError, or files.Unreadable with the reason, for anything but a sound record in its right place.

    With `lazy` an evaluation's rows stay text until they are asked for (`rows.Rows`).
    """
    return parse_record(path, files.read_regular(path), lazy=lazy)


def parse_record(path: Path, data: bytes, *, lazy: bool = False) -> Record:
    """The record that `data` is, for the place `path`. Raises files.Unreadable with the reason."""
    try:
        value = _open(data, lazy)
        body, envelope, found = value.pop("body"), value.pop("envelope"), value.pop("digest")
        if value or not isinstance(body, dict) or not isinstance(envelope, dict):
            raise ValueError(
                "has other keys than body, digest, envelope" + "".join(f": {key}" for key in value)
            )
    except KeyError as error:
        raise files.Unreadable(path, f"has no {error}: not a record") from error
    except ValueError as error:
        raise files.Unreadable(path, str(error)) from error
    sealed.check_format(path, body)
    try:
        check_body(body)
        check_place(path, body, found)
    except ValueError as error:
        raise files.Unreadable(path, str(error)) from error
    return Record(path, body, envelope, found)


def glimpse(place: str, match: re.Match[str]) -> tuple[Slot, os.stat_result | None]:
    """What the record in the file `place` is, whose name gave `match` (of NAME), and how the file lay there before it was read; None
    where the name told everything. Raises FileNotFoundError or files.Unreadable."""
    kind, step, _, evaluation, _ = match.groups()
    if evaluation is None:
        return (kind, int(step), None, None), None
    head, found = files.read_head(place, HEADS[0])
    code = _code_in(head) or _code_in(files.read_head(place, HEADS[1])[0])
    code = code or read_record(Path(place)).evaluation_code
    return (kind, int(step), evaluation, code), found


def _code_in(head: bytes) -> str | None:
    start = head.find(b'"code":{')  # found so, long before the pattern would
    code = _CODE.search(head, start) if start >= 0 else None
    return code[1].decode() if code else None


def check_body(body: dict[str, Any]) -> None:
    """Raises ValueError when a body lacks what every reader counts on."""
    wanted: dict[str, type] = {"kind": str, "cell": str, "run": str, "step": int}
    if body.get("kind") == "evaluation":
        wanted |= {"evaluation": dict, "rows": rows.Rows if isinstance(body.get("rows"), rows.Rows) else list}
    for key, kind in wanted.items():
        if not isinstance(body.get(key), kind):
            raise ValueError(f"has a body whose {key!r} is {body.get(key)!r}, not a {kind.__name__}")
    if body["step"] < 0:
        raise ValueError(f"has the step {body['step']}")
    if body["kind"] == "evaluation" and not re.fullmatch("[0-9a-f]{12}", str(evaluation_of(body))):
        raise ValueError(f"has the evaluation id {evaluation_of(body)!r}, not 12 hex digits")


def check_place(path: Path, body: dict[str, Any], body_digest: str) -> None:
    """Raises ValueError when the file's name or directory tells another story than its body."""
    match = NAME.fullmatch(path.name)
    told = (body["kind"], body["step"], evaluation_of(body), str(body_digest)[:16])
    if match is None or (match["kind"], int(match["step"]), match["evaluation"], match["sha"]) != told:
        raise ValueError("has a name that does not fit its content")
    run = path.parent.parent
    if (run.name, run.parent.parent.name) != (body["run"], body["cell"]):
        raise ValueError(f"belongs to cell {body['cell'][:12]}, run {body['run']}: misplaced")


def _open(data: bytes, lazy: bool) -> dict[str, Any]:
    try:
        return rows.parse(sealed.verified(data)) if lazy else sealed.unseal(data)
    except ValueError:
        value = sealed.parse(data)
        # Written by another program: there is no seal, but the digest vouches for the body, and nothing for the rest.
        if set(value) != {"body", "digest", "envelope"}:
            raise
        if digest(value["body"]) != value["digest"]:
            raise ValueError("does not match its digest (sha256)") from None
        return value
