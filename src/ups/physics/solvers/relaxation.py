"""The state in which a relaxing field comes to rest: Newton's method, each step by conjugate gradients in cosines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ups.errors import UpsError
from ups.physics.description import Report
from ups.physics.solvers.transforms import Cosine

NEWTON_STEPS, GRADIENT_STEPS = 60, 400  # more than any problem within the bounds of the parameters takes
INNER = 1e-3  # of the residual, to which a Newton step is solved


@dataclass(frozen=True)
class RelaxationSolver:
    """D lap u - u - u³ + f = 0 between walls without flow: where u_t = D lap u - u - u³ + f ends, whatever it began as.

    The energy int D |grad u|² / 2 + u² / 2 + u⁴ / 4 - f u is convex, so that there is one solution. Derivatives are
    those of the cosine interpolant: errors fall faster than any power of the spacing where f is smooth and has no slope
    at the walls.

    Args:
        tolerance: of the residual's 2-norm, over that of f.
    """

    tolerance: float = 1e-10

    def solve(
        self,
        u0: Float[Tensor, "batch 1 x y"],
        params: Float[Tensor, "batch 1"],
        times: Float[Tensor, " time"],
        lengths: tuple[float, ...],
        report: Report,
    ) -> Float[Tensor, "batch 2 1 x y"]:
        """The sources `u0` and the solutions, as the two frames of a trajectory; `times` are two stamps.

        A sample that is solved is left as it is while others are not, so that its values do not depend on theirs.

        Raises:
            UpsError: another number of times, a source that is not finite, or Newton's method does not end.
        """
        if len(times) != 2:
            raise UpsError(f"relaxation2d has no time: its trajectories have 2 frames, not {len(times)}")
        source = u0[:, 0].double()
        if not bool((finite := source.isfinite().flatten(1).all(dim=1)).all()):
            raise UpsError(f"relaxation2d: the source of sample {int((~finite).nonzero()[0])} is not finite")
        shape, (x, y) = (source.shape[1], source.shape[2]), lengths
        cosine, waves = Cosine(shape, (x, y), u0.device), squared_wavenumbers(shape, (x, y), u0.device)
        diffusion = params[:, 0, None, None].double()

        def rate(u: Tensor) -> Tensor:
            return source - u - u**3 - diffusion * cosine.inverse(waves * cosine.forward(u))

        u = torch.zeros_like(source)
        size = norm(source).clamp(min=torch.finfo(torch.float64).tiny)
        for _ in range(NEWTON_STEPS):
            residual = rate(u)
            left = norm(residual) / size
            solved = left <= self.tolerance
            if bool(solved.all()):
                report(1.0)
                return torch.stack([u0.double(), u[:, None]], dim=1)
            u = torch.where(solved, u, u + newton_step(residual, 1 + 3 * u.square(), diffusion * waves, cosine))
        raise UpsError(f"relaxation2d: the residual is still {left.max():.2g} of the source")

    def refinement(self, resolution: int, params: tuple[float, ...]) -> int:
        """None: random sources are resolved by any grid that is trained on."""
        return 1


def newton_step(
    residual: Float[Tensor, "batch x y"],
    stiffness: Float[Tensor, "batch x y"],
    damping: Float[Tensor, "batch x y"],
    cosine: Cosine,
) -> Float[Tensor, "batch x y"]:
    """s of (stiffness + C^-1 damping C) s = residual by conjugate gradients, with C the cosine transform.

    What it is preconditioned with has the mean of the stiffness, and is diagonal in cosines.
    """
    near = 1 / (damping + stiffness.mean(dim=(1, 2), keepdim=True))
    found, left = torch.zeros_like(residual), residual
    ahead = direction = cosine.inverse(near * cosine.forward(left))
    product, goal = inner(left, ahead), INNER * norm(residual)
    for _ in range(GRADIENT_STEPS):
        solved = norm(left) <= goal
        if bool(solved.all()):
            break
        bent = stiffness * direction + cosine.inverse(damping * cosine.forward(direction))
        length = product / inner(direction, bent).clamp(min=torch.finfo(torch.float64).tiny)
        length = torch.where(solved, 0.0, length)
        found, left = found + length * direction, left - length * bent
        ahead = cosine.inverse(near * cosine.forward(left))
        before, product = product, inner(left, ahead)
        direction = ahead + product / before.clamp(min=torch.finfo(torch.float64).tiny) * direction
    return found


def squared_wavenumbers(
    shape: tuple[int, int], lengths: tuple[float, float], device: torch.device
) -> Float[Tensor, "x y"]:
    """|k|² of the cosines cos(pi m x / X) cos(pi n y / Y)."""
    x, y = (
        (math.pi / length * torch.arange(points, dtype=torch.float64, device=device)).square()
        for points, length in zip(shape, lengths, strict=True)
    )
    return x[:, None] + y


def inner(one: Float[Tensor, "batch x y"], other: Float[Tensor, "batch x y"]) -> Float[Tensor, "batch 1 1"]:
    """Sum over the grid of the product."""
    return (one * other).sum(dim=(1, 2), keepdim=True)


def norm(u: Float[Tensor, "batch x y"]) -> Float[Tensor, "batch 1 1"]:
    """2-norm over the grid."""
    return inner(u, u).sqrt()
