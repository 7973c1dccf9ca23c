"""ltbench compares training methods for long-tailed class-conditional diffusion models on one shared trainer.

For notebooks: `load_records()` gives every measured value as a DataFrame, `load_model(cell, step)` a trained network.
Everything is imported when it is first asked for, so that `import ltbench` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pandas
    from torch import nn

    __version__: str

__all__ = ["__version__", "load_model", "load_records"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ltbench")
    raise AttributeError(f"module 'ltbench' has no attribute {name!r}")


def load_records(store: str | Path | None = None) -> pandas.DataFrame:
    """Every evaluation value of a store (default: LTBENCH_STORE, else results/store), one per row.

    Columns: cell, run, step, images_seen, evaluation.*, every setting by its dotted path (method.name, train.lr ...), then
    metric, name, group, value, floor, n_gen, n_ref, and seconds, host, attempt of the envelope. A store without a record has no rows
    and the columns that need no setting. Raises UsageError where there is no store.
    """
    from pathlib import Path

    from ltbench.errors import UsageError
    from ltbench.store import Store
    from ltbench.store import load_records as load

    opened = Store.open(None if store is None else Path(store), write=False)
    if not any(layer.is_dir() for layer in opened.layers):
        raise UsageError(
            f"there is no store {opened.root}", "LTBENCH_STORE, or load_records(FOLDER), names one"
        )
    return load(opened)


def load_model(cell: str, step: int | None = None, *, device: str = "cpu") -> nn.Module:
    """The EMA weights of a cell in its network, in evaluation mode, on `device`.

    cell: its id, or at least the first 6 digits. step: a milestone, None for the last one. Called as
    `network(x, t, y)`: x (B, C, H, W) float in about [-1, 1], t (B,) on the process's own clock, y (B,) long with K as the
    null label; see `ltbench.sampling.sample`. Of a cell on latents x is a latent, and `ltbench.generate.decoder_of(settings, device)`
    makes images of what is sampled. Raises UsageError for an unknown cell, LtbenchError when no such milestone is
    in the scratch folder (LTBENCH_SCRATCH).
    """
    import torch

    from ltbench.checkpoint import load_milestone
    from ltbench.datasets import build_dataset
    from ltbench.errors import LtbenchError
    from ltbench.generate import build_sampler
    from ltbench.store import Store

    store = Store.open(write=False)
    found = store.resolve(cell)
    settings = store.cell(found)["settings"]
    kept = {run.run: _kept_steps(run.milestones) for run in store.runs(found)}
    usable = {run: steps for run, steps in kept.items() if steps and (step is None or step in steps)}
    if not usable:
        steps = sorted({each for steps in kept.values() for each in steps})
        raise LtbenchError(
            f"cell {found[:12]} has no weights of {'any step' if step is None else f'step {step}'} in {store.scratch}",
            f"kept are {', '.join(map(str, steps)) or 'none'}; LTBENCH_SCRATCH says where to look",
        )
    run = _preferred(usable, settings)
    settings = store.run(found, run).info()["settings"]
    weights, _ = load_milestone(store.run(found, run).milestones, step or usable[run][-1])
    return build_sampler(settings, build_dataset(settings["dataset"]), weights, torch.device(device))


def _kept_steps(folder: Path) -> list[int]:
    """Milestones in a folder of them, ascending."""
    names = [path.name for path in folder.glob("step-*")] if folder.is_dir() else []
    return sorted(int(name.removeprefix("step-")) for name in names)


def _preferred(usable: dict[str, list[int]], settings: dict[str, Any]) -> str:
    """The run of the present code if it is among them, else the only one; several others are a question for the user."""
    from ltbench import provenance
    from ltbench.errors import UsageError

    try:
        present = provenance.run_id(provenance.train_code(settings), settings)
    except UsageError:  # its method is not here any more; a network can be loaded without it
        present = ""
    if present in usable:
        return present
    if len(usable) > 1:
        raise UsageError(
            f"the weights of {len(usable)} runs by older code are kept ({', '.join(usable)}), none by the present code",
            "load_milestone of ltbench.checkpoint takes the folder of one of them",
        )
    return next(iter(usable))
