"""The linear base of a step: the best linear propagator of the training data, fitted in closed form.

On a periodic grid the modes are Fourier modes, on a no-flow grid cosine modes (DCT-II, the eigenvectors of the
no-flux Laplacian); in both every mode k is advanced by its own small matrix over channels,

    u_{t+dt}(k) = sum_j f_j(params) M_j(k) u_t(k),

with f_j = 1, p_1, .., p_P, p_1^2, .., p_P^2 (standardised parameters), so that one propagator serves all their values.
Fields that do not change but act on the others (a forcing) are read beside u_t; their matrices have columns only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

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

    def _cosine(self, u: Tensor, *, inverse: bool) -> Tensor:
        for axis in range(len(self.shape)):
            basis: Tensor = getattr(self, f"basis{axis}")
            matrix = (basis.T if inverse else basis).to(u.dtype)
            u = torch.tensordot(u, matrix, dims=([-len(self.shape) + axis], [1])).movedim(-1, -len(self.shape) + axis)
        return u


def parameter_features(params: Float[Tensor, "batch parameter"], powers: int) -> Float[Tensor, "batch feature"]:
    """1, p, .., p^powers for every parameter."""
    return torch.cat(
        [
            torch.ones_like(params[:, :1]) if params.shape[1] else params.new_ones(len(params), 1),
            *[params**k for k in range(1, powers + 1)],
        ],
        dim=1,
    )


class LinearPropagator(nn.Module):
    """u_{t+dt} = M u_t, one matrix over channels per mode; the identity until `fit`.

    Args:
        channels: number of fields.
        parameters: number of (standardised) parameters.
        conserved: per channel; the mean of a conserved field is passed on unchanged, to rounding.
        powers: highest power of each parameter, 0 when all training data share one value.
        static: number of channels that are read after the fields but not advanced, such as a forcing.
    """

    matrix: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        periodic: Sequence[bool],
        channels: int,
        parameters: int,
        conserved: Sequence[bool],
        powers: int = 0,
        static: int = 0,
    ) -> None:
        super().__init__()
        self.transform = ModeTransform(shape, periodic)
        self.powers, self.conserved = powers, tuple(conserved)
        features = 1 + parameters * powers
        # Real and imaginary parts are kept apart: a complex buffer would not survive `.to(dtype)` or safetensors.
        read = channels + static
        matrix = torch.zeros(2, features, channels, read, *self.transform.mode_shape)
        matrix[0, 0] = torch.eye(channels, read).reshape(channels, read, *[1] * len(shape))
        self.register_buffer("matrix", matrix)

    def forward(self, u: Float[Tensor, "batch read *grid"], params: Float[Tensor, "batch parameter"]) -> Tensor:
        """Fields and static channels in, fields out, in the (normalised) units it was fitted in."""
        modes = self.transform(u)
        matrix = torch.complex(self.matrix[0], self.matrix[1]) if self.transform.fourier else self.matrix[0]
        if self.powers == 0:
            return self.transform.inverse(torch.einsum("oi...,bi...->bo...", matrix[0], modes))
        features = parameter_features(params, self.powers).to(matrix.dtype)
        return self.transform.inverse(torch.einsum("bf,foi...,bi...->bo...", features, matrix, modes))

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: float = 1e-10) -> None:
        """Least squares over (u_t, u_{t+dt}, params) batches, in float64, by the normal equations of every mode.

        Args:
            pairs: batches, read once and one at a time, of (batch, read, *grid), the fields one step later, and
                (batch, parameter) standardised.
            ridge: Tikhonov weight relative to the mean energy of all modes; unexcited modes stay at zero gain.
        """
        gram = cross = None
        for before, after, params in pairs:
            transform = self.transform.double()
            x, y = transform(before.double()), transform(after.double())
            features = parameter_features(params.double(), self.powers)
            x = torch.einsum("bf,bi...->bfi...", features.to(x.dtype), x).flatten(1, 2).flatten(2)
            g, c = torch.einsum("bik,bjk->kij", x, x.conj()), torch.einsum("bok,bik->koi", y.flatten(2), x.conj())
            gram, cross = (g, c) if gram is None or cross is None else (gram + g, cross + c)
        if gram is None or cross is None:
            raise ValueError("a linear propagator needs at least one pair of frames")
        energy = gram.diagonal(dim1=1, dim2=2).real.mean()
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
        # M G = C  <=>  G^H M^H = C^H, with G Hermitian
        solution = torch.linalg.solve(gram + ridge * energy * eye, cross.mH).mH
        channels, read = self.matrix.shape[2:4]
        matrix = (
            solution.reshape(-1, channels, self.matrix.shape[1], read)
            .permute(2, 1, 3, 0)
            .reshape(*self.matrix.shape[1:])
        )
        for channel, keeps in enumerate(self.conserved):
            if keeps:
                mean_mode = (slice(None), channel, slice(None), *[0] * len(self.transform.shape))
                matrix[mean_mode] = 0
                matrix[(0, channel, channel, *[0] * len(self.transform.shape))] = 1
        self.matrix.copy_(
            torch.stack([matrix.real, matrix.imag])
            if matrix.is_complex()
            else torch.stack([matrix, torch.zeros_like(matrix)])
        )
        self.transform.float()
