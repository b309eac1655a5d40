"""The moving frame of a Galilean-invariant equation: every step is taken where the mean velocity is zero.

If u(x, t) solves u_t + u u_x = L u with constant coefficients, so does u(x + c t, t) - c. Where the mean c of u is
conserved, the whole motion at c can therefore be taken out before a step and put back after it, and what is left to
learn is the same for every c. On a periodic grid the shift by c dt is a turn of Fourier phases: exact for the
trigonometric interpolant (but for the Nyquist mode, which moves by whole cells), and it leaves the integral unchanged.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.emulator import TaskSpec


class MovingFrame(nn.Module):
    """Takes normalised fields of one task into the frame of zero mean velocity, and back a step later.

    Args:
        spec: of a task with one field, a velocity along its one periodic axis.
    """

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        if len(spec.fields) != 1 or spec.periodic != (True,):
            raise ValueError(f"{spec.name}: a moving frame needs one field on one periodic axis")
        self.mean_cells, self.std_cells = (value * spec.dt / spec.spacing[0] for value in (spec.mean[0], spec.std[0]))

    def enter(
        self, u_hat: Float[Tensor, "batch context 1 x"]
    ) -> tuple[Float[Tensor, "batch context 1 x"], Float[Tensor, "batch 1 1"]]:
        """The context frames seen from the moving frame, and the normalised mean that was taken out.

        Both frames agree at the time of the last context frame; earlier ones are shifted forward.
        """
        mean = u_hat[:, -1].mean(-1, keepdim=True)
        still = u_hat - mean[:, None]
        ages = range(u_hat.shape[1] - 1, 0, -1)
        earlier = [self._shift(still[:, i], age * self._cells(mean)) for i, age in enumerate(ages)]
        return torch.stack([*earlier, still[:, -1]], dim=1) if earlier else still, mean

    def leave(self, u_hat: Float[Tensor, "batch 1 x"], mean: Float[Tensor, "batch 1 1"]) -> Float[Tensor, "batch 1 x"]:
        """The frame after the step, seen from the grid again."""
        return self.carry(u_hat, mean) + mean

    def carry(self, field: Float[Tensor, "batch 1 x"], mean: Float[Tensor, "batch 1 1"]) -> Float[Tensor, "batch 1 x"]:
        """What moves with the frame, such as noise that was drawn in it, where the step has brought it."""
        return self._shift(field, self._cells(mean))

    def follow(self, u_hat: Float[Tensor, "batch 1 x"], mean: Float[Tensor, "batch 1 1"]) -> Float[Tensor, "batch 1 x"]:
        """The inverse of `leave`: a frame a step later, seen from the moving frame."""
        return self._shift(u_hat - mean, -self._cells(mean))

    def _cells(self, mean: Tensor) -> Float[Tensor, "batch 1 1"]:
        """Cells that the frame moves in a time step."""
        return mean * self.std_cells + self.mean_cells

    @staticmethod
    def _shift(u: Float[Tensor, "batch 1 x"], cells: Float[Tensor, "batch 1 1"]) -> Float[Tensor, "batch 1 x"]:
        """u(x - cells): the trigonometric interpolant, moved."""
        size = u.shape[-1]
        cells = torch.remainder(cells, size)  # small angles are exact ones
        waves = torch.arange(size // 2 + 1, device=u.device, dtype=u.dtype) * (2 * math.pi / size)
        angles = -(cells * waves)
        if size % 2 == 0:
            # The Nyquist mode has no phase to turn, but a sign: it moves by the nearest whole number of cells.
            angles = torch.where(waves < math.pi - 1e-6, angles, -math.pi * cells.round())
        phase = torch.polar(torch.ones_like(angles), angles)
        shifted: Tensor = torch.fft.irfft(torch.fft.rfft(u) * phase, n=size)
        return shifted
