"""From YAML to a typed, checked benchmark. `load` reads a spec; every mistake in it is reported at once, with its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltbench.spec.resolved import Spec

__all__ = ["load", "schema"]


def load(
    path: str | Path,
    *,
    changes: Sequence[str] = (),
    methods: Sequence[str] = (),
    measures: Sequence[str] = (),
    smoke: bool = False,
) -> Spec:
    """The benchmark in `path`, with `--set` changes ("train.batch=32"), `--with` methods ("ccua", "{name: ccua, alpha: 1}") and
    `--add` evaluations ("metrics: [vendi]": every entry of `evaluate` once more, with these keys). smoke: then made small
    (`ltbench.spec.smoke`), as a benchmark of its own name.

    Raises SpecError with all its problems. `Spec.derived` holds the text of the changed spec, for the store to keep.
    """
    # Imported here: pydantic and yaml cost a twentieth of a second that `--help` must not pay.
    from ltbench.spec.loader import load_spec

    return load_spec(Path(path), changes=changes, methods=methods, measures=measures, smoke=smoke)


def schema() -> dict[str, Any]:
    """JSON schema of a spec, for editors."""
    from ltbench.spec.json_schema import spec_schema

    return spec_schema()
