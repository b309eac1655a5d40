"""An exponential moving average of the trained weights: what is validated and shipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """Averages the trainable parameters: average <- d average + (1 - d) weights, d = min(decay, (1 + t) / (10 + t)).

    The warm-up of d over the updates t forgets the initial weights at the pace at which training leaves them.

    Args:
        module: whose trainable parameters are followed.
        decay: d after the warm-up, above 0 and below 1; see `build_ema` for no average at all.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights after one optimizer step into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module holds the average inside, and its own weights again after."""
        own = [weight.detach().clone() for weight in self.weights]
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, own)

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates it has seen."""
        return {"average": list(self.average), "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        torch._foreach_copy_(self.average, state["average"])
        self.updates = state["updates"]


class NoEma(Ema):
    """No average: the weights themselves are validated and shipped."""

    def __init__(self) -> None:
        self.decay, self.updates, self.weights, self.average = 0.0, 0, [], []

    def update(self) -> None:
        """Nothing to follow."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module as it is."""
        yield

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""


def build_ema(module: nn.Module, decay: float) -> Ema:
    """The average of a module's weights; at decay 0 the null object."""
    return Ema(module, decay) if decay > 0 else NoEma()
