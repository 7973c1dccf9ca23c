"""`submit --plan FILE`: a plan that was looked at is what is submitted. Where the world changed since, nothing is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.cli.output import plural
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.plan import Plan
    from ltbench.spec.cells import Cell

SHOWN = 8  # differences that are printed
_Key = tuple[str, str]  # part and cell: a cell may be wanted by several parts
_MAKE = "make it with `plan SPEC --json > FILE`, with the same --filter, --set and --with"
_AGAIN = "look at `plan` again, or leave --plan out"


def code(cells: Iterable[Cell]) -> dict[str, list[str]]:
    """The code that trains and evaluates these cells: component and name -> its digests (one, but of starts)."""
    from ltbench import provenance

    found: dict[str, set[str]] = {}
    for settings in (cell.settings for cell in cells):
        for part, entry in provenance.train_code(settings).items():
            key = {"method": "method", "data": "dataset"}.get(part)
            name = f"{part} {settings[key]['name']}" if key in settings else part
            found.setdefault(name, set()).add(entry["digest"])
    for part, entry in provenance.evaluation_code().items():
        found[part] = {entry["digest"]}
    return {name: sorted(digests) for name, digests in sorted(found.items())}


def refuse_changed(found: Plan, path: Path) -> None:
    """Compare cells, code, states and what is due with the plan in `path`. Raises UsageError, which names what changed."""
    agreed = _read(path)
    if agreed["benchmark"] != found.spec.name:
        raise UsageError(f"{path} is a plan of {agreed['benchmark']!r}, not of {found.spec.name!r}", _MAKE)
    is_now = code(planned.cell for planned in found.cells)
    if changed := [part for part, digests in is_now.items() if agreed["code"].get(part, digests) != digests]:
        raise UsageError(
            f"code changed since {path} was made ({', '.join(changed)}); nothing was submitted", _AGAIN
        )
    before, now = _by_key(agreed["cells"]), _by_key(found.json()["cells"])
    changes = [line for key in {**before, **now} if (line := _change(before.get(key), now.get(key)))]
    if changes:
        more = [f"and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
        lines = "".join(f"\n  {line}" for line in changes[:SHOWN] + more)
        raise UsageError(
            f"{plural(len(changes), 'cell')} changed since {path} was made; nothing was submitted:{lines}",
            _AGAIN,
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
        _by_key(value["cells"])
        if not isinstance(value["benchmark"], str) or not isinstance(value["code"], dict):
            raise TypeError
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror}", _MAKE) from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is not a plan", _MAKE) from None
    return value


def _by_key(cells: list[dict[str, Any]]) -> dict[_Key, dict[str, Any]]:
    return {
        (cell["part"], cell["cell"]): {
            "label": cell["label"],
            "state": cell["state"],
            "due": [due["stage"] for due in cell["due"]],
        }
        for cell in cells
    }


def _change(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str | None:
    """One line on a cell that is not as it was planned; None where it is."""
    if before is None or now is None:
        known = before or now or {}
        return f"{known['label']}: {'not in the plan' if before is None else 'no longer in the benchmark'}"
    if before["state"] != now["state"]:
        return f"{now['label']}: was {before['state']}, is {now['state']}"
    if before["due"] != now["due"]:
        return f"{now['label']}: due were {_stages(before)}, are {_stages(now)}"
    return None


def _stages(cell: Mapping[str, Any]) -> str:
    return ", ".join(cell["due"]) or "no stages"
