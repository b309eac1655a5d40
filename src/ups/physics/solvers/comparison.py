"""Solutions beside data: on one grid, over one domain, and by how much they differ."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ups.errors import UpsError
from ups.physics.description import Equation, Field
from ups.physics.solvers.transforms import cell_averages, resample_mirrored, resample_periodic


def require_comparable(
    equation: Equation,
    truth: Float64[Tensor, "batch time channel *grid"],
    times: Float64[np.ndarray, " time"],
    spacing: tuple[float, ...],
) -> None:
    """Refuses frames that no solution can be compared with.

    Args:
        spacing: distance of the cell centres along each axis.

    Raises:
        UpsError: they do not cover the equation's domain, or there are not as many as times, and two at least.
    """
    extents = tuple(points * step for points, step in zip(truth.shape[3:], spacing, strict=True))
    if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(extents, equation.lengths, strict=True)):
        found, known = (" x ".join(f"{length:.5g}" for length in lengths) for lengths in (extents, equation.lengths))
        raise UpsError(f"{equation.name}: the grid's domain is {found} long, the solver's {known}")
    if len(times) < 2 or truth.shape[1] != len(times):
        raise UpsError(f"{equation.name}: {truth.shape[1]} frames at {len(times)} times give nothing to compare")


def resample(equation: Equation, fields: tuple[Field, ...], u: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The channels `fields` of u (..., channel, *grid) on a grid of another shape."""
    channel = u.ndim - len(shape) - 1
    if tuple(u.shape[channel + 1 :]) == shape:
        return u
    fixed = equation.boundary == "dirichlet" and fields is equation.fields
    parts = zip(fields, u.unbind(channel), strict=True)
    return torch.stack([_resample_field(equation, field, fixed, part, shape) for field, part in parts], dim=channel)


def _resample_field(equation: Equation, field: Field, fixed: bool, u: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One field (..., *grid); `fixed` is whether its value at the walls is the equation's.

    Two values of a coefficient, mixed in equal parts in two dimensions, conduct as their geometric mean does, exactly
    (A. M. Dykhne, Sov. Phys. JETP 32, 1971).
    """
    origin = equation.boundary_value if fixed else 0.0
    u = u.log() if field.coefficient else u - origin
    for dim, points in enumerate(shape, start=u.ndim - len(shape)):
        if field.coefficient:
            u = cell_averages(u, points, dim)
        elif equation.boundary == "periodic":
            u = resample_periodic(u, points, dim)
        else:
            u = resample_mirrored(u, points, -1 if fixed else 1, dim)
    return u.exp() if field.coefficient else u + origin


def nrmse(prediction: Tensor, truth: Tensor) -> float:
    """Mean over samples and channels."""
    return float(nrmse_of_each(prediction, truth).mean())


def nrmse_of_each(prediction: Tensor, truth: Tensor) -> Tensor:
    """Of every sample, mean over channels: sqrt(sum_{x,t} (p - u)²) / sqrt(sum_{x,t} u²)."""
    error = (prediction - truth).square().movedim(2, 1).flatten(2).sum(dim=2)
    size = truth.square().movedim(2, 1).flatten(2).sum(dim=2)
    return (error / size.clamp(min=torch.finfo(truth.dtype).tiny)).sqrt().mean(dim=1)
