"""The shape of a spec. Unknown keys are errors, nothing is converted silently, and a checked value never changes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=999_999_999)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]  # a decay or a dropout rate: 1 would freeze everything
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

# Keys of `train` that decide the weights at a step, in the order in which settings hold them.
SETTINGS = (
    "batch",
    "local_batch",
    "optimizer",
    "lr",
    "betas",
    "weight_decay",
    "warmup",
    "clip_norm",
    "ema",
    "precision",
    "label_drop",
    "label_drop_mode",
    "flip",
    "dropout",
    "passes",
    "augment",
    "augment_probability",
)
# Keys of `train` that say how a run is carried out; they change no weight and no identity.
OPTIONS = ("micro_batch", "checkpoint_seconds", "log_every", "preview_every", "execution", "recompute")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Open(BaseModel):
    """Takes further keys: the parameters of a plugin, checked against its signature."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)


class Train(Strict):
    """How every method of the benchmark is trained."""

    preset: str | None = Field(None, description="a recipe that fixes the keys below; keys given here win")
    milestones: tuple[Count, ...] = Field(
        min_length=1, description="steps whose EMA weights are kept and evaluated"
    )
    batch: Count | None = Field(None, description="images per step, over all devices")
    local_batch: Count | None = Field(
        None, description="images among which batch-wise losses compare; default: batch"
    )
    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: Positive = 1e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="steps of linear warm-up")
    clip_norm: Positive | None = Field(None, description="largest gradient norm; null: no clipping")
    ema: Fraction = 0.9999
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    label_drop: Share = Field(0.1, description="share of labels replaced by the null label")
    label_drop_mode: Literal["sample", "batch"] = Field(
        "sample", description="batch: one draw per local batch"
    )
    flip: bool = Field(True, description="mirror half of the images")
    dropout: Fraction = Field(0.0, description="inside the network")
    passes: Literal["fused", "serial"] = Field(
        "fused", description="several passes as one forward, or in turn"
    )
    augment: Literal["none", "ada"] = Field(
        "none", description="ada: flips, turns, scales, stretches and shifts images and tells the network"
    )
    augment_probability: Share = Field(0.12, description="of each move of `ada` but its flip, which is 1/2")
    micro_batch: Count | None = Field(None, description="images per forward; changes memory, not results")
    checkpoint_seconds: Positive = 600.0
    log_every: Count = Field(20, description="steps per point of the loss curves")
    preview_every: Count | None = Field(None, description="steps between sample grids; null: at milestones")
    execution: Literal["auto", "eager", "compiled", "graphs"] = Field(
        "auto",
        description="compiled: blocks through torch.compile; graphs: also as CUDA graphs; auto: graphs on a GPU, else eager",
    )
    recompute: bool = Field(
        False, description="compute activations again in the backward pass: a third more work, less memory"
    )


class Schedule(Strict):
    """How the guidance w depends on the noise level (1 noise .. 0 data)."""

    name: Literal["constant", "linear", "gamma", "cosine", "interval"]
    gamma: Positive | None = Field(None, description="of `gamma`: w gamma^-level; default 100")
    low: Share | None = Field(None, description="of `interval`: lowest noise level that is guided; default 0")
    high: Share | None = Field(None, description="of `interval`: highest noise level that is guided")


class Coarse(Strict):
    """A cheaper sampler of a search's first round, without noise of its own."""

    sampler: Literal["euler", "heun", "ddim", "ddim-corrected"]
    steps: Count = Field(20, description="as of an entry")


class Search(Strict):
    """A staged search for the guidance, chosen on images that the reported value never sees."""

    guidance: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        min_length=2, description="values of w to try; the best is evaluated with the entry's own seed"
    )
    samples: Count = Field(1000, description="images of every value in the first round")
    coarse: Coarse | None = Field(
        None,
        description="sampler of the first round; the kept values are then the nearest to its best; default: the entry's",
    )
    keep: Count = Field(
        2, description="values that are measured once more, on more images or by a better sampler"
    )
    kept_samples: Count | None = Field(
        None, description="images of each kept value; default: the entry's number"
    )
    metric: str = Field("FD", description="what is best is said by this metric")
    group: str = Field("all", description="over these classes")
    seed: Seed = Field(1, description="of the search's images; another one than the entry's")


class Illustrate(Strict):
    """What figures show of a milestone: samples, their neighbours, a map of features and the reverse process."""

    classes: Literal["head", "body", "tail"] | tuple[str | int, ...] = Field(
        "tail", description="a group, or classes by name or number"
    )
    most: Annotated[int, Field(ge=1, le=8)] = Field(
        4, description="of a group: so many, those with the fewest training images"
    )
    images: Annotated[int, Field(ge=8, le=1000)] = Field(200, description="generated images of each class")
    neighbours: Annotated[int, Field(ge=1, le=20)] = Field(10, description="nearest images that are shown")


