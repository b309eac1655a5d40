"""The steady state of a relaxing field: D lap u - u - u³ + f(x) = 0 on a square without flow through its walls."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ups.physics.description import Equation, Field, Parameter
from ups.physics.solvers.relaxation import RelaxationSolver

_SIZE, _FINEST, _WAVES = 3.0, 4.0, 12


def random_source(
    num: int, axes: tuple[Float[Tensor, " _"], ...], params: Tensor, generator: torch.Generator
) -> Float[Tensor, "num 1 x y"]:
    """Smooth Gaussian random fields of deviation 3 over the square, and of 6 at its corners: cosines of variance
    exp(-|k|² / 16).

    Args:
        num: fields to draw.
        axes: coordinates along each axis, in [0, 1].
        params: not used; the diffusion does not change the source.
        generator: of the random numbers, which do not depend on the coordinates.
    """
    k = torch.arange(_WAVES, dtype=torch.float64)
    weight = torch.exp(-(k[:, None].square() + k.square()) / (2 * _FINEST**2))
    normal = torch.randn(num, _WAVES, _WAVES, dtype=torch.float64, generator=generator)
    size = torch.where(k == 0, 1.0, math.sqrt(2.0))
    waves = [size[:, None] * torch.cos(math.pi * k[:, None] * x) for x in axes]
    field: Tensor = waves[0].T @ (weight * normal) @ waves[1]
    return (_SIZE / weight.square().sum().sqrt()) * field[:, None]


RELAXATION2D = Equation(
    name="relaxation2d",
    dim=2,
    given=(Field("f"),),
    fields=(Field("u"),),
    parameters=(Parameter("diffusion", ("diffusion",), default=0.01, lower=1e-4, upper=1e2),),
    domain=((0.0, 1.0), (0.0, 1.0)),
    boundary="neumann",
    form="increment",
    symmetries=frozenset({"reflection", "rotation"}),
    time=1.0,
    frames=2,
    resolution=64,
    make_frames=2,
    make_resolution=64,
    initial_condition=random_source,
    solver=RelaxationSolver(),
)
