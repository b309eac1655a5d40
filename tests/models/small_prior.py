"""A small steady prior for Darcy flow, and the media that are given to it."""

from __future__ import annotations

from typing import Any

import torch
from tests.models.helpers import make_spec

from ups.models.prior import PriorArchitecture, SteadyPrior
from ups.physics.equations import get_equation

SMALL = PriorArchitecture(num_steps=2, hidden_dim=16, heads=2, depths=(1,), stem_width=8, spread_width=8)


def darcy_spec(size: int = 8, **changes: Any) -> Any:
    """Darcy flow on `size` x `size` points, given the medium `a`."""
    return make_spec(
        2,
        size,
        **{
            "name": "darcy2d",
            "periodic": (False, False),
            "form": "increment",
            "conserved": (False,),
            "dt": 1.0,
            "mean": (0.2,),
            "std": (0.15,),
            "param_names": ("beta",),
            "param_log": (True,),
            "param_mean": (0.0,),
            "param_std": (0.0,),
            "given": ("a",),
            "given_mean": (0.5,),
            "given_std": (0.45,),
            **changes,
        },
    )


def make_prior(architecture: PriorArchitecture = SMALL, **changes: Any) -> SteadyPrior:
    """With random weights in the layers that start at zero."""
    torch.manual_seed(0)
    prior = SteadyPrior({"darcy2d": darcy_spec(**changes)}, architecture)
    for p in prior.drift.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.2)
    return prior.eval()


def media(num: int, points: int) -> torch.Tensor:
    """(num, 1, points, points): the first media of one seed."""
    equation = get_equation("darcy2d")
    assert equation.initial_condition is not None
    params = torch.ones(1).double()
    return equation.initial_condition(num, equation.centres(points), params, torch.Generator().manual_seed(0)).float()
