"""Networks from grid to grid that the simulator is compared with: FNO and U-Net."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.layers import BoundaryConv, full_precision, pad_axis
from ups.models.pyramid import TRANSPOSED


class SpectralConv(nn.Module):
    """Multiplies the lowest modes of each axis by learned complex matrices (Li et al. 2021), in the weights' precision.

    Autocast does not reach it: FFTs refuse bfloat16.

    Args:
        modes: modes kept per axis; on all axes but the last, as many negative frequencies are kept too.
    """

    def __init__(self, axes: int, channels: int, modes: int) -> None:
        super().__init__()
        self.axes, self.modes = axes, modes
        self.weight = nn.Parameter(torch.rand(2 ** (axes - 1), channels, channels, *[modes] * axes, 2) / channels**2)

    def forward(self, u: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch channel *grid"]:
        with full_precision(u):
            return self._multiply(u.to(self.weight.dtype))

    def _multiply(self, u: Tensor) -> Tensor:
        dims = tuple(range(-self.axes, 0))
        spectrum = torch.fft.rfftn(u, dim=dims)
        modes = [min(self.modes, size) for size in spectrum.shape[2:]]
        weight, out = torch.view_as_complex(self.weight), torch.zeros_like(spectrum)
        for corner, matrix in enumerate(weight):
            # Bit `axis` of `corner` says whether this corner holds the negative frequencies of that axis.
            window = [slice(-kept, None) if corner >> axis & 1 else slice(kept) for axis, kept in enumerate(modes)]
            part = (slice(None), slice(None), *window)
            out[part] = torch.einsum(
                "bi...,io...->bo...", spectrum[part], matrix[(..., *[slice(kept) for kept in modes])]
            )
        product: Tensor = torch.fft.irfftn(out, s=u.shape[2:], dim=dims)
        return product


class FNO(nn.Module):
    """Fourier neural operator (Li et al. 2021), PDEBench's size: width 20, four layers, 12 modes.

    Args:
        position: append each cell's coordinates to its values.
        padding: axes with walls are extended beyond both by this share of their cells, mirrored, and cut back at the
            end: the transform takes every axis to be periodic.
    """

    def __init__(
        self,
        axes: int,
        channels_in: int,
        channels_out: int,
        *,
        width: int = 20,
        modes: int = 12,
        layers: int = 4,
        position: bool = True,
        padding: float = 0.0,
    ) -> None:
        super().__init__()
        self.axes, self.position, self.padding = axes, position, padding
        self.lift = BoundaryConv(axes, channels_in + axes * position, width, 1)
        self.spectral = nn.ModuleList([SpectralConv(axes, width, modes) for _ in range(layers)])
        self.local = nn.ModuleList([BoundaryConv(axes, width, width, 1) for _ in range(layers)])
        self.project = BoundaryConv(axes, width, 128, 1)
        self.out = BoundaryConv(axes, 128, channels_out, 1)

    def forward(
        self, u: Float[Tensor, "batch channel *grid"], periodic: Sequence[bool]
    ) -> Float[Tensor, "batch out *grid"]:
        if self.position:
            axes = [torch.linspace(0, 1, size + 1, device=u.device, dtype=u.dtype)[:-1] for size in u.shape[2:]]
            position = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(u.shape[0], *[-1] * (self.axes + 1))
            u = torch.cat([u, position], 1)
        beyond = [
            0 if wraps else math.ceil(self.padding * size) for wraps, size in zip(periodic, u.shape[2:], strict=True)
        ]
        x = self.lift(u, periodic)
        for axis, cells in enumerate(beyond, start=2):
            x = pad_axis(x, axis, cells, cells, False)
        for index, (spectral, local) in enumerate(zip(self.spectral, self.local, strict=True)):
            x = spectral(x) + local(x, periodic)
            x = F.gelu(x) if index + 1 < len(self.spectral) else x
        for axis, cells in enumerate(beyond, start=2):
            x = x.narrow(axis, cells, x.shape[axis] - 2 * cells)
        out: Tensor = self.out(F.gelu(self.project(x, periodic)), periodic)
        return out


MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEAN_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class DoubleConv(nn.Module):
    """Two 3-wide convolutions, each normalised over groups and activated."""

    def __init__(self, axes: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [BoundaryConv(axes, channels_in, channels_out, 3), BoundaryConv(axes, channels_out, channels_out, 3)]
        )
        self.norms = nn.ModuleList([nn.GroupNorm(min(8, channels_out), channels_out) for _ in range(2)])

    def forward(self, u: Tensor, periodic: Sequence[bool]) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            u = F.gelu(norm(conv(u, periodic)))
        return u


class ResidualConv(nn.Module):
    """Two 3-wide convolutions beside a shortcut, activated before (He et al. 2016), without normalisation.

    A norm over space takes the size of what it normalises out of the result, and steps are as small as their cause.
    """

    def __init__(self, axes: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = BoundaryConv(axes, channels_in, channels_out, 3)
        self.second = BoundaryConv(axes, channels_out, channels_out, 3, gain=0.5)
        self.shortcut = BoundaryConv(axes, channels_in, channels_out, 1)

    def forward(self, u: Tensor, periodic: Sequence[bool]) -> Tensor:
        out: Tensor = self.shortcut(u, periodic) + self.second(F.gelu(self.first(F.gelu(u), periodic)), periodic)
        return out


class UNetNetwork(nn.Module):
    """U-Net (Ronneberger et al. 2015), PDEBench's size: 32 channels at full resolution, four halvings, 512 below.

    Args:
        residual: residual blocks without normalisation and pooling by means, as later U-Nets for PDEs have, instead of
            normalised ones and pooling by maxima.
    """

    def __init__(
        self,
        axes: int,
        channels_in: int,
        channels_out: int,
        *,
        width: int = 32,
        levels: int = 4,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.axes, self.residual = axes, residual
        block = ResidualConv if residual else DoubleConv
        widths = [width * 2**level for level in range(levels + 1)]
        self.inlet = BoundaryConv(axes, channels_in, width, 3) if residual else None
        first = width if residual else channels_in
        self.down = nn.ModuleList([block(axes, a, b) for a, b in zip([first, *widths[:-1]], widths, strict=True)])
        self.up = nn.ModuleList([block(axes, 2 * fine, fine) for fine in widths[:-1]])
        self.grow = nn.ParameterList(
            [
                nn.Parameter(torch.randn(coarse, fine, *[2] * axes) / math.sqrt(coarse))
                for fine, coarse in pairwise(widths)
            ]
        )
        self.out = BoundaryConv(axes, width, channels_out, 1, gain=0.1 if residual else 1.0)

    def forward(
        self, u: Float[Tensor, "batch channel *grid"], periodic: Sequence[bool]
    ) -> Float[Tensor, "batch out *grid"]:
        pool = (MEAN_POOL if self.residual else MAX_POOL)[self.axes]
        spread = TRANSPOSED[self.axes]
        skips: list[Tensor] = []
        u = u if self.inlet is None else self.inlet(u, periodic)
        for level, block in enumerate(self.down):
            u = block(pool(u, 2) if level else u, periodic)
            skips.append(u)
        u = skips.pop()
        for block, kernel, skip in zip(reversed(self.up), reversed(self.grow), reversed(skips), strict=True):
            u = block(torch.cat([skip, spread(u, kernel, stride=2)], 1), periodic)
        out: Tensor = self.out(u, periodic)
        return out
