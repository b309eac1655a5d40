"""Viscous Burgers equation, u_t + (u²/2)_x = (nu / pi) u_xx on the periodic unit interval."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ups.physics.description import Equation, Field, Parameter
from ups.physics.differences import laplacian_periodic, slope_periodic
from ups.physics.initial import random_waves
from ups.physics.solvers.burgers import BurgersSolver


def _rhs(u: Float[Tensor, "batch 1 x"], params: Float[Tensor, "batch 1"], spacing: tuple[float, ...]) -> Tensor:
    diffusivity = params[:, 0, None, None] / math.pi
    return diffusivity * laplacian_periodic(u, spacing[0]) - slope_periodic(u.square() / 2, spacing[0])


def _initial_condition(num: int, axes: tuple[Tensor, ...], params: Tensor, generator: torch.Generator) -> Tensor:
    return random_waves(num, axes[0], generator)


BURGERS1D = Equation(
    name="burgers1d",
    dim=1,
    fields=(Field("u", conserved=True, parity=-1),),
    parameters=(Parameter("nu", ("Nu", "nu"), default=0.01, lower=1e-6, upper=1e3),),
    domain=((0.0, 1.0),),
    boundary="periodic",
    form="flux",
    symmetries=frozenset({"translation", "reflection", "galilean"}),
    time=2.0,
    frames=201,
    resolution=1024,
    make_frames=41,
    make_resolution=256,
    rhs=_rhs,
    initial_condition=_initial_condition,
    solver=BurgersSolver(),
)
