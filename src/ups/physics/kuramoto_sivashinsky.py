"""Kuramoto-Sivashinsky equation, u_t + u u_x + u_xx + nu u_xxxx = 0 on a periodic axis of length 64: chaos."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ups.physics.description import Equation, Field, Parameter
from ups.physics.differences import laplacian_periodic, slope_periodic
from ups.physics.initial import random_modes
from ups.physics.solvers.kuramoto_sivashinsky import KuramotoSivashinskySolver

_LENGTH = 64.0
_MODES = 8  # cycles of the finest wave of an initial state: the most unstable one has seven


def _rhs(u: Float[Tensor, "batch 1 x"], params: Float[Tensor, "batch 1"], spacing: tuple[float, ...]) -> Tensor:
    nu = params[:, 0, None, None]
    curvature = laplacian_periodic(u, spacing[0])
    return -slope_periodic(u.square() / 2, spacing[0]) - curvature - nu * laplacian_periodic(curvature, spacing[0])


def _initial_condition(num: int, axes: tuple[Tensor, ...], params: Tensor, generator: torch.Generator) -> Tensor:
    return random_modes(num, (axes[0] / _LENGTH,), _MODES, generator)


KURAMOTO_SIVASHINSKY1D = Equation(
    name="kuramoto_sivashinsky1d",
    dim=1,
    fields=(Field("u", conserved=True, parity=-1),),
    parameters=(Parameter("nu", ("Nu", "nu"), default=1.0, lower=0.05, upper=100.0),),
    domain=((0.0, _LENGTH),),
    boundary="periodic",
    form="flux",
    symmetries=frozenset({"translation", "reflection", "galilean"}),
    time=40.0,
    frames=41,
    resolution=256,
    make_frames=41,
    make_resolution=128,
    spin_up=80.0,
    rhs=_rhs,
    initial_condition=_initial_condition,
    solver=KuramotoSivashinskySolver(_LENGTH),
)
