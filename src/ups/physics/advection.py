"""Advection at constant speed, u_t + beta u_x = 0 on the periodic unit interval."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ups.physics.description import Equation, Field, Parameter
from ups.physics.differences import slope_periodic
from ups.physics.initial import RandomWaves, random_waves
from ups.physics.solvers.advection import AdvectionSolver


def _rhs(u: Float[Tensor, "batch 1 x"], params: Float[Tensor, "batch 1"], spacing: tuple[float, ...]) -> Tensor:
    change: Tensor = -params[:, 0, None, None] * slope_periodic(u, spacing[0])
    return change


def _initial_condition(num: int, axes: tuple[Tensor, ...], params: Tensor, generator: torch.Generator) -> Tensor:
    return random_waves(num, axes[0], generator)


def _exact(
    num: int, axes: tuple[Tensor, ...], params: Tensor, times: Tensor, generator: torch.Generator
) -> Float[Tensor, "num time 1 x"]:
    """u(x, t) = u_0(x - beta t), where u_0 is a function, not values on a grid: kinks and windows stay sharp."""
    waves = RandomWaves.draw(num, generator)
    feet = axes[0] - params[0] * (times - times[0])[:, None]
    return waves(feet.flatten()).reshape(num, len(times), 1, len(axes[0]))


ADVECTION1D = Equation(
    name="advection1d",
    dim=1,
    fields=(Field("u", conserved=True),),
    parameters=(Parameter("beta", ("beta",), default=0.4, scale="linear", lower=-100.0, upper=100.0),),
    domain=((0.0, 1.0),),
    boundary="periodic",
    form="flux",
    symmetries=frozenset({"translation"}),  # a reflection would turn beta round
    time=2.0,
    frames=201,
    resolution=1024,
    make_frames=41,
    make_resolution=256,
    rhs=_rhs,
    initial_condition=_initial_condition,
    exact=_exact,
    solver=AdvectionSolver(),
)
