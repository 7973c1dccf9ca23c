"""The command line: one typer app, one function per verb. Whatever is heavy is imported inside the verb that needs it."""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

import typer

from ltbench.cli.output import complain, say
from ltbench.errors import LtbenchError

# Module below ltbench.cli, function in it, and the line in the list of verbs (80 columns leave 60 for it).
VERBS = (
    ("running", "run", "Train and evaluate what a benchmark still needs."),
    ("submitting", "submit", "The same on a SLURM cluster; then log out."),
    ("planning", "plan", "What a run would do: cells by state, and its cost."),
    ("fetching", "fetch", "Bring the weights and archives that a benchmark needs."),
    ("calibrating", "calibrate", "Time a few real steps here, for the costs in plan."),
    ("standing", "status", "How a benchmark stands; --watch keeps looking."),
    ("reporting", "report", "The table and figures, in every format."),
    ("sampling", "sample", "Images from a trained cell: .npz, PNG or a sheet."),
    ("evaluating", "evaluate", "Numbers for images or weights that others made."),
    ("inspecting", "show", "Everything the store holds about one cell."),
    ("following", "logs", "What a cell's attempts printed; -f follows."),
    ("stopping", "cancel", "Stop cells, in SLURM's queue and on this machine."),
    ("retrying", "retry", "Take failed cells up again, by the class of failure."),
    ("inspecting", "why", "Why a cell failed, or which code changed since."),
    ("inspecting", "accept", "Keep a cell's results although code changed."),
    ("listing", "benchmarks", "The specs in benchmarks/."),
    ("listing", "methods", "The training methods; with a name, one of them."),
    ("listing", "datasets", "The data sets; with a name, counts and a picture."),
    ("extracting", "extractors", "What measures images; which of them prints FID."),
    ("archiving", "export", "A benchmark's results as one zip file."),
    ("archiving", "import_", "Add such files to a store; nothing is overwritten."),
    ("clearing", "gc", "What may be deleted from scratch; --delete does it."),
    ("doctoring", "doctor", "What this machine or cluster can do, and what fails."),
    ("syncing", "sync", "Mirror curves and grids to TensorBoard or W&B."),
    ("planning", "validate", "Check a spec: every mistake, with its place."),
    ("planning", "schema", "The JSON schema of a spec, for editors."),
)


def _app(words: Sequence[str]) -> typer.Typer:
    """The program, with the verb that the words begin with or, where they begin with none, all of them: each is a file to import and
    a signature to read."""
    app = typer.Typer(
        name="ltbench",
        help="Compare training methods for long-tailed class-conditional diffusion models: "
        "one shared trainer, one table.\n\n"
        "Start with: python harness.py run quickstart --report",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,  # an unexpected error keeps its plain traceback
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    # Where only one verb is registered, typer takes the program for that verb, unless it has a callback.
    app.callback()(lambda: None)
    for module, function, line in [verb for verb in VERBS if [_name(verb[1])] == words[:1]] or VERBS:
        found = getattr(importlib.import_module(f"ltbench.cli.{module}"), function)
        app.command(_name(function), short_help=line)(found)
    return app


def _name(function: str) -> str:
    """`import_` is the verb `import`."""
    return function.rstrip("_")


def _show_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An error that is a bug keeps its traceback, without the secrets that its lines may hold."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))


def main() -> int:
    """Run one verb; the process's exit code: 0 ok, 1 some cells failed, 2 bad spec or usage, 3 drift, 4 environment."""
    sys.excepthook = _show_unexpected
    gc.set_threshold(100_000, 20, 20)  # a plan of thousands of cells holds nearly everything that it makes
    try:
        _app(sys.argv[1:])()
    except LtbenchError as error:
        return complain(error)
    except SystemExit as leaving:
        sys.stdout.flush()
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0
