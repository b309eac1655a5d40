"""Rolls emulators out over trajectories. What advances the fields is given the context frames, and nothing else."""

from __future__ import annotations

import hashlib
import math
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

ENSEMBLE_VALUES = 1 << 26
"""Field values that ensembles are rolled out to at once; the ensemble of one trajectory may be larger."""


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


@dataclass(frozen=True, eq=False)
class EnsembleBatch:
    """Ensembles of trajectories of equal length, and the truth, in physical units.

    Args:
        indices: numbers of the trajectories in the set.
        initial: the last given frame.
        members: the frames after it, as each member has them.
        truth: the same frames, as they are in the data.
        seconds: wall clock of the roll-out of all of them; None where it was not timed.
    """

    indices: tuple[int, ...]
    initial: Float[Tensor, "sample channel *grid"]
    members: Float[Tensor, "member sample time channel *grid"]
    truth: Float[Tensor, "sample time channel *grid"]
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


def rollout_ensembles(
    emulator: Emulator,
    trajectories: TrajectorySet,
    indices: Sequence[int],
    *,
    members: int,
    seed: int,
    context: int,
    steps: int | None,
    mode: str,
    batch_size: int,
    device: torch.device,
    timed: bool = False,
) -> Iterator[EnsembleBatch]:
    """Ensembles of trajectories from their first `context` frames on, by an emulator that draws.

    Args:
        members: roll-outs of each trajectory, two or more.
        seed: of the draws. The trajectories of a batch share one stream of random numbers, which depends on the seed,
            the task and the first of them: another `batch_size` draws others.
        batch_size: members rolled out together, or more where one trajectory has more; and never more trajectories
            than make `ENSEMBLE_VALUES`.

    The other arguments are those of `rollout_trajectories`.

    Raises:
        UpsError: the emulator draws no members.
        DataError: a trajectory has no frame after the context.
    """
    field = len(trajectories.equation.fields) * math.prod(trajectories.grid.shape)
    longest = max((_frames_after(trajectories, index, context, steps) for index in indices), default=1)
    together = max(1, min(batch_size // members, ENSEMBLE_VALUES // (members * longest * field)))
    for numbers, frames in _equal_batches(trajectories, indices, context, steps, together):
        which, start = torch.tensor(numbers), torch.zeros(len(numbers), dtype=torch.int64)
        given = trajectories.gather(which, start, context).to(device)
        advance = partial(
            _advance_members,
            emulator,
            given,
            members=members,
            seed=_seed(seed, trajectories.task, numbers[0]),
            task=trajectories.task,
            dt=torch.full((len(numbers),), trajectories.dt, device=device),
            params=trajectories.params[which].to(device),
            mode=mode,
        )
        if timed:
            advance(steps=1)  # as in `rollout_trajectories`
        began = _now(device)
        found = advance(steps=frames)
        seconds = _fastest(partial(advance, steps=frames), _now(device) - began, device) if timed else None
        timed = False
        truth = trajectories.gather(which, start + context, frames).to(device)
        yield EnsembleBatch(tuple(numbers), given[:, -1], found, truth, seconds)


@torch.no_grad()
def _advance_members(
    emulator: Emulator,
    given: Tensor,
    *,
    steps: int,
    members: int,
    seed: int,
    task: str,
    dt: Tensor,
    params: Tensor,
    mode: str,
) -> Float[Tensor, "member sample time channel *grid"]:
    """The ensemble: a function of the given frames and the seed alone, however often it is asked for."""
    rng = torch.Generator().manual_seed(seed)
    return emulator.rollout_members(given, steps, members=members, task=task, dt=dt, params=params, mode=mode, rng=rng)


def _seed(seed: int, task: str, index: int) -> int:
    """A seed that no other batch has."""
    digest = hashlib.sha256(f"{seed} {task} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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
        groups.setdefault(_frames_after(trajectories, index, context, steps), []).append(index)
    for frames, numbers in groups.items():
        for first in range(0, len(numbers), batch_size):
            yield numbers[first : first + batch_size], frames


def _frames_after(trajectories: TrajectorySet, index: int, context: int, steps: int | None) -> int:
    """How many frames of a trajectory are predicted."""
    frames = int(trajectories.lengths[index]) - context
    if frames < 1:
        raise DataError(
            f"{trajectories.task}: trajectory {index} has {frames + context} frames, of which {context} are given; "
            "none is left to predict. Lower data.context or data.time_stride"
        )
    return frames if steps is None else min(frames, steps)


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
