"""How the networks of published code name their weights, and where each belongs in ours.

| family | released by | what differs from our network |
|---|---|---|
| sit | willisma/SiT:models.py; DispLoss and CCUA-SiT, its forks | names; a second half of output channels (`learn_sigma`) that |
|     |  | the velocity loss never uses: dropped; the positions, which are fixed: compared, not read |
| repa | sihyun-yu/REPA:models/sit.py | as sit, with projectors (dropped), time reversed and the velocity's sign flipped |
| ddpm | w86763777/pytorch-ddpm:model.py; CBDM, OC_LT, CCUA-DDPM | names; q, k, v as three convolutions; the clock's table: compared |
| ltbench | this project | nothing |

**REPA made equal.** Its clock r runs from data (0) to noise (1) and its target is noise - data (sihyun-yu/REPA:loss.py, linear path),
where ours is s = 1 - r and data - noise, so v(x, s) = -v'(x, 1 - s). The network sees the clock only through cos(f t), sin(f t) for
fixed frequencies f, followed by a linear layer. Since cos(f (1 - s)) = cos f cos(f s) + sin f sin(f s) and sin(f (1 - s)) =
sin f cos(f s) - cos f sin(f s), a fixed linear map of that layer's columns turns one clock into the other; the sign is that of the
last linear layer. Both are done to the weights, once, in double precision: the network that runs is ours, unchanged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ltbench.errors import LtbenchError
from ltbench.networks import Network
from ltbench.networks.names import SIT_SIZES
from ltbench.networks.sit import FREQUENCIES, MAX_PERIOD, SiT
from ltbench.networks.unet import UNet

State = dict[str, Tensor]
LABELS = "embed_label.weight"  # both networks' table of classes
_BLOCK = re.compile(r"(down|up)\.\d+\.(shrink|grow|blocks\.\d+)|middle\.\d+")
FIXED_TOLERANCE = 1e-3  # released tables are float32 throughout, and EMA has gone over them


@dataclass(frozen=True)
class Place:
    """Where a foreign tensor goes: part `part` of `parts` along the first axis of our tensor `name`."""

    name: str
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Layout:
    """A family. places: foreign name -> Place. fixed: foreign name -> the table that it must equal. ignored: prefixes of foreign names
    that have no place in ours, with the reason. before, after: changes of the foreign names and of our tensors."""

    family: str
    places: dict[str, Place]
    fixed: dict[str, Tensor] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    before: Callable[[State], State] = lambda state: state
    after: Callable[[State], State] = lambda state: state
    refuses: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # argument -> the values that ours can run


def recognise(state: State) -> str:
    """The family that a state dict's names belong to. Raises LtbenchError for an unknown one."""
    if "x_embedder.proj.weight" in state:
        reversed_ = any(name.startswith(("projectors.", "decoder_blocks.")) for name in state)
        return "repa" if reversed_ else "sit"
    if "downblocks.0.block1.2.weight" in state:
        return "ddpm"
    if "embed_patches.weight" in state or "inlet.weight" in state:
        return "ltbench"
    shown = ", ".join(sorted(state)[:5])
    raise LtbenchError(
        f"the weights are of no family known here; they begin with {shown}",
        f"known are {', '.join(FAMILIES)}",
    )


def layout_of(family: str, network: Network) -> Layout:
    """The layout of a family for our network. Raises LtbenchError when the family is of another kind of network."""
    kind = FAMILIES[family][0]
    if kind is not None and not isinstance(network, kind):
        raise LtbenchError(
            f"weights of family {family} are a {kind.__name__}'s, and the network is a {type(network).__name__}"
        )
    return FAMILIES[family][1](network)


# --- our own --------------------------------------------------------------------------------------------------------


def _own(network: Network) -> Layout:
    return Layout("ltbench", {name: Place(name) for name in network.state_dict()})


# --- transformers ---------------------------------------------------------------------------------------------------


def _affine(theirs: str, ours: str) -> dict[str, Place]:
    return {f"{theirs}.{kind}": Place(f"{ours}.{kind}") for kind in ("weight", "bias")}


def _sit(network: Any) -> Layout:
    """willisma/SiT:models.py."""
    places = {"y_embedder.embedding_table.weight": Place(LABELS)}
    for theirs, ours in (
        ("x_embedder.proj", "embed_patches"),
        ("t_embedder.mlp.0", "embed_time.0"),
        ("t_embedder.mlp.2", "embed_time.2"),
        ("final_layer.adaLN_modulation.1", "modulation.linear"),
        ("final_layer.linear", "head"),
    ):
        places |= _affine(theirs, ours)
    for i in range(len(network.blocks)):
        for theirs, ours in (
            ("attn.qkv", "attention.qkv"),
            ("attn.proj", "attention.proj"),
            ("mlp.fc1", "mlp.0"),
            ("mlp.fc2", "mlp.2"),
            ("adaLN_modulation.1", "modulation.linear"),
        ):
            places |= _affine(f"blocks.{i}.{theirs}", f"blocks.{i}.{ours}")

    def first_channels(state: State) -> State:
        return {name: _without_sigma(tensor, network) if name.startswith("final_layer.linear.") else tensor
                for name, tensor in state.items()}  # fmt: skip

    fixed = {"pos_embed": network.positions[None]}
    kinds = {"path_type": ("Linear",), "prediction": ("velocity",)}
    return Layout("sit", places, fixed, before=first_channels, refuses=kinds)


def _without_sigma(tensor: Tensor, network: SiT) -> Tensor:
    """The prediction's half of a `learn_sigma` head: of every pixel of a patch the first C of its 2C channels."""
    pixels, channels = network.patch**2, network.channels
    if len(tensor) != 2 * pixels * channels:
        return tensor
    halves = tensor.unflatten(0, (pixels, 2, channels))
    return halves[:, 0].flatten(0, 1)


