"""What two halves of the data agree on: the spatial kernel of a propagator without the noise of its fit.

Modes that are fitted each on its own have errors that know nothing of each other. Together they are a kernel of small
random taps all over the domain: no local network can take back what it adds to every step, however long it trains. A
true propagator of a short time has few taps that matter, and those come out alike from both halves of the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NEAR = {1: 6, 2: 2, 3: 1}
"""Taps on either side that are averaged over to tell signal from noise, by dimension: 13, 25 or 27 in all."""
TRUST = 4.0  # a change of modes of up to twice the size of what the halves differ by is still one of noise


def agreed(
    whole: Tensor, first: Tensor, second: Tensor, energy: Tensor, *, shape: Sequence[int], fourier: bool
) -> Tensor:
    """The modes of `whole` (channel, read, *modes) without what is only noise of their fit.

    Each tap of the kernel is weighed by how well two fits to halves of the data agree on it. With S the product of the
    halves' taps and N a quarter of their squared difference, both averaged over near taps, a tap keeps S / (S + N) of
    itself where S > 2 N (Wiener's weight, signal and noise being estimated from the halves), and nothing elsewhere. Of
    the result those modes are taken that it changes no more than the halves differ, in energy and over near modes:
    where a true kernel is so wide that its taps drown one by one, its modes stay as they were fitted.

    Args:
        whole, first, second: fits to all pairs, and to either half of them.
        energy: of the modes that are read, (read, *modes).
        shape: of the grid.
        fourier: modes of a real FFT; cosine modes otherwise.
    """
    axes = len(shape)
    a, b = _taps(first, shape, fourier), _taps(second, shape, fourier)
    wraps = [True] * axes
    signal, noise = _near(a * b, axes, wraps), _near((a - b).square() / 4, axes, wraps)
    keep = torch.where(signal > 2 * noise, signal / (signal + noise).clamp_min(torch.finfo(noise.dtype).tiny), 0.0)
    smooth = _modes(_taps(whole, shape, fourier) * keep, shape, fourier)
    wraps = [fourier] * (axes - 1) + [False]  # a full axis of Fourier modes does; half an axis and cosine modes do not
    change = _near(((smooth - whole).abs().square() * energy).sum(1), axes, wraps)
    doubt = _near(((first - second).abs().square() / 4 * energy).sum(1), axes, wraps)
    return torch.where((change <= TRUST * doubt)[:, None], smooth, whole)


def _taps(modes: Tensor, shape: Sequence[int], fourier: bool) -> Tensor:
    """The kernel: over the grid for Fourier modes; over its even continuation, twice as long, for cosine modes."""
    axes = tuple(range(-len(shape), 0))
    if fourier:
        taps: Tensor = torch.fft.irfftn(modes, s=tuple(shape), dim=axes)
        return taps
    for axis, size in zip(
        axes, shape, strict=True
    ):  # k = size, which has no cosine mode, is given the last one's value
        mirrored = modes.narrow(axis, 1, size - 1).flip(axis)
        modes = torch.cat([modes, modes.narrow(axis, size - 1, 1), mirrored], dim=axis)
    even: Tensor = torch.fft.ifftn(modes, dim=axes).real
    return even


def _modes(taps: Tensor, shape: Sequence[int], fourier: bool) -> Tensor:
    """The inverse of `_taps`."""
    axes = tuple(range(-len(shape), 0))
    if fourier:
        waves: Tensor = torch.fft.rfftn(taps, dim=axes)
        return waves
    modes: Tensor = torch.fft.fftn(taps, dim=axes).real
    for axis, size in zip(axes, shape, strict=True):
        modes = modes.narrow(axis, 0, size)
    return modes


def _near(values: Tensor, axes: int, wraps: Sequence[bool]) -> Tensor:
    """Means over `NEAR` neighbours on either side along each of the last `axes` axes; an end wraps, or is mirrored."""
    for axis, round_it in zip(range(-axes, 0), wraps, strict=True):
        size = values.shape[axis]
        place = torch.arange(size, device=values.device)
        shifted = [place + shift for shift in range(-NEAR[axes], NEAR[axes] + 1)]
        index = [at % size if round_it else ((size - 1) - (at.abs() - (size - 1)).abs()).clamp(min=0) for at in shifted]
        values = torch.stack([values.index_select(axis, one) for one in index]).mean(0)
    return values
