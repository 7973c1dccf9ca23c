"""`evaluate --external`: numbers for images and weights that others made, on a benchmark's own terms."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.cli.output import dump, out, plural, say, table
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.spec.resolved import Part, Spec

# What a row has from elsewhere, and a declaration may not say.
RESERVED = ("dataset", "external", "method", "name", "kind", "sha256", "declared")
OF_SAMPLING = (
    "sampler",
    "steps",
    "guidance",
    "seed",
    "labels",
    "block",
    "search",
    "schedule",
    "guidance_channels",
    "precision",
)
_KEY = re.compile(r"[a-z][a-z0-9_]*")
Pairs = list[tuple[dict[str, Any], dict[str, Any]]]  # (data set settings, evaluation)


@dataclass(frozen=True)
class Theirs:
    """What others made: images, or the weights of a network. first: only so many images."""

    name: str
    samples: Path | None
    checkpoint: Path | None
    network: str | None
    weights: str
    family: str | None
    reference: Path | None
    first: int | None


def measure(
    benchmark: Spec,
    theirs: Theirs,
    declared: dict[str, Any],
    protocol: str | None,
    device: str | None,
    json: bool,
) -> int:
    """Measure it here and say what came of it; the exit code."""
    from ltbench.cli import stores

    house = stores.open_store(write=True)
    asked = {"device": device, "on_event": _events(theirs.name)}
    if theirs.samples is not None:
        found = of_samples(benchmark, house, theirs.name, theirs.samples, declared, protocol,
                           reference=theirs.reference, first=theirs.first, **asked)  # fmt: skip
    else:
        assert theirs.checkpoint is not None, "check"
        assert theirs.network is not None, "check"
        found = of_checkpoint(benchmark, house, theirs.name, theirs.checkpoint, declared, protocol,
                              network=theirs.network, weights=theirs.weights, family=theirs.family, **asked)  # fmt: skip
    dump([_plain(each) for each in found]) if json else _tell(theirs.name, found)
    return int(any("body" not in each for each in found))


def of_samples(
    benchmark: Spec,
    store: Any,
    name: str,
    path: Path,
    declared: Mapping[str, Any],
    protocol: str | None,
    **more: Any,
) -> list[dict[str, Any]]:
    """Measure images under every way of measuring that the benchmark has: what it says of sampling is not theirs."""
    from ltbench.cli import heavy

    pairs = _pairs(benchmark.parts, protocol)
    different = {_as_measured(dataset, evaluation): (dataset, evaluation) for dataset, evaluation in pairs}
    return heavy.call(
        "ltbench.stages.external:measure_samples", store, name, path, declared, [*different.values()], **more
    )


def of_checkpoint(
    benchmark: Spec,
    store: Any,
    name: str,
    path: Path,
    declared: Mapping[str, Any],
    protocol: str | None,
    *,
    network: str,
    **more: Any,
) -> list[dict[str, Any]]:
    """Sample from weights under every evaluation of the benchmark's parts that sample such a network."""
    from ltbench.cli import heavy
    from ltbench.protocols import sampling_text

    pipeline = "sit" if network.startswith("SiT") else "ddpm"
    parts = [part for part in benchmark.parts if part.pipeline == pipeline]
    if not parts:
        raise UsageError(
            f"{benchmark.name} has no part with the pipeline {pipeline}, which samples {network}"
        )
    pairs = []
    for dataset, evaluation in _pairs(parts, protocol):
        if "search" in evaluation:
            say(
                f"left out: {evaluation['protocol']}, {sampling_text(evaluation)}: guidance is searched for own cells only"
            )
        else:
            pairs.append((dataset, evaluation))
    if not pairs:
        raise UsageError(
            f"{benchmark.name} has no evaluation at a given guidance",
            "name one, e.g. --set evaluate.0.guidance=1.5",
        )
    return heavy.call("ltbench.stages.external:measure_checkpoint", store, name, path, declared, pairs,
                      pipeline=pipeline, network=network, **more)  # fmt: skip


def check(
    name: str,
    samples: Path | None,
    checkpoint: Path | None,
    network: str | None,
    reference: Path | None,
    n: int | None,
) -> None:
    """Raises UsageError for options that do not go together."""
    if not name.strip() or not name.isprintable() or len(name) > 80:
        raise UsageError(
            f"--external {name!r} is no name for a row", "printable text of at most 80 characters"
        )
    if (samples is None) == (checkpoint is None):
        raise UsageError("evaluate --external takes either --samples or --checkpoint")
    if checkpoint is not None and network is None:
        raise UsageError(
            "--checkpoint needs --network", "the name of its network here, e.g. --network SiT-S/2"
        )
    if checkpoint is not None and (reference is not None or n is not None):
        raise UsageError("--reference and --n go with --samples", "`sample` makes images of a cell")
    if samples is not None and network is not None:
        raise UsageError("--network goes with --checkpoint", "say it of samples by --declare network=...")


