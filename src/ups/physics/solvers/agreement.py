"""Whether data are what they are said to be: how far the reference solver leads away from them, frame by frame."""

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

LARGEST_SHARE = 0.04
"""Share of what fields change by that a solver may be off. On published files it is 0.001 and less, 0.02 where the grid
does not resolve the flow; twice the viscosity is 0.1 in ten frames of Burgers, a speed wrong by a fortieth 0.05."""

SMALLEST = 1e-3
"""Share of the fields themselves below which a difference is none: they are single numbers of seven digits."""

MOST_CELLS = 1 << 14
"""Cells of a grid that is still solved on: a second or so for ten frames."""


PATIENCE = 20.0
"""Seconds that a solution may be foreseen to take. In a wrong unit fields may move a million times too fast."""

_TELLING = 2.0
"""Seconds of stepping that say how long the rest will take; less may be the machine's."""

_SHARES = 4.0 ** np.arange(-12, 0)
"""Of the first step, at which the solver is asked how long it takes."""


class TooLong(UpsError):
    """The solver would take longer than a check should."""


@dataclass(frozen=True)
class Agreement:
    """The reference solver beside data, from their first frame on.

    Args:
        nrmse: of the solver, mean over samples and channels of sqrt(sum_{x,t} (p - u)²) / sqrt(sum_{x,t} u²).
        persistence: the same of the first frame, left as it is.
        frames: compared, the first not counted.
        samples: trajectories compared.
        resolution: cells along the first axis that the solver had.
    """

    nrmse: float
    persistence: float
    frames: int
    samples: int
    resolution: int

    @property
    def holds(self) -> bool:
        """Whether the data may be what they are said to be."""
        return self.nrmse <= max(LARGEST_SHARE * self.persistence, SMALLEST)


def agreement(
    equation: Equation,
    truth: Float64[Tensor, "batch time channel *grid"],
    params: Float64[Tensor, "batch parameter"],
    times: Float64[np.ndarray, " time"],
    spacing: tuple[float, ...],
) -> Agreement:
    """Solve from the first frames, on the data's own grid and, where that disagrees, on one twice as fine.

    Args:
        equation: one that has time and a reference solver.
        truth: frames at `times`.
        params: coefficients of each trajectory, as the data have them.
        times: increasing.
        spacing: distance of the cell centres along each axis, as the data have them.

    Raises:
        UpsError: there is no solver or no time, the frames are not of the equation's domain, the grid has more cells
            than are solved on, or that would take too long.
    """
    solver_of(equation)
    if equation.steady:
        raise UpsError(f"{equation.name} has no time: there is nothing to follow")
    require_comparable(equation, truth, times, spacing)
    grid = tuple(truth.shape[3:])
    if math.prod(grid) > MOST_CELLS:
        raise UpsError(f"{equation.name}: {' x '.join(map(str, grid))} cells are more than are solved on for a check")
    still = nrmse(truth[:, :1].expand_as(truth[:, 1:]), truth[:, 1:])
    found = []
    for times_finer in (1, 2):
        shape = tuple(times_finer * cells for cells in grid)
        if math.prod(shape) > MOST_CELLS:
            break
        error = _error(equation, truth, params, times, shape)
        found.append(Agreement(error, still, len(times) - 1, len(truth), shape[0]))
        if found[-1].holds:
            break
    return min(found, key=lambda one: one.nrmse)


def _error(
    equation: Equation, truth: Tensor, params: Tensor, times: Float64[np.ndarray, " time"], shape: tuple[int, ...]
) -> float:
    """The solver's error on a grid; infinite where it blows up, or refuses a parameter."""
    last: list[tuple[float, float]] = []

    def patient(share: float) -> None:
        now = time.perf_counter()
        if last:  # what is before the first is more than stepping
            seconds, part = now - last[-1][0], share - last[-1][1]
            if seconds > _TELLING and seconds > part * PATIENCE:
                raise TooLong(f"{equation.name}: the solver would take {seconds / part:.0f} s to follow them")
        last.append((now, share))

    looked_at = np.concatenate([times[:1], times[0] + (times[1] - times[0]) * _SHARES, times[1:]])
    try:
        given = resample(equation, equation.roles[0], truth[:, 0], shape)
        frames = solve(equation, given, params, looked_at, progress=patient)
    except TooLong:
        raise
    except UpsError:
        return math.inf
    found = resample(equation, equation.fields, frames[:, 1 + len(_SHARES) :], tuple(truth.shape[3:]))
    return nrmse(found, truth[:, 1:])
