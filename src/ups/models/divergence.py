"""Finite-volume divergences with learned conductivities: what a field leaves over of a conservation law."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.layers import pad_axis

SLOPES = 2.0  # conductivities start between exp(-SLOPES a) and exp(SLOPES a), for a of unit variance
LARGEST = 5.0  # |log| of a conductivity: one of a thousand, where a is far from its mean, drowns all else


class Divergences(nn.Module):
    """div(kappa grad u) in units of the spacing, kappa = exp(slope a + level) in a cell, harmonic means between cells.

    The exponent is bounded.

    Nothing flows through the walls: what does is for the network to find, which knows where they are.

    Args:
        channels: fields given, and sought: kappa of channel i acts on field i.
        heads: conductivities of each field.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        slopes = torch.linspace(-SLOPES, SLOPES, heads) if heads > 1 else torch.zeros(heads)
        self.slope, self.level = nn.Parameter(slopes.repeat(channels)), nn.Parameter(torch.zeros(channels * heads))

    def forward(
        self, u: Float[Tensor, "batch channel *grid"], a: Float[Tensor, "batch channel *grid"]
    ) -> Float[Tensor, "batch channel_times_heads *grid"]:
        shape = (-1, *[1] * (u.ndim - 2))
        u, a = (field.repeat_interleave(self.heads, dim=1) for field in (u, a))
        resistance = torch.exp(-(self.slope.reshape(shape) * a + self.level.reshape(shape)).clamp(-LARGEST, LARGEST))
        total = torch.zeros_like(u)
        for axis in range(2, u.ndim):
            faces = u.shape[axis] + 1
            slope = pad_axis(u, axis, 1, 1, False).diff(dim=axis)
            beside = pad_axis(resistance, axis, 1, 1, False)
            between = 0.5 * (beside.narrow(axis, 0, faces) + beside.narrow(axis, 1, faces))
            total = total + (slope / between).diff(dim=axis)
        return total
