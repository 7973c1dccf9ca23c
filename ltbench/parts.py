"""What a cell trains with, built from its settings alone: recipe, network, method, data order, and what draws its batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from ltbench import seeds, vaes
from ltbench.compiled import checkpoint_blocks, compile_blocks, set_layout
from ltbench.datasets import Dataset
from ltbench.diffusion import Process, process_for
from ltbench.draws import Drawer, Latents, Pixels, TrainingSet
from ltbench.encoders import Tokens, load_encoder
from ltbench.execution import PLAIN, Execution
from ltbench.groups import groups
from ltbench.methods import Method, Objective, Task, Unsupported
from ltbench.networks import Network, build_network, resolve_tap
from ltbench.order import Order
from ltbench.places import LazyRows, place

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """The `train` settings of a cell. Rates per step, sizes in images, `warmup` in steps, `clip_norm` None for no clipping."""

    batch: int
    local_batch: int
    optimizer: Literal["adamw", "adam"]
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    warmup: int
    clip_norm: float | None
    ema: float
    precision: Literal["fp32", "tf32", "bf16"]
    label_drop: float
    label_drop_mode: Literal["sample", "batch"]
    flip: bool
    dropout: float
    passes: Literal["fused", "serial"]
    augment: Literal["none", "ada"] = "none"  # runs from before these keys lack them
    augment_probability: float = 0.12

    def rate(self, step: int) -> float:
        """Learning rate of step 1, 2, ...: linear warm-up whose first update has rate 0, as pytorch-ddpm runs it."""
        return self.lr * min(step - 1, self.warmup) / self.warmup if self.warmup else self.lr


@dataclass
class Parts:
    """What a cell trains with, built from its settings alone. recompute: activations are made again in the backward pass."""

    recipe: Recipe
    objective: Objective
    drawer: Drawer
    task: Task
    groups: dict[str, list[int]]
    train_counts: list[int]
    recompute: bool = False


def build_parts(
    settings: Mapping[str, Any],
    data: Dataset,
    method: type[Method],
    device: torch.device,
    latents: Latents | None = None,
    notice: Callable[[str], None] = lambda message: None,
    execution: Execution = PLAIN,
    recompute: bool = False,
) -> Parts:
    """Network, method, data order and process of a cell. Weights are keyed by (seed, "init"): equal for all methods.

    latents: of the training images in their order, for a cell that trains on them. notice: hears where data could not go.
    recompute: activations are made again in the backward pass instead of being kept.
    Raises Unsupported with the method's own reason.
    """
    recipe = Recipe(**{**settings["train"], "betas": tuple(settings["train"]["betas"])})
    images = data.train()
    classes, seed = len(data.classes), int(settings["seed"])
    order = Order(images.labels, classes, seed=seed, batch=recipe.batch, resample=settings["resample"])
    process = process_for(settings["pipeline"])
    labels = torch.from_numpy(images.labels).to(device)
    if (vaes.named(settings["dataset"]) is None) != (latents is None):
        raise ValueError("latents are given exactly where the settings name them")
    source = latents or Pixels(place([images.images], device, notice))
    network = _network(settings, recipe, source, classes, device)
    if recompute:
        checkpoint_blocks(network)
    if execution.compiled:
        set_layout(network, device)
        compile_blocks(network)
    beside = None if latents is None else LazyRows(lambda: place([images.images], device, notice))
    training = TrainingSet(source, labels, beside)
    task = task_of(settings, recipe, process, network, order, training, execution.compiled)
    strategy = _strategy(settings, method, task, device)
    drawer = _drawer(recipe, training, order, process, strategy, classes, seed)
    counts = [int(n) for n in order.counts]
    return Parts(recipe, Objective(network, strategy), drawer, task, groups(counts), counts, recompute)


def _network(
    settings: Mapping[str, Any], recipe: Recipe, source: Latents | Pixels, classes: int, device: torch.device
) -> Network:
    """The network for what `source` holds, at its initial weights."""
    return seeded(
        seeds.torch_seed(int(settings["seed"]), "init"),
        lambda: build_network(
            settings["network"],
            channels=source.shape[0],
            resolution=source.shape[1],
            classes=classes,
            dropout=recipe.dropout,
            augmented=recipe.augment != "none",
        ),
    ).to(device)


def _strategy(settings: Mapping[str, Any], method: type[Method], task: Task, device: torch.device) -> Method:
    """The method with the settings' options. Raises Unsupported with its own reason."""
    options = {name: value for name, value in settings["method"].items() if name != "name"}
    if reason := method.supports(task):
        raise Unsupported(reason)
    seed = seeds.torch_seed(int(settings["seed"]), "method-init")
    return seeded(seed, lambda: method(task, **options)).to(device)


def _drawer(
    recipe: Recipe,
    training: TrainingSet,
    order: Order,
    process: Process,
    strategy: Method,
    null: int,
    seed: int,
) -> Drawer:
    """What draws for the method: of pixels and references only what it asks for."""
    return Drawer(
        data=training,
        order=order,
        process=process,
        null=null,
        seed=seed,
        local_batch=recipe.local_batch,
        label_drop=recipe.label_drop,
        label_drop_mode=recipe.label_drop_mode,
        flip=recipe.flip,
        pixels=strategy.needs_pixels,
        reference=strategy.needs_reference,
        augment=recipe.augment_probability if recipe.augment == "ada" else None,
    )


def task_of(
    settings: Mapping[str, Any],
    recipe: Recipe,
    process: Process,
    network: Network,
    order: Order,
    training: TrainingSet,
    fixed_rows: bool = False,
) -> Task:
    device = training.labels.device
    if recipe.augment != "none" and vaes.named(settings.get("dataset", {})):
        raise Unsupported(
            f"augment: {recipe.augment} moves pixels at every step, and latents are encoded once"
        )

    def encoder(name: str, grid: tuple[int, int], cache: bool = False) -> Tokens:
        if cache and recipe.augment != "none":
            raise Unsupported(
                f"encoder '{name}' cannot keep its tokens: under augment: {recipe.augment} no image is seen twice alike",
                "say cache: false",
            )
        made = load_encoder(name, device)
        if not cache:
            return Tokens(made, grid)
        return Tokens(made, grid, training.seen, len(training.labels), flips=recipe.flip)

    return Task(
        process=process,
        pipeline=settings["pipeline"],
        null=network.null_label,
        class_counts=torch.from_numpy(order.counts).to(device),
        class_prior=torch.from_numpy(order.prior).float().to(device),
        tap=lambda name: resolve_tap(name, network),
        tap_widths=network.tap_widths,
        passes=recipe.passes,
        dropout=recipe.dropout,
        bfloat16=recipe.precision == "bf16",
        fixed_rows=fixed_rows,
        encoder=encoder,
    )


def seeded(seed: int, build: Callable[[], T]) -> T:
    """Run `build` under its own global random state, and leave the caller's as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
