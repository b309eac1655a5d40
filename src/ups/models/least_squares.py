"""Least squares mode by mode: the sums over pairs of frames from which a propagator's matrices follow."""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

RIDGE = 1e-10
"""Tikhonov weight relative to the mean energy of all modes: what is not excited stays at zero gain."""


class NormalEquations:
    """Weighted sums over pairs of modes x (what is read) and y (the fields one step later), in float64.

    Args:
        multiplicity: per mode: how many modes of the grid it stands for (`modes.ModeTransform.multiplicity`).
    """

    def __init__(self, multiplicity: Float[Tensor, " mode"]) -> None:
        self.multiplicity = multiplicity
        self.gram: Tensor | None = None
        self.cross: Tensor | None = None
        self.power = 0.0  # of y
        self.weight = 0.0

    def add(self, x: Tensor, y: Tensor, weights: Float[Tensor, " pair"]) -> None:
        """Takes pairs of modes in: x (pair, read, mode), y (pair, channel, mode)."""
        chosen = weights.nonzero().flatten()
        if not len(chosen):
            return
        x, y, weights = x[chosen], y[chosen], weights[chosen]
        weighted = x.conj() * weights[:, None, None]
        gram, cross = torch.einsum("bik,bjk->kij", x, weighted), torch.einsum("bok,bik->koi", y, weighted)
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = cross if self.cross is None else self.cross + cross
        self.power += float(torch.einsum("bok,b,k->", y.abs().square(), weights, self.multiplicity))
        self.weight += float(weights.sum())

    def __add__(self, other: NormalEquations) -> NormalEquations:
        both = NormalEquations(self.multiplicity)
        both.weight, both.power = self.weight + other.weight, self.power + other.power
        both.gram = self.gram if other.gram is None else other.gram if self.gram is None else self.gram + other.gram
        both.cross = (
            self.cross if other.cross is None else other.cross if self.cross is None else self.cross + other.cross
        )
        return both

    def energy(self) -> Float[Tensor, "read mode"]:
        """Of what is read, mode by mode."""
        return self._sums()[0].diagonal(dim1=1, dim2=2).real.T

    def solve(self) -> Inexact[Tensor, "mode channel read"]:
        """Every mode on its own: M with M G = C, that is G^H M^H = C^H, G being Hermitian."""
        gram, cross = self._ridged()
        solution: Tensor = torch.linalg.solve(gram, cross.mH).mH
        return solution

    def solve_taps(self, waves: Inexact[Tensor, "tap mode"]) -> Inexact[Tensor, "mode channel read"]:
        """All modes at once, as those of a kernel of few real taps: M(k) = sum_r c_r waves_r(k)."""
        gram, cross = self._ridged()
        taps, read = len(waves), gram.shape[-1]
        waves = waves.to(gram.dtype)
        counted = waves.conj() * self.multiplicity
        normal = torch.empty(taps, read, taps, read, dtype=self.multiplicity.dtype)
        for i in range(read):
            for j in range(read):
                normal[:, i, :, j] = ((waves * gram[:, i, j]) @ counted.T).real
        wanted = torch.einsum("koi,rk->ori", cross, counted).real.flatten(1)
        kernel = torch.linalg.solve(normal.reshape(taps * read, taps * read), wanted.T).T
        return torch.einsum("ori,rk->koi", kernel.reshape(-1, taps, read).to(waves.dtype), waves)

    def error(self, matrix: Inexact[Tensor, "mode channel read"]) -> float:
        """sum |y - M x|^2 over the pairs, all modes of the grid counted."""
        gram, cross = self._sums()
        change = (matrix.conj() * (matrix @ gram - 2 * cross)).sum((1, 2)).real
        return self.power + float((change * self.multiplicity).sum())

    def _ridged(self) -> tuple[Tensor, Tensor]:
        gram, cross = self._sums()
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
        return gram + RIDGE * self.energy().mean() * eye, cross

    def _sums(self) -> tuple[Tensor, Tensor]:
        if self.gram is None or self.cross is None:
            raise ValueError("least squares needs at least one pair of frames")
        return self.gram, self.cross
