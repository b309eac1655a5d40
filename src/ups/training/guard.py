"""The optimizer's step, unless loss or gradient is not finite: then everything stays as it was."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer


class StepGuard:
    """Makes the steps of an optimizer, and leaves out those whose evidence is not finite.

    On a CPU that is an `if`. On a device the host does not know the evidence and must not wait for it: the step is made
    and, where the evidence was bad, taken back by a `torch.where` on the device: weights, momenta and step counts. What
    it is taken back to is held for the length of the step alone, when activations are freed already. The host asks only
    where a step has created new state, as the first does.

    Args:
        optimizer: its parameters and states are dense tensors.
        scaler: of the loss; makes the step.
        on_device: whether to decide on the device.
    """

    def __init__(self, optimizer: Optimizer, scaler: torch.amp.GradScaler, *, on_device: bool) -> None:
        self.optimizer, self.scaler, self.on_device = optimizer, scaler, on_device
        self._held: list[Tensor] = []
        self._flat: list[list[Tensor]] = []

    @torch.no_grad()
    def step(self, evidence: Float[Tensor, ""]) -> None:
        """Steps when `evidence`, the sum of the step's losses and its gradient norm, is finite."""
        finite = torch.isfinite(evidence)
        if not self.on_device:
            if finite:
                self.scaler.step(self.optimizer)
            return
        known = set(self.optimizer.state)
        kinds = self._tensors_by_kind()
        before = [torch.cat(tensors) for tensors in kinds]
        self.scaler.step(self.optimizer)
        for tensors, old in zip(kinds, before, strict=True):
            kept = torch.where(finite, torch.cat(tensors), old)
            torch._foreach_copy_(tensors, list(kept.split([tensor.numel() for tensor in tensors])))
        created = [p for p in self.optimizer.state if p not in known]
        if created and not finite:
            for p in created:
                del self.optimizer.state[p]

    def _tensors_by_kind(self) -> list[list[Tensor]]:
        """Flat views of everything a step changes, those of one dtype and device together."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        states = (item for state in self.optimizer.state.values() for item in state.values())
        tensors = [*params, *(item for item in states if isinstance(item, Tensor))]
        if len(tensors) != len(self._held) or any(a is not b for a, b in zip(tensors, self._held, strict=True)):
            kinds: dict[Any, list[Tensor]] = defaultdict(list)
            for tensor in tensors:
                kinds[tensor.dtype, tensor.device].append(tensor.detach().as_strided((tensor.numel(),), (1,)))
            self._held, self._flat = tensors, list(kinds.values())
        return self._flat
