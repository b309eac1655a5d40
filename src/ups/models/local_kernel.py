"""The spatial kernel of a propagator, no wider than the data can tell.

Modes that are fitted each on its own have errors that know nothing of each other. Together they are a kernel of small
random taps all over the domain: no local network can take back what it adds to every step, however long it trains. A
true propagator of a short time has few taps that matter, and a kernel of those alone has a few numbers to be fitted
instead of some for every mode. How far it must reach is found by cross-validation: kernels fitted to one half of the
trajectories are tried on the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Inexact
from torch import Tensor

from ups.models.least_squares import NormalEquations
from ups.models.modes import ModeTransform

REACHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Cells that a kernel may reach to either side."""
UNKNOWNS = 512  # taps times channels read, at most: a second of work
AS_GOOD = 1.01
"""The shortest kernel is taken whose held-out squared error is at most so many times the least of all: a network takes
back what is missing nearby, but not what is wrong far away (cf. the one-standard-error rule, Breiman et al. 1984)."""
QUIET = 0.01
"""Share of the mean energy below which a mode counts as one that the data hardly have. What a short kernel does to
those follows from what it does to others, and held-out errors do not show it: none may grow by it, or no more than
where each is fitted on its own."""


def fit_matrices(
    whole: NormalEquations, first: NormalEquations, second: NormalEquations, transform: ModeTransform
) -> Inexact[Tensor, "mode channel read"]:
    """The matrices of the shortest kernel that is as good as any on data it was not fitted to, or of free modes.

    Args:
        whole, first, second: of all pairs, and of either half of them.
        transform: of the grid.
    """
    free = whole.solve()
    energy = whole.energy()[: free.shape[1]].sum(0)
    quiet = energy < QUIET * energy.mean()
    least = first.error(second.solve()) + second.error(first.solve())
    tried = []
    for waves in kernels(transform, free.shape[2]):
        held_out = first.error(second.solve_taps(waves)) + second.error(first.solve_taps(waves))
        tried.append((waves, held_out))
        least = min(least, held_out)
    for waves, held_out in tried:
        if held_out <= AS_GOOD * least:
            matrices = whole.solve_taps(waves)
            if _largest_gain(matrices[quiet]) <= max(1.0, _largest_gain(free[quiet])):
                return matrices
    return free


def kernels(transform: ModeTransform, read: int) -> Iterator[Inexact[Tensor, "tap mode"]]:
    """The modes of the single taps of kernels of growing reach, as far as they are narrower than the grid.

    Args:
        transform: of the grid. Between walls kernels are symmetric: those are what cosine modes can have.
        read: channels that a kernel reads.
    """
    for reach in REACHES:
        first, *others = (axis_waves(transform, axis, reach) for axis in range(len(transform.shape)))
        taps = len(first) ** len(transform.shape)
        if 2 * reach + 1 > min(transform.shape) or taps * read > UNKNOWNS:
            return
        waves = first
        for along in others:
            waves = torch.einsum("r...,sk->rs...k", waves, along).flatten(0, 1)
        yield waves.flatten(1)


def axis_waves(transform: ModeTransform, axis: int, reach: int) -> Inexact[Tensor, "tap mode"]:
    """The modes along an axis of single taps, each so many cells away; of pairs of them to both sides between walls."""
    size = transform.shape[axis]
    if transform.fourier:
        frequency = torch.fft.rfftfreq if axis == len(transform.shape) - 1 else torch.fft.fftfreq
        away = torch.arange(-reach, reach + 1, dtype=torch.float64)[:, None]
        phase = -2 * math.pi * away * frequency(size, dtype=torch.float64)
        return torch.polar(torch.ones_like(phase), phase)
    away = torch.arange(reach + 1, dtype=torch.float64)[:, None]
    return torch.cos(math.pi * away * torch.arange(size, dtype=torch.float64) / size)


def _largest_gain(matrices: Inexact[Tensor, "mode channel read"]) -> float:
    """By which the most growing of the modes grows; 0 without any."""
    gains = torch.linalg.matrix_norm(matrices[..., : matrices.shape[1]], ord=2)
    return float(gains.max()) if len(gains) else 0.0