def declarations(texts: Sequence[str]) -> dict[str, Any]:
    """`--declare key=value` as a mapping; values are YAML scalars. Raises UsageError."""
    from ltbench.spec.yaml_io import scalar

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not _KEY.fullmatch(key) or not value.strip():
            raise UsageError(f"--declare {text}: expects key=value", "e.g. --declare sampler=dopri5")
        if key in RESERVED:
            raise UsageError(f"--declare {text}: '{key}' is known already and cannot be declared")
        if key in found:
            raise UsageError(f"--declare: {key} is said twice")
        try:
            found[key] = scalar(value.strip())
        except ValueError as error:
            raise UsageError(f"--declare {text}: {error}") from None
    _check_numbers(found)
    return found


def _check_numbers(declared: Mapping[str, Any]) -> None:
    for key, kinds, said in (
        ("guidance", (int, float), "a number"),
        ("steps", (int,), "a whole number"),
        ("step", (int,), "a whole number"),
        ("seed", (int,), "a whole number"),
    ):
        value = declared.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or value < 0):
            raise UsageError(f"--declare {key}={value}: {key} is {said} from 0 up")


def _pairs(parts: Sequence[Part], protocol: str | None) -> Pairs:
    """Every (data set, evaluation) of the parts, once. Raises UsageError for a protocol that none has."""
    from ltbench.canonical import canonical_json

    found: dict[bytes, tuple[dict[str, Any], dict[str, Any]]] = {}
    for part in parts:
        for key, evaluations in part.evaluations.items():
            for evaluation in evaluations:
                if "illustrate" in evaluation:
                    continue  # what is made of own milestones only
                pair = (part.data[key].settings, evaluation)
                found.setdefault(canonical_json(pair), pair)
    known = sorted({evaluation["protocol"] for _, evaluation in found.values()})
    if protocol is not None and protocol not in known:
        raise UsageError(f"--protocol {protocol}: the spec has {', '.join(known)}")
    return [pair for pair in found.values() if protocol in (None, pair[1]["protocol"])]


def _as_measured(dataset: Mapping[str, Any], evaluation: Mapping[str, Any]) -> bytes:
    """What of an evaluation matters for images that exist already."""
    from ltbench.canonical import canonical_json
    from ltbench.protocols import OPTIONS

    options = {key for taken in OPTIONS.values() for key in taken}
    left_out = {*OF_SAMPLING, *options}
    return canonical_json([dict(dataset), {k: v for k, v in evaluation.items() if k not in left_out}])


def _events(name: str) -> Any:
    from ltbench.cli import heavy

    tell = heavy.teller(name)

    def hear(event: Mapping[str, Any]) -> None:
        if event["type"] == "notice":
            say(str(event["message"]))
        elif event["type"] == "progress":
            tell(event["step"], event["total"])

    return hear


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    body = found.get("body", {})
    rows = body.get("rows")
    return {**{k: v for k, v in found.items() if k != "body"}, "rows": rows, "external": body.get("external")}


def _tell(name: str, found: Sequence[Mapping[str, Any]]) -> None:
    """The numbers of each evaluation, and what a person should know beside them."""
    for each in found:
        for note in each["notes"]:
            say(f"note: {note}")
        if "body" not in each:
            say(f"cell {each['cell'][:12]}: {each.get('message') or 'was stopped; the same command goes on'}")
            continue
        evaluation, rows = each["body"]["evaluation"], each["body"]["rows"]
        groups = list(dict.fromkeys(row["group"] for row in rows))
        word = "measured before" if each["outcome"] == "known" else "measured"
        out(f"{name} (external), {evaluation['protocol']}, {plural(evaluation['samples'], 'image')}: {word}")
        values = {(row["name"], row["group"]): row for row in rows}
        table(("metric", *groups), (
            (metric, *(_number(values.get((metric, group))) for group in groups))
            for metric in dict.fromkeys(row["name"] for row in rows)
        ))  # fmt: skip
        for reason in dict.fromkeys(row["reason"] for row in rows if row.get("reason")):
            say(f"note: no value where {reason}")
        out(f"cell {each['cell'][:12]}, evaluation {each['evaluation']}")


def _number(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    error = row.get("se")
    value = f"{row['scale'] * row['value']:.4g}"
    return value if error is None else f"{value} ± {row['scale'] * error:.2g}"
