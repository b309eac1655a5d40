"""Kuramoto-Sivashinsky equation in one periodic dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ups.physics.description import Report
from ups.physics.solvers.etd import Etdrk4
from ups.physics.solvers.march import common_rows, march, steps_for
from ups.physics.solvers.transforms import Fourier, as_complex, without_alias


@dataclass(frozen=True)
class KuramotoSivashinskySolver:
    """u_t + u u_x + u_xx + nu u_xxxx = 0, spectral in space (2/3 rule), in time by ETDRK4 with the linear part exact.

    A.-K. Kassam and L. N. Trefethen, SIAM J. Sci. Comput. 26 (2005) 1214. The solution is chaotic: rounding errors grow
    by a factor e in about ten units of time (for nu = 1), so that beyond a hundred two correct solvers agree in their
    statistics alone.

    Args:
        length: of the domain of random states.
        step: dt / nu at most; the fastest mode grows at the rate 1 / (4 nu).
        courant: max|u| dt / h at most.
        longest: time that the number of steps is chosen for.
        cutoff: least k sqrt(nu) of the highest wave number that is kept, for random states. The spectrum falls off
            exponentially beyond k sqrt(nu) = 1; the amplitudes at 5 are 1e-8.
    """

    length: float
    step: float = 0.05
    courant: float = 1.0
    longest: float = 1.0
    cutoff: float = 5.0

    def solve(
        self,
        u0: Float[Tensor, "batch 1 x"],
        params: Float[Tensor, "batch 1"],
        times: Float[Tensor, " time"],
        lengths: tuple[float, ...],
        report: Report,
    ) -> Float[Tensor, "batch time 1 x"]:
        """Trajectories at `times`; see :func:`ups.physics.solvers.solve`."""
        points, spacing = u0.shape[-1], lengths[0] / u0.shape[-1]
        fourier = Fourier(points, lengths[0], u0.device)
        kept = without_alias(fourier.cycles, points)
        factor = torch.complex(torch.zeros_like(fourier.wavenumber), -0.5 * fourier.wavenumber * kept)

        def transport(modes: Tensor) -> Tensor:
            """-(u²/2)_x in coefficients."""
            u = torch.fft.irfft(as_complex(modes) * kept, n=points)
            return torch.view_as_real(torch.fft.rfft(u.square_()) * factor).flatten(-2)

        def plan(u: Tensor, params: Tensor, interval: float) -> Int[Tensor, "batch 1"]:
            speed = u.abs().amax(dim=(1, 2)).clamp(min=1e-12)
            return steps_for(interval, torch.minimum(self.courant * spacing / speed, self.step * params[:, 0]))[:, None]

        def advance(u: Tensor, params: Tensor, interval: float, choice: tuple[int, ...]) -> Tensor:
            (steps,) = choice
            nu = common_rows(params)[:, 0, None, None]
            linear = -fourier.laplacian - nu * fourier.laplacian.square()
            stepper = Etdrk4.build(linear, interval / steps)
            modes = fourier.forward(u)
            for _ in range(steps):
                modes = stepper.step(modes, transport)
            return fourier.inverse(modes)

        return march(u0, params, times, plan, advance, report, self.longest)

    def refinement(self, resolution: int, params: tuple[float, ...]) -> int:
        """What the spectrum of the attractor asks for: two at 128 cells and nu = 1."""
        (nu,) = params
        highest = 2 * math.pi / self.length * resolution / 3
        return max(1, math.ceil(self.cutoff / (highest * math.sqrt(nu))))
