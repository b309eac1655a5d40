"""Fourth-order exponential time differencing for u' = L u + N(u) with a diagonal, real L.

S. M. Cox and P. C. Matthews, Exponential time differencing for stiff systems, J. Comput. Phys. 176 (2002) 430.
The stiff linear part is integrated exactly: the step is bounded by N alone, whatever the diffusion. Modes may grow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_SERIES_BOUNDS = (-1.0, 4.0)  # between which the series is summed
_SERIES_TERMS = 32


def phi_functions(
    z: Float[Tensor, "*shape"],
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """phi_1, phi_2, phi_3 of real z, to rounding: phi_k(z) = sum_j z^j / (j + k)!.

    The closed forms, phi_1 = (exp z - 1) / z and phi_{k+1} = (phi_k - 1/k!) / z, lose all digits near zero. There the
    series of phi_3 is summed and the recurrence is run downwards, which only multiplies and adds. For positive z the
    series is safe for longer, as all of its terms are positive, and it is needed for longer.
    """
    low, high = _SERIES_BOUNDS
    near = (z > low) & (z < high)
    z_near = torch.where(near, z, torch.zeros_like(z))
    phi3_near = torch.zeros_like(z)
    for j in reversed(range(_SERIES_TERMS)):
        phi3_near = phi3_near * z_near + 1 / math.factorial(j + 3)
    phi2_near = z_near * phi3_near + 0.5
    phi1_near = z_near * phi2_near + 1
    z_far = torch.where(near, -torch.ones_like(z), z)
    phi1_far = torch.expm1(z_far) / z_far
    phi2_far = (phi1_far - 1) / z_far
    phi3_far = (phi2_far - 0.5) / z_far
    return (
        torch.where(near, phi1_near, phi1_far),
        torch.where(near, phi2_near, phi2_far),
        torch.where(near, phi3_near, phi3_far),
    )


@dataclass(frozen=True)
class Etdrk4:
    """The weights of one step of ETDRK4 for a fixed step and linear part; all of the shape of ``linear``."""

    decay: Tensor
    half_decay: Tensor
    half_weight: Tensor
    first: Tensor
    middle: Tensor
    last: Tensor

    @classmethod
    def build(cls, linear: Float[Tensor, "*coefficients"], step: float) -> Etdrk4:
        """Work the weights out.

        Args:
            linear: the diagonal of L, per unit of time.
            step: length of the time step.
        """
        z = linear * step
        phi1, phi2, phi3 = phi_functions(z)
        return cls(
            decay=torch.exp(z),
            half_decay=torch.exp(z / 2),
            half_weight=step / 2 * phi_functions(z / 2)[0],
            first=step * (phi1 - 3 * phi2 + 4 * phi3),
            middle=step * (2 * phi2 - 4 * phi3),
            last=step * (4 * phi3 - phi2),
        )

    def step(self, v: Float[Tensor, "*shape"], nonlinear: Callable[[Tensor], Tensor]) -> Float[Tensor, "*shape"]:
        """Advance the coefficients ``v`` by one step."""
        n_v = nonlinear(v)
        v_half = self.half_decay * v
        a = torch.addcmul(v_half, self.half_weight, n_v)
        n_a = nonlinear(a)
        n_b = nonlinear(torch.addcmul(v_half, self.half_weight, n_a))
        n_c = nonlinear(torch.addcmul(self.half_decay * a, self.half_weight, n_b.mul(2).sub_(n_v)))
        v_next = self.decay * v
        return v_next.addcmul_(self.first, n_v).addcmul_(self.middle, n_a.add_(n_b)).addcmul_(self.last, n_c)
