"""Orthogonal transforms in which the Laplacian is diagonal: Fourier on a periodic axis, cosine on a no-flow grid.

Both hold their coefficients as real numbers, so that one integrator serves both and no complex arithmetic is spent on
multiplying by real factors: a Fourier coefficient takes two neighbouring places, its real and its imaginary part.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


class Fourier:
    """Real Fourier transform of one periodic axis of cell centres.

    Args:
        points: number of cells N.
        length: period of the axis, in its unit.
        device: where the tables live.
    """

    def __init__(self, points: int, length: float, device: torch.device) -> None:
        self.points = points
        self.cycles: Float[Tensor, " modes"] = torch.arange(points // 2 + 1, dtype=torch.float64, device=device)
        self.wavenumber: Float[Tensor, " modes"] = (2 * math.pi / length) * self.cycles
        self.laplacian: Float[Tensor, " coefficients"] = -self.wavenumber.square().repeat_interleave(2)

    def forward(self, u: Float[Tensor, "*batch points"]) -> Float[Tensor, "*batch coefficients"]:
        """Values at the cell centres to coefficients (2 (N // 2 + 1) real numbers)."""
        return torch.view_as_real(torch.fft.rfft(u)).flatten(-2)

    def inverse(self, modes: Float[Tensor, "*batch coefficients"]) -> Float[Tensor, "*batch points"]:
        """Coefficients back to values at the cell centres."""
        values: Tensor = torch.fft.irfft(as_complex(modes), n=self.points)
        return values


class Fourier2d:
    """Real Fourier transform of two periodic axes of cell centres, the second of which is halved.

    Args:
        shape: number of cells (X, Y).
        lengths: period of each axis, in its unit.
        device: where the tables live.
    """

    def __init__(self, shape: tuple[int, int], lengths: tuple[float, float], device: torch.device) -> None:
        self.shape = shape
        whole = torch.fft.fftfreq(shape[0], 1 / shape[0], dtype=torch.float64, device=device)
        half = torch.arange(shape[1] // 2 + 1, dtype=torch.float64, device=device)
        self.cycles: tuple[Tensor, Tensor] = (whole[:, None], half[None])
        self.wavenumbers: tuple[Float[Tensor, "x 1"], Float[Tensor, "1 modes"]] = (
            (2 * math.pi / lengths[0]) * whole[:, None],
            (2 * math.pi / lengths[1]) * half[None],
        )
        square = self.wavenumbers[0].square() + self.wavenumbers[1].square()
        self.laplacian: Float[Tensor, "x coefficients"] = -square.repeat_interleave(2, dim=-1)

    def forward(self, u: Float[Tensor, "*batch x y"]) -> Float[Tensor, "*batch x coefficients"]:
        """Values at the cell centres to coefficients (2 (Y // 2 + 1) real numbers along the last axis)."""
        return torch.view_as_real(torch.fft.rfft2(u)).flatten(-2)

    def inverse(self, modes: Float[Tensor, "*batch x coefficients"]) -> Float[Tensor, "*batch x y"]:
        """Coefficients back to values at the cell centres."""
        values: Tensor = torch.fft.irfft2(as_complex(modes), s=self.shape)
        return values


class Cosine:
    """Orthonormal cosine transform (type II) over two axes of cell centres with no flow through the walls.

    The Laplacian is the finite-volume one, [1, -2, 1] / h² along each axis with mirrored neighbours, which the cosines
    diagonalise exactly: eigenvalue -(2 sin(pi k / 2N) / h)². The transform is a product with an N x N matrix: on the
    grids used here (N <= 512) that is as fast as an FFT, and it runs everywhere.
    """

    def __init__(self, shape: tuple[int, int], lengths: tuple[float, float], device: torch.device) -> None:
        self.rows, self.columns = (_cosine_matrix(points, device) for points in shape)
        eigenvalues = [_no_flow_eigenvalues(n, length / n, device) for n, length in zip(shape, lengths, strict=True)]
        self.laplacian: Float[Tensor, "x y"] = eigenvalues[0][:, None] + eigenvalues[1][None, :]

    def forward(self, u: Float[Tensor, "*batch x y"]) -> Float[Tensor, "*batch x y"]:
        """Values at the cell centres to cosine coefficients."""
        return self.rows @ u @ self.columns.mT

    def inverse(self, modes: Float[Tensor, "*batch x y"]) -> Float[Tensor, "*batch x y"]:
        """Cosine coefficients back to values."""
        return self.rows.mT @ modes @ self.columns


def as_complex(modes: Float[Tensor, "*batch coefficients"]) -> Tensor:
    """View interleaved real and imaginary parts as complex numbers."""
    return torch.view_as_complex(modes.unflatten(-1, (-1, 2)))


def without_alias(cycles: Float[Tensor, "*modes"], points: int) -> Float[Tensor, "*modes"]:
    """1 for the modes whose products do not alias into each other on so many points (2/3 rule), 0 for the others.

    Args:
        cycles: of each mode over the period, whole numbers of either sign.
        points: number of cells along that axis.
    """
    return (3 * cycles.abs() < points).to(cycles.dtype)


def resample_periodic(u: Float[Tensor, "..."], points: int, dim: int = -1) -> Float[Tensor, "..."]:
    """Evaluate the trigonometric interpolant of ``u`` at the centres of ``points`` cells over the same period.

    Fewer points than modes cut the highest modes off; the mean is kept exactly. The centres of coarse and fine cells
    do not coincide, (i + 1/2) / N against (j + 1/2) / M, which a phase factor takes into account.

    Args:
        u: values at cell centres along ``dim``.
        points: number of cells wanted.
    """
    source = u.shape[dim]
    if points == source:
        return u
    modes = torch.fft.rfft(u.movedim(dim, -1))
    keep = min((source - 1) // 2, (points - 1) // 2) + 1  # the Nyquist mode has no phase: leave it out
    k = torch.arange(keep, dtype=u.dtype, device=u.device)
    shift = torch.polar(torch.ones_like(k), math.pi * k * (1 / points - 1 / source))
    kept = modes[..., :keep] * shift * (points / source)
    values: Tensor = torch.fft.irfft(kept, n=points)
    return values.movedim(-1, dim)


def resample_mirrored(
    u: Float[Tensor, "..."], points: int, parity: Literal[1, -1], dim: int = -1
) -> Float[Tensor, "..."]:
    """Evaluate the cosine (or sine) interpolant of ``u`` at the centres of ``points`` cells between the same walls.

    The walls are half a cell away from the outermost centres. What is mirrored in them is periodic over twice the
    length: its modes are the cosines that have no slope at the walls, or the sines that vanish there. Fewer points than
    modes cut the highest modes off. Cosines keep the mean exactly; of sines the one of the finest wave is left out.

    Args:
        u: values at cell centres along ``dim``.
        points: number of cells wanted.
        parity: 1 for no slope at the walls, -1 for no value.
    """
    if points == u.shape[dim]:
        return u
    mirrored = torch.cat([u, parity * u.flip(dim)], dim)
    return resample_periodic(mirrored, 2 * points, dim).narrow(dim, 0, points)


def cell_averages(u: Float[Tensor, "..."], points: int, dim: int = -1) -> Float[Tensor, "..."]:
    """Means over ``points`` cells along ``dim`` of what is constant in each of the cells of ``u``, in any ratio."""
    source = u.shape[dim]
    fine, coarse = (torch.arange(n, device=u.device) for n in (source, points))
    left = torch.maximum(points * fine, source * coarse[:, None])  # in units that both cells are multiples of
    right = torch.minimum(points * (fine + 1), source * (coarse[:, None] + 1))
    share = (right - left).clamp(min=0).to(u) / source
    return (u.movedim(dim, -1) @ share.mT).movedim(-1, dim)


def _cosine_matrix(points: int, device: torch.device) -> Float[Tensor, "points points"]:
    index = torch.arange(points, dtype=torch.float64, device=device)
    matrix = torch.cos(math.pi / points * index[:, None] * (index[None, :] + 0.5)) * math.sqrt(2 / points)
    matrix[0] = math.sqrt(1 / points)
    return matrix


def _no_flow_eigenvalues(points: int, spacing: float, device: torch.device) -> Float[Tensor, " points"]:
    index = torch.arange(points, dtype=torch.float64, device=device)
    return -(2 / spacing * torch.sin(math.pi / (2 * points) * index)).square()
