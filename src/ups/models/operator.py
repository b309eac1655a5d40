"""The latent operator: fields on the codec's lattice -> hidden tokens -> the learned rest of a step on the lattice.

A convolution reads the field, convolutional levels gather it into tokens (`pyramid.py`), transformer blocks mix them,
the levels spread them out again, and a last convolution writes the rest: face fluxes, sources or increments, as the
equation's description says (see `simulator.py`). Of a model of several tasks, the transformer is shared, and what is
nearer to the grid is each task's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.layers import Block, BoundaryConv, Conditioner
from ups.models.pyramid import Patches, Pyramid, recompute


class Level(nn.Module):
    """Blocks at one token resolution; every second block shifts its windows."""

    def __init__(self, blocks: Sequence[Block], use_checkpoint: bool) -> None:
        super().__init__()
        self.blocks, self.use_checkpoint = nn.ModuleList(blocks), use_checkpoint

    def forward(self, x: Tensor, condition: Tensor, periodic: Sequence[bool]) -> Tensor:
        """`x` is (batch, channel, *tokens)."""
        x = x.movedim(1, -1)
        for block in self.blocks:
            x = recompute(block, self.use_checkpoint)(x, condition, periodic)
        return x.movedim(-1, 1)


class Stack(nn.Module):
    """`pdet_stack`: a plain transformer, all blocks at one resolution."""

    factor = 1

    def __init__(self, dim: int, depths: Sequence[int], level: LevelFactory) -> None:
        super().__init__()
        self.level = level(dim, sum(depths))

    def forward(self, x: Tensor, condition: Tensor, periodic: Sequence[bool]) -> Tensor:
        out: Tensor = self.level(x, condition, periodic)
        return out


class UNet(nn.Module):
    """`pdet_unet`: token levels of halving resolution and growing width, with skip connections on the way up.

    `depths[i]` blocks at level i; all levels but the last run twice, going down and coming up.
    """

    def __init__(self, dim: int, depths: Sequence[int], level: LevelFactory, axes: int) -> None:
        super().__init__()
        self.factor = 2 ** (len(depths) - 1)
        widths = [dim * 2**i for i in range(len(depths))]
        self.down = nn.ModuleList([level(width, depth) for width, depth in zip(widths, depths, strict=True)])
        self.up = nn.ModuleList([level(width, depth) for width, depth in zip(widths[:-1], depths[:-1], strict=True)])
        self.resize = nn.ModuleList([Patches(axes, fine, coarse, 2) for fine, coarse in pairwise(widths)])

    def forward(self, x: Tensor, condition: Tensor, periodic: Sequence[bool]) -> Tensor:
        skips, resizes = [], cast(Sequence[Patches], self.resize)
        for down, resize in zip(self.down, resizes, strict=False):
            x = down(x, condition, periodic)
            skips.append(x)
            x = resize.gather(x)
        x = self.down[-1](x, condition, periodic)
        for up, resize, skip in zip(reversed(self.up), reversed(resizes), reversed(skips), strict=True):
            x = up(skip + resize.spread(x), condition, periodic)
        return x


class LevelFactory:
    """Makes the levels of one operator: everything but width and depth is shared."""

    def __init__(
        self,
        *,
        axes: int,
        head_dim: int,
        condition_dim: int,
        window: int | None,
        mlp_ratio: float,
        qk_norm: bool,
        drop_path: float,
        use_checkpoint: bool,
    ) -> None:
        self.axes, self.head_dim, self.condition_dim, self.window = axes, head_dim, condition_dim, window
        self.mlp_ratio, self.qk_norm, self.drop_path, self.use_checkpoint = (
            mlp_ratio,
            qk_norm,
            drop_path,
            use_checkpoint,
        )

    def __call__(self, dim: int, depth: int) -> Level:
        blocks = [
            Block(
                dim, dim // self.head_dim, self.condition_dim, self.axes, window=self.window, shift=index % 2 == 1,
                mlp_ratio=self.mlp_ratio, qk_norm=self.qk_norm, drop_path=self.drop_path,
            )
            for index in range(depth)
        ]  # fmt: skip
        return Level(blocks, self.use_checkpoint)


class LatentOperator(nn.Module):
    """The learned part of a step, G: normalised fields, dt and parameters -> the raw rest on the lattice.

    Args:
        axes: dimensions of the lattice, 1 to 3.
        channels: per task, (channels read, channels written): context * fields in, fluxes and sources out.
        parameters: per task, the number of physical parameters.
        coarsen: how many times the levels of the pyramid coarsen the lattice, one after the other, down to the tokens.
        architecture: `pdet_stack` or `pdet_unet`.
        hidden_dim: token width (of the finest level); `heads` must divide it.
        depths: blocks per level; `pdet_stack` runs their sum.
        window: tokens per attention window and axis; None attends globally.
        stem_width: channels at full resolution.
    """

    def __init__(
        self,
        axes: int,
        channels: Mapping[str, tuple[int, int]],
        parameters: Mapping[str, int],
        *,
        coarsen: Sequence[int],
        architecture: str = "pdet_stack",
        hidden_dim: int = 64,
        depths: Sequence[int] = (3,),
        heads: int = 4,
        window: int | None = None,
        mlp_ratio: float = 2.0,
        qk_norm: bool = True,
        drop_path: float = 0.0,
        stem_width: int = 32,
        use_activation_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        wide, narrow = (7, 5) if axes == 1 else (3, 3)
        self.conditioner = Conditioner(dict(parameters), hidden_dim)
        ends = stem_width if coarsen else hidden_dim
        self.inlets = nn.ModuleDict(
            {task: BoundaryConv(axes, read, ends, wide) for task, (read, _) in channels.items()}
        )
        self.pyramids = nn.ModuleDict(
            {
                task: Pyramid(
                    axes,
                    stem_width,
                    hidden_dim,
                    hidden_dim,
                    coarsen=coarsen,
                    kernel=narrow,
                    use_checkpoint=use_activation_checkpoint,
                )
                for task in channels
            }
        )
        level = LevelFactory(
            axes=axes, head_dim=hidden_dim // heads, condition_dim=hidden_dim, window=window, mlp_ratio=mlp_ratio,
            qk_norm=qk_norm, drop_path=drop_path, use_checkpoint=use_activation_checkpoint,
        )  # fmt: skip
        self.trunk = (
            Stack(hidden_dim, depths, level) if architecture == "pdet_stack" else UNet(hidden_dim, depths, level, axes)
        )
        self.outlets = nn.ModuleDict(
            {task: BoundaryConv(axes, ends, write, narrow, gain=0.0) for task, (_, write) in channels.items()}
        )
        for end in (*self.inlets.values(), *self.outlets.values()):
            end.weight.no_muon = True  # type: ignore[union-attr]  # a few physical channels are no matrix to orthogonalise

    def forward(
        self,
        u: Float[Tensor, "batch channel *grid"],
        features: Float[Tensor, "batch parameters_and_dt"],
        task: str,
        periodic: Sequence[bool],
    ) -> Float[Tensor, "batch rest *grid"]:
        condition = self.conditioner(task, features)
        if u.ndim == 4:  # convolutions of few channels are a third faster on a CPU with the channels innermost
            u = u.contiguous(memory_format=torch.channels_last)
        fine = self.inlets[task](u, periodic)
        fine = self.pyramids[task](fine, condition, periodic, lambda tokens: self.trunk(tokens, condition, periodic))
        rest: Tensor = self.outlets[task](fine, periodic)
        return rest
