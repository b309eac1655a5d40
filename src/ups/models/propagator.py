"""The linear base of a step: the best linear propagator of the training data, fitted in closed form.

On a periodic grid the modes are Fourier modes, on a no-flow grid cosine modes (DCT-II, the eigenvectors of the
no-flux Laplacian); in both every mode k is advanced by its own small matrix over channels,

    u_{t+dt}(k) = sum_j w_j(params) M_j(k) u_t(k),

where the weights w_j >= 0 blend the matrices of a few knots among the parameters of the training data and sum to one:
one propagator serves all values, and between two knots no mode grows faster than at one of them (a polynomial in the
parameters would, where the data hold little of a mode). Fields that do not change but act on the others (a forcing) are
read beside u_t; their matrices have columns only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.kernel import agreed

KNOTS = 8  # among the parameters of the training data, at most
ENOUGH = 8  # pairs in either half of the data from which on the halves are compared
FAR = 1e6  # standardised units: where knots lie that are not used


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


class Blend(nn.Module):
    """Weights of a few knots in the space of the parameters, from none below zero, summing to one.

    Where one parameter varies they are piecewise linear in it, constant beyond the first and last knot; where several
    do, normalised Gaussians of the distance.

    Args:
        varying: which columns of the (standardised) parameters vary; without any there is a single knot.
    """

    knots: Tensor
    width: Tensor

    def __init__(self, varying: Sequence[int]) -> None:
        super().__init__()
        self.varying, self.num = tuple(varying), KNOTS if varying else 1
        knots = FAR + torch.arange(self.num, dtype=torch.float32)[:, None].expand(self.num, len(varying))
        knots = knots.clone()
        knots[0] = 0.0
        self.register_buffer("knots", knots)
        self.register_buffer("width", torch.ones(()))

    def forward(self, params: Float[Tensor, "batch parameter"]) -> Float[Tensor, "batch knot"]:
        if not self.varying:
            return params.new_ones(len(params), 1)
        knots, place = self.knots.to(params.dtype), params[:, list(self.varying)]
        if len(self.varying) > 1:
            return torch.softmax(-(place[:, None] - knots).square().sum(-1) / self.width.to(params.dtype) ** 2, dim=1)
        line = knots[:, 0]
        last = (line < FAR).sum() - 1
        x = place[:, 0].clamp(line[0], line[last])
        upper = torch.searchsorted(line, x.contiguous()).clamp(1, self.num - 1)
        share = (x - line[upper - 1]) / (line[upper] - line[upper - 1])
        weights = params.new_zeros(len(params), self.num)
        return weights.scatter(1, (upper - 1)[:, None], 1 - share[:, None]).scatter(1, upper[:, None], share[:, None])

    @torch.no_grad()
    def fit(self, params: Float[Tensor, "pair parameter"]) -> None:
        """Takes the knots from the values that occur: all of them, or as many as there are knots, far apart."""
        if not self.varying:
            return
        found = torch.unique(params[:, list(self.varying)].float(), dim=0)
        chosen = [int(found.square().sum(1).argmax())]
        while len(chosen) < min(self.num, len(found)):  # each the farthest from those before
            chosen.append(int(torch.cdist(found, found[chosen]).amin(1).argmax()))
        knots = found[chosen]
        knots = knots[knots[:, 0].argsort()]
        self.knots[: len(knots)] = knots
        if len(knots) > 1:
            gaps = torch.cdist(knots, knots) + torch.diag(torch.full((len(knots),), torch.inf))
            self.width.copy_(gaps.amin(1).median())


class LinearPropagator(nn.Module):
    """u_{t+dt} = M u_t, one matrix over channels per mode; the identity until `fit`.

    Args:
        channels: number of fields.
        varying: columns of the (standardised) parameters that differ within the training data.
        conserved: per channel; the mean of a conserved field is passed on unchanged, to rounding.
        static: number of channels that are read after the fields but not advanced, such as a forcing.
    """

    matrix: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        periodic: Sequence[bool],
        channels: int,
        varying: Sequence[int],
        conserved: Sequence[bool],
        static: int = 0,
    ) -> None:
        super().__init__()
        self.transform = ModeTransform(shape, periodic)
        self.blend, self.conserved = Blend(varying), tuple(conserved)
        # Real and imaginary parts are kept apart: a complex buffer would not survive `.to(dtype)` or safetensors.
        read = channels + static
        matrix = torch.zeros(2, self.blend.num, channels, read, *self.transform.mode_shape)
        matrix[0, :] = torch.eye(channels, read).reshape(channels, read, *[1] * len(shape))
        self.register_buffer("matrix", matrix)

    def forward(self, u: Float[Tensor, "batch read *grid"], params: Float[Tensor, "batch parameter"]) -> Tensor:
        """Fields and static channels in, fields out, in the (normalised) units it was fitted in."""
        modes = self.transform(u)
        matrix = torch.complex(self.matrix[0], self.matrix[1]) if self.transform.fourier else self.matrix[0]
        if self.blend.num == 1:
            return self.transform.inverse(torch.einsum("oi...,bi...->bo...", matrix[0], modes))
        weights = self.blend(params).to(matrix.dtype)
        return self.transform.inverse(torch.einsum("bf,foi...,bi...->bo...", weights, matrix, modes))

    def choose_knots(self, params: Float[Tensor, "pair parameter"]) -> None:
        """Takes the knots from the (standardised) parameters of the training data; before `fit`."""
        self.blend.fit(params)

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[Tensor, Tensor, Tensor]], ridge: float = 1e-10) -> None:
        """Least squares over (u_t, u_{t+dt}, params) batches, in float64, by the normal equations of every mode.

        What the first and the second halves of all batches do not agree on is taken out (`kernel.agreed`): they should
        be of different trajectories, as `training.stages.halved` has them.

        Args:
            pairs: batches, read once and one at a time, of (batch, read, *grid), the fields one step later, and
                (batch, parameter) standardised.
            ridge: Tikhonov weight relative to the mean energy of all modes; unexcited modes stay at zero gain.
        """
        halves = [_NormalEquations(), _NormalEquations()]
        transform = self.transform.double()
        for before, after, params in pairs:
            x, y, weights = transform(before.double()), transform(after.double()), self.blend(params.double())
            x = torch.einsum("bf,bi...->bfi...", weights.to(x.dtype), x).flatten(1, 2).flatten(2)
            middle = len(x) // 2
            for half, part in zip(halves, (slice(middle), slice(middle, None)), strict=True):
                half.add(x[part], y[part].flatten(2))
        self.transform.float()
        if not halves[1].pairs:
            raise ValueError("a linear propagator needs at least one pair of frames")
        both = halves[0] + halves[1]
        matrix = self._shaped(both.solve(ridge))
        if min(half.pairs for half in halves) >= ENOUGH:
            first, second = (self._shaped(half.solve(ridge)) for half in halves)
            energy = self._energy(both.gram)
            matrix = agreed(matrix, first, second, energy, self.transform.shape, fourier=self.transform.fourier)
        matrix = matrix.contiguous()
        for channel, keeps in enumerate(self.conserved):
            if keeps:
                means = matrix[:, channel].flatten(2)  # a view, whose first mode is the mean
                means[:, :, 0] = 0
                means[:, channel, 0] = 1
        self.matrix.copy_(
            torch.stack([matrix.real, matrix.imag])
            if matrix.is_complex()
            else torch.stack([matrix, torch.zeros_like(matrix)])
        )

    def _shaped(self, solution: Tensor) -> Tensor:
        """(mode, channel, knot * read) as (knot, channel, read, *modes)."""
        knots, channels, read = self.matrix.shape[1:4]
        return solution.reshape(-1, channels, knots, read).permute(2, 1, 3, 0).reshape(*self.matrix.shape[1:])

    def _energy(self, gram: Tensor | float) -> Tensor:
        """(mode, knot * read, knot * read) to the energy of what is read, (knot, read, *modes)."""
        assert isinstance(gram, Tensor)
        knots, _, read = self.matrix.shape[1:4]
        return gram.diagonal(dim1=1, dim2=2).real.T.reshape(knots, read, *self.transform.mode_shape)


class _NormalEquations:
    """Sums over pairs from which the least-squares matrix of every mode follows."""

    def __init__(self) -> None:
        self.gram: Tensor | float = 0.0
        self.cross: Tensor | float = 0.0
        self.pairs = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Takes pairs of modes in: x (pair, read, mode), y (pair, channel, mode)."""
        self.gram = self.gram + torch.einsum("bik,bjk->kij", x, x.conj())
        self.cross = self.cross + torch.einsum("bok,bik->koi", y, x.conj())
        self.pairs += len(x)

    def __add__(self, other: _NormalEquations) -> _NormalEquations:
        both = _NormalEquations()
        both.gram, both.cross = self.gram + other.gram, self.cross + other.cross
        both.pairs = self.pairs + other.pairs
        return both

    def solve(self, ridge: float) -> Tensor:
        """(mode, channel, read): M with M G = C, that is G^H M^H = C^H, G being Hermitian."""
        assert isinstance(self.gram, Tensor)
        assert isinstance(self.cross, Tensor)
        energy = self.gram.diagonal(dim1=1, dim2=2).real.mean()
        eye = torch.eye(self.gram.shape[-1], dtype=self.gram.dtype)
        solution: Tensor = torch.linalg.solve(self.gram + ridge * energy * eye, self.cross.mH).mH
        return solution
