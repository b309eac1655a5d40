"""Viscous Burgers equation in one periodic dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ups.physics.description import Report
from ups.physics.solvers.etd import Etdrk4
from ups.physics.solvers.march import common_rows, march, steps_for
from ups.physics.solvers.transforms import Fourier, as_complex
from ups.physics.solvers.weno import flux_divergence

_SPECTRAL, _WENO = 0, 1


@dataclass(frozen=True)
class BurgersSolver:
    """u_t + (u²/2)_x = (nu / pi) u_xx, conservative, in time by ETDRK4 with the viscous term exact.

    The flux is differentiated spectrally (3/2 rule) where the grid resolves the viscous layer of the strongest shock
    that the current range of values allows, and by WENO5 where it does not. The choice, like the time step, is made
    anew for each sample and each output interval; both conserve the sum of the values to rounding.

    Each interval is computed in a frame that moves with the middle of the range of values: the equation is the same
    there (with u less the speed of the frame), while steps may be longer and upwinding damps less. The speed is rounded
    so that the frame moves by whole cells, which makes the way back exact.

    Args:
        peclet_limit: cell Peclet number max|u| h pi / nu up to which the spectral derivative is used. Few shocks jump
            by all of 2 max|u|: on random states with nu from 0.001 to 0.01 and 32 to 256 cells, 8 is never less
            accurate than 2 or 4, and up to four times more so; far above it the spectral derivative overshoots.
        data_peclet: the same number, for |u| = 1, that random states are computed with.
        courant: max|u| dt / h; RK4 with spectral derivatives is stable up to 0.9.
    """

    peclet_limit: float = 8.0
    data_peclet: float = 2.0
    courant: float = 0.7

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
        spacing = lengths[0] / u0.shape[-1]

        def plan(u: Tensor, params: Tensor, interval: float) -> Int[Tensor, "batch 2"]:
            frame = _cells_moved(u, interval, spacing) * (spacing / interval)
            speed = (u - frame).abs().amax(dim=(1, 2)).clamp(min=1e-12)
            peclet = speed * spacing * math.pi / params[:, 0]
            scheme = torch.where(peclet <= self.peclet_limit, _SPECTRAL, _WENO)
            return torch.stack([scheme, steps_for(interval, self.courant * spacing / speed)], dim=1)

        def advance(u: Tensor, params: Tensor, interval: float, choice: tuple[int, ...]) -> Tensor:
            scheme, steps = choice
            moved = _cells_moved(u, interval, spacing)
            frame = moved * (spacing / interval)
            diffusivity = common_rows(params)[:, 0, None, None] / math.pi
            stepper = Etdrk4.build(diffusivity * fourier.laplacian, interval / steps)
            transport = _SpectralTransport(fourier) if scheme == _SPECTRAL else _WenoTransport(fourier, spacing)
            modes = fourier.forward(u - frame)
            for _ in range(steps):
                modes = stepper.step(modes, transport)
            return _roll(fourier.inverse(modes) + frame, moved)

        return march(u0, params, times, plan, advance, report)

    def refinement(self, resolution: int, params: tuple[float, ...]) -> int:
        """Three where that resolves the viscous layers of random states, else five."""
        fine = math.pi / (3 * resolution * params[0]) <= self.data_peclet
        return 3 if fine else 5


def _cells_moved(u: Float[Tensor, "batch 1 x"], interval: float, spacing: float) -> Float[Tensor, "batch 1 1"]:
    """Whole cells that the middle of each sample's range of values travels in an interval."""
    middle = (u.amax(dim=-1, keepdim=True) + u.amin(dim=-1, keepdim=True)) / 2
    return torch.round(middle * (interval / spacing))


def _roll(u: Float[Tensor, "batch 1 x"], cells: Float[Tensor, "batch 1 1"]) -> Float[Tensor, "batch 1 x"]:
    """Each sample moved to the right by its own number of cells, around the end."""
    points = u.shape[-1]
    return u.gather(-1, (torch.arange(points, device=u.device) - cells.long()) % points)


class _SpectralTransport:
    """-(u²/2)_x in coefficients, free of aliasing: the square is formed on half as many points again."""

    def __init__(self, fourier: Fourier) -> None:
        self.points = fourier.points
        self.padded = 2 * math.ceil(1.5 * self.points / 2)
        scale = self.padded / self.points  # irfft and rfft of other lengths are normalised by their own
        self.factor = torch.complex(torch.zeros_like(fourier.wavenumber), -0.5 * scale * fourier.wavenumber)
        if self.points % 2 == 0:
            self.factor[-1] = 0  # the Nyquist mode is known up to its sign: it carries no derivative

    def __call__(self, modes: Tensor) -> Tensor:
        u = torch.fft.irfft(as_complex(modes), n=self.padded)
        squared = torch.fft.rfft(u.square_())[..., : self.factor.shape[-1]]
        return torch.view_as_real(squared * self.factor).flatten(-2)


class _WenoTransport:
    """-(u²/2)_x in coefficients, differenced by WENO5 between the grid's own values."""

    def __init__(self, fourier: Fourier, spacing: float) -> None:
        self.fourier, self.spacing = fourier, spacing

    def __call__(self, modes: Tensor) -> Tensor:
        u = self.fourier.inverse(modes)
        speed = u.abs().amax(dim=-1, keepdim=True)
        return self.fourier.forward(-flux_divergence(u, u.square() / 2, speed, self.spacing))
