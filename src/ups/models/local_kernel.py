"""The spatial kernel of a propagator, no wider than the data can tell.

Modes that are fitted each on its own have errors that know nothing of each other. Together they are a kernel of small
random taps all over the domain: no local network can take back what it adds to every step, however long it trains. A
true propagator of a short time has few taps that matter, and a kernel of those alone has a few numbers to be fitted
instead of some for every mode. How far it must reach is found by cross-validation: kernels fitted to one half of the
pairs are tried on the other.

Between walls kernels are symmetric: those are what cosine modes can have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from ups.models.least_squares import LEAST_ENERGY, RIDGE, NormalEquations
from ups.models.modes import ModeTransform

REACHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Cells that a kernel may reach to either side."""
UNKNOWNS = 512  # taps times channels read, at most: their equations are dense
AS_GOOD = 1.01
"""The shortest kernel is taken whose held-out squared error is at most so many times the least of all: a network takes
back what is missing nearby, but not what is wrong far away (cf. the one-standard-error rule, Breiman et al. 1984)."""
ROUNDING = 1e-12  # of the fields' energy: held-out errors below it are all alike
QUIET = 0.01
"""Share of the mean energy below which a mode counts as one that the data hardly have. What a short kernel does to
those follows from what it does to others, and held-out errors do not show it."""
GROWTH = 1.01  # per step, for what is not exactly known


