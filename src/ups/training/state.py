"""Where a stage's training stands: one object, which is what a checkpoint holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ups.training.schedule import Budget

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "process": time.process_time}
AUTO_VALIDATIONS = 20
"""Validations over a budget in steps or seconds, where their interval is `auto`; one in epochs has one per epoch."""

ROLLBACK_RATE = 0.5
"""What the learning rate is multiplied by at every roll-back."""


@runtime_checkable
class Stateful(Protocol):
    """Anything that a checkpoint can hold."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, nested in dicts and lists."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Puts back what `state_dict` gave."""


@runtime_checkable
class Position(Protocol):
    """Where a loader stands among its batches."""

    @property
    def epoch(self) -> int:
        """Epochs of which every batch was handed out."""

    @property
    def epochs(self) -> float:
        """Those, with the part of the current one at the present horizon; whole when an epoch ends."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch at the present horizon."""


class TrainingClock:
    """Seconds of training alone: data and steps, without validation, checkpoints and start-up.

    Args:
        kind: `wall`, or `process` for CPU time; that of the thread which writes checkpoints meanwhile is part of it.
        device: waited for before a pause, so that queued work counts as training.
    """

    def __init__(self, kind: Literal["wall", "process"], device: torch.device) -> None:
        self._now, self._device = CLOCKS[kind], device
        self._seconds, self._started = 0.0, math.nan

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._seconds if math.isnan(self._started) else self._seconds + self._now() - self._started

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._seconds = value

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts inside the context."""
        self._started = self._now()
        try:
            yield
        finally:
            self._stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count inside the context, though inside `running`."""
        self._stop()
        yield
        self._started = self._now()

    def _stop(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._seconds, self._started = self.seconds, math.nan


class RandomState:
    """The random numbers of training: PyTorch's own streams (drop-path, dropout) and the objective's generator.

    Args:
        seed: of both, when training starts anew.
        device: where the objective draws.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        torch.manual_seed(seed)
        self.objective = torch.Generator(device).manual_seed(seed)

    def state_dict(self) -> dict[str, Tensor]:
        """The states of all streams."""
        state = {"cpu": torch.get_rng_state(), "objective": self.objective.get_state()}
        return state | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Puts back what `state_dict` gave."""
        torch.set_rng_state(state["cpu"])
        self.objective.set_state(state["objective"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Draws of PyTorch's own streams inside the context do not change those after it."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            yield


@dataclass
class TrainState:
    """Counters, the best weights so far, and everything that has a state of its own.

    Attributes:
        auto_validations: over the whole budget, where their interval is `auto`; None is one per epoch, or
            `AUTO_VALIDATIONS` of a budget in steps or seconds.
        position: of the loader, by which epochs are counted: it alone knows where a changed horizon has put it.
        step: optimizer steps done.
        best_metric, best_step, best_epoch, best_weights: of the best validation; lower metrics are better.
        stale: validations since then.
        validations: ticks of the `auto` interval that were validated.
        stopped: why training ended, None while it has not.
        rollbacks: times that training went back to a checkpoint because steps were not finite.
        anchor: where it goes back to, if that is not the latest checkpoint: one that was written because training was
            stopped must not change what a roll-back does, or resuming would not be exact.
        parts: objects whose state belongs to the checkpoint, by name.
    """

    budget: Budget
    clock: TrainingClock
    random: RandomState
    position: Position
    parts: dict[str, Stateful]
    step: int = 0
    best_metric: float = math.inf
    best_step: int = 0
    best_epoch: float = 0.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    validations: int = 0
    stopped: Literal["budget", "patience", "target"] | None = None
    rollbacks: int = 0
    anchor: dict[str, Any] | None = None
    auto_validations: int | None = None

    COUNTERS: ClassVar = (
        *("step", "validations", "stopped", "rollbacks"),
        *("best_metric", "best_step", "best_epoch", "best_weights", "stale"),
    )

    @property
    def epochs(self) -> float:
        """Epochs done, with the part of the current one."""
        return self.position.epochs

    @property
    def rate_factor(self) -> float:
        """What roll-backs have left of the learning rate."""
        return ROLLBACK_RATE**self.rollbacks

    def count_step(self) -> None:
        """Counts an optimizer step, and notices the end of the budget."""
        self.step += 1
        if self.fraction() >= 1:
            self.stopped = "budget"

    def fraction(self) -> float:
        """The part of the budget that is done."""
        return self.budget.fraction(epochs=self.epochs, steps=self.step, seconds=self.clock.seconds)

    def middle_of_next_step(self, accum_steps: int) -> float:
        """The part of the budget that is done half-way through the next step, which is where the schedule is read.

        A step in seconds is taken to be as long as the mean of those before.
        """
        seconds = self.clock.seconds
        return self.budget.fraction(
            epochs=self.epochs + 0.5 * accum_steps / self.position.steps_per_epoch,
            steps=self.step + 0.5,
            seconds=seconds + 0.5 * seconds / max(self.step, 1),
        )

    def validation_is_due(self, every: int | Literal["auto"]) -> bool:
        """Whether to validate after this step; always after the last."""
        if self.stopped is not None:
            return True
        return self.step % every == 0 if every != "auto" else self._ticks() > self.validations

    def observe(
        self, metric: float, weights: Mapping[str, Tensor], patience: int | None, target: float | None = None
    ) -> None:
        """Takes the result of validating `weights`: copies them when they are the best so far, else loses patience.

        Training stops when the result is as good as the target.
        """
        self.validations = self._ticks()
        if metric < self.best_metric:
            self.best_metric, self.best_step, self.best_epoch, self.stale = metric, self.step, self.epochs, 0
            self.best_weights = {name: weight.detach().clone() for name, weight in weights.items()}
        else:
            self.stale += 1
            if self.stopped is None and patience is not None and self.stale >= patience:
                self.stopped = "patience"
        if self.stopped is None and target is not None and metric <= target:
            self.stopped = "target"

    def _ticks(self) -> int:
        if self.budget.unit == "epochs" and self.auto_validations is None:
            return self.position.epoch
        return math.floor((self.auto_validations or AUTO_VALIDATIONS) * self.fraction() + 1e-9)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training needs to go on as if it had never stopped."""
        counters = {name: getattr(self, name) for name in self.COUNTERS}
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        more = {"seconds": self.clock.seconds, "random": self.random.state_dict(), "anchor": self.anchor}
        return {**counters, **more, "parts": parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        for name in self.COUNTERS:
            setattr(self, name, state[name])
        self.clock.seconds, self.anchor = state["seconds"], state["anchor"]
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
        self.random.load_state_dict(state["random"])

    def roll_back(self, saved: Mapping[str, Any]) -> None:
        """Goes back to a saved state in all but data, time, random numbers and what was logged.

        The same batches at the same rate would end where they did before: what follows is other batches, other numbers
        and a lower rate.
        """
        rollbacks = self.rollbacks + 1
        for name in self.COUNTERS:
            setattr(self, name, saved[name])
        self.rollbacks = rollbacks
        for name, part in self.parts.items():
            if name not in ("loader", "monitor"):
                part.load_state_dict(saved["parts"][name])
