"""What a network writes, read as fluxes, sources or increments of the fields, scaled to what the base leaves over."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.modes import ModeTransform

REST_PER_FIELD = {"flux": (1, 0), "flux_open": (1, 1), "flux_source": (1, 1), "increment": (0, 1)}
"""Fluxes per axis and sources of each form."""


class Rest(nn.Module):
    """Reads the operator's raw output as fluxes, sources or increments, scaled to what the base leaves over.

    Args:
        channels: number of fields.
        form: `flux`, `flux_open`, `flux_source` or `increment`. Where walls are open, what passes them is a source in
            the cells beside them, and there alone.
        periodic: per axis; the flux through a wall is zero.
    """

    flux_scale: Tensor
    source_scale: Tensor

    def __init__(self, channels: int, form: str, periodic: Sequence[bool]) -> None:
        super().__init__()
        self.channels, self.periodic, self.axes = channels, tuple(periodic), len(periodic)
        self.open = form == "flux_open"
        fluxes, sources = REST_PER_FIELD[form]
        self.fluxes, self.sources = fluxes * self.axes * channels, sources * channels
        ones = torch.ones(channels, *[1] * self.axes)
        self.register_buffer("flux_scale", ones.clone())
        self.register_buffer("source_scale", ones.clone())

    @property
    def width(self) -> int:
        """Channels the operator has to write."""
        return self.fluxes + self.sources

    def forward(self, raw: Float[Tensor, "batch width *grid"]) -> Float[Tensor, "batch channel *grid"]:
        out = raw[:, self.fluxes :] * self.source_scale if self.sources else None
        if out is not None and self.open:
            out = out * beside_walls(raw.shape[2:], self.periodic, raw.device)
        for axis in range(self.axes if self.fluxes else 0):
            flux = raw[:, axis * self.channels : (axis + 1) * self.channels] * self.flux_scale
            change = self._difference(flux, 2 + axis, self.periodic[axis])
            out = change if out is None else out + change
        assert out is not None
        return out

    @staticmethod
    def _difference(flux: Tensor, axis: int, periodic: bool) -> Tensor:
        """F_{i-1/2} - F_{i+1/2}, where entry i holds the flux through the lower face of cell i."""
        if periodic:
            return flux - flux.roll(-1, axis)
        inner = flux.narrow(axis, 1, flux.shape[axis] - 1)  # faces between cells; none passes through the walls
        wall = torch.zeros_like(flux.narrow(axis, 0, 1))
        return torch.cat([wall, inner], axis) - torch.cat([inner, wall], axis)

    @torch.no_grad()
    def fit(self, left_over: Iterable[Float[Tensor, "sample channel *grid"]]) -> None:
        """Scales the output so that raw values of unit size make changes of the size of `left_over` (u_{t+dt} - base).

        Args:
            left_over: batches, read once and one at a time; only sums over them are kept.

        The flux needed for a change r is the gradient of a potential, |F_k| = |r_k| / |D_k| per Fourier mode, with D
        the difference operator; its root mean square over samples is the scale.
        """
        samples, squares, spectrum, transform = 0, torch.zeros(()), torch.zeros(()), None
        for batch in left_over:
            transform = transform or ModeTransform(batch.shape[2:], [True] * self.axes)
            samples += len(batch)
            squares = squares + batch.square().sum([0, *range(2, batch.ndim)], dtype=torch.float64)
            spectrum = spectrum + transform(batch).abs().square().sum(0, dtype=torch.float64)
        if transform is None:
            raise ValueError("the scale of the rest needs at least one pair of frames")
        values = samples * math.prod(transform.shape)
        symbol = torch.zeros(transform.mode_shape)
        for axis, size in enumerate(transform.shape):
            frequency = torch.fft.rfftfreq(size) if axis == self.axes - 1 else torch.fft.fftfreq(size)
            symbol = symbol + (2 * torch.sin(torch.pi * frequency)).square().reshape(
                [-1 if other == axis else 1 for other in range(self.axes)]
            )
        needed = torch.where(symbol > 0, spectrum / symbol.clamp_min(1e-12), torch.zeros(()))
        needed = (needed * transform.multiplicity()).flatten(1).sum(-1)
        sources, fluxes = (squares / values).sqrt(), (needed / values).sqrt()
        tiny = torch.finfo(torch.float32).tiny
        self.source_scale.copy_(sources.clamp_min(tiny).reshape(self.source_scale.shape))
        self.flux_scale.copy_(fluxes.clamp_min(tiny).reshape(self.flux_scale.shape))


def beside_walls(shape: Sequence[int], periodic: Sequence[bool], device: torch.device) -> Tensor:
    """1 in the cells beside a wall, 0 in all others; of `shape`."""
    mask = torch.zeros(*shape, device=device)
    for axis, wraps in enumerate(periodic):
        if not wraps:
            mask.select(axis, 0).fill_(1.0)
            mask.select(axis, -1).fill_(1.0)
    return mask
