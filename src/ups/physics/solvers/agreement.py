"""Whether data are what they are said to be: how far the reference solver leads away from them, frame by frame."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ups.errors import UpsError
from ups.physics.description import Equation
from ups.physics.solvers import BlownUp, solve, solver_of
from ups.physics.solvers.comparison import nrmse_of_each, require_comparable, resample

LARGEST_SHARE = 0.04
"""Share of what fields change by that a solver may be off (`bench/agreement.py`). On published files it is 0.003 and
less; twice the viscosity is 0.12 in ten frames of Burgers, a speed wrong by a fortieth 0.1."""

SMALLEST = 1e-3
"""Share of the fields themselves below which a difference is none: they are single numbers of seven digits."""

UNRESOLVED = 2.0
"""How many times what a grid of half the cells loses of the data: they may come from a finer grid than they are on."""

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
    """The reference solver beside data, from their first frame on: of the trajectory that it follows worst.

    Args:
        nrmse: of the solver, sqrt(sum_{x,t} (p - u)²) / sqrt(sum_{x,t} u²), mean over channels; infinite where it blows
            up.
        persistence: the same of the first frame, left as it is.
        unresolved: the same of the data on a grid of half the cells: about what their own grid leaves to be guessed.
        frames: compared, the first not counted.
        samples: trajectories compared.
    """

    nrmse: float
    persistence: float
    unresolved: float
    frames: int
    samples: int

    @property
    def allowed(self) -> float:
        """Largest error of data that may be what they are said to be."""
        return max(LARGEST_SHARE * self.persistence, UNRESOLVED * self.unresolved, SMALLEST)

    @property
    def holds(self) -> bool:
        """Whether the data may be what they are said to be."""
        return self.nrmse <= self.allowed


def agreement(
    equation: Equation,
    truth: Float64[Tensor, "batch time channel *grid"],
    params: Float64[Tensor, "batch parameter"],
    times: Float64[np.ndarray, " time"],
    origin: tuple[float, ...],
    spacing: tuple[float, ...],
) -> Agreement:
    """Solve from the first frames, on the data's own grid.

    Where all frames would take too long, the first after the given one alone is followed. Of a chaotic equation (which
    has a spin-up) it is enough that some frames are followed: no two solvers share the last ones.

    Args:
        equation: one that has time and a reference solver.
        truth: frames at `times`.
        params: coefficients of each trajectory, as the data have them.
        times: increasing.
        origin: coordinate of the first node of each axis, as the data have it.
        spacing: distance of the nodes along each axis, as the data have it.

    Raises:
        UpsError: there is no solver or no time, the frames are not of the equation's domain, a parameter is out of its
            bounds, the grid has more cells than are solved on, or one frame would take too long.
    """
    solver_of(equation)
    if equation.steady:
        raise UpsError(f"{equation.name} has no time: there is nothing to follow")
    require_comparable(equation, truth, times, spacing)
    _require_place(equation, origin, spacing)
    cells = math.prod(truth.shape[3:])
    if cells > MOST_CELLS:
        raise UpsError(f"{equation.name}: {cells} cells are more than are solved on for a check")
    try:
        return _follow(equation, truth, params, times)
    except TooLong:
        if len(times) == 2:
            raise
    return _follow(equation, truth[:, :2], params, times[:2])


def _require_place(equation: Equation, origin: tuple[float, ...], spacing: tuple[float, ...]) -> None:
    """Refuses grids of which the solver would take the nodes to be elsewhere, where the place matters."""
    moved = equation.axes_with("translation")
    for axis, ((low, _), first, step) in enumerate(zip(equation.domain, origin, spacing, strict=True)):
        if axis not in moved and not math.isclose(first, low + 0.5 * step, abs_tol=0.01 * step):
            raise UpsError(f"{equation.name}: the nodes of axis {axis} are not the cell centres that the solver takes")


def _follow(equation: Equation, truth: Tensor, params: Tensor, times: Float64[np.ndarray, " time"]) -> Agreement:
    """The agreement over all these frames; of a chaotic equation over the first so many that it holds over."""
    solved, coarse = _solution(equation, truth, params, times), _coarsened(equation, truth)
    still = truth[:, :1].expand_as(truth)
    whole = truth.shape[1] - 1
    for frames in range(whole, 0 if equation.spin_up else whole - 1, -1):
        part = slice(1, frames + 1)
        shares = (nrmse_of_each(one[:, part], truth[:, part]).tolist() for one in (solved, still, coarse))
        each = [
            Agreement(error, change, unresolved, frames, len(truth))
            for error, change, unresolved in zip(*shares, strict=True)
        ]
        found = max(each, key=lambda one: one.nrmse / one.allowed)
        if found.holds:
            break
    return found


def _coarsened(equation: Equation, truth: Tensor) -> Tensor:
    """Frames as a grid of half the cells has them."""
    grid = tuple(truth.shape[3:])
    half = resample(equation, equation.fields, truth, tuple(max(2, cells // 2) for cells in grid))
    return resample(equation, equation.fields, half, grid)


@dataclass
class _Patience:
    """Told the share of the work that is done, ends it where it would take too long."""

    name: str
    began: float = field(default_factory=time.perf_counter)
    last: tuple[float, float] | None = None  # the time and the share from which the pace is taken

    def __call__(self, share: float) -> None:
        now = time.perf_counter()
        if self.last is None:  # what is before the first is more than stepping
            self.last = (now, share)
        seconds, part = now - self.last[0], share - self.last[1]
        if seconds < _TELLING:
            return
        if seconds > part * PATIENCE or now - self.began > 2 * PATIENCE:
            raise TooLong(f"{self.name}: the solver would take {seconds / part:.0f} s; check the units of the fields")
        self.last = (now, share)


def _solution(equation: Equation, truth: Tensor, params: Tensor, times: Float64[np.ndarray, " time"]) -> Tensor:
    """Frames like those of `truth`, solved for from the first; infinite where the solver blows up."""
    looked_at = np.concatenate([times[:1], times[0] + (times[1] - times[0]) * _SHARES, times[1:]])
    try:
        frames = solve(equation, truth[:, 0], params, looked_at, progress=_Patience(equation.name))
    except BlownUp:
        return torch.full_like(truth, math.inf)
    return frames[:, [0, *range(1 + len(_SHARES), len(looked_at))]]