class TapEquations:
    """The normal equations of a kernel's taps, from those of its modes.

    Products of the waves of two taps are waves again (of their difference, and between walls of their sum, too), so
    that all of them are in the correlations of the data at so many lags.

    Args:
        equations: of the modes.
        transform: of the grid.
        reach: of the kernel along each axis.
    """

    def __init__(self, equations: NormalEquations, transform: ModeTransform, reach: Sequence[int]) -> None:
        self.transform, self.reach, self.power = transform, tuple(reach), equations.power
        counts = transform.multiplicity()
        gram = equations.gram.permute(1, 2, 0).unflatten(-1, transform.mode_shape) * counts
        cross = equations.cross.permute(1, 2, 0).unflatten(-1, transform.mode_shape) * counts
        lags = along_axes(gram, [axis_waves(transform, axis, 2 * far).T for axis, far in enumerate(reach)]).real
        self.channels, self.read = cross.shape[:2]
        axes = range(len(reach))
        correlations = torch.zeros(())
        for indices in product(*(self._lags(far) for far in reach)):
            part = lags
            for index in indices:
                part = part.movedim(2, -1)[..., index]
            correlations = correlations + part / 2 ** (0 if transform.fourier else len(reach))
        order = [*(2 + 2 * axis for axis in axes), 0, *(3 + 2 * axis for axis in axes), 1]
        size = self.read * math.prod(taps_along(transform, far) for far in reach)
        self.normal = correlations.permute(order).reshape(size, size)
        waves = [axis_waves(transform, axis, far).conj().T for axis, far in enumerate(reach)]
        self.wanted = along_axes(cross, waves).real.flatten(2).mT.flatten(1)

    def _lags(self, reach: int) -> list[Tensor]:
        """Where the products of any two taps along an axis are among its lags."""
        tap = torch.arange(-reach, reach + 1) if self.transform.fourier else torch.arange(reach + 1)
        apart = tap[:, None] - tap
        return [apart + 2 * reach] if self.transform.fourier else [apart.abs(), tap[:, None] + tap]

    def solve(self, keeps: Sequence[bool]) -> Float[Tensor, "channel unknown"]:
        """The taps, by least squares.

        Args:
            keeps: per channel; the taps of a field whose mean is kept sum to one, and those from others to zero.
        """
        size, read = len(self.normal), self.read
        ridge = RIDGE * self.normal.diagonal().mean().clamp_min(LEAST_ENERGY)
        normal = self.normal + ridge * torch.eye(size, dtype=self.normal.dtype)
        taps: Tensor = torch.linalg.solve(normal, self.wanted.T).T.contiguous()
        kept = [channel for channel, keep in enumerate(keeps) if keep]
        if kept:
            sums = torch.eye(read, dtype=normal.dtype).repeat(1, size // read)
            bordered = torch.cat(
                [torch.cat([normal, sums.T], 1), torch.cat([sums, torch.zeros(read, read, dtype=normal.dtype)], 1)]
            )
            one = torch.eye(self.channels, read, dtype=normal.dtype)
            solution = torch.linalg.solve(bordered, torch.cat([self.wanted[kept], one[kept]], 1).T).T
            taps[kept] = solution[:, :size]
        return taps

    def error(self, taps: Float[Tensor, "channel unknown"]) -> float:
        """sum |y - M x|^2 over the pairs."""
        return self.power + float((taps * (taps @ self.normal - 2 * self.wanted)).sum())

    def modes(self, taps: Float[Tensor, "channel unknown"]) -> Inexact[Tensor, "mode channel read"]:
        """The matrices of a kernel's modes."""
        grid = [taps_along(self.transform, far) for far in self.reach]
        kernel = taps.unflatten(1, (-1, self.read)).mT.unflatten(-1, grid)
        waves = [axis_waves(self.transform, axis, far) for axis, far in enumerate(self.reach)]
        return along_axes(kernel.to(waves[0].dtype), waves).flatten(2).permute(2, 0, 1)


def fit_matrices(
    first: NormalEquations, second: NormalEquations, transform: ModeTransform, keeps: Sequence[bool]
) -> Inexact[Tensor, "mode channel read"]:
    """The matrices of the shortest kernel that is as good as any on data it was not fitted to, or of free modes.

    Args:
        first, second: of either half of the pairs.
        transform: of the grid.
        keeps: per channel, whether its mean is kept.
    """
    whole = first + second
    free = whole.solve()
    least = first.error(second.solve()) + second.error(first.solve())
    tried = []
    for reach in reaches(transform, free.shape[2]):
        one, other = (TapEquations(half, transform, reach) for half in (first, second))
        held_out = one.error(other.solve(keeps)) + other.error(one.solve(keeps))
        tried.append((reach, held_out))
        least = min(least, held_out)
    limit = growth_limit(whole, free.shape[1])
    for reach, held_out in tried:
        if held_out <= AS_GOOD * max(0.0, least) + ROUNDING * whole.power:
            equations = TapEquations(whole, transform, reach)
            matrices = equations.modes(equations.solve(keeps))
            if bool((growth(matrices) <= limit).all()):
                return matrices
    return free


def reaches(transform: ModeTransform, read: int) -> Iterator[tuple[int, ...]]:
    """Reaches along each axis, growing, as far as the grid has such kernels and their equations are not too many."""
    last: tuple[int, ...] = ()
    for far in REACHES:
        reach = tuple(min(far, (size - 1) // 2 if transform.fourier else size - 1) for size in transform.shape)
        taps = math.prod(taps_along(transform, one) for one in reach)
        if reach == last or taps * read > UNKNOWNS:
            return
        last = reach
        yield reach


def taps_along(transform: ModeTransform, reach: int) -> int:
    """Taps along an axis: to both sides, or pairs of them between walls."""
    return 2 * reach + 1 if transform.fourier else reach + 1


def axis_waves(transform: ModeTransform, axis: int, reach: int) -> Inexact[Tensor, "tap mode"]:
    """The modes along an axis of single taps, each so many cells away; between walls of pairs, half to either side."""
    size = transform.shape[axis]
    if transform.fourier:
        frequency = torch.fft.rfftfreq if axis == len(transform.shape) - 1 else torch.fft.fftfreq
        away = torch.arange(-reach, reach + 1, dtype=torch.float64)[:, None]
        phase = -2 * math.pi * away * frequency(size, dtype=torch.float64)
        return torch.polar(torch.ones_like(phase), phase)
    away = torch.arange(reach + 1, dtype=torch.float64)[:, None]
    return torch.cos(math.pi * away * torch.arange(size, dtype=torch.float64) / size)


def along_axes(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiplies each of the last axes by a matrix (from, to)."""
    for matrix in matrices:
        values = values.movedim(-len(matrices), -1) @ matrix
    return values


def growth(matrices: Inexact[Tensor, "mode channel read"]) -> Float[Tensor, " mode"]:
    """By which each mode grows in a step, in the long run: the spectral radius over the fields."""
    fields = matrices[..., : matrices.shape[1]]
    radius: Tensor = torch.linalg.eigvals(fields).abs().amax(1)
    return radius


def growth_limit(whole: NormalEquations, channels: int) -> Float[Tensor, " mode"]:
    """By how much each mode may grow by a kernel: by `GROWTH`, if the data hardly have it."""
    before = whole.energy()[:channels].sum(0)
    return torch.where(before < QUIET * before.mean(), GROWTH, torch.inf)
