"""Fourier modes of a periodic grid, cosine modes of one between no-flow walls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def cosine_basis(size: int) -> Float[Tensor, "mode cell"]:
    """Orthonormal DCT-II matrix in float64: mode k samples cos(pi k (i + 1/2) / size) at cell centres."""
    k, i = torch.meshgrid(
        torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64), indexing="ij"
    )
    basis = torch.cos(math.pi * k * (i + 0.5) / size) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


class ModeTransform(nn.Module):
    """Grid values to modes and back; both directions are exact inverses, in any of one to three dimensions.

    Args:
        periodic: per axis. Axes must be all periodic (complex Fourier modes) or all no-flow (real cosine modes).
    """

    def __init__(self, shape: Sequence[int], periodic: Sequence[bool]) -> None:
        super().__init__()
        if len(set(periodic)) != 1:
            raise ValueError(f"axes must be all periodic or all not, not {tuple(periodic)}")
        self.shape, self.fourier = tuple(shape), bool(periodic[0])
        self.axes = tuple(range(-len(shape), 0))
        self.mode_shape = (*self.shape[:-1], self.shape[-1] // 2 + 1) if self.fourier else self.shape
        for axis, size in enumerate(() if self.fourier else self.shape):
            self.register_buffer(f"basis{axis}", cosine_basis(size).float(), persistent=False)

    def forward(self, u: Float[Tensor, "batch channel *grid"]) -> Tensor:
        if self.fourier:
            modes: Tensor = torch.fft.rfftn(u, dim=self.axes, norm="ortho")
            return modes
        return self._cosine(u, inverse=False)

    def inverse(self, modes: Tensor) -> Tensor:
        if self.fourier:
            u: Tensor = torch.fft.irfftn(modes, s=self.shape, dim=self.axes, norm="ortho")
            return u
        return self._cosine(modes, inverse=True)

    def multiplicity(self) -> Float[Tensor, "*mode"]:
        """How many modes of the grid each one stands for: two, if its complex conjugate is left out of a real FFT."""
        counts = torch.ones(self.mode_shape, dtype=torch.float64)
        if self.fourier:
            counts[..., 1 : (self.shape[-1] + 1) // 2] = 2.0
        return counts

    def _cosine(self, u: Tensor, *, inverse: bool) -> Tensor:
        for axis in range(len(self.shape)):
            basis: Tensor = getattr(self, f"basis{axis}")
            matrix = (basis.T if inverse else basis).to(u.dtype)
            u = torch.tensordot(u, matrix, dims=([-len(self.shape) + axis], [1])).movedim(-1, -len(self.shape) + axis)
        return u
