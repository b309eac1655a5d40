"""The terms that objectives add up. Each is a pure function of tensors; none hides a gradient.

Shapes: normalised fields (batch, channel, *grid), latents (batch, latent, *tokens), queries (batch, channel, point).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

TINY = 1e-8
LEAST = 0.1
"""Of the usual size of a normalised field, 1: smaller truths count as that. A field that passes uniformly through its
mean over the data is almost zero in these units; its relative error says nothing, and would outweigh all others."""


def relative_l2(prediction: Tensor, truth: Tensor, least: float = TINY) -> Float[Tensor, ""]:
    """mean over samples of |p - u| / max(|u|, least), norms over all other dims."""
    error: Tensor = (prediction - truth).flatten(1).norm(dim=1)
    scale: Tensor = truth.flatten(1).norm(dim=1)
    return (error / scale.clamp_min(least)).mean()


def normalized_mse(prediction: Tensor, truth: Tensor, least: float = TINY) -> Float[Tensor, ""]:
    """mean over samples of |p - z|^2 / max(|z|, least)^2, norms over all other dims."""
    error, scale = (prediction - truth).flatten(1).square().sum(1), truth.flatten(1).square().sum(1)
    return (error / scale.clamp_min(max(least**2, TINY))).mean()


def least_norm(u: Float[Tensor, "batch channel *where"]) -> float:
    """The norm that a normalised field of this many values counts as at least."""
    return LEAST * math.sqrt(math.prod(u.shape[1:]))


def mean_square(prediction: Tensor, truth: Tensor) -> Float[Tensor, ""]:
    """mean (p - u)^2."""
    return (prediction - truth).square().mean()


def shell_energy(u: Float[Tensor, "batch channel *grid"], bands: int) -> Float[Tensor, "batch channel band"]:
    """Energy of the spatial spectrum in `bands` equal radial shells up to the Nyquist wavenumber, in float32.

    It sums to the mean of u^2. Wavenumbers beyond Nyquist (the corners of a box) belong to the last shell.

    Every axis is taken as periodic, one with walls too, as the scores by bands of wavenumbers take it (the reported
    spectrum continues it evenly instead): where the ends differ, the jump adds to the high shells of prediction and
    truth alike.
    """
    axes = tuple(range(2, u.ndim))
    power = torch.fft.rfftn(u.float(), dim=axes, norm="forward").abs().square()
    power[..., 1 : (u.shape[-1] + 1) // 2] *= 2  # these stand for their conjugates too; mean and Nyquist have none
    squares = torch.zeros(power.shape[2:], device=u.device)
    for axis in axes:
        size = u.shape[axis]
        wave = (
            torch.fft.rfftfreq(size, device=u.device) if axis == axes[-1] else torch.fft.fftfreq(size, device=u.device)
        )
        squares = squares + wave.square().reshape([-1 if other == axis else 1 for other in axes])
    shell = (squares.sqrt() * 2 * bands).long().clamp_max(bands - 1).flatten()
    energy = torch.zeros(*u.shape[:2], bands, device=u.device)
    return energy.index_add(2, shell, power.flatten(2))


def spectral_loss(prediction: Tensor, truth: Tensor, bands: int = 8) -> Float[Tensor, ""]:
    """mean over radial bands k of |E_k(p) - E_k(u)| / (E_k(u) + eps), with eps a millionth of the truth's total energy.

    Without the floor, bands that hold nothing but rounding would decide the loss.
    """
    found, wanted = shell_energy(prediction, bands), shell_energy(truth, bands)
    floor = 1e-6 * wanted.sum(-1, keepdim=True) + TINY
    return ((found - wanted).abs() / (wanted + floor)).mean()


class InverseCurriculum:
    """Weight of the inverse terms over the epochs: 0 during the warm-up, then linear to the base weight over as many.

    Args:
        warmup_epochs: 0 starts at the full weight.
        max_weight: no weight is above it, whatever its base.
    """

    def __init__(self, warmup_epochs: int, max_weight: float) -> None:
        self.warmup_epochs, self.max_weight = warmup_epochs, max_weight

    def __call__(self, base: float, epoch: int) -> float:
        ramp = 1.0 if self.warmup_epochs == 0 else min(1.0, max(0.0, epoch / self.warmup_epochs - 1.0))
        return min(base * ramp, self.max_weight)
