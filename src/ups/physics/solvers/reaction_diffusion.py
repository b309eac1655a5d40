"""Reaction and diffusion: the linear diffusion is exact, the reaction steps by ETDRK4 in the modes of the Laplacian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ups.physics.description import Report
from ups.physics.solvers.etd import Etdrk4
from ups.physics.solvers.march import common_rows, march, steps_for
from ups.physics.solvers.transforms import Cosine, Fourier


@dataclass(frozen=True)
class FisherSolver:
    """u_t = nu u_xx + rho u (1 - u) on a periodic axis.

    Args:
        reaction_step: rho dt.
        change: dt rms(u_t) at the start of an output interval. While sharp states smooth out, the reaction varies as
            fast as they do: the first steps are short, and the rest double as the diffusion slows down.
        cells_per_front: cells over sqrt(nu / rho), the width of a front, that random states are computed with.
    """

    reaction_step: float = 0.1
    change: float = 0.02
    cells_per_front: float = 4.0

    def solve(
        self,
        u0: Float[Tensor, "batch 1 x"],
        params: Float[Tensor, "batch 2"],
        times: Float[Tensor, " time"],
        lengths: tuple[float, ...],
        report: Report,
    ) -> Float[Tensor, "batch time 1 x"]:
        """Trajectories at `times`; see :func:`ups.physics.solvers.solve`."""
        fourier = Fourier(u0.shape[-1], lengths[0], u0.device)

        def plan(u: Tensor, params: Tensor, interval: float) -> Int[Tensor, "batch 2"]:
            nu, rho = params[:, :, None, None].unbind(1)
            speed = fourier.inverse(nu * fourier.laplacian * fourier.forward(u)) + rho * u * (1 - u)
            change = interval * speed.square().mean(dim=(1, 2)).sqrt()
            halvings = torch.ceil(torch.log2((change / self.change).clamp(min=1.0))).long()
            return torch.stack([halvings, steps_for(interval, self.reaction_step / params[:, 1])], dim=1)

        def advance(u: Tensor, params: Tensor, interval: float, choice: tuple[int, ...]) -> Tensor:
            halvings, steps = choice
            nu, rho = common_rows(params)[:, :, None, None].unbind(1)

            def reaction(modes: Tensor) -> Tensor:
                value = fourier.inverse(modes)
                return fourier.forward(rho * value * (1 - value))

            modes = fourier.forward(u)
            for level in (halvings, *range(halvings, 0, -1)):  # parts of 2^-n, 2^-n, 2^-(n-1), ..., 1/2 of the interval
                stepper = Etdrk4.build(nu * fourier.laplacian, interval * 2.0**-level / steps)
                for _ in range(steps):
                    modes = stepper.step(modes, reaction)
            return fourier.inverse(modes)

        return march(u0, params, times, plan, advance, report)

    def refinement(self, resolution: int, params: tuple[float, ...]) -> int:
        """Three, for the kinks and windows of random states, or what the width of a front asks for."""
        nu, rho = params
        factor = math.ceil(self.cells_per_front / (math.sqrt(nu / rho) * resolution))
        return max(3, factor + 1 - factor % 2)


@dataclass(frozen=True)
class FitzHughNagumoSolver:
    """u_t = Du lap u + u - u³ - k - v and v_t = Dv lap v + u - v between walls without flow, in two dimensions.

    Args:
        diffusion: (Du, Dv).
        offset: k.
        reaction_step: dt (1 + 3 max u²), the step times the rate of the fastest reaction.
    """

    diffusion: tuple[float, float]
    offset: float
    reaction_step: float = 0.25

    def solve(
        self,
        u0: Float[Tensor, "batch 2 x y"],
        params: Float[Tensor, "batch 0"],
        times: Float[Tensor, " time"],
        lengths: tuple[float, ...],
        report: Report,
    ) -> Float[Tensor, "batch time 2 x y"]:
        """Trajectories at `times`; see :func:`ups.physics.solvers.solve`."""
        cosine = Cosine((u0.shape[-2], u0.shape[-1]), (lengths[0], lengths[1]), u0.device)
        linear = u0.new_tensor(self.diffusion)[:, None, None] * cosine.laplacian

        def reaction(modes: Tensor) -> Tensor:
            u, v = cosine.inverse(modes).unbind(1)
            return cosine.forward(torch.stack([u - u**3 - self.offset - v, u - v], dim=1))

        def plan(u: Tensor, params: Tensor, interval: float) -> Int[Tensor, "batch 1"]:
            rate = 1 + 3 * u[:, 0].square().amax(dim=(1, 2))
            return steps_for(interval, self.reaction_step / rate)[:, None]

        def advance(u: Tensor, params: Tensor, interval: float, choice: tuple[int, ...]) -> Tensor:
            (steps,) = choice
            stepper = Etdrk4.build(linear, interval / steps)
            modes = cosine.forward(u)
            for _ in range(steps):
                modes = stepper.step(modes, reaction)
            return cosine.inverse(modes)

        return march(u0, params, times, plan, advance, report)

    def refinement(self, resolution: int, params: tuple[float, ...]) -> int:
        """None: the initial noise is made of the grid's own cells."""
        return 1
