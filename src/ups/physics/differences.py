"""Central differences on cell centres, for right-hand sides."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def slope_periodic(u: Float[Tensor, "*batch x"], spacing: float) -> Float[Tensor, "*batch x"]:
    """du/dx on a periodic axis, fourth order: (u_{i-2} - 8 u_{i-1} + 8 u_{i+1} - u_{i+2}) / 12 h. It sums to zero."""
    near = u.roll(-1, -1) - u.roll(1, -1)
    far = u.roll(-2, -1) - u.roll(2, -1)
    return (8 * near - far) / (12 * spacing)


def laplacian_periodic(u: Float[Tensor, "*batch x"], spacing: float) -> Float[Tensor, "*batch x"]:
    """d²u/dx² on a periodic axis, fourth order: (-u_{i±2} + 16 u_{i±1} - 30 u_i) / 12 h². It sums to zero."""
    near = u.roll(-1, -1) + u.roll(1, -1)
    far = u.roll(-2, -1) + u.roll(2, -1)
    return (16 * near - far - 30 * u) / (12 * spacing**2)


def laplacian_no_flow(u: Float[Tensor, "*batch x y"], spacing: tuple[float, ...]) -> Float[Tensor, "*batch x y"]:
    """d²u/dx² + d²u/dy² between walls without flow, finite volumes of second order. It sums to zero."""
    total = torch.zeros_like(u)
    for dim, step in zip((-2, -1), spacing, strict=True):
        flux = u.diff(dim=dim) / step
        wall = torch.zeros_like(u.narrow(dim, 0, 1))
        total = total + torch.cat([wall, flux, wall], dim=dim).diff(dim=dim) / step
    return total
