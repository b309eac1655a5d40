"""Leaves out the shortest waves of a field: what a step cannot be trusted with does not grow over a roll-out.

A network has seen next to nothing of waves that the data hardly have, and may answer them by larger ones, step after
step. Products of waves that a grid carries fall among them, too: leaving out the last third of the wave numbers (Orszag
1971) is how spectral methods keep quadratic equations stable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def low_pass(
    u: Float[Tensor, "batch channel *grid"], periodic: Sequence[bool], share: float
) -> Float[Tensor, "batch channel *grid"]:
    """The waves of wave number up to `share` of the largest, along every periodic axis; other axes are left alone."""
    for dim, wraps in enumerate(periodic, start=u.ndim - len(periodic)):
        if wraps and share < 1:
            size = u.shape[dim]
            waves = torch.fft.rfft(u, dim=dim)
            kept = int(share * (size // 2)) + 1
            waves.narrow(dim, kept, waves.shape[dim] - kept).zero_()
            u = torch.fft.irfft(waves, n=size, dim=dim)
    return u
