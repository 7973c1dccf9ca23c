"""`calibrate`: a few dozen real steps per method, network and batch on this machine's device, for `plan` to count with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli import measuring
from ltbench.cli.jobs import OnCluster
from ltbench.cli.options import (
    AsJson,
    Changes,
    Filters,
    Plugins,
    ScratchAt,
    SpecName,
    StoreAt,
    WithMethods,
    place,
)
from ltbench.cli.output import clip, dump, out, plural, say, table
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.cost.calibrations import Question
    from ltbench.profiles import Profile
    from ltbench.spec.cells import Cell
    from ltbench.store import Store


def calibrate(
    spec: SpecName,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps that are timed, after a warm-up.")] = 40,
    seconds: Annotated[
        float, typer.Option(min=1, help="Longest time for one measurement; what takes longer is given up.")
    ] = 900.0,
    device: Annotated[
        str | None, typer.Option(metavar="cpu|cuda", help="Where to measure. [a GPU if there is one]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. [those of a worker of `run`]")] = None,
    profile: OnCluster = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Measure how long a training step, a sampler's network row and an extractor's image take here, for `plan`.

    Every distinct setting is measured once, in a process of its own, through the trainer that cells use; no cell is claimed and no
    checkpoint is written. Results are kept in the store (calibrations/); the same command again measures only what is missing.
    Where the data is not here yet, noise of its shape stands in. With --profile it measures in a job that asks for what a training
    of the cluster gets. Exit code 1 when something could not be measured.

    \b
    Example:
      python harness.py calibrate quickstart
      python harness.py calibrate table1 --filter method=ccua --steps 100
      python harness.py calibrate table1 --profile mine
    """
    from ltbench.cli import jobs, stores, targets
    from ltbench.cost import calibrations
    from ltbench.launch.devices import check

    chosen = None
    if profile is not None:
        chosen = jobs.cluster(profile, scratch)
    place(store, scratch, plugins)
    check(None, threads, device)
    benchmark = targets.load(spec, set_ or [], with_ or [])
    cells = targets.cells_of(benchmark, filter_ or [])
    if chosen is not None and profile is not None:
        raise typer.Exit(_as_job(chosen, profile, spec, device, threads, json))
    where, count = measuring.place_of(benchmark, device, threads)
    house = stores.open_store(write=True)
    asked = questions(cells)
    known, bad = calibrations.read_all(house)
    for line in bad:
        say(line)
    name = measuring.device_of(where)
    due = [q for q in asked if calibrations.present(known, q, name, count) is None]
    say(f"{plural(len(asked), 'measurement')} on {name}, {len(asked) - len(due)} of them there already")
    answers = _measure(due, house, where, count, steps, seconds) if due else []
    failed = [answer for answer in answers if answer["outcome"] == "failed"]
    _show(asked, answers, house, name, count, json)
    raise typer.Exit(1 if failed or len(answers) < len(due) else 0)


def _as_job(
    chosen: Profile, profile: str, spec: str, device: str | None, threads: int | None, json: bool
) -> int:
    """The same command in SLURM's queue, on what a training gets."""
    from ltbench.cli import jobs
    from ltbench.launch.slurm.commands import Command
    from ltbench.launch.slurm.resources import options

    asked = chosen.resources("training")
    if threads is not None and threads > asked.cores:
        raise UsageError(
            f"--threads is {threads}, and a training of this profile gets {plural(asked.cores, 'core')}",
            "leave it away: then it is what each of the cells in a job gets",
        )
    told = options(asked)
    words = jobs.typed(drop=("--json",))
    words += [] if threads else ["--threads", str(told["threads"])]
    words += ["--device", told["device"]] if device is None and "device" in told else []
    command = Command(tuple(words), f"calibrate {spec}", "training")
    return jobs.submit_command(chosen, profile, command, json=json)


def questions(cells: Sequence[Cell]) -> list[Question]:
    """What is to be measured for these cells, each once, trainings first."""
    from ltbench.cost.calibrations import (
        extract_question,
        sample_question,
        step_options,
        train_question,
    )

    found: dict[str, Question] = {}
    later: dict[str, Question] = {}
    for cell in cells:
        question = train_question(cell.settings, **step_options(cell.options))
        found.setdefault(question.id, question)
        for evaluation in cell.evaluations.values():
            for each in (
                sample_question(cell.settings, evaluation),
                extract_question(cell.settings, evaluation),
            ):
                later.setdefault(each.id, each)
    return [*found.values(), *later.values()]


