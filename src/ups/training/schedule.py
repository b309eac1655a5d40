"""How long a stage trains, and how its learning rate runs over that time.

A schedule is a function of the *fraction of the budget done*, so that it ends exactly with the budget, whether that is
given in epochs, steps or seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ups.config.learning import CosineSchedule, PlateauSchedule, StageSettings, StepSchedule, WsdSchedule


@dataclass(frozen=True)
class Budget:
    """How long a stage trains: `amount` epochs, optimizer steps, or seconds of training (validation not counted)."""

    unit: Literal["epochs", "steps", "seconds"]
    amount: int | float

    @classmethod
    def of(cls, stage: StageSettings) -> Budget:
        """The one budget that a stage's settings give."""
        if stage.epochs is not None:
            return cls("epochs", stage.epochs)
        return cls("steps", stage.steps) if stage.steps is not None else cls("seconds", stage.seconds or 0.0)

    def fraction(self, *, epochs: float, steps: int | float, seconds: float) -> float:
        """The part of the budget that is done, in [0, 1], of which 1 is the end."""
        done = {"epochs": epochs, "steps": steps, "seconds": seconds}[self.unit]
        return min(1.0, done / self.amount) if self.amount > 0 else 1.0

    def steps(self, per_epoch: float) -> int | None:
        """Optimizer steps of the whole budget, by those of an epoch; None where it is in seconds."""
        if self.unit == "seconds":
            return None
        return math.ceil(self.amount * (per_epoch if self.unit == "epochs" else 1))


def warm_up(fraction: float, warmup: float) -> float:
    """Linear from 0 to 1 over the first `warmup` of the budget."""
    return min(1.0, fraction / warmup) if warmup > 0 else 1.0


def cosine(fraction: float, *, warmup: float, final: float) -> float:
    """Warm-up, then half a cosine from 1 to `final` (Loshchilov & Hutter 2017)."""
    if fraction < warmup:
        return warm_up(fraction, warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))


def wsd(fraction: float, *, warmup: float, decay: float, final: float) -> float:
    """Warm-up, stay, and 1 - sqrt decay to `final` over the last `decay` of the budget (Haegele et al. 2024)."""
    into_decay = max(0.0, (fraction - (1 - decay)) / decay)
    return warm_up(fraction, warmup) * (final + (1 - final) * (1 - math.sqrt(into_decay)))


def step(fraction: float, *, warmup: float, step_size: float, gamma: float) -> float:
    """Warm-up, and a fall by `gamma` after every `step_size` of the budget."""
    return warm_up(fraction, warmup) * gamma ** math.floor(fraction / step_size + 1e-9)


class Schedule:
    """The learning rate's factor at each fraction of the budget.

    Args:
        shape: fraction in [0, 1] -> factor.
    """

    def __init__(self, shape: Callable[[float], float]) -> None:
        self.shape = shape

    def __call__(self, fraction: float) -> float:
        return self.shape(fraction)

    def observe(self, metric: float) -> None:
        """Hears of a validation; a schedule of the budget alone takes no notice."""

    def state_dict(self) -> dict[str, Any]:
        """What the factor depends on besides the fraction."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""


class Plateau(Schedule):
    """Warm-up, and a fall by `factor` whenever `patience` validations in a row bring no improvement."""

    def __init__(self, *, warmup: float, factor: float, patience: int) -> None:
        super().__init__(partial(warm_up, warmup=warmup))
        self.factor, self.patience = factor, patience
        self.best, self.stale, self.falls = math.inf, 0, 0

    def __call__(self, fraction: float) -> float:
        return self.shape(fraction) * self.factor**self.falls

    def observe(self, metric: float) -> None:
        """Counts validations since the best one."""
        if metric < self.best:
            self.best, self.stale = metric, 0
            return
        self.stale += 1
        if self.stale == self.patience:
            self.stale, self.falls = 0, self.falls + 1

    def state_dict(self) -> dict[str, Any]:
        """Best metric, validations since, and falls so far."""
        return {"best": self.best, "stale": self.stale, "falls": self.falls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self.best, self.stale, self.falls = state["best"], state["stale"], state["falls"]


def build_schedule(settings: StepSchedule | CosineSchedule | PlateauSchedule | WsdSchedule) -> Schedule:
    """The schedule that the settings describe."""
    if isinstance(settings, CosineSchedule):
        return Schedule(partial(cosine, warmup=settings.warmup, final=settings.final))
    if isinstance(settings, WsdSchedule):
        return Schedule(partial(wsd, warmup=settings.warmup, decay=settings.decay, final=settings.final))
    if isinstance(settings, StepSchedule):
        return Schedule(partial(step, warmup=settings.warmup, step_size=settings.step_size, gamma=settings.gamma))
    return Plateau(warmup=settings.warmup, factor=settings.factor, patience=settings.patience)
