"""Forced incompressible flow in two periodic dimensions, by its vorticity."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ups.physics.description import Report
from ups.physics.solvers.etd import Etdrk4
from ups.physics.solvers.march import common_rows, march, steps_for
from ups.physics.solvers.transforms import Fourier2d, as_complex, without_alias


@dataclass(frozen=True)
class VorticitySolver:
    """w_t + u . grad w = nu lap w + drag lap psi + f, spectral in space (2/3 rule), in time by ETDRK4.

    The flow u = (psi_y, -psi_x) has the vorticity lap psi = <w> - w, with the mean <w> left out: on a periodic square
    the vorticity of a flow has none. The drag, on the velocity, is then a divergence as all other terms are, and the
    mean of w never changes.

    The transport is computed from the velocity alone, u . grad w = (d_xx - d_yy)(u v) + d_xy (v² - u²), with four
    transforms instead of five: C. Basdevant, J. Comput. Phys. 50 (1983) 209. Drag and viscosity are exact.

    Args:
        forcing: (coordinates of each axis) -> f (1, x, y); the domain begins at zero.
        courant: dt max(|u| / hx + |v| / hy) at most; it is stable up to 1.3.
        longest: time that the number of steps is chosen for.
        cells: along each axis times sqrt(nu), for random states. The flow forced by sin(4 y) on the square of 2 pi is
            then within 5e-4 of that on twice as many cells after half a unit of time; with 10, within 3e-3.
    """

    forcing: Callable[[tuple[Tensor, ...]], Tensor]
    courant: float = 0.8
    longest: float = 0.5
    cells: float = 12.0

    def solve(
        self,
        u0: Float[Tensor, "batch 1 x y"],
        params: Float[Tensor, "batch 2"],
        times: Float[Tensor, " time"],
        lengths: tuple[float, ...],
        report: Report,
    ) -> Float[Tensor, "batch time 1 x y"]:
        """Trajectories at `times`; see :func:`ups.physics.solvers.solve`. Parameters are nu and the drag."""
        shape = (u0.shape[-2], u0.shape[-1])
        spacing = tuple(length / points for length, points in zip(lengths, shape, strict=True))
        flow = Flow(shape, (lengths[0], lengths[1]), u0.device)
        axes = tuple(
            (torch.arange(points, dtype=torch.float64, device=u0.device) + 0.5) * step
            for points, step in zip(shape, spacing, strict=True)
        )
        source = flow.fourier.forward(self.forcing(axes))

        def tendency(modes: Tensor) -> Tensor:
            return flow.transport(modes).add_(source)

        def plan(u: Tensor, params: Tensor, interval: float) -> Int[Tensor, "batch 1"]:
            velocity = flow.velocity(flow.fourier.forward(u[:, 0])).abs()
            rate = (velocity[:, 0] / spacing[0] + velocity[:, 1] / spacing[1]).amax(dim=(1, 2)).clamp(min=1e-12)
            return steps_for(interval, self.courant / rate)[:, None]

        def advance(u: Tensor, params: Tensor, interval: float, choice: tuple[int, ...]) -> Tensor:
            (steps,) = choice
            nu, drag = common_rows(params)[:, :, None, None, None].unbind(1)
            stepper = Etdrk4.build(nu * flow.fourier.laplacian - drag * flow.moving, interval / steps)
            modes = flow.fourier.forward(u)
            for _ in range(steps):
                modes = stepper.step(modes, tendency)
            return flow.fourier.inverse(modes)

        return march(u0, params, times, plan, advance, report, self.longest)

    def refinement(self, resolution: int, params: tuple[float, ...]) -> int:
        """What the finest vortices ask for: two at 64 cells and nu = 0.01."""
        nu, _ = params
        return max(1, math.ceil(self.cells / (resolution * math.sqrt(nu))))


class Flow:
    """The flow of a vorticity, and how it carries that vorticity along; all in Fourier coefficients.

    Args:
        shape: number of cells (X, Y).
        lengths: period of each axis.
        device: where the tables live.

    Attributes:
        moving: 0 for the mean, 1 for every other coefficient.
    """

    def __init__(self, shape: tuple[int, int], lengths: tuple[float, float], device: torch.device) -> None:
        self.fourier = Fourier2d(shape, lengths, device)
        self.moving = (self.fourier.laplacian < 0).double()
        kx, ky = self.fourier.wavenumbers
        kept = without_alias(self.fourier.cycles[0], shape[0]) * without_alias(self.fourier.cycles[1], shape[1])
        over_square = kept / (kx.square() + ky.square()).clamp(min=1e-300)  # the mean has k = 0 above it
        curl = torch.stack([ky * over_square, -kx * over_square])
        self._velocity = torch.complex(torch.zeros_like(curl), curl)
        self._across, self._along = kept * (kx.square() - ky.square()), kept * kx * ky

    def velocity(self, modes: Float[Tensor, "*batch x coefficients"]) -> Float[Tensor, "*batch 2 x y"]:
        """Velocity (u, v) at the cell centres from the coefficients of the vorticity, free of the modes that alias."""
        values: Tensor = torch.fft.irfft2(as_complex(modes).unsqueeze(-3) * self._velocity, s=self.fourier.shape)
        return values

    def transport(self, modes: Float[Tensor, "*batch x coefficients"]) -> Float[Tensor, "*batch x coefficients"]:
        """-u . grad w in coefficients."""
        u, v = self.velocity(modes).unbind(-3)
        across, along = torch.fft.rfft2(torch.stack([u * v, (v - u) * (v + u)])).unbind(0)
        return torch.view_as_real(across * self._across + along * self._along).flatten(-2)
