"""Random symmetries of the equation, applied to whole windows: the same one to every frame of a sample.

A symmetry maps solutions to solutions, so that a window transformed is as good as a new one. Which hold is said by the
equation's description (`Equation.symmetries`); each sample of a batch draws its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ups.data.fields import Batch
from ups.physics.equations import Equation


class Augment:
    """Draws translations, reflections and quarter turns for a batch of windows of one equation.

    Args:
        equation: its `symmetries`, `periodic` axes and the `parity` of its fields decide what is drawn.
        enabled: False draws the identity alone.
    """

    def __init__(self, equation: Equation, *, enabled: bool = True) -> None:
        self.symmetries: frozenset[str] = equation.symmetries if enabled else frozenset()
        self.periodic = equation.periodic
        self.parity = torch.tensor([float(field.parity) for field in equation.fields])

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch:
        """A new batch of the same shape; all draws are from `rng`, on its device."""
        frames, many, where = batch.frames, (len(batch.frames),), rng.device
        axes = range(3, frames.ndim)
        for axis, periodic in zip(axes, self.periodic, strict=True):
            if periodic and "translation" in self.symmetries:
                frames = translate(frames, axis, torch.randint(frames.shape[axis], many, generator=rng, device=where))
            if "reflection" in self.symmetries:
                frames = reflect(frames, axis, self.parity, torch.rand(many, generator=rng, device=where) < 0.5)
        if "rotation" in self.symmetries and frames.ndim == 5 and frames.shape[3] == frames.shape[4]:
            swapped = torch.rand(many, generator=rng, device=where) < 0.5
            frames = torch.where(per_sample(swapped, frames), frames.mT, frames)
        return replace(batch, frames=frames)


def per_sample(values: Tensor, frames: Tensor) -> Tensor:
    """One value per sample, shaped and placed to broadcast against `frames`."""
    return values.to(frames.device).reshape(-1, *[1] * (frames.ndim - 1))


def translate(frames: Float[Tensor, "batch time channel *grid"], axis: int, shift: Tensor) -> Tensor:
    """Rolls every sample by its own number of cells along a periodic axis."""
    size = frames.shape[axis]
    index = (torch.arange(size, device=shift.device)[None] + shift[:, None]) % size
    shape = [len(frames), *[1] * (frames.ndim - 1)]
    shape[axis] = size
    return frames.gather(axis, index.to(frames.device).reshape(shape).expand_as(frames))


def reflect(frames: Float[Tensor, "batch time channel *grid"], axis: int, parity: Tensor, chosen: Tensor) -> Tensor:
    """u(x) -> parity * u(-x) along one axis, for the chosen samples."""
    sign = parity.to(frames).reshape(1, 1, -1, *[1] * (frames.ndim - 3))
    return torch.where(per_sample(chosen, frames), sign * frames.flip(axis), frames)
