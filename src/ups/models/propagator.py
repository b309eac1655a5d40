"""The linear base of a step: the best linear propagator of the training data, fitted in closed form.

On a periodic grid the modes are Fourier modes, on a no-flow grid cosine modes (DCT-II, the eigenvectors of the
no-flux Laplacian); in both every mode k is advanced by its own small matrix over channels,

    u_{t+dt}(k) = sum_j w_j(params) M_j(k) u_t(k),

where the weights w_j >= 0 blend the matrices of a few knots among the parameters of the training data and sum to one.
Where the fields move as a whole by more or less as the parameters have it, that motion is made first (`drift.Drift`).
Each knot's matrix is the best for the pairs near it, weighted by w_j (a polynomial in the parameters, fitted to all at
once, makes modes grow where the data hold little of them). Together the matrices are a kernel in space, which is kept
as short as the data allow (`local_kernel`). Fields that do not change but act on the others (a forcing) are read beside
u_t; their matrices have columns only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.drift import Drift
from ups.models.least_squares import NormalEquations
from ups.models.local_kernel import fit_matrices
from ups.models.modes import ModeTransform

KNOTS = 4
"""Among the parameters of the training data, at most. Few: with a knot for each value seen, the base between two of
them is a blend that the network never met in training (unseen nu of Burgers: five times the error of seen ones)."""
ENOUGH = 8  # pairs in either half of the data from which on the halves are compared
FAR = 1e6  # standardised units: where knots lie that are not used


class Blend(nn.Module):
    """Weights of a few knots in the space of the parameters, from none below zero, summing to one.

    Where one parameter varies they are piecewise linear in it, constant beyond the first and last knot; where several
    do, normalised Gaussians of the distance, half as wide as knots are apart.

    Args:
        varying: which columns of the (standardised) parameters vary; without any there is a single knot.
    """

    columns: Tensor
    knots: Tensor
    width: Tensor

    def __init__(self, varying: Sequence[int]) -> None:
        super().__init__()
        self.varying, self.num = tuple(varying), KNOTS if varying else 1
        knots = FAR + torch.arange(self.num, dtype=torch.float32)[:, None].expand(self.num, len(varying))
        knots = knots.clone()
        knots[0] = 0.0
        self.register_buffer("columns", torch.tensor(self.varying, dtype=torch.long), persistent=False)
        self.register_buffer("knots", knots)
        self.register_buffer("width", torch.ones(()))

    def forward(self, params: Float[Tensor, "batch parameter"]) -> Float[Tensor, "batch knot"]:
        if not self.varying:
            return params.new_ones(len(params), 1)
        knots, place = self.knots.to(params.dtype), params.index_select(1, self.columns)
        if len(self.varying) > 1:
            return torch.softmax(-(place[:, None] - knots).square().sum(-1) / self.width.to(params.dtype) ** 2, dim=1)
        line = knots[:, 0]
        last = torch.where(line < FAR, line, line[:1]).amax()  # knots ascend, those that are not used beyond FAR
        x = torch.minimum(torch.maximum(place[:, 0], line[0]), last)
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
            self.width.copy_(0.5 * gaps.amin(1).median())


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
        self.drift = Drift(self.transform, varying) if varying and self.transform.fourier else None
        # Real and imaginary parts are kept apart: a complex buffer would not survive `.to(dtype)` or safetensors.
        read = channels + static
        matrix = torch.zeros(2, self.blend.num, channels, read, *self.transform.mode_shape)
        matrix[0, :] = torch.eye(channels, read).reshape(channels, read, *[1] * len(shape))
        self.register_buffer("matrix", matrix)

    def forward(self, u: Float[Tensor, "batch read *grid"], params: Float[Tensor, "batch parameter"]) -> Tensor:
        """Fields and static channels in, fields out, in the (normalised) units it was fitted in."""
        modes = self._moved(self.transform(u), params)
        matrix = torch.complex(self.matrix[0], self.matrix[1]) if self.transform.fourier else self.matrix[0]
        if self.blend.num == 1:
            return self.transform.inverse(torch.einsum("oi...,bi...->bo...", matrix[0], modes))
        weights = self.blend(params).to(matrix.dtype)
        return self.transform.inverse(torch.einsum("bf,foi...,bi...->bo...", weights, matrix, modes))

    def _moved(self, modes: Tensor, params: Tensor) -> Tensor:
        """The modes that are read, with the fields' drift done; static channels stay where they are."""
        if self.drift is None:
            return modes
        channels = self.matrix.shape[2]
        moved = self.drift(modes[:, :channels], params)
        return torch.cat([moved, modes[:, channels:]], dim=1) if modes.shape[1] > channels else moved

    def choose_knots(self, params: Float[Tensor, "pair parameter"]) -> None:
        """Takes the knots from the (standardised) parameters of the training data; before `fit`."""
        self.blend.fit(params)

    def measure_drift(self, pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Finds how the parameters move the fields, from batches as `fit` takes them (static or not); before `fit`."""
        if self.drift is not None:
            channels = self.matrix.shape[2]
            self.drift.fit((before[:, :channels], after, params) for before, after, params in pairs)

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Least squares over (u_t, u_{t+dt}, params) batches, in float64.

        How far the kernel reaches is told by the first and the second halves of all batches (`local_kernel`): they
        should be of different trajectories, as `training.pairs.halved` has them (of a single trajectory they are alike,
        and longer kernels pass). With fewer than `ENOUGH` pairs in either half modes are fitted each on its own.

        Args:
            pairs: batches, read once and one at a time, of (batch, read, *grid), the fields one step later, and
                (batch, parameter) standardised.
        """
        transform = self.transform.double()
        counts = transform.multiplicity().flatten()
        halves = [[NormalEquations(counts) for _ in range(self.blend.num)] for _ in range(2)]
        for before, after, params in pairs:
            params = params.double()
            x = self._moved(transform(before.double()), params).flatten(2)
            y = transform(after.double()).flatten(2)
            weights, middle = self.blend(params), len(x) // 2
            for half, part in zip(halves, (slice(middle), slice(middle, None)), strict=True):
                for knot, equations in enumerate(half):
                    equations.add(x[part], y[part], weights[part, knot])
        transform.float()
        if not any(half.weight for half in chain(*halves)):
            raise ValueError("a linear propagator needs at least one pair of frames")
        for knot, (first, second) in enumerate(zip(*halves, strict=True)):
            whole = first + second
            if whole.weight:
                told = min(first.weight, second.weight) >= ENOUGH and min(first.power, second.power) > 0
                fitted = fit_matrices(first, second, transform, self.conserved) if told else whole.solve()
                self._keep(knot, fitted.movedim(0, -1).reshape(self.matrix.shape[2:]))

    def _keep(self, knot: int, matrix: Tensor) -> None:
        """Stores the matrices of a knot; the mean of a conserved field goes on unchanged."""
        matrix = matrix.contiguous()
        for channel, keeps in enumerate(self.conserved):
            if keeps:
                means = matrix[channel].flatten(1)  # a view, whose first mode is the mean
                means[:, 0] = 0
                means[channel, 0] = 1
        self.matrix[0, knot] = matrix.real.to(self.matrix.dtype)
        self.matrix[1, knot] = matrix.imag.to(self.matrix.dtype) if matrix.is_complex() else 0.0
