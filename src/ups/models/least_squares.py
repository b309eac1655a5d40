"""Least squares mode by mode: the sums over pairs of frames from which a propagator's matrices follow."""

from __future__ import annotations

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

RIDGE = 1e-10
"""Tikhonov weight relative to the mean energy of all modes: what is not excited stays at zero gain."""
LEAST_ENERGY = 1e-30  # of fields that are zero everywhere: their ridge is above zero, too


class NormalEquations:
    """Weighted sums over pairs of modes x (what is read) and y (the fields one step later), in float64.

    Args:
        multiplicity: per mode: how many modes of the grid it stands for (`modes.ModeTransform.multiplicity`).
    """

    def __init__(self, multiplicity: Float[Tensor, " mode"]) -> None:
        self.multiplicity = multiplicity
        self.weight = 0.0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, x: Tensor, y: Tensor, weights: Float[Tensor, " pair"]) -> None:
        """Takes pairs of modes in: x (pair, read, mode), y (pair, channel, mode)."""
        chosen = weights.nonzero().flatten()
        if not len(chosen):
            return
        x, y, weights = x[chosen], y[chosen], weights[chosen]
        weighted = x.conj() * weights[:, None, None]
        self._take(
            (
                torch.einsum("bik,bjk->kij", x, weighted),
                torch.einsum("bok,bik->koi", y, weighted),
                torch.einsum("bok,b->k", y.abs().square(), weights),
            )
        )
        self.weight += float(weights.sum())

    def __add__(self, other: NormalEquations) -> NormalEquations:
        both = NormalEquations(self.multiplicity)
        for one in (self, other):
            if one._sums is not None:
                both._take(one._sums)
            both.weight += one.weight
        return both

    @property
    def gram(self) -> Inexact[Tensor, "mode read read"]:
        """Sums of x x^H."""
        return self._all()[0]

    @property
    def cross(self) -> Inexact[Tensor, "mode channel read"]:
        """Sums of y x^H."""
        return self._all()[1]

    @property
    def after(self) -> Float[Tensor, " mode"]:
        """Energy of the fields one step later, all of them together."""
        return self._all()[2]

    @property
    def power(self) -> float:
        """Energy of the fields one step later, in all modes of the grid."""
        return float((self.after * self.multiplicity).sum())

    def energy(self) -> Float[Tensor, "read mode"]:
        """Of what is read, mode by mode."""
        return self.gram.diagonal(dim1=1, dim2=2).real.T

    def solve(self) -> Inexact[Tensor, "mode channel read"]:
        """Every mode on its own: M with M G = C, that is G^H M^H = C^H, G being Hermitian."""
        eye = torch.eye(self.gram.shape[-1], dtype=self.gram.dtype)
        ridge = RIDGE * self.energy().mean().clamp_min(LEAST_ENERGY)
        solution: Tensor = torch.linalg.solve(self.gram + ridge * eye, self.cross.mH).mH
        return solution

    def error(self, matrix: Inexact[Tensor, "mode channel read"]) -> float:
        """sum |y - M x|^2 over the pairs, all modes of the grid counted."""
        change = (matrix.conj() * (matrix @ self.gram - 2 * self.cross)).sum((1, 2)).real
        return float(((change + self.after) * self.multiplicity).sum())

    def _take(self, sums: tuple[Tensor, Tensor, Tensor]) -> None:
        if self._sums is None:
            self._sums = sums
        else:
            gram, cross, after = self._sums
            self._sums = gram + sums[0], cross + sums[1], after + sums[2]

    def _all(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._sums is None:
            raise ValueError("least squares needs at least one pair of frames")
        return self._sums
