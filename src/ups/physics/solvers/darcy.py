"""Darcy flow by cell-centred finite volumes: one sparse direct solve for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ups.errors import UpsError
from ups.physics.description import Report


@dataclass(frozen=True)
class DarcySolver:
    """-div(a grad u) = beta on a box, u = 0 on its walls.

    The flux between two cells is a slope times the mean of their coefficients. With harmonic means, and walls half a
    cell away from the centres beside them, it is exact for layers that meet at cell faces, and of second order for
    smooth coefficients.

    Args:
        mean: of the coefficients of two neighbours: `harmonic`, or `arithmetic` as in the published labels.
        wall: cells from the outermost centres to the walls: a half, or 1 as in the published labels, whose outermost
            neighbours are zero.
    """

    mean: Literal["harmonic", "arithmetic"] = "harmonic"
    wall: float = 0.5

    def solve(
        self,
        u0: Float[Tensor, "batch 1 x y"],
        params: Float[Tensor, "batch 1"],
        times: Float[Tensor, " time"],
        lengths: tuple[float, ...],
        report: Report,
    ) -> Float[Tensor, "batch 2 1 x y"]:
        """The coefficients `u0` and the solutions, as the two frames of a trajectory; `times` are two stamps.

        Raises:
            UpsError: a coefficient that is not positive, or another number of times.
        """
        if len(times) != 2:
            raise UpsError(f"darcy2d has no time: its trajectories have 2 frames, not {len(times)}")
        if not bool((u0 > 0).all()):
            raise UpsError("darcy2d: the coefficient must be positive everywhere; check what is given")
        frames = torch.empty(len(u0), 2, *u0.shape[1:], dtype=torch.float64)
        frames[:, 0] = u0
        for sample, (medium, beta) in enumerate(
            zip(u0[:, 0].cpu().double().numpy(), params[:, 0].tolist(), strict=True)
        ):
            source = np.full(medium.shape, beta)
            frames[sample, 1, 0] = torch.from_numpy(self.solve_one(medium, source, (lengths[0], lengths[1])))
            report((sample + 1) / len(u0))
        return frames.to(u0.device)

    def refinement(self, resolution: int, params: tuple[float, ...]) -> int:
        """None: the published labels are of the file's own cells."""
        return 1

    def solve_one(
        self, medium: Float64[np.ndarray, "x y"], source: Float64[np.ndarray, "x y"], lengths: tuple[float, float]
    ) -> Float64[np.ndarray, "x y"]:
        """u at the cell centres, for any source (per unit of area)."""
        from scipy.sparse import linalg  # slow to import, and of no other equation

        matrix = self.matrix(medium, lengths)
        solution: np.ndarray = linalg.spsolve(matrix, source.ravel())
        return solution.reshape(medium.shape)

    def matrix(self, medium: Float64[np.ndarray, "x y"], lengths: tuple[float, float]) -> Any:
        """The symmetric matrix (csc_array) of -div(a grad .), cell by cell, the last axis varying fastest."""
        from scipy import sparse

        number: np.ndarray = np.arange(medium.size).reshape(medium.shape)
        diagonal: np.ndarray = np.zeros(medium.shape)
        rows, columns, values = [number.ravel()], [number.ravel()], [diagonal.ravel()]  # a view, filled below
        for axis, length in enumerate(lengths):
            scale = (medium.shape[axis] / length) ** 2
            a, cell, total = (np.moveaxis(part, axis, 0) for part in (medium, number, diagonal))
            face = scale * self._between(a[:-1], a[1:])
            total[:-1] += face
            total[1:] += face
            total[0] += scale / self.wall * a[0]
            total[-1] += scale / self.wall * a[-1]
            rows += [cell[:-1].ravel(), cell[1:].ravel()]
            columns += [cell[1:].ravel(), cell[:-1].ravel()]
            values += [-face.ravel(), -face.ravel()]
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        return sparse.csc_array(sparse.coo_array(entries, shape=(medium.size, medium.size)))

    def _between(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        mean: np.ndarray = 2 * one * other / (one + other) if self.mean == "harmonic" else 0.5 * (one + other)
        return mean
