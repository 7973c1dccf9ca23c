"""Small checkouts laid out like SiT's, REPA's and CBDM's repositories: the modules, names and arguments that bench/theirs.py uses.

Their networks are the plain functions of tests/released.py over parameters of the published names. Written from the published
interfaces (willisma/SiT, sihyun-yu/REPA, qym7/CBDM-pytorch), not from their text.
"""

from __future__ import annotations

from pathlib import Path

NET = '''
import torch
from torch import nn
from tests import released


class Named(nn.Module):
    """Parameters under dotted names."""

    def __init__(self, state, fixed=()):
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            at = self
            for part in path:
                if part not in at._modules:
                    at.add_module(part, nn.Module())
                at = at._modules[part]
            at.register_parameter(last, nn.Parameter(value, requires_grad=name not in fixed))

    def weights(self):
        return dict(self.named_parameters())
'''

SIT = (
    NET
    + """

class SiT(Named):
    def __init__(self, input_size, patch_size, in_channels, hidden_size, depth, num_heads, num_classes):
        state = released.sit_state(depth=depth, width=hidden_size, patch=patch_size, channels=in_channels,
                                   size=input_size, classes=num_classes)
        super().__init__(state, fixed=("pos_embed",))
        self.heads, self.patch = num_heads, patch_size

    def forward(self, x, t, y):
        return released.sit_forward(self.weights(), x, t, y, heads=self.heads, patch=self.patch)

    def forward_with_cfg(self, x, t, y, cfg_scale):
        half = x[: len(x) // 2]
        out = self.forward(torch.cat([half, half]), t, y)
        cond, uncond = out[:, :3].chunk(2)
        mixed = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([mixed, mixed]), out[:, 3:]], dim=1)
"""
)

TRANSPORT = """
import torch


class Transport:
    def sample(self, x1):
        return torch.rand(len(x1)), torch.randn_like(x1), x1

    def training_losses(self, model, x1, model_kwargs):
        t, x0, x1 = self.sample(x1)
        s = t[:, None, None, None]
        out = model(s * x1 + (1 - s) * x0, t, **model_kwargs)
        return {"loss": ((out - (x1 - x0)) ** 2).flatten(1).mean(1)}


class Sampler:
    def __init__(self, transport):
        self.transport = transport

    def sample_sde(self, *, sampling_method, diffusion_form, diffusion_norm, last_step, last_step_size, num_steps):
        assert (sampling_method, diffusion_form, last_step) == ("Euler", "sigma", "Mean")

        def drift(model, x, s, more):
            t = torch.full((len(x),), float(s))
            velocity = model(x, t, **more)
            score = (s * model(x, t, **more) - x) / (1 - s)
            return velocity + diffusion_norm * (1 - s) * score

        def run(x, model, **more):
            times, states = torch.linspace(0, 1 - last_step_size, num_steps), []
            h = times[1] - times[0]
            for s in times[:-1]:
                noise = torch.randn(x.size())
                x = x + h * drift(model, x, s, more) + (2 * diffusion_norm * (1 - s) * h).sqrt() * noise
                states.append(x)
            return [*states, x + last_step_size * drift(model, x, times[-1], more)]

        return run


def create_transport(path_type, prediction, loss_weight, train_eps, sample_eps):
    assert (path_type, prediction) == ("Linear", "velocity")
    return Transport()
"""

REPA = (
    NET
    + """

class SiT(Named):
    def __init__(self, input_size, patch_size, in_channels, hidden_size, decoder_hidden_size, encoder_depth, depth,
                 num_heads, num_classes, z_dims, projector_dim, fused_attn, qk_norm):
        state = released.repa_state(z_dims=tuple(z_dims), projector=projector_dim, width=hidden_size, depth=depth,
                                    patch=patch_size, channels=in_channels, size=input_size, classes=num_classes)
        super().__init__(state, fixed=("pos_embed",))
        self.heads, self.patch = num_heads, patch_size

    def forward(self, x, t, y):
        return released.sit_forward(self.weights(), x, t, y, heads=self.heads, patch=self.patch), []
"""
)

REPA_SAMPLERS = '''
import torch


def euler_maruyama_sampler(model, latents, y, num_steps, cfg_scale):
    """Clock r from noise 1 to data 0; one evaluation per step; everything but the network in float64."""
    times = [*torch.linspace(1, 0.04, num_steps, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)]
    x, labels = latents.double(), torch.cat([y, torch.full_like(y, 1000)])

    def drift(x, r):
        both = torch.cat([x, x])
        with torch.no_grad():
            v = model(both.float(), torch.full((len(both),), float(r)), labels)[0].double()
        score = (-(1 - r) * v - both) / r
        given, none = (v - r * score).chunk(2)
        return none + cfg_scale * (given - none)

    for r, lower in zip(times[:-2], times[1:-1]):
        x = x + (lower - r) * drift(x, r) + (2 * r).sqrt() * (r - lower).sqrt() * torch.randn_like(x)
    return x - times[-2] * drift(x, times[-2])
'''

CBDM = (
    NET
    + """

class UNet(Named):
    def __init__(self, T, ch, ch_mult, attn, num_res_blocks, dropout, cond, augm, num_class):
        state = released.unet_state(base=ch, multipliers=tuple(ch_mult), attention=tuple(attn), count=num_res_blocks,
                                    channels=3, classes=num_class)
        super().__init__(state, fixed=("time_embedding.timembedding.0.weight",))

    def forward(self, x, t, y=None, augm=None):
        return released.unet_forward(self.weights(), x, t, y, groups=32)
"""
)

CBDM_DIFFUSION = """
import torch
from torch import nn


class GaussianDiffusionTrainer(nn.Module):
    def __init__(self, model, beta_1, beta_T, T, dataset, num_class, cfg, cb, tau, weight, finetune):
        super().__init__()
        self.model, self.T = model, T
        bars = torch.cumprod(1 - torch.linspace(beta_1, beta_T, T).double(), 0)
        self.register_buffer("bars", bars)

    def forward(self, x_0, y_0, augm=None):
        t = torch.randint(self.T, size=(len(x_0),), device=x_0.device)
        noise = torch.randn_like(x_0)
        bar = self.bars[t][:, None, None, None]
        x_t = bar.sqrt().float() * x_0 + (1 - bar).sqrt().float() * noise
        return (self.model(x_t, t, y=y_0) - noise) ** 2, torch.zeros(())
"""

FILES = {
    "sit": {
        "models.py": SIT,
        "transport/__init__.py": "from .transport import *",
        "transport/transport.py": TRANSPORT,
    },
    "repa": {"models/sit.py": REPA, "models/__init__.py": "", "samplers.py": REPA_SAMPLERS},
    "cbdm": {"model/model.py": CBDM, "diffusion.py": CBDM_DIFFUSION},
}


def write(folder: Path, kind: str) -> Path:
    """A checkout of that kind below `folder`."""
    for name, text in FILES[kind].items():
        path = folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / kind
