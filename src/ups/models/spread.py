"""How large the errors of a deterministic prediction are, place by place, and how smooth: what members are drawn from.

Samples are u + s(x) e(x): s is the expected size of the error, and e noise of unit variance, as smooth as the errors
divided by s were in training.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.layers import BoundaryConv

MODES = 16  # cosines per axis that noise is made of, at most
FORGET = 0.02  # share of a batch in the running spectrum of the errors
FIRST_LEVEL = -3.0  # of the size before training: softplus of it


class ErrorModel(nn.Module):
    """What errors are like: their size, cell by cell, and the spectrum of the errors divided by it.

    Noise is sum_k A_k xi_k cos(pi k.s) over the shares s of the domain, divided by its own deviation: of unit variance
    everywhere, and the same function on every lattice.

    Args:
        axes: of the lattice.
        channels: fields sought.
        reads: channels that the size is told from.
        lattice: cells along each axis trained on.
    """

    power: Tensor
    seen: Tensor
    level: Tensor

    def __init__(self, axes: int, channels: int, reads: int, width: int, lattice: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes
        self.inlet = BoundaryConv(axes, reads, width, 5)
        self.middle = BoundaryConv(axes, width, width, 3)
        self.outlet = BoundaryConv(axes, width, channels, 3, gain=0.0)
        for end in (self.inlet, self.outlet):
            end.weight.no_muon = True  # type: ignore[attr-defined]  # a few physical channels are no matrix
        if self.outlet.bias is not None:
            nn.init.constant_(self.outlet.bias, FIRST_LEVEL)
        modes = tuple(min(MODES, size) for size in lattice)
        self.register_buffer("power", torch.ones(channels, *modes))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("level", torch.ones(()))

    def forward(self, x: Float[Tensor, "batch reads *grid"]) -> Float[Tensor, "batch channel *grid"]:
        """Expected size of the error, positive."""
        walls = (False,) * self.axes
        x = F.gelu(self.inlet(x, walls))
        x = x + F.gelu(self.middle(x, walls))
        size: Tensor = F.softplus(self.outlet(x, walls))
        return size

    @torch.no_grad()
    def observe(self, noise: Float[Tensor, "batch channel *grid"], shares: tuple[Tensor, ...]) -> None:
        """Takes errors divided by their expected sizes into the running spectrum: mean A_k^2 of their cosines."""
        for axis, share in enumerate(shares):
            waves = self._waves(share, axis)
            waves = waves / waves.square().sum(1, keepdim=True)  # a constant weighs twice what any other cosine does
            noise = torch.tensordot(noise, waves.T, dims=([2], [0]))
        power = noise.square().mean(0)
        good = torch.isfinite(power).all()  # the step of a batch that is not finite is skipped, and so is what it shows
        self.seen += good
        share = torch.maximum(1 / self.seen.clamp_min(1), self.seen.new_tensor(FORGET))
        self.power.copy_(torch.where(good, torch.lerp(self.power, power, share), self.power))

    def noise(self, members: int, batch: int, shares: tuple[Tensor, ...], rng: torch.Generator | None) -> Tensor:
        """(members, batch, channel, *grid) of unit variance; the same draw is the same function on any lattice."""
        amplitude = self.power.sqrt()
        draw = torch.randn(members * batch, *amplitude.shape, generator=rng).to(amplitude) * amplitude
        variance = self.power[None]
        for axis, share in enumerate(shares):
            waves = self._waves(share, axis)
            draw = torch.tensordot(draw, waves, dims=([2], [0]))
            variance = torch.tensordot(variance, waves.square(), dims=([2], [0]))
        noise: Tensor = (draw / variance.sqrt()).unflatten(0, (members, batch))
        return noise

    def _waves(self, share: Float[Tensor, " cell"], axis: int) -> Float[Tensor, "mode cell"]:
        """cos(pi k s)."""
        k = torch.arange(self.power.shape[1 + axis], device=share.device, dtype=share.dtype)
        return torch.cos(math.pi * k[:, None] * share)
