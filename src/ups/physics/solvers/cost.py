"""What the reference solver costs at a given accuracy: the fair yardstick for an emulator's speed.

A fine solver is slow because it is more accurate than needed; the honest comparison is with the coarsest run that is as
accurate as the emulator.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ups.errors import DataError
from ups.physics.description import Equation
from ups.physics.solvers import solver_of
from ups.physics.solvers.transforms import resample_linear, resample_periodic

_COARSEST = 16  # cells along an axis
_FINEST = 2  # times the cells of the data
_REPEATS = 3  # of the run that is reported, of which the fastest counts


@dataclass(frozen=True)
class Attempt:
    """One run of the solver.

    Args:
        resolution: cells along the first axis; the others have them in the proportion of the data.
        nrmse: error against the truth on the truth's grid; infinite where the solution did not stay finite.
        seconds_per_trajectory: wall time of the batch over its size.
    """

    resolution: int
    nrmse: float
    seconds_per_trajectory: float


@dataclass(frozen=True)
class SolverCost:
    """The coarsest run that reached the accuracy asked for, or the most accurate where none did.

    Args:
        resolution, nrmse, seconds_per_trajectory: of that run, as in :class:`Attempt`.
        found: whether it reached the accuracy.
        tried: every run, from coarse to fine.
    """

    resolution: int
    nrmse: float
    seconds_per_trajectory: float
    found: bool
    tried: tuple[Attempt, ...]


def coarsest_solver(
    equation: Equation,
    u0: Float64[Tensor, "batch channel *grid"],
    truth: Float64[Tensor, "batch time channel *grid"],
    params: Float[Tensor, "batch parameter"],
    times: Float64[np.ndarray, " time"],
    spacing: tuple[float, ...],
    target_nrmse: float,
) -> SolverCost:
    """Run the reference solver on finer and finer grids until it is as accurate as asked for.

    The initial state is resampled to each grid, the solution back to the truth's: by Fourier interpolation on periodic
    axes, linearly on the others. Only the solver is timed, not the resampling; the run that is reported is timed anew
    and the fastest of three counts.

    Args:
        equation: one that has a reference solver.
        u0: initial states at ``times[0]`` on the truth's grid, in the equation's units.
        truth: frames at ``times``; the first is the initial state and is not scored.
        params: coefficients of each sample.
        times: increasing; at least two.
        spacing: distance of the cell centres along each axis.
        target_nrmse: error to reach: mean over samples and channels of sqrt(sum (p - u)² / sum u²), the sums over space
            and time.

    Raises:
        UpsError: the equation has no reference solver.
        DataError: the shapes of the initial states, the truth and the times do not belong together.
    """
    if truth.shape[1] != len(times) or len(times) < 2 or truth[:, 0].shape != u0.shape:
        raise DataError(
            f"{equation.name}: initial states {tuple(u0.shape)}, truth {tuple(truth.shape)} and {len(times)} times do "
            "not belong together; give truth as (batch, time, channel, *grid), the initial state first, 2 frames at least"
        )
    tried: list[Attempt] = []
    for resolution in _resolutions(u0.shape[2]):
        tried.append(_attempt(equation, u0, truth, params, times, spacing, resolution, repeats=1))
        if tried[-1].nrmse <= target_nrmse:
            break
    best = min(tried, key=lambda attempt: attempt.nrmse)
    again = _attempt(equation, u0, truth, params, times, spacing, best.resolution, repeats=_REPEATS)
    return SolverCost(
        resolution=best.resolution,
        nrmse=best.nrmse,
        seconds_per_trajectory=min(best.seconds_per_trajectory, again.seconds_per_trajectory),
        found=best.nrmse <= target_nrmse,
        tried=tuple(tried),
    )


def _attempt(
    equation: Equation,
    u0: Tensor,
    truth: Tensor,
    params: Tensor,
    times: Float64[np.ndarray, " time"],
    spacing: tuple[float, ...],
    resolution: int,
    repeats: int,
) -> Attempt:
    solver = solver_of(equation)
    points = tuple(u0.shape[2:])
    lengths = tuple(step * count for step, count in zip(spacing, points, strict=True))
    shape = tuple(round(count * resolution / points[0]) for count in points)
    start, stamps = _resample(u0, shape, equation.periodic), torch.as_tensor(times, device=u0.device)
    seconds = []
    for _ in range(repeats):
        _wait_for(u0.device)
        began = time.perf_counter()
        frames = solver.solve(start, params.to(u0), stamps, lengths, _ignore)
        _wait_for(u0.device)
        seconds.append((time.perf_counter() - began) / len(u0))
    error = _nrmse(_resample(frames[:, 1:], points, equation.periodic), truth[:, 1:])
    return Attempt(resolution, error if np.isfinite(error) else np.inf, min(seconds))


def _resolutions(data: int) -> list[int]:
    """16, 24, 32, 48, 64, ... below twice the data's resolution, and that: steps of about a half."""
    finest = _FINEST * data
    ladder = {size << doubling for size in (_COARSEST, 3 * _COARSEST // 2) for doubling in range(finest.bit_length())}
    return [*sorted(size for size in ladder if size < finest), finest]


def _resample(u: Tensor, shape: tuple[int, ...], periodic: tuple[bool, ...]) -> Tensor:
    for axis, (points, wraps) in enumerate(zip(shape, periodic, strict=True)):
        u = (resample_periodic if wraps else resample_linear)(u, points, dim=u.ndim - len(shape) + axis)
    return u


def _nrmse(prediction: Tensor, truth: Tensor) -> float:
    error, norm = (x.square().transpose(1, 2).flatten(2).sum(dim=2) for x in (prediction - truth, truth))
    return float((error / norm).sqrt().mean())


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ignore(share: float) -> None:
    """Tell nobody."""