class Evaluate(Strict):
    """One protocol and sampler, at each of the guidance values, on every milestone."""

    protocol: str
    sampler: Literal["euler", "heun", "dopri5", "sde-euler", "sde-heun", "ddim", "ddim-corrected", "ddpm"]
    steps: Count | None = Field(None, description="network calls on the grid; dopri5 alone takes none")
    guidance: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="w in u + w (c - u)"
    )
    search: Search | None = Field(None, description="in place of guidance: find the best value")
    schedule: Schedule | None = Field(None, description="guidance by noise level; default: constant")
    guidance_channels: Count | None = Field(
        None, description="channels that are guided, the first ones; default: all; the released SiT: 3"
    )
    labels: Literal["balanced", "uniform"] | None = Field(
        "balanced",
        description="image k has class k mod K; uniform: drawn, as released; null: unconditional, measured over all classes only",
    )
    diffusion: (
        Literal["sigma", "linear", "SBDM", "constant", "decreasing", "increasing-decreasing"] | None
    ) = Field(None, description="g(s) of an SDE sampler; default: sigma")
    diffusion_norm: Positive | None = Field(None, description="factor of g(s); default: 1")
    last_step: Literal["mean", "euler", "tweedie", "none"] | None = Field(
        None, description="how an SDE sampler ends; default: mean"
    )
    last_step_size: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="default: 0.04")
    atol: Positive | None = Field(None, description="absolute tolerance of dopri5; default: 1e-6")
    rtol: Positive | None = Field(None, description="relative tolerance of dopri5; default: 1e-3")
    precision: Literal["fp32", "tf32", "bf16"] | None = Field(
        None,
        description="of the network while sampling (dopri5 takes more steps in bf16); default: tf32 in a cell that trains "
        "in it, else fp32",
    )
    samples: Count | None = Field(None, description="generated images; default: the protocol's")
    metrics: tuple[str, ...] | None = Field(
        None, min_length=1, description="what is measured; default: the protocol's"
    )
    groups: Literal["thirds", "shots"] | dict[str, tuple[Annotated[int, Field(ge=0)], ...]] = Field(
        "thirds", description="classes measured together; shots: many, medium and few by training images"
    )
    block: Count | None = Field(None, description="images per sampling block; default: the protocol's")
    seed: Seed = 0
    extractor: str | None = Field(None, description="default: the data set's own")
    illustrate: Illustrate | None = Field(
        None, description="in place of numbers: what figures need of some classes (tail: the tail's)"
    )


class Method(Open):
    """A method with a preset and parameters of its own."""

    name: str
    preset: str | None = None


class Init(Strict):
    """Where weights begin: at a milestone of another cell (`method`, `step`) or at a file (`checkpoint`, `sha256`, `prior_steps`).

    The optimiser starts anew, the step counts from 0, and network and EMA both start from the EMA weights.
    """

    method: Method | None = Field(None, description="of the cell to start from, which is this one otherwise")
    step: Count | None = Field(None, description="its milestone")
    resample: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="of that cell, if another")
    seed: Seed | None = Field(None, description="of that cell, if another")
    train: dict[str, Any] = Field({}, description="keys of `train` in which that cell differs")
    dataset: dict[str, Any] = Field({}, description="keys of `dataset` in which that cell differs")
    init: Any = Field(None, description="where that cell starts in its turn; default: nowhere")
    checkpoint: str | None = Field(
        None, description=".pt, .pth or .safetensors; relative: in LTBENCH_DATA or here"
    )
    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")] | None = Field(None, description="of the file")
    weights: Literal["ema", "model"] = Field("ema", description="which state dict of the file")
    family: Literal["sit", "repa", "ddpm", "ltbench"] | None = Field(
        None, description="how the file names its weights; default: told from the names"
    )
    prior_steps: Annotated[int, Field(ge=0)] | None = Field(
        None, description="steps the file was trained for; printed in every table"
    )
    classes: Literal["keep", "mean", "fresh"] = Field(
        "keep",
        description="the table of classes: kept, every class the mean of the old ones, or initialised anew",
    )


class Dataset(Open):
    """A data set with its parameters."""

    name: str


class Resample(Strict):
    """Batch resampling: the imbalance that batches see, and where an epoch's rounding goes."""

    factor: Annotated[float, Field(gt=0, le=1)]
    remainder: Literal["largest", "last"] = Field(
        "largest", description="to the largest remainders; last: all to the rarest class, as released"
    )


class Grid(Open):
    """Axes; the benchmark is their product. Further axes: `network`, `train.KEY`, `dataset.KEY`."""

    method: tuple[Method, ...] = Field(min_length=1)
    # A lone factor has become a mapping by now.
    resample: tuple[Resample | None, ...] = Field((None,), min_length=1)
    seed: tuple[Seed, ...] = Field((0,), min_length=1)


class Part(Strict):
    """One part of a benchmark, or a benchmark without parts."""

    name: str
    title: str | None = None
    dataset: Dataset
    pipeline: Literal["sit", "ddpm"]
    network: str
    init: Any = Field(None, description="none, or where the weights begin")
    train: Train
    evaluate: tuple[Evaluate, ...] = ()
    grid: Grid
    exclude: tuple[dict[str, Any], ...] = ()
