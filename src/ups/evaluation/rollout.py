"""Rolls emulators out over trajectories. What advances the fields is given the context frames, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from ups.data.trajectories import TrajectorySet
from ups.errors import DataError
from ups.models.emulator import Emulator

TIMED_PASSES = 3
"""How often the first batch is predicted again to be timed; the fastest counts."""

TIMED_SECONDS = 2.0
"""How long these repetitions may take together."""


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """Trajectories of equal length, predicted and true, in physical units.

    Args:
        indices: their numbers in the set.
        initial: the last given frame.
        prediction: the frames after it, as predicted.
        truth: the same frames, as they are in the data.
        params: PDE parameters.
        seconds: wall clock of the prediction of all of them; None where it was not timed.
    """

    indices: tuple[int, ...]
    initial: Float[Tensor, "sample channel *grid"]
    prediction: Float[Tensor, "sample time channel *grid"]
    truth: Float[Tensor, "sample time channel *grid"]
    params: Float[Tensor, "sample parameter"]
    seconds: float | None


def rollout_trajectories(
    emulator: Emulator,
    trajectories: TrajectorySet,
    indices: Sequence[int],
    *,
    context: int,
    steps: int | None,
    mode: str,
    batch_size: int,
    device: torch.device,
    timed: bool = False,
) -> Iterator[RolloutBatch]:
    """Predicts trajectories from their first `context` frames on.

    Args:
        emulator: on `device`, in evaluation mode.
        indices: numbers of the trajectories; those of equal length are batched together.
        steps: frames to predict; None, or more than there are, goes to the end of each trajectory.
        mode: `latent` or `physical`; emulators without a latent space ignore it.
        timed: take the time of the first batch, which is predicted again for it.

    Raises:
        DataError: a trajectory has no frame after the context.
    """
    for numbers, frames in _equal_batches(trajectories, indices, context, steps, batch_size):
        which, start = torch.tensor(numbers), torch.zeros(len(numbers), dtype=torch.int64)
        given = trajectories.gather(which, start, context).to(device)
        dt = torch.full((len(numbers),), trajectories.dt, device=device)
        params = trajectories.params[which].to(device)
        advance = partial(_advance, emulator, given, task=trajectories.task, dt=dt, params=params, mode=mode)
        if timed:
            advance(steps=1)  # a long roll-out is not repeated: what the first step alone has to do is done here
        began = _now(device)
        prediction = advance(steps=frames)
        seconds = _fastest(partial(advance, steps=frames), _now(device) - began, device) if timed else None
        timed = False
        truth = trajectories.gather(which, start + context, frames).to(device)
        yield RolloutBatch(tuple(numbers), given[:, -1], prediction, truth, params, seconds)


@torch.no_grad()
def _advance(
    emulator: Emulator, given: Tensor, *, steps: int, task: str, dt: Tensor, params: Tensor, mode: str
) -> Float[Tensor, "sample time channel *grid"]:
    """The prediction: a function of the given frames alone."""
    return emulator.rollout(given, steps, task=task, dt=dt, params=params, mode=mode)


def _fastest(advance: Callable[[], object], first: float, device: torch.device) -> float:
    """Seconds of the fastest pass: of the first, which warmed up, and of as many more as the time for them allows."""
    found = [first]
    while len(found) <= TIMED_PASSES and sum(found[1:]) + found[-1] <= TIMED_SECONDS:
        began = _now(device)
        advance()
        found.append(_now(device) - began)
    return min(found)


def _now(device: torch.device) -> float:
    """Seconds, once everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _equal_batches(
    trajectories: TrajectorySet, indices: Sequence[int], context: int, steps: int | None, batch_size: int
) -> Iterator[tuple[list[int], int]]:
    """Numbers of trajectories that are predicted together, and for how many frames."""
    groups: dict[int, list[int]] = {}
    for index in indices:
        frames = int(trajectories.lengths[index]) - context
        if frames < 1:
            raise DataError(
                f"{trajectories.task}: trajectory {index} has {frames + context} frames, of which {context} are given; "
                "none is left to predict. Lower data.context or data.time_stride"
            )
        groups.setdefault(frames if steps is None else min(frames, steps), []).append(index)
    for frames, members in groups.items():
        for first in range(0, len(members), batch_size):
            yield members[first : first + batch_size], frames


@torch.no_grad()
def predict_single_steps(
    emulator: Emulator,
    trajectories: TrajectorySet,
    index: int,
    *,
    context: int,
    steps: int | None,
    batch_size: int,
    device: torch.device,
) -> tuple[Float[Tensor, "one time channel *grid"], Float[Tensor, "one time channel *grid"]]:
    """Every frame of one trajectory predicted from the true ones before it, one step each; and the true frames.

    This is the only prediction that starts from true frames beyond the first; nothing of it enters a roll-out.
    """
    frames = trajectories.trajectory(index).to(device)
    stop = len(frames) if steps is None else min(len(frames), context + steps)
    starts = torch.arange(stop - context, device=device)
    windows = frames[starts[:, None] + torch.arange(context, device=device)]
    params = trajectories.params[index].to(device)
    parts = []
    for given in windows.split(batch_size):
        dt = torch.full((len(given),), trajectories.dt, device=device)
        parts.append(emulator.step(given, task=trajectories.task, dt=dt, params=params.expand(len(given), -1)))
    return torch.cat(parts)[None], frames[None, context:stop]


@torch.no_grad()
def reconstruct(
    emulator: Emulator, trajectories: TrajectorySet, index: int, *, batch_size: int, device: torch.device
) -> tuple[Float[Tensor, "one time channel *grid"], Float[Tensor, "one time channel *grid"]]:
    """Every frame of one trajectory encoded and decoded, D(E(u)); and the true frames."""
    frames = trajectories.trajectory(index).to(device)
    parts = [emulator.reconstruct(part, task=trajectories.task) for part in frames.split(batch_size)]
    return torch.cat(parts)[None], frames[None]


def has_codec(emulator: Emulator) -> bool:
    """Whether the emulator has a codec whose error can be told apart."""
    return type(emulator).reconstruct is not Emulator.reconstruct
