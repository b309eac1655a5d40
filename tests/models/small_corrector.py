"""A simulator with a corrector, both small, and an ensemble of its roll-outs."""

from __future__ import annotations

import torch
from tests.models.helpers import make_spec

from ups.models.architecture import Architecture
from ups.models.diffusion import DiffusionArchitecture
from ups.models.simulator import Simulator

SMALL = DiffusionArchitecture(hidden_dim=16, depth=1, stem_width=8, sampler_steps=4)
TASK = "burgers1d"


def make_simulator(
    *, trained: bool = True, architecture: DiffusionArchitecture = SMALL, **changes: object
) -> Simulator:
    """A simulator whose corrector's networks have random weights."""
    torch.manual_seed(0)
    spec = make_spec(name=TASK, param_names=("nu",), param_log=(True,), param_mean=(-4.6,), param_std=(0.0,),
                     param_low=(0.01,), param_high=(0.01,), **changes)  # type: ignore[arg-type]  # fmt: skip
    simulator = Simulator({TASK: spec}, Architecture(patch=4, hidden_dim=16, heads=2, depths=(1,), stem_width=8))
    corrector = simulator.add_corrector(architecture)
    if trained:
        for p in corrector.denoiser.parameters():
            torch.nn.init.normal_(p, std=0.1)
        corrector.scales[TASK].residual.fill_(0.1)
    return simulator.eval()


def make_context(num: int = 3) -> torch.Tensor:
    """Noise, (num, 1, 1, 32), the same at every call."""
    return torch.randn(num, 1, 1, 32, generator=torch.Generator().manual_seed(1))


def roll(
    simulator: Simulator, context: torch.Tensor, *, steps: int = 3, members: int = 4, seed: int = 0
) -> torch.Tensor:
    """An ensemble of roll-outs of each sample at nu = 0.01, (members, num, steps, 1, 32)."""
    rng = torch.Generator().manual_seed(seed)
    dt, params = torch.full((len(context),), 0.1), torch.full((len(context), 1), 0.01)
    with torch.no_grad():
        return simulator.rollout_members(context, steps, members=members, task=TASK, dt=dt, params=params, rng=rng)
