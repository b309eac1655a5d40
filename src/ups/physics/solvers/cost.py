"""What the reference solver costs at the accuracy of another method: the fair price that a speed-up is taken over."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from ups.errors import UpsError
from ups.physics.description import Equation
from ups.physics.solvers import solve, solver_of
from ups.physics.solvers.comparison import nrmse, require_comparable, resample

_COARSEST = 16
_ROUNDS = 3  # of timing, of which the fastest counts


@dataclass(frozen=True)
class Trial:
    """The solver at one resolution: its error, and how long one trajectory took."""

    resolution: int
    nrmse: float
    seconds_per_trajectory: float


@dataclass(frozen=True)
class SolverCost:
    """The reference solver at the coarsest resolution that is accurate enough, or else at the most accurate one tried.

    Args:
        resolution: cells along the first axis.
        nrmse: mean over samples and channels of sqrt(sum_{x,t} (p - u)²) / sqrt(sum_{x,t} u²), against the truth.
        seconds_per_trajectory: for all time steps of one trajectory, in a batch of those given.
        found: whether `nrmse` is at most what was asked for.
        tried: every resolution tried, in the order of trying.
        samples: trajectories that it was measured on.
        target: the error asked for: that of the other method on the same trajectories.
    """

    resolution: int
    nrmse: float
    seconds_per_trajectory: float
    found: bool
    tried: tuple[Trial, ...]
    samples: int
    target: float


def coarsest_solver(
    equation: Equation,
    u0: Float64[Tensor, "batch channel *grid"],
    truth: Float64[Tensor, "batch time channel *grid"],
    params: Float64[Tensor, "batch parameter"],
    times: Float64[np.ndarray, " time"],
    spacing: tuple[float, ...],
    target_nrmse: float,
) -> SolverCost:
    """Run the reference solver on finer and finer grids until it is as accurate as asked.

    Initial states are brought to each grid, and solutions back, so that the solver is judged rather than interpolation:
    by Fourier modes where the domain is periodic, by the cosines of walls without flow, by the sines of fields whose
    values are fixed at walls. A coefficient, which may jump, takes its geometric mean over each cell. Grids have 16,
    24, 32, 48, ... cells along the first axis, up to twice the truth's. The first frame, which is given, does not
    count. A solver that blows up on a grid has an infinite error there.

    Args:
        equation: one that has a reference solver.
        u0: initial states on the truth's grid.
        truth: frames at `times`; the first is u0.
        params: coefficients of each sample.
        times: increasing.
        spacing: distance of the truth's cell centres along each axis, as its file has them.
        target_nrmse: error to reach.

    Raises:
        UpsError: there is no solver, it blows up on every grid, there is nothing to compare with, or the truth's grid
            does not cover the equation's domain.
    """
    solver_of(equation)
    grid = tuple(u0.shape[2:])
    require_comparable(equation, truth, times, spacing)
    tried: list[Trial] = []
    for resolution in _ladder(grid[0]):
        shape = tuple(max(2, round(points * resolution / grid[0])) for points in grid)
        coarse = resample(equation, equation.roles[0], u0, shape)
        error, seconds = _trial(equation, coarse, truth, params, times)
        tried.append(Trial(resolution, error, seconds / len(u0)))
        if error <= target_nrmse:
            break
    if all(math.isinf(trial.nrmse) for trial in tried):
        solve(equation, u0, params, times)  # says why
    best = min(tried, key=lambda trial: trial.nrmse)
    found = best.nrmse <= target_nrmse
    return SolverCost(
        best.resolution, best.nrmse, best.seconds_per_trajectory, found, tuple(tried), len(u0), target_nrmse
    )


def _trial(
    equation: Equation, coarse: Tensor, truth: Tensor, params: Tensor, times: Float64[np.ndarray, " time"]
) -> tuple[float, float]:
    """Error from the initial states `coarse`, infinite where the solver blows up on their grid, and seconds."""
    seconds: list[float] = []
    while len(seconds) < _ROUNDS and (not seconds or seconds[0] <= 1.0):
        start = time.perf_counter()
        try:
            frames = solve(equation, coarse, params, times)
        except UpsError:
            return math.inf, time.perf_counter() - start
        seconds.append(time.perf_counter() - start)
    found = resample(equation, equation.fields, frames[:, 1:], tuple(truth.shape[3:]))
    return nrmse(found, truth[:, 1:]), min(seconds)


def _ladder(finest: int) -> list[int]:
    """Cells along the first axis to try: two per octave from 16 to twice the truth's, and the truth's own."""
    octaves = range(max(1, math.ceil(math.log2(max(1, 2 * finest / _COARSEST))) + 1))
    steps = {cells << octave for octave in octaves for cells in (_COARSEST, _COARSEST * 3 // 2)}
    return sorted({cells for cells in steps if cells <= 2 * finest} | {finest, 2 * finest})
