"""Building blocks shared by the operator and the baselines: boundary-aware convolutions, attention, conditioning.

Tensors are laid out channels-first, `(batch, channel, *grid)`, in one, two or three dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Part = TypeVar("Part", bound=nn.Module)

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ModuleMap(nn.ModuleDict, Generic[Part]):
    """Modules of one kind by name: a `ModuleDict` that knows their type."""

    def __getitem__(self, key: str) -> Part:
        module: Part = super().__getitem__(key)  # type: ignore[assignment]
        return module


def full_precision(tensor: Tensor) -> torch.autocast:
    """A context in which autocast is off on the tensor's device: codec, linear base, rest and losses keep float32.

    Under autocast a convolution hands on bfloat16, which FFTs refuse and in which no codec is lossless.
    """
    return torch.autocast(tensor.device.type, enabled=False)


def pad_axis(u: Tensor, axis: int, before: int, after: int, periodic: bool) -> Tensor:
    """Extends one axis beyond its ends: wrapped where periodic, else mirrored at the cell face (no normal gradient).

    An axis shorter than the padding is wrapped or mirrored as often as it takes.
    """
    if before == after == 0:
        return u
    size = u.shape[axis]
    if max(before, after) > size:
        place = torch.arange(-before, size + after, device=u.device) % (size if periodic else 2 * size)
        return u.index_select(axis, torch.where(place < size, place, 2 * size - 1 - place))
    if periodic:
        return torch.cat([u.narrow(axis, size - before, before), u, u.narrow(axis, 0, after)], dim=axis)
    head, tail = u.narrow(axis, 0, before), u.narrow(axis, size - after, after)
    return torch.cat([head.flip(axis), u, tail.flip(axis)], dim=axis)


class PadGrid(torch.autograd.Function):
    """`pad_axis` by `width` on both ends of every grid axis, differentiable once.

    Its gradient adds what the margins were given to the cells they were copied from. Automatic differentiation would
    make a field of zeros for each of the copies first, which takes twice as long.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, width: int, periodic: tuple[bool, ...]) -> Tensor:
        ctx.width, ctx.periodic = width, periodic
        for axis, wraps in enumerate(periodic, start=2):
            u = pad_axis(u, axis, width, width, wraps)
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,), width = gradients, ctx.width
        for axis, wraps in reversed(list(enumerate(ctx.periodic, start=2))):
            size = gradient.shape[axis] - 2 * width
            before, after = gradient.narrow(axis, 0, width), gradient.narrow(axis, size + width, width)
            gradient = gradient.narrow(axis, width, size).clone()
            head, tail = gradient.narrow(axis, 0, width), gradient.narrow(axis, size - width, width)
            if wraps:
                tail.add_(before)
                head.add_(after)
            else:
                head.add_(before.flip(axis))
                tail.add_(after.flip(axis))
        return gradient, None, None


def pad_grid(
    u: Float[Tensor, "batch channel *grid"], width: int, periodic: Sequence[bool]
) -> Float[Tensor, "batch channel *padded"]:
    """`pad_axis` by `width` on both ends of every grid axis."""
    if width == 0:
        return u
    if min(u.shape[2:]) >= width:
        padded: Tensor = PadGrid.apply(u, width, tuple(periodic))  # type: ignore[no-untyped-call]
        return padded
    for axis, wraps in enumerate(periodic, start=2):
        u = pad_axis(u, axis, width, width, wraps)
    return u


