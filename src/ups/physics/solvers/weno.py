"""Fifth-order weighted essentially non-oscillatory flux differences on a periodic grid.

G.-S. Jiang and C.-W. Shu, J. Comput. Phys. 126 (1996) 202, with the weights of R. Borges et al., J. Comput. Phys. 227
(2008) 3191 (WENO-Z). Finite differences in flux form: the sum over the cells is conserved to rounding.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_TINY = 1e-30  # keeps 0 / 0 out of the weights; far below any square of a difference that matters


def weno5_face(
    a: Float[Tensor, "*shape"],
    b: Float[Tensor, "*shape"],
    c: Float[Tensor, "*shape"],
    d: Float[Tensor, "*shape"],
    e: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Flux at the face between c and d, from five cells upwind of it: a, b, c (the cell at the face), d, e."""
    curve_0, curve_1, curve_2 = a - 2 * b + c, b - 2 * c + d, c - 2 * d + e
    smooth_0 = curve_0.square() * (13 / 12) + (a - 4 * b + 3 * c).square() / 4
    smooth_1 = curve_1.square() * (13 / 12) + (b - d).square() / 4
    smooth_2 = curve_2.square() * (13 / 12) + (3 * c - 4 * d + e).square() / 4
    tau = (smooth_0 - smooth_2).abs()
    weight_0 = 0.1 * (1 + (tau / (smooth_0 + _TINY)).square())
    weight_1 = 0.6 * (1 + (tau / (smooth_1 + _TINY)).square())
    weight_2 = 0.3 * (1 + (tau / (smooth_2 + _TINY)).square())
    total = weight_0 * (2 * a - 7 * b + 11 * c) + weight_1 * (-b + 5 * c + 2 * d) + weight_2 * (2 * c + 5 * d - e)
    return total / (6 * (weight_0 + weight_1 + weight_2))


def flux_divergence(
    u: Float[Tensor, "*batch x"], flux: Float[Tensor, "*batch x"], speed: Float[Tensor, "*batch 1"], spacing: float
) -> Float[Tensor, "*batch x"]:
    """d flux / dx at the cell centres, upwinded by global Lax-Friedrichs splitting (flux ± speed u) / 2.

    Args:
        u: the conserved field at cell centres.
        flux: the flux at cell centres.
        speed: bound of |d flux / du| for each sample.
        spacing: distance of the centres.
    """
    right = _wrap((flux + speed * u) / 2)
    left = _wrap((flux - speed * u) / 2)
    faces = u.shape[-1] + 1
    r = [right[..., i : i + faces] for i in range(5)]
    m = [left[..., i : i + faces] for i in range(5, 0, -1)]
    face = weno5_face(*r) + weno5_face(*m)
    return (face[..., 1:] - face[..., :-1]) / spacing


def _wrap(f: Tensor) -> Tensor:
    """Three cells more on each side, taken from the other end."""
    return torch.cat([f[..., -3:], f, f[..., :3]], dim=-1)
