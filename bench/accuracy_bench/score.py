"""Scores one emulator on a task's test trajectories: to the end of the file, and for as long again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accuracy_bench.tasks import TASKS, Made, horizon
from ups.data.trajectories import TrajectorySet
from ups.evaluation import metrics
from ups.evaluation.rollout import has_codec, predict_single_steps, reconstruct
from ups.models.emulator import Emulator
from ups.physics.solvers import solve
from ups.physics.solvers.transforms import resample_periodic

BATCH = 32  # trajectories predicted together
TIMED = 3  # passes of which the fastest counts


@dataclass(frozen=True, eq=False)
class Truth:
    """Test trajectories, all of one length.

    Args:
        frames: (sample, time, channel, *grid), physical; those from `horizon` on are the extension.
        horizon: frames that are scored, the first included.
    """

    frames: Tensor
    horizon: int


def load_truth(task: str, test: TrajectorySet, cache: Path) -> Truth:
    """The test trajectories with as many frames again after their end, where a solver can say what those are.

    Of a published file the last frame is where our solver goes on from; the frames are kept in the cache.
    """
    count = torch.arange(test.num)
    frames = test.gather(count, torch.zeros_like(count), int(test.lengths[0]))
    if isinstance(TASKS[task], Made) or not test.equation.has_solver:
        return Truth(frames, horizon(task, frames.shape[1]))
    digest = hashlib.sha256(test.content_hash.encode()).hexdigest()[:12]
    place = cache / f"{task}_beyond_{digest}.npy"
    if not place.exists():
        beyond = _continue(test, frames)
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, beyond.float().numpy())
    return Truth(torch.cat([frames, torch.from_numpy(np.load(place))], dim=1), frames.shape[1])


def _continue(test: TrajectorySet, frames: Tensor) -> Tensor:
    """As many frames after the last one as there are after the first, by the reference solver."""
    steps, dt = frames.shape[1] - 1, float(test.dt)
    equation, start, params = test.equation, frames[:, -1].double(), test.params.double()
    shape = start.shape[2:]
    if equation.boundary == "periodic":  # a finer grid than the data's, as generated files are solved on
        for dim, size in enumerate(shape, start=2):
            start = resample_periodic(start, 4 * size, dim)
    after = solve(equation, start, params, dt * np.arange(steps + 1))[:, 1:]
    if equation.boundary == "periodic":
        for dim, size in enumerate(shape, start=3):
            after = resample_periodic(after, size, dim)
    return after


def clock_of(device: torch.device) -> Callable[[], float]:
    """CPU seconds of this process; on a GPU, wall seconds once its queue is empty."""
    if device.type != "cuda":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


@torch.no_grad()
def score(emulator: Emulator, task: str, test: TrajectorySet, truth: Truth, device: torch.device) -> dict[str, Any]:
    """Everything a line says of how good and how fast the emulator is.

    `curve` and `persistence` are relative errors frame by frame from the first predicted one on, through the extension;
    `worst` is that of the worst trajectory. nrmse and the rest are of the scored frames alone.
    """
    emulator.eval()
    context = emulator.tasks[test.task].context
    frames, scored = truth.frames, truth.horizon - context
    steps = frames.shape[1] - context
    prediction = torch.cat([part.cpu() for part in _roll(emulator, test, frames, context, steps, device)])
    target = frames[:, context:]
    by_frame = metrics.error_by_frame(prediction, target)
    still = metrics.error_by_frame(frames[:, context - 1 : context].expand_as(target), target)
    each = metrics.nrmse(prediction[:, :scored], target[:, :scored])
    single, codec = [], []
    for index in range(test.num):
        pair = predict_single_steps(
            emulator, test, index, context=context, steps=scored, batch_size=BATCH, device=device
        )
        single.append(metrics.nrmse(*pair).mean().item())
        if has_codec(emulator):
            codec.append(metrics.nrmse(*reconstruct(emulator, test, index, batch_size=BATCH, device=device)).item())
    found: dict[str, Any] = {
        "nrmse": each.mean().item(),
        "pdebench_nrmse": by_frame[:, :scored].mean().item(),
        "one_step_nrmse": float(np.mean(single)),
        "codec_nrmse": float(np.mean(codec)) if codec else None,
        "finite": bool(torch.isfinite(prediction).all()),
        "seconds_per_rollout": _fastest(emulator, test, frames, context, scored, device),
        "scored_frames": scored,
        "each": each.tolist(),
        "curve": by_frame.mean(0).tolist(),
        "worst": by_frame.amax(0).tolist(),
        "persistence": still.mean(0).tolist(),
    }
    family = TASKS[task]
    if isinstance(family, Made) and family.unseen:
        unseen = torch.tensor([family.is_unseen(values) for values in test.params.tolist()])
        found |= {"seen_nrmse": each[~unseen].mean().item(), "unseen_nrmse": each[unseen].mean().item()}
    return found


def _roll(
    emulator: Emulator, test: TrajectorySet, frames: Tensor, context: int, steps: int, device: torch.device
) -> list[Tensor]:
    parts = []
    for given, params in zip(frames[:, :context].split(BATCH), test.params.split(BATCH), strict=True):
        dt = torch.full((len(given),), float(test.dt), device=device)
        parts.append(
            emulator.rollout(given.to(device), steps, task=test.task, dt=dt, params=params.to(device), mode="latent")
        )
    return parts


def _fastest(
    emulator: Emulator, test: TrajectorySet, frames: Tensor, context: int, steps: int, device: torch.device
) -> float:
    """Seconds per trajectory of a roll-out over the scored frames, predicted in batches."""
    now, found = clock_of(device), []
    for _ in range(TIMED):
        began = now()
        _roll(emulator, test, frames, context, steps, device)
        found.append(now() - began)
    return min(found) / len(frames)
