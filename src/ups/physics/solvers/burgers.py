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

    The flux is differentiated spectrally (3/2 rule) where the grid comes near to resolving the viscous layer of the
    strongest shock that the current amplitude allows, and by WENO5 where it does not. The choice, like the time step, is
    made anew for each sample and each output interval; both conserve the sum of the values to rounding.

    Args:
        peclet_limit: cell Peclet number max|u| h pi / nu up to which the spectral derivative is used. Shocks seldom jump
            by all of 2 max|u|: on random states the spectral derivative is the more accurate one up to about here.
        courant: max|u| dt / h at most. With the 3/2 rule ETDRK4 is stable on the imaginary axis up to 0.9; measured, the
            error in time at 0.7 lies a hundred times below the error in space.
        peclet_of_data: cell Peclet number, for |u| = 2, that random states are computed with.
        most_refined: bound of the refinement, where a small nu would ask for more.
    """

    peclet_limit: float = 16.0
    courant: float = 0.7
    peclet_of_data: float = 2.5
    most_refined: int = 8

    def solve(
        self,
        u0: Float[Tensor, "batch 1 x"],
        params: Float[Tensor, "batch 1"],
        times: Float[Tensor, " time"],
        lengths: tuple[float, ...],
        report: Report,
    ) -> Float[Tensor, "batch time 1 x"]:
        """Trajectories at ``times``; see :func:`ups.physics.solvers.solve`."""
        fourier = Fourier(u0.shape[-1], lengths[0], u0.device)
        spacing = lengths[0] / u0.shape[-1]

        def plan(u: Tensor, params: Tensor, interval: float) -> Int[Tensor, "batch 2"]:
            speed = u.abs().amax(dim=(1, 2)).clamp(min=1e-12)
            peclet = speed * spacing * math.pi / params[:, 0]
            scheme = torch.where(peclet <= self.peclet_limit, _SPECTRAL, _WENO)
            return torch.stack([scheme, steps_for(interval, self.courant * spacing / speed)], dim=1)

        def advance(u: Tensor, params: Tensor, interval: float, choice: tuple[int, ...]) -> Tensor:
            scheme, steps = choice
            diffusivity = common_rows(params)[:, 0, None, None] / math.pi
            stepper = Etdrk4.build(diffusivity * fourier.laplacian, interval / steps)
            transport = _SpectralTransport(fourier) if scheme == _SPECTRAL else _WenoTransport(fourier, spacing)
            modes = fourier.forward(u)
            for _ in range(steps):
                modes = stepper.step(modes, transport)
            return fourier.inverse(modes)

        return march(u0, params, times, plan, advance, report)

    def refinement(self, resolution: int, params: tuple[float, ...]) -> int:
        """Two at least, for the kinks of random states; more where shocks are thin."""
        (nu,) = params
        return min(max(2, math.ceil(2 * math.pi / (nu * self.peclet_of_data * resolution))), self.most_refined)


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
