"""Reaction and diffusion: Fisher's equation in one dimension, FitzHugh-Nagumo in two."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ups.physics.description import Equation, Field, Parameter
from ups.physics.differences import laplacian_no_flow, laplacian_periodic
from ups.physics.initial import random_noise, random_waves_in_unit_range
from ups.physics.solvers.reaction_diffusion import FisherSolver, FitzHughNagumoSolver

_ACTIVATOR_DIFFUSION, _INHIBITOR_DIFFUSION, _OFFSET = 1e-3, 5e-3, 5e-3


def _fisher_rhs(u: Float[Tensor, "batch 1 x"], params: Float[Tensor, "batch 2"], spacing: tuple[float, ...]) -> Tensor:
    nu, rho = params[:, :, None, None].unbind(1)
    return nu * laplacian_periodic(u, spacing[0]) + rho * u * (1 - u)


def _fisher_initial(num: int, axes: tuple[Tensor, ...], params: Tensor, generator: torch.Generator) -> Tensor:
    return random_waves_in_unit_range(num, axes[0], generator)


def _fitzhugh_nagumo_rhs(
    fields: Float[Tensor, "batch 2 x y"], params: Float[Tensor, "batch 0"], spacing: tuple[float, ...]
) -> Tensor:
    u, v = fields.unbind(1)
    u_t = _ACTIVATOR_DIFFUSION * laplacian_no_flow(u, spacing) + u - u**3 - _OFFSET - v
    v_t = _INHIBITOR_DIFFUSION * laplacian_no_flow(v, spacing) + u - v
    return torch.stack([u_t, v_t], dim=1)


def _noise(num: int, axes: tuple[Tensor, ...], params: Tensor, generator: torch.Generator) -> Tensor:
    return random_noise(num, 2, tuple(len(axis) for axis in axes), generator)


REACTION_DIFFUSION1D = Equation(
    name="reaction_diffusion1d",
    dim=1,
    fields=(Field("u", lower=0.0, upper=1.0),),
    parameters=(
        Parameter("nu", ("Nu", "nu"), default=0.5, lower=1e-4, upper=1e2),
        Parameter("rho", ("Rho", "rho"), default=1.0, lower=1e-2, upper=1e2),
    ),
    domain=((0.0, 1.0),),
    boundary="periodic",
    form="flux_source",
    symmetries=frozenset({"translation", "reflection"}),
    time=1.0,
    frames=101,
    resolution=1024,
    make_frames=41,
    make_resolution=256,
    rhs=_fisher_rhs,
    initial_condition=_fisher_initial,
    solver=FisherSolver(),
)

REACTION_DIFFUSION2D = Equation(
    name="reaction_diffusion2d",
    dim=2,
    fields=(Field("u"), Field("v")),
    parameters=(),
    domain=((-1.0, 1.0), (-1.0, 1.0)),
    boundary="neumann",
    form="flux_source",
    symmetries=frozenset({"reflection", "rotation"}),
    time=5.0,
    frames=101,
    resolution=128,
    make_frames=21,
    make_resolution=64,
    rhs=_fitzhugh_nagumo_rhs,
    initial_condition=_noise,
    solver=FitzHughNagumoSolver((_ACTIVATOR_DIFFUSION, _INHIBITOR_DIFFUSION), _OFFSET),
)
