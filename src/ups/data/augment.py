"""Random symmetries of the equation, applied to whole windows: the same one to every frame of a sample.

A symmetry maps solutions to solutions, so that a window transformed is as good as a new one. Which hold is said by the
equation's description (`Equation.symmetries`); each sample of a batch draws its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ups.data.fields import Batch
from ups.physics.description import Equation, Motion


class Augment:
    """Draws translations, reflections, quarter turns, motions and boosts for a batch of windows of one equation.

    Args:
        equation: its `symmetries`, `motions`, `periodic` axes and the `parity` of its fields decide what is drawn.
        enabled: False draws the identity alone.
    """

    def __init__(self, equation: Equation, *, enabled: bool = True) -> None:
        self.moved = [axis for axis in equation.axes_with("translation") if enabled and equation.periodic[axis]]
        self.mirrored = equation.axes_with("reflection") if enabled else ()
        self.rotates = enabled and "rotation" in equation.symmetries
        self.motions = equation.motions if enabled else ()
        self.boosts = enabled and "galilean" in equation.symmetries
        self.parity = torch.tensor([float(field.parity) for field in equation.fields])

    def __call__(self, batch: Batch, rng: torch.Generator) -> Batch:
        """A new batch of the same shape; all draws are from `rng`, on its device.

        Translations are by whole cells, motions as often as moves by whole cells, and boosts by whole cells a step.
        """
        frames, many, where = batch.frames, (len(batch.frames),), rng.device
        for axis, dim in enumerate(range(3, frames.ndim)):
            if axis in self.moved:
                frames = translate(frames, dim, torch.randint(frames.shape[dim], many, generator=rng, device=where))
            if axis in self.mirrored:
                frames = reflect(frames, dim, self.parity, torch.rand(many, generator=rng, device=where) < 0.5)
        if self.rotates and frames.ndim == 5 and frames.shape[3] == frames.shape[4]:
            swapped = torch.rand(many, generator=rng, device=where) < 0.5
            frames = torch.where(per_sample(swapped, frames), frames.mT, frames)
        for motion in self.motions:
            every = motion.every(tuple(frames.shape[3:]))
            times = every * torch.randint(motion.order // every, many, generator=rng, device=where)
            frames = repeat(frames, motion, self.parity, times)
        if self.boosts:
            donor = torch.randperm(len(frames), generator=rng, device=where)
            frames = boost(frames, donor, batch.dt, batch.grid.spacing[0])
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


def repeat(frames: Float[Tensor, "batch time channel *grid"], motion: Motion, parity: Tensor, times: Tensor) -> Tensor:
    """Moves every sample by its own number of repetitions of a motion, which must be by whole cells."""
    for dim, (mirrored, share) in enumerate(zip(motion.mirrored, motion.shift, strict=True), start=3):
        if share:
            frames = translate(frames, dim, times * share.numerator * frames.shape[dim] // share.denominator)
        if mirrored:
            frames = reflect(frames, dim, parity, times % 2 == 1)
    return frames


def boost(
    frames: Float[Tensor, "batch time 1 x"],
    donor: Int64[Tensor, " batch"],
    dt: Float[Tensor, " batch"],
    spacing: float,
) -> Float[Tensor, "batch time 1 x"]:
    """u(x, t) -> u(x - c t, t) + c, which gives every sample nearly the mean velocity of its `donor`.

    So mean velocities are spread over all shapes of u, and none is drawn that the data does not have. c moves the field
    by a whole number of cells each time step, from the first frame on.
    """
    mean = frames[:, 0, 0].mean(-1)
    cells = ((mean[donor.to(frames.device)] - mean) * dt / spacing).round()
    shift = -cells[:, None].long() * torch.arange(frames.shape[1], device=frames.device)
    moved = translate(frames.flatten(0, 1)[:, None], 3, shift.flatten())[:, 0].unflatten(0, frames.shape[:2])
    boosted: Tensor = moved + per_sample(cells * spacing / dt, frames)
    return boosted