def _measure(
    due: Sequence[Question], store: Store, device: str, threads: int, steps: int, seconds: float
) -> list[dict[str, Any]]:
    """Ask a child process, and say what it found as it finds it."""
    by_id = {question.id: question for question in due}
    answers = []
    for number, answer in enumerate(_asked(due, store, device, threads, steps, seconds), start=1):
        answers.append(answer)
        words = described(by_id[answer["question"]].what)
        say(f"{number}/{len(due)}  {words}: {_result(answer)}")
    if len(answers) < len(due):
        say(f"{plural(len(due) - len(answers), 'measurement')} not made: the process that measures ended")
    return answers


def _asked(
    due: Sequence[Question], store: Store, device: str, threads: int, steps: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Run `ltbench.calibrate`; its lines as they come."""
    from ltbench.cost.calibrations import questions_json

    words = [str(store.root), str(store.scratch), device, str(threads), str(steps), str(seconds)]
    return measuring.answers("ltbench.calibrate", words, questions_json(due), device, threads)


def described(what: dict[str, Any]) -> str:
    """A question in words."""
    data = what["data"]
    seen = f"{data['channels']}x{data['resolution']}x{data['resolution']}"
    if what["kind"] == "extract":
        return f"extractor {what['extractor']['name']} on {seen}"
    if what["kind"] == "sample":
        return f"sampling, {what['network']} on {seen}, blocks of {what['block']}"
    method = what["method"]
    more = ", ".join(f"{key}={value}" for key, value in method.items() if key != "name")
    words = f"{method['name']}({clip(more, 60)})" if more else method["name"]
    recipe = what["recipe"]
    again = ", activations made again" if what.get("recompute") else ""
    return f"{words}, {what['network']} on {seen}, batch {recipe['batch']}, {recipe['precision']}{again}"


def _result(answer: dict[str, Any]) -> str:
    if answer["outcome"] != "done":
        return f"{answer['outcome']}: {clip(answer['message'], 160)}" if answer["message"] else "was there"
    return numbers(answer["result"])


def numbers(result: dict[str, Any]) -> str:
    """A measurement in words."""
    if "seconds_per_step" in result:
        stand_in = ", on stand-in data" if result["data"] == "stand-in" else ""
        low, high = result["quartiles"]
        return (
            f"{1000 * result['seconds_per_step']:.1f} ms a step ({1000 * low:.1f} to {1000 * high:.1f}), "
            f"{result['rows']:.2f} network rows an image, {result['memory_bytes'] / 1e9:.1f} GB{stand_in}"
        )
    if "seconds_per_row" in result:
        return (
            f"{1e3 * result['seconds_per_row']:.3g} ms a network row, "
            f"{1e3 * result['seconds_per_image']:.3g} ms an image beside"
        )
    return f"{1e3 * result['seconds_per_image']:.3g} ms an image"


def _show(
    asked: Sequence[Question],
    answers: Sequence[dict[str, Any]],
    store: Store,
    device: str,
    threads: int,
    json: bool,
) -> None:
    """What is known now of everything that was asked (stdout)."""
    from ltbench.cost import calibrations

    known, _ = calibrations.read_all(store)
    why = {answer["question"]: answer for answer in answers}
    # a GPU that nvidia-smi and torch name differently: the child's word counts
    device = next((answer["device"] for answer in answers if "device" in answer), device)
    rows = []
    for question in asked:
        found = calibrations.present(known, question, device, threads)
        rows.append((question, found, why.get(question.id, {})))
    if json:
        dump([_row_json(*row) for row in rows])
        return
    table(
        ("measured", "", "calibration"),
        (
            (
                described(question.what),
                numbers(found.result) if found else _result({"message": "", **answer}),
                found.name if found else "",
            )
            for question, found, answer in rows
            if found or answer
        ),
        keep=("calibration",),
    )
    out("next: python harness.py plan SPEC counts with these")


def _row_json(question: Question, found: Any, answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "question": question.id,
        "what": question.what,
        "calibration": found.name if found else None,
        "device": found.device if found else None,
        "threads": found.threads if found else None,
        "result": found.result if found else None,
        "outcome": "there" if found and not answer else answer.get("outcome", "not made"),
        "message": answer.get("message", ""),
    }
