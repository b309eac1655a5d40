"""Discrete operators that say how far a field is from what the physics keeps: divergence, mismatch at the walls.

Fields are (batch, channel, *grid) at cell centres; walls and seams lie half a cell outside the outermost centres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ups.physics.description import Boundary

WALL_CELLS = 3  # from a wall inwards, that say what the field is there
WALL_SLOPE = (-2.0, 3.0, -1.0)
"""h du/dn at a wall from the three cells next to it, second order: of an even parabola it is zero."""
WALL_VALUE = (15 / 8, -10 / 8, 3 / 8)
"""u at a wall from the three cells next to it, third order."""


def slope(u: Float[Tensor, "*lead"], dim: int, spacing: float, periodic: bool) -> Float[Tensor, "*lead"]:
    """du/dx along `dim`: of the trigonometric interpolant where periodic, else by differences of second order.

    The Nyquist mode of an even number of cells has no slope at the centres.
    """
    if not periodic:
        (difference,) = torch.gradient(u, spacing=spacing, dim=dim, edge_order=2)
        return difference
    cells = u.shape[dim]
    waves = wave_numbers(cells, cells * spacing, half=True, like=u)
    modes = torch.fft.rfft(u.movedim(dim, -1))
    values: Tensor = torch.fft.irfft(torch.complex(-waves * modes.imag, waves * modes.real), n=cells)
    return values.movedim(-1, dim)


def wave_numbers(cells: int, length: float, *, half: bool, like: Tensor) -> Float[Tensor, " mode"]:
    """2 pi k / length for every mode of a periodic axis (`half`: of the real transform), 0 for the Nyquist mode."""
    frequency = torch.fft.rfftfreq if half else torch.fft.fftfreq
    cycles = frequency(cells, 1 / cells, dtype=like.dtype, device=like.device)
    return torch.where(2 * cycles.abs() < cells, cycles, torch.zeros_like(cycles)) * (2 * math.pi / length)


def jacobian(
    u: Float[Tensor, "batch axis *grid"], spacing: Sequence[float], periodic: Sequence[bool]
) -> Float[Tensor, "batch axis axis *grid"]:
    """d u_i / d x_j of a vector with one component per axis."""
    return torch.stack(
        [slope(u, 2 + axis, step, wraps) for axis, (step, wraps) in enumerate(zip(spacing, periodic, strict=True))],
        dim=2,
    )


def divergence(
    u: Float[Tensor, "batch axis *grid"], spacing: Sequence[float], periodic: Sequence[bool]
) -> Float[Tensor, " batch *grid"]:
    """sum_i d u_i / d x_i of a vector with one component per axis, per unit of length."""
    parts = [slope(u[:, i], 1 + i, step, periodic[i]) for i, step in enumerate(spacing)]
    return torch.stack(parts).sum(0)


def wall_mismatch(
    u: Float[Tensor, "batch channel *grid"], axis: int, condition: Boundary, value: float = 0.0
) -> Float[Tensor, "batch channel face"]:
    """How far a field is from a condition at both ends of one axis, in the field's unit; every point of the ends.

    `neumann`: h du/dn. `dirichlet`: u - value. `periodic`: the jump over the seam, of the values extrapolated to it
    from either side, once.

    Args:
        axis: of the grid; it has at least three cells.
    """
    ends = [wall_stencil(u, 2 + axis, WALL_SLOPE if condition == "neumann" else WALL_VALUE, high) for high in (0, 1)]
    if condition == "periodic":
        return (ends[0] - ends[1]).flatten(2)
    return torch.stack(ends, dim=2).flatten(2) - (value if condition == "dirichlet" else 0.0)


def wall_stencil(u: Tensor, dim: int, weights: Sequence[float], high: bool | int) -> Tensor:
    """sum_j weights_j u_j over the cells inwards from the lower or the higher end of `dim`, which goes."""
    last = u.shape[dim] - 1
    near = [weight * u.select(dim, last - j if high else j) for j, weight in enumerate(weights)]
    return torch.stack(near).sum(0)
