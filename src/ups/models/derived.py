"""Fields that follow from a frame's own, as a network is shown them beside it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.emulator import TaskSpec
from ups.physics.equations import get_equation


class Derived(nn.Module):
    """What a task's equation derives from its fields by what they are (`Equation.derive`), at unit root mean square.

    A velocity is a sum over the whole domain of its vorticity: a network that is given it need not learn that sum.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.derive = get_equation(spec.name).derive if spec.derived else None
        self.spacing = spec.spacing
        ones = [1] * spec.axes
        self.register_buffer("mean", torch.tensor(spec.mean).reshape(-1, *ones), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).reshape(-1, *ones), persistent=False)
        self.register_buffer("scale", torch.ones(spec.derived, *ones))

    def forward(self, u_hat: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch derived *grid"] | None:
        """From normalised fields; None where the task has none."""
        return None if self.derive is None else self._raw(u_hat) / self.scale

    def _raw(self, u_hat: Tensor) -> Tensor:
        assert self.derive is not None
        return self.derive(torch.addcmul(self.mean, u_hat, self.std), self.spacing)

    @torch.no_grad()
    def fit(self, frames: Iterable[Float[Tensor, "batch channel *grid"]]) -> None:
        """Sets the scale from batches of normalised train frames."""
        if self.derive is None:
            return
        squares, count = torch.zeros_like(self.scale, dtype=torch.float64), 0
        for u_hat in frames:
            found = self._raw(u_hat)
            squares += found.square().sum([0, *range(2, found.ndim)], dtype=torch.float64).reshape(squares.shape)
            count += found.numel() // found.shape[1]
        self.scale.copy_((squares / max(count, 1)).sqrt().clamp_min(torch.finfo(torch.float32).tiny))
