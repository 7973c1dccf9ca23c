"""Before anything starts: what of a benchmark cannot run, asked of a child process and said in one line per row."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ltbench import provenance
from ltbench.answers import Answer, Answers
from ltbench.cli.output import say
from ltbench.cli.probe import START, ask
from ltbench.plan import Plan
from ltbench.spec.cells import Cell
from ltbench.store import Store

SECONDS = 120.0  # for one question: an encoder of a gigabyte is read meanwhile


def find_out(cells: Sequence[Cell], store: Store, *, again: bool = False) -> None:
    """Ask whatever is not known yet of these cells; `again`: what this machine lacked the last time, too."""
    if not _open(cells, Answers(store), again=again):
        return
    with provenance.reading():  # an answer is kept under the code's digest
        answers = Answers(store)
        open_ = _open(cells, answers, again=again)
    say(f"asking what can run here ({len(open_)} combinations of method, network and data)")
    lines = [
        json.dumps({"key": key, "settings": cell.settings, "vae": cell.options.get("vae")})
        for key, cell in open_.items()
    ]
    found, how = ask("ltbench.questions", [str(SECONDS)], "\n".join(lines), START + SECONDS * len(lines))
    for line in found:
        answers.keep(line["key"], Answer(line["kind"], line["reason"]))
    if len(found) < len(lines):
        say(f"{len(lines) - len(found)} of them are not known: the process that was asked {how}")


def _open(cells: Sequence[Cell], answers: Answers, *, again: bool) -> dict[str, Cell]:
    """A cell for each question that is to be asked, by its key."""
    found: dict[str, Cell] = {}
    for cell in cells:
        known = answers.of(cell.settings)
        if cell.missing is None and (known is None or (again and known.kind in ("impossible", "broken"))):
            found.setdefault(answers.key(cell.settings), cell)
        elif again and known is not None and known.kind == "unsupported":
            answers.keep(answers.key(cell.settings), known)  # a plan may have asked before there was a store
    return found


def warn(found: Plan, store: Store) -> None:
    """One line per row of the table that cannot run, or whose method fails when it is asked."""
    answers = Answers(store)
    told: set[str] = set()
    for item in found.cells:
        answer = answers.of(item.cell.settings) if item.due or item.state == "n/a" else None
        if answer is None or answer.kind == "yes":
            continue
        row = f"{item.cell.label} on {item.cell.settings['pipeline']}"
        verdict = {"unsupported": "n/a", "impossible": "cannot run here", "broken": "will fail"}[answer.kind]
        line = f"{row}: {verdict}: {answer.reason}"
        if line not in told:
            told.add(line)
            say(line)
