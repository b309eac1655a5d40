"""Convolutional levels between a field at full resolution and the tokens of a transformer.

On the way down each level adds detail with a residual block and hands a coarser, wider field on; on the way up it adds
what comes back to what it had, and refines it with a second block. What is local is done where the field still has its
resolution, and the transformer at the bottom is left with few, rich tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ups.models.layers import CONV, BoundaryConv, Film

TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def recompute(module: nn.Module, wanted: bool) -> Callable[..., Tensor]:
    """The module, its activations computed again in the backward pass where that is wanted."""
    return partial(checkpoint, module, use_reentrant=False) if wanted and torch.is_grad_enabled() else module


def halvings(factor: int) -> tuple[int, ...]:
    """The factor as twos, and after them what is left of it."""
    twos = (factor & -factor).bit_length() - 1
    rest = factor >> twos
    return (2,) * twos + ((rest,) if rest > 1 else ())


class Patches(nn.Module):
    """Gathers patches of a field into coarser cells and spreads them out again, with separate kernels.

    Args:
        patch: cells per coarser cell and axis.
    """

    def __init__(self, axes: int, channels: int, coarse_channels: int, patch: int) -> None:
        super().__init__()
        self.axes, self.patch = axes, patch
        shape = (coarse_channels, channels, *[patch] * axes)
        self.gather_weight = nn.Parameter(torch.randn(shape) / math.sqrt(channels * patch**axes))
        self.spread_weight = nn.Parameter(torch.randn(shape) / math.sqrt(coarse_channels))

    def gather(self, u: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch coarse_channel *coarse"]:
        return CONV[self.axes](u, self.gather_weight, stride=self.patch)

    def spread(self, x: Float[Tensor, "batch coarse_channel *coarse"]) -> Float[Tensor, "batch channel *grid"]:
        return TRANSPOSED[self.axes](x, self.spread_weight, stride=self.patch)


class ConvBlock(nn.Module):
    """Two convolutions beside a shortcut, activated before (He et al. 2016), conditioned between, not normalised.

    A norm over space would take the size of what it normalises out of the result, and steps are as small as their
    cause.
    """

    def __init__(self, axes: int, width: int, condition_dim: int, kernel: int) -> None:
        super().__init__()
        self.first = BoundaryConv(axes, width, width, kernel)
        self.second = BoundaryConv(axes, width, width, kernel, gain=0.5)
        self.film = Film(condition_dim, width)

    def forward(self, x: Float[Tensor, "batch channel *grid"], condition: Tensor, periodic: Sequence[bool]) -> Tensor:
        inner = self.film(self.first(F.gelu(x), periodic), condition)
        out: Tensor = x + self.second(F.gelu(inner), periodic)
        return out


class Pyramid(nn.Module):
    """Levels of a U around what works on the tokens.

    Args:
        width: channels at full resolution; each level has twice as many as the one above it.
        token_dim: channels of the tokens.
        coarsen: how many times coarser each level's grid is than the one above it; none leaves the grid as it is.
        kernel: cells of the blocks' convolutions along each axis.
        use_checkpoint: compute the blocks' activations again in the backward pass.
    """

    def __init__(
        self,
        axes: int,
        width: int,
        token_dim: int,
        condition_dim: int,
        *,
        coarsen: Sequence[int],
        kernel: int,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        widths = [width * 2**level for level in range(len(coarsen))]
        self.down = nn.ModuleList([ConvBlock(axes, one, condition_dim, kernel) for one in widths])
        self.up = nn.ModuleList([ConvBlock(axes, one, condition_dim, kernel) for one in widths])
        self.resize = nn.ModuleList(
            [
                Patches(axes, fine, coarse, factor)
                for (fine, coarse), factor in zip(pairwise([*widths, token_dim]), coarsen, strict=True)
            ]
        )

    def forward(
        self,
        x: Float[Tensor, "batch channel *grid"],
        condition: Float[Tensor, "batch condition"],
        periodic: Sequence[bool],
        mix: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "batch channel *grid"]:
        """`mix` maps the tokens (batch, token_dim, *tokens) to others of their shape."""
        skips, resizes = [], cast(Sequence[Patches], self.resize)
        for block, resize in zip(self.down, resizes, strict=True):
            x = recompute(block, self.use_checkpoint)(x, condition, periodic)
            skips.append(x)
            x = resize.gather(x)
        x = mix(x)
        for block, resize, skip in zip(reversed(self.up), reversed(resizes), reversed(skips), strict=True):
            x = recompute(block, self.use_checkpoint)(skip + resize.spread(x), condition, periodic)
        return x