def _repa(network: Any) -> Layout:
    """sihyun-yu/REPA:models/sit.py, and its older files (utils.py: load_legacy_checkpoints)."""
    base = _sit(network)
    return Layout(
        "repa",
        base.places,
        base.fixed,
        {"projectors.": "REPA's projectors: of its loss, not of the network"},
        before=_number_decoder,
        after=reverse_time,
        refuses={"path_type": ("linear",), "prediction": ("v",)},
    )


def _number_decoder(state: State) -> State:
    """Older files count the blocks behind the projector from 0 again."""
    encoder = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    found = {}
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        if head == "decoder_blocks":
            number, _, rest = rest.partition(".")
            name = f"blocks.{int(number) + encoder}.{rest}"
        found[name] = tensor
    return found


def reverse_time(state: State) -> State:
    """Our tensors of a transformer that predicts -v at 1 - t, from those of one that predicts v at t; twice is nothing (up to rounding)."""
    half = FREQUENCIES // 2
    # float32, as the network itself computes them
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32) / half).double()
    first = state["embed_time.0.weight"]
    of_cos, of_sin = first.double().split(half, dim=1)
    cos, sin = frequencies.cos(), frequencies.sin()
    turned = torch.cat([of_cos * cos + of_sin * sin, of_cos * sin - of_sin * cos], dim=1)
    flipped = {name: -state[name] for name in ("head.weight", "head.bias")}
    return {**state, **flipped, "embed_time.0.weight": turned.to(first.dtype)}


# --- U-Nets ---------------------------------------------------------------------------------------------------------


def _ddpm(network: Any) -> Layout:
    """w86763777/pytorch-ddpm:model.py and qym7/CBDM-pytorch:model/model.py, which adds label_embedding and augm_embedding."""
    places = {"label_embedding.weight": Place(LABELS)}
    places |= _affine("time_embedding.timembedding.1", "embed_time.0")
    places |= _affine("time_embedding.timembedding.3", "embed_time.2")
    places |= _affine("head", "inlet") | _affine("tail.0", "last_norm") | _affine("tail.2", "outlet")
    for theirs, ours in _blocks(network):
        places |= (
            _affine(theirs, ours)
            if ours.endswith((".shrink", ".grow"))
            else _res_block(theirs, ours, network)
        )
    ignored = {}
    if "embed_augment.weight" in network.state_dict():
        places["augm_embedding.weight"] = Place("embed_augment.weight")
    else:  # the flags are 0 when sampling and it has no bias, so a network without it is the same function
        ignored["augm_embedding."] = "CBDM's embedding of augmentation flags, which this network is not told"
    return Layout("ddpm", places, {"time_embedding.timembedding.0.weight": network.clock}, ignored)


def _blocks(network: UNet) -> list[tuple[str, str]]:
    """(their name, ours) of every block and resampling, in the order of computation, which both share: they count one flat list per
    direction and resample at the end of a level, we at the beginning of the next."""
    pairs = []
    for theirs, ours in (("downblocks", "down"), ("middleblocks", "middle"), ("upblocks", "up")):
        found = (_BLOCK.match(name) for name in network.state_dict() if name.startswith(f"{ours}."))
        for i, name in enumerate(dict.fromkeys(match[0] for match in found if match)):
            resampling = name.endswith(("shrink", "grow"))
            pairs.append((f"{theirs}.{i}" + ".main" * resampling, name))
    return pairs


def _res_block(theirs: str, ours: str, network: UNet) -> dict[str, Place]:
    """Both block1 and block2 are norm, swish, (dropout,) convolution; ours keeps the second convolution beside its sequence."""
    places: dict[str, Place] = {}
    for name, own in (
        ("block1.0", "first.0"),
        ("block1.2", "first.2"),
        ("temb_proj.1", "embed.1"),
        ("block2.0", "second.0"),
        ("block2.3", "last"),
        ("shortcut", "shortcut"),
        ("attn.group_norm", "attention.norm"),
        ("attn.proj", "attention.proj"),
    ):
        places |= _affine(f"{theirs}.{name}", f"{ours}.{own}")
    for part, letter in enumerate("qkv"):
        for kind in ("weight", "bias"):
            places[f"{theirs}.attn.proj_{letter}.{kind}"] = Place(f"{ours}.attention.qkv.{kind}", part, 3)
    present = network.state_dict().keys()  # not every block has a shortcut or attention
    return {name: place for name, place in places.items() if place.name in present}


FAMILIES: dict[str, tuple[type[Network] | None, Callable[[Any], Layout]]] = {
    "sit": (SiT, _sit),
    "repa": (SiT, _repa),
    "ddpm": (UNet, _ddpm),
    "ltbench": (None, _own),
}


def describe(family: str, state: State) -> str | None:
    """The network that a state dict seems to be of, for a hint; None where its names do not tell."""
    if family in ("sit", "repa") and state["x_embedder.proj.weight"].dim() == 4:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        depth = len({name.split(".")[1] for name in _number_decoder(state) if name.startswith("blocks.")})
        known = [name for name, size in SIT_SIZES.items() if size[:2] == (depth, width)]
        name = (
            f"SiT-{known[0]}/{patch}" if known else f"a SiT of {depth} blocks, width {width}, patch {patch}"
        )
        return f"{name} for {channels} channels"
    if family == "ddpm" and "head.weight" in state and state["head.weight"].dim() == 4:
        width, channels = state["head.weight"].shape[:2]
        return f"a U-Net of base width {width} for {channels} channels"
    return None
