"""Steady flow through a porous square, -div(a grad u) = beta with u = 0 on its walls (Darcy)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ups.physics.description import Equation, Field, Parameter
from ups.physics.solvers.darcy import DarcySolver

LOW, HIGH = 0.1, 1.0
"""The two values that the coefficient takes in the published data."""

_ROUGHNESS, _SMOOTHNESS, _WAVES = 8.0, 4.0, 48


def random_medium(
    num: int, axes: tuple[Float[Tensor, " _"], ...], params: Tensor, generator: torch.Generator
) -> Float[Tensor, "num 1 x y"]:
    """Coefficients of two values: 1 where a Gaussian random field is positive, 0.1 elsewhere.

    The field is sum_k (pi² |k|² + tau²)^(-s/2) xi_k phi_k with standard normal xi and the square's cosines phi. Its tau
    of 8 and s of 4 fit the published files: interfaces as long, and correlated as far.

    Args:
        num: fields to draw.
        axes: coordinates along each axis, in [0, 1].
        params: not used; the forcing does not change the medium.
        generator: of the random numbers, which do not depend on the coordinates.
    """
    k = torch.arange(_WAVES, dtype=torch.float64)
    weight = (math.pi**2 * (k[:, None].square() + k.square()) + _ROUGHNESS**2) ** (-_SMOOTHNESS / 2)
    normal = torch.randn(num, _WAVES, _WAVES, dtype=torch.float64, generator=generator)
    size = torch.where(k == 0, 1.0, math.sqrt(2.0))
    waves = [size[:, None] * torch.cos(math.pi * k[:, None] * x) for x in axes]
    field = waves[0].T @ (weight * normal) @ waves[1]
    return LOW + (HIGH - LOW) * (field > 0).double()[:, None]


DARCY2D = Equation(
    name="darcy2d",
    dim=2,
    given=(Field("a", lower=0.0, coefficient=True),),
    fields=(Field("u", lower=0.0),),
    parameters=(Parameter("beta", ("beta",), default=1.0, lower=1e-6, upper=1e6),),
    domain=((0.0, 1.0), (0.0, 1.0)),
    boundary="dirichlet",
    form="increment",
    symmetries=frozenset({"reflection", "rotation"}),
    time=1.0,
    frames=2,
    resolution=128,
    make_frames=2,
    make_resolution=64,
    initial_condition=random_medium,
    solver=DarcySolver(),
)
