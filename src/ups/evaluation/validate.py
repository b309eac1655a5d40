"""The numbers that training is steered by, on validation trajectories and in physical units."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from ups.data.trajectories import TrajectorySet
from ups.evaluation.metrics import nrmse
from ups.evaluation.protocol import spread_evenly
from ups.evaluation.rollout import reconstruct, rollout_ensembles, rollout_trajectories
from ups.models.emulator import Emulator


def validation_error(
    metric: Callable[[Tensor, Tensor], Tensor],
    emulator: Emulator,
    sets: Mapping[str, TrajectorySet],
    *,
    max_samples: int | None,
    steps: int | None,
    mode: str,
    batch_size: int,
    device: torch.device,
) -> float:
    """Mean over tasks and their trajectories of the roll-out's error; infinite where a roll-out is not finite.

    Args:
        metric: (prediction, truth) -> an error of each sample, such as `nrmse`; `relative_absolute_error` is the
            CRPS over the truth's size of an ensemble without spread.
        max_samples: trajectories per task, spread evenly over the set; None takes all.
        steps: frames to predict; None goes to the end of each trajectory.
        mode: `latent` or `physical`.
        batch_size: trajectories at once.
    """
    scores = []
    for trajectories in sets.values():
        batches = rollout_trajectories(
            emulator,
            trajectories,
            spread_evenly(trajectories.num, max_samples),
            context=emulator.context,
            steps=steps,
            mode=mode,
            batch_size=batch_size,
            device=device,
        )
        scores.append(torch.cat([metric(batch.prediction, batch.truth) for batch in batches]).mean().item())
    score = fmean(scores)
    return score if math.isfinite(score) else math.inf


def validation_reconstruction(
    emulator: Emulator, sets: Mapping[str, TrajectorySet], *, batch_size: int, device: torch.device
) -> float:
    """Mean over tasks of the codec's nrmse over every validation frame, `batch_size` of them at once."""
    scores = []
    for trajectories in sets.values():
        each = [
            nrmse(*reconstruct(emulator, trajectories, index, batch_size=batch_size, device=device))
            for index in range(trajectories.num)
        ]
        scores.append(torch.cat(each).mean().item())
    return fmean(scores)


def validation_ensembles(
    metric: Callable[[Tensor, Tensor], Tensor],
    emulator: Emulator,
    sets: Mapping[str, TrajectorySet],
    *,
    members: int,
    max_samples: int | None,
    steps: int | None,
    mode: str,
    batch_size: int,
    device: torch.device,
) -> list[Float[Tensor, " sample *score"]]:
    """A metric of the ensemble of every trajectory, task by task.

    The same draws at every call: what changes is the emulator.

    Args:
        metric: (members, truth) -> what is said of each sample, such as `relative_crps`.
        members: roll-outs of each trajectory, two or more.
        max_samples, steps, mode, batch_size: as in `validation_error`.
    """
    scores = []
    for trajectories in sets.values():
        batches = rollout_ensembles(
            emulator,
            trajectories,
            spread_evenly(trajectories.num, max_samples),
            members=members,
            seed=0,
            context=emulator.context,
            steps=steps,
            mode=mode,
            batch_size=batch_size * members,
            device=device,
        )
        scores.append(torch.cat([metric(one.members, one.truth) for one in batches]))
    return scores