class BoundaryConv(nn.Module):
    """A convolution of odd kernel that keeps the grid's shape and extends the field by its boundary condition.

    Args:
        dim: number of grid axes.
        kernel: odd kernel width, the same on every axis.
        groups: as in `torch.nn.Conv1d`; `channels_in` for a depthwise convolution.
        gain: multiplies the initial weights; 0 starts the layer at zero.
    """

    def __init__(
        self,
        dim: int,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        groups: int = 1,
        gain: float = 1.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a boundary convolution needs an odd kernel, not {kernel}")
        self.dim, self.kernel, self.groups = dim, kernel, groups
        fan_in = channels_in // groups * kernel**dim
        self.weight = nn.Parameter(
            gain / math.sqrt(fan_in) * torch.randn(channels_out, channels_in // groups, *[kernel] * dim)
        )
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None

    def forward(self, u: Float[Tensor, "batch channel *grid"], periodic: Sequence[bool]) -> Tensor:
        return CONV[self.dim](pad_grid(u, self.kernel // 2, periodic), self.weight, self.bias, groups=self.groups)


class RMSNorm(nn.RMSNorm):
    """Unit root mean square (Zhang and Sennrich 2019), taken in the weights' precision whatever autocast hands in."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class Film(nn.Module):
    """Feature-wise scale and shift by the conditioning vector (Perez et al. 2018); starts as the identity."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(condition_dim, 2 * channels)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, u: Tensor, condition: Float[Tensor, "batch condition"]) -> Tensor:
        """`u` is (batch, channel, *grid)."""
        scale, shift = self.project(condition).reshape(u.shape[0], 2, -1, *[1] * (u.ndim - 2)).unbind(1)
        return torch.addcmul(shift, u, 1 + scale)


class Conditioner(nn.Module):
    """Embeds (task, dt, params) as one vector per sample: the operator's knowledge of which problem it advances.

    Args:
        parameters: number of physical parameters per task.
        dim: width of the conditioning vector.
    """

    def __init__(self, parameters: dict[str, int], dim: int) -> None:
        super().__init__()
        self.tasks = nn.ParameterDict({task: nn.Parameter(torch.zeros(dim)) for task in parameters})
        self.inlets = nn.ModuleDict({task: nn.Linear(count + 1, dim) for task, count in parameters.items()})
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(dim, dim), nn.GELU())

    def forward(
        self, task: str, features: Float[Tensor, "batch parameters_and_dt"]
    ) -> Float[Tensor, "batch condition"]:
        condition: Tensor = self.mix(self.inlets[task](features) + self.tasks[task])
        return condition


def rotary_angles(shape: Sequence[int], periodic: Sequence[bool], head_dim: int, device: torch.device) -> Tensor:
    """Angles of an axial rotary embedding, (tokens, head_dim // 2) (Su et al. 2021; Heo et al. 2024 for axes).

    On a periodic axis of n tokens the frequencies are whole multiples of 2 pi / n, so that attention depends on the
    *periodic* distance between tokens; elsewhere they fall geometrically from 1 to 1 / (4 n).
    """
    pairs, angles = head_dim // 2, []
    for axis, (size, wraps) in enumerate(zip(shape, periodic, strict=True)):
        count = pairs // len(shape) + (axis < pairs % len(shape))
        steps = torch.linspace(0, 1, count, device=device)
        frequency = 2 * math.pi / size * torch.floor((size / 2) ** steps + 0.5) if wraps else (4 * size) ** -steps
        angle = torch.arange(size, device=device)[:, None] * frequency
        angles.append(
            angle.reshape(*[size if other == axis else 1 for other in range(len(shape))], count).expand(*shape, count)
        )
    return torch.cat(angles, dim=-1).reshape(-1, pairs)


def rotate(x: Float[Tensor, "batch head token channel"], cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of channels (c, c + channel // 2) by its angle; `cos` and `sin` are (token, channel // 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Multi-head self-attention over a grid of tokens, global or within shifted windows, with rotary positions.

    Args:
        dim: token width; `heads` must divide it.
        window: tokens per window and axis, None for global attention.
        shift: windows start half a window later (Liu et al. 2021), wrapped; only on periodic axes.
        qk_norm: unit-RMS queries and keys (Henry et al. 2020).
    """

    def __init__(
        self, dim: int, heads: int, *, window: int | None = None, shift: bool = False, qk_norm: bool = True
    ) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.norm = RMSNorm(dim // heads, eps=1e-6) if qk_norm else nn.Identity()
        nn.init.normal_(self.qkv.weight, std=dim**-0.5)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Float[Tensor, "batch *tokens channel"], periodic: Sequence[bool]) -> Tensor:
        shape = x.shape[1:-1]
        window = [min(self.window or size, size) for size in shape]
        whole = all(size == part for size, part in zip(shape, window, strict=True))
        shifts = [
            part // 2 if self.shift and wraps and part < size else 0
            for part, size, wraps in zip(window, shape, periodic, strict=True)
        ]
        axes = list(range(1, 1 + len(shape)))
        if any(shifts):
            x = x.roll([-shift for shift in shifts], axes)
        x = x.flatten(1, -2) if whole else split_windows(x, window)
        wraps = [whole_axis == part and p for whole_axis, part, p in zip(shape, window, periodic, strict=True)]
        angles = rotary_angles(window, wraps, x.shape[-1] // self.heads, x.device)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        q, k, v = rearrange(self.qkv(x), "b n (three h c) -> three b h n c", three=3, h=self.heads)
        q, k = rotate(self.norm(q), cos, sin), rotate(self.norm(k), cos, sin)
        mixed = self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n c -> b n (h c)"))
        mixed = mixed.unflatten(1, shape) if whole else join_windows(mixed, window, shape)
        return mixed.roll(shifts, axes) if any(shifts) else mixed


def split_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """(batch, *tokens, channel) -> (batch * windows, tokens per window, channel)."""
    if len(window) == 1:
        return rearrange(x, "b (n w) c -> (b n) w c", w=window[0])
    if len(window) == 2:
        return rearrange(x, "b (n w) (m v) c -> (b n m) (w v) c", w=window[0], v=window[1])
    return rearrange(x, "b (n w) (m v) (l u) c -> (b n m l) (w v u) c", w=window[0], v=window[1], u=window[2])


def join_windows(x: Tensor, window: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The inverse of `split_windows` for a token grid of `shape`."""
    counts = [size // part for size, part in zip(shape, window, strict=True)]
    if len(window) == 1:
        return rearrange(x, "(b n) w c -> b (n w) c", n=counts[0])
    if len(window) == 2:
        return rearrange(x, "(b n m) (w v) c -> b (n w) (m v) c", n=counts[0], m=counts[1], w=window[0])
    return rearrange(
        x,
        "(b n m l) (w v u) c -> b (n w) (m v) (l u) c",
        n=counts[0],
        m=counts[1],
        l=counts[2],
        w=window[0],
        v=window[1],
    )


class Block(nn.Module):
    """One PDE-transformer block on a grid of tokens: depthwise convolution, attention, MLP, as conditioned residuals.

    The depthwise convolution carries local transport, attention the long range (cf. PDE-Transformer, Holzschuh et al.
    2025). Residual branches end in zero-initialised weights, so that a new block is the identity.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        condition_dim: int,
        axes: int,
        *,
        window: int | None,
        shift: bool,
        mlp_ratio: float,
        qk_norm: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.local = BoundaryConv(axes, dim, dim, 5 if axes == 1 else 3, groups=dim, gain=0.5)
        self.attention = Attention(dim, heads, window=window, shift=shift, qk_norm=qk_norm)
        hidden = int(mlp_ratio * dim)
        self.mlp_in, self.mlp_out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm_attention, self.norm_mlp = RMSNorm(dim, eps=1e-6), RMSNorm(dim, eps=1e-6)
        self.film_attention, self.film_mlp = Film(condition_dim, dim), Film(condition_dim, dim)
        self.drop_path = drop_path
        nn.init.zeros_(self.mlp_out.weight)

    def forward(self, x: Float[Tensor, "batch *tokens channel"], condition: Tensor, periodic: Sequence[bool]) -> Tensor:
        x = x + self._keep(self.local(x.movedim(-1, 1), periodic).movedim(1, -1), x)
        h = self._film(self.film_attention, self.norm_attention(x), condition)
        x = x + self._keep(self.attention(h, periodic), x)
        h = self._film(self.film_mlp, self.norm_mlp(x), condition)
        return x + self._keep(self.mlp_out(F.gelu(self.mlp_in(h))), x)

    @staticmethod
    def _film(film: Film, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = film.project(condition).reshape(x.shape[0], 2, *[1] * (x.ndim - 2), x.shape[-1]).unbind(1)
        return torch.addcmul(shift, x, 1 + scale)

    def _keep(self, branch: Tensor, x: Tensor) -> Tensor:
        """Stochastic depth (Huang et al. 2016): drops the branch for whole samples while training."""
        if self.drop_path == 0.0 or not self.training:
            return branch
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)
