"""Advection at constant speed in one periodic dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ups.physics.description import Report
from ups.physics.solvers.transforms import Fourier


@dataclass(frozen=True)
class AdvectionSolver:
    """u_t + beta u_x = 0: every Fourier mode turns by exp(-i k beta t); exact for what the grid resolves."""

    def solve(
        self,
        u0: Float[Tensor, "batch 1 x"],
        params: Float[Tensor, "batch 1"],
        times: Float[Tensor, " time"],
        lengths: tuple[float, ...],
        report: Report,
    ) -> Float[Tensor, "batch time 1 x"]:
        """Trajectories at `times`; see :func:`ups.physics.solvers.solve`."""
        fourier = Fourier(u0.shape[-1], lengths[0], u0.device)
        distance = params[:, :1] * (times - times[0])
        angle = -fourier.wavenumber * distance[..., None, None]
        modes = torch.fft.rfft(u0)[:, None]
        frames: Tensor = torch.fft.irfft(modes * torch.polar(torch.ones_like(angle), angle), n=u0.shape[-1])
        frames[:, 0] = u0  # not through the transform and back
        report(1.0)
        return frames

    def refinement(self, resolution: int, params: tuple[float, ...]) -> int:
        """None: random states are advected in closed form."""
        return 1
