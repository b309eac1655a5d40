"""Where in its trajectories a network errs: the windows that training draws more often.

A roll-out begins where its trajectory does, and what it loses there it does not get back. Windows drawn evenly show the
network mostly late frames, where many equations have little left to learn. So most windows are drawn in proportion to
a power of the error of a single step from their first frames, which is measured anew as training goes on (importance
sampling by loss, cf. Katharopoulos and Fleuret 2018; here by the place in time alone, which a few windows suffice for).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ups.data.trajectories import TrajectorySet
from ups.models.step import StepEmulator

EVENLY = 0.1  # share of the windows that is drawn evenly
PLACES = 64  # places in time that are told apart, at most
PROBES = 8  # windows measured at each place, at most
PROBE_VALUES = 2**19  # grid values of a task's probes, at most, but one window for each place: a few batches' work
BATCH = 32

StepError = Callable[[str, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Probes:
    """Windows of one task that are measured again and again; an error that is not finite counts as the largest is.

    Args:
        frames: context and the frame after it, physical, (probe, time, channel, *grid).
        params: of each.
        place: of each in time, ascending from 0.
        starts: first frames that windows of the task have.
    """

    frames: Tensor
    params: Tensor
    place: Tensor
    starts: int


class Focus:
    """Measures single-step errors by place in time on fixed train windows, and weighs all windows by them.

    Args:
        emulator: what is trained.
        sets: the train trajectories of each task.
        power: of the error; above 0.
        seed: of the choice of windows.
        device: where the emulator is.
    """

    def __init__(
        self,
        emulator: StepEmulator,
        sets: Mapping[str, TrajectorySet],
        *,
        power: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self.emulator, self.sets, self.power, self.device = emulator, dict(sets), power, device
        rng = torch.Generator().manual_seed(seed)
        self.probes = {task: self._choose(task, rng) for task in sets}

    def _choose(self, task: str, rng: torch.Generator) -> Probes | None:
        """The same trajectories at every place, as far as they reach; None where no window fits."""
        train, spec = self.sets[task], self.emulator.tasks[task]
        reach = train.lengths - spec.context  # first frames a window may have
        starts = int(reach.max())
        if starts < 1:
            return None
        places = min(starts, PLACES)
        values = len(spec.fields) * math.prod(spec.lattice)
        each = max(1, min(PROBES, PROBE_VALUES // (values * places)))
        turn = torch.randperm(train.num, generator=rng)
        trajectory, start, place = [], [], []
        for number in range(places):
            low, high = starts * number // places, starts * (number + 1) // places
            chosen = turn[reach[turn] > low][:each]
            ends = reach[chosen].clamp(max=high)
            trajectory.append(chosen)
            start.append(low + (torch.rand(len(chosen), generator=rng) * (ends - low)).long())
            place.append(torch.full((len(chosen),), number))
        which = torch.cat(trajectory)
        frames = train.gather(which, torch.cat(start), spec.context + 1)
        return Probes(frames, train.params[which], torch.cat(place), starts)

    def by_base(self) -> dict[str, Float[Tensor, " start"]]:
        """Weights before anything is learned: the error is all that the base leaves over."""
        return self._weigh(
            lambda task, frames, params: self.emulator.left_over(task, frames[:, -2], frames[:, -1], params)
        )

    def by_error(self) -> dict[str, Float[Tensor, " start"]]:
        """Weights by the error of the emulator as it stands."""
        return self._weigh(self.emulator.step_error)

    @torch.no_grad()
    def _weigh(self, error_of: StepError) -> dict[str, Tensor]:
        found = {}
        for task, probes in self.probes.items():
            if probes is None:
                continue
            errors = torch.cat(
                [
                    error_of(task, frames.to(self.device), params.to(self.device)).cpu().double()
                    for frames, params in zip(probes.frames.split(BATCH), probes.params.split(BATCH), strict=True)
                ]
            )
            finite = errors[errors.isfinite()]
            if len(finite) == 0 or float(finite.max()) == 0:
                continue
            errors = errors.nan_to_num(nan=float(finite.max()), posinf=float(finite.max()))
            places = int(probes.place.max()) + 1
            total = torch.zeros(places, dtype=torch.float64).index_add_(0, probes.place, errors)
            error = total / torch.bincount(probes.place, minlength=places)
            error = error[torch.arange(probes.starts) * places // probes.starts] ** self.power
            found[task] = (1 - EVENLY) * error / error.mean() + EVENLY
        return found
