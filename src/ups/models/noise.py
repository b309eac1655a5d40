"""Noise from step to step of a roll-out, in which each draw is as like those before it as errors of the operator are.

A stationary Gaussian series of unit variance with given correlations c_1 ... c_p between draws that are 1 ... p steps
apart (and the least that they imply further apart) is

    eps_t = sum_k phi_k eps_{t-k} + sqrt(v) xi_t,    xi_t ~ N(0, I),

whose phi and v follow from c by the Durbin-Levinson recursion; those of lower orders begin it, so that every draw has
its variance and correlations from the first one on.

References:
    Brockwell and Davis 1991, Time Series: Theory and Methods, section 5.2 (the recursion).
    Palmer et al. 2009, Stochastic parametrization and model uncertainty (correlated in time: what errors of models
    add up to depends on it).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MEMORY = 3  # steps over which errors are taken to be correlated
STRONGEST = 0.95  # partial correlation, at most: a series that forgets


def standard_noise(like: Tensor, rng: torch.Generator | None) -> Tensor:
    """N(0, I) of a tensor's shape, drawn where the generator is: a CPU's draws are the same for all devices."""
    device = like.device if rng is None else rng.device
    return torch.randn(like.shape, generator=rng, dtype=like.dtype, device=device).to(like.device)


def autoregression(correlations: Sequence[float]) -> list[tuple[list[float], float]]:
    """phi and sqrt(v) of every order from 0 on, by the Durbin-Levinson recursion.

    Args:
        correlations: c_1 ... c_p. What no series can have is brought back to what one can, lag by lag.
    """
    phi: list[float] = []
    variance = 1.0
    orders = [(phi, 1.0)]
    for lag, correlation in enumerate(correlations, start=1):
        told = sum(weight * correlations[lag - 2 - k] for k, weight in enumerate(phi))
        partial = max(-STRONGEST, min(STRONGEST, (correlation - told) / variance))
        phi = [*(weight - partial * back for weight, back in zip(phi, reversed(phi), strict=True)), partial]
        variance *= 1 - partial**2
        orders.append((phi, variance**0.5))
    return orders


class NoiseSeries:
    """The noise of one roll-out: a series of its own for each of the draws that a step makes.

    Args:
        rng: of the draws; None takes PyTorch's own stream.
        correlations: c_1, c_2, ... between steps; without any, all draws are independent.
        every: of how many steps one is drawn for: of the correlations, only every so-many-th is met.
    """

    def __init__(self, rng: torch.Generator | None, correlations: Sequence[float] = (), every: int = 1) -> None:
        self.rng, self.every = rng, every
        self._orders = autoregression(correlations[every - 1 :: every])
        self._past: list[deque[Tensor]] = []  # of each draw of a step, newest first
        self._draws = 0

    def draw(self, like: Tensor) -> Tensor:
        """N(0, I) of a tensor's shape, the next draw of this step."""
        if self._draws == len(self._past):
            self._past.append(deque(maxlen=len(self._orders) - 1))
        past = self._past[self._draws]
        self._draws += 1
        weights, deviation = self._orders[len(past)]
        noise = deviation * standard_noise(like, self.rng)
        for weight, before in zip(weights, past, strict=True):
            noise = noise + weight * before
        past.appendleft(noise)
        return noise

    def end_step(self, carry: Callable[[Tensor], Tensor] | None = None) -> None:
        """The next draw is of the next step that is drawn for.

        Args:
            carry: where what was drawn is one step later; None leaves it in its place.
        """
        self._draws = 0
        if carry is not None:
            for _ in range(self.every):
                self.move(carry)

    def move(self, how: Callable[[Tensor], Tensor]) -> None:
        """What was drawn is elsewhere now, or seen in another way."""
        self._past = [deque(map(how, past), maxlen=past.maxlen) for past in self._past]
