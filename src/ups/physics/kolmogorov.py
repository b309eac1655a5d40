"""Kolmogorov flow: two-dimensional incompressible flow driven along x by sin(4 y), on the periodic square of 2 pi.

In vorticity, w_t + u . grad w = nu lap w - drag w + f with f = curl (sin(4 y), 0) = -4 cos(4 y). The forcing leaves
these symmetries: any translation along x; half a wave of the forcing along y together with the mirror x -> -x, w -> -w
(twice: a whole wave along y); half a turn (x, y) -> (-x, -y). At nu = 0.01 and drag = 0.1 small differences grow by a
factor e in about 2.5 units of time.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from ups.physics.description import Equation, Field, Motion, Parameter
from ups.physics.differences import laplacian_periodic, slope_periodic
from ups.physics.initial import random_modes
from ups.physics.solvers.navier_stokes import Flow, VorticitySolver

_LENGTH = 2 * math.pi
_WAVES = 4  # of the forcing along y
_MODES = 4  # cycles of the finest wave of an initial state, along each axis

_SHIFT_AND_MIRROR = Motion(mirrored=(True, False), shift=(Fraction(0), Fraction(1, 2 * _WAVES)), order=2 * _WAVES)
_HALF_TURN = Motion(mirrored=(True, True), shift=(Fraction(0), Fraction(0)), order=2)


def _forcing(axes: tuple[Tensor, ...]) -> Float[Tensor, "1 x y"]:
    x, y = axes
    return (-_WAVES * torch.cos(_WAVES * y)).expand(1, len(x), -1)


@lru_cache(maxsize=8)
def _flow(shape: tuple[int, int], lengths: tuple[float, float], device: torch.device) -> Flow:
    with torch.inference_mode(False):  # its tables are kept, and may be needed under gradients later
        return Flow(shape, lengths, device)


def _velocity(w: Float[Tensor, "batch 1 x y"], spacing: tuple[float, ...]) -> Float[Tensor, "batch 2 x y"]:
    shape = (w.shape[-2], w.shape[-1])
    flow = _flow(shape, (shape[0] * spacing[0], shape[1] * spacing[1]), w.device)
    return flow.velocity(flow.fourier.forward(w[:, 0].double())).to(w.dtype)


def _rhs(w: Float[Tensor, "batch 1 x y"], params: Float[Tensor, "batch 2"], spacing: tuple[float, ...]) -> Tensor:
    shape = (w.shape[-2], w.shape[-1])
    u, v = _velocity(w, spacing)[:, :, None].unbind(1)
    nu, drag = params[:, :, None, None, None].unbind(1)
    carried = slope_periodic((u * w).mT, spacing[0]).mT + slope_periodic(v * w, spacing[1])
    viscous = laplacian_periodic(w.mT, spacing[0]).mT + laplacian_periodic(w, spacing[1])
    axes = tuple(
        (torch.arange(points, dtype=torch.float64, device=w.device) + 0.5) * step
        for points, step in zip(shape, spacing, strict=True)
    )
    return nu * viscous - carried - drag * (w - w.mean(dim=(-2, -1), keepdim=True)) + _forcing(axes).to(w.dtype)


def _initial_condition(num: int, axes: tuple[Tensor, ...], params: Tensor, generator: torch.Generator) -> Tensor:
    return 2 * random_modes(num, tuple(axis / _LENGTH for axis in axes), _MODES, generator)


KOLMOGOROV2D = Equation(
    name="kolmogorov2d",
    dim=2,
    fields=(Field("w", conserved=True, parity=-1),),
    parameters=(
        Parameter("nu", ("Nu", "nu"), default=0.01, lower=1e-4, upper=1e2),
        Parameter("drag", ("Drag", "drag"), default=0.1, scale="linear", lower=0.0, upper=10.0, optional=True),
    ),
    domain=((0.0, _LENGTH), (0.0, _LENGTH)),
    boundary="periodic",
    form="flux",
    symmetries=frozenset({"translation x"}),
    motions=(_SHIFT_AND_MIRROR, _HALF_TURN),
    time=5.0,
    frames=21,
    resolution=64,
    make_frames=21,
    make_resolution=64,
    spin_up=20.0,
    forcing=_forcing,
    derived=("u", "v"),
    derive=_velocity,
    rhs=_rhs,
    initial_condition=_initial_condition,
    solver=VorticitySolver(_forcing),
)
