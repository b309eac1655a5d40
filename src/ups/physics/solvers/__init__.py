"""Reference solvers: batched, in float64, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ups.errors import UpsError, UsageError
from ups.physics.description import Equation, Solver

__all__ = ["BlownUp", "one_thread", "solve", "solver_of"]

ROUNDING = 1e-6
"""Share of a bound by which a parameter that was held in single numbers may lie beyond it."""


class BlownUp(UpsError):
    """A solution did not stay finite."""


def solve(
    equation: Equation,
    u0: Float64[Tensor, "batch channel *grid"],
    params: Float[Tensor, "batch parameter"],
    times: Float64[np.ndarray, " time"],
    *,
    progress: Callable[[float], None] | None = None,
) -> Float64[Tensor, "batch time channel *grid"]:
    """Solve an equation from given initial states, on their grid and on their device; on a CPU with one thread.

    Args:
        equation: one that has a reference solver.
        u0: values at the cell centres, in the equation's units, at `times[0]`.
        params: coefficients of each sample, in the order of `equation.parameters`.
        times: increasing.
        progress: called with the share of the work done, from 0 to 1.

    Raises:
        UpsError: there is no solver, `times` does not increase, or a parameter is out of its bounds.
        BlownUp: the solution did not stay finite.
    """
    solver = solver_of(equation)
    if len(times) < 1 or not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise UpsError(f"{equation.name}: the times to solve for must be finite and increase, got {times}")
    params = params.to(u0)
    for column, parameter in enumerate(equation.parameters):
        low, high = (end + side * abs(end) for side, end in ((-ROUNDING, parameter.lower), (ROUNDING, parameter.upper)))
        outside = ~((params[:, column] >= low) & (params[:, column] <= high))
        if bool(outside.any()):
            value, bounds = float(params[outside, column][0]), f"[{parameter.lower:g}, {parameter.upper:g}]"
            raise UpsError(f"{equation.name}: {parameter.name} is {value:g}; the solver takes {bounds}")
    stamps = torch.as_tensor(times, device=u0.device)
    with one_thread():
        frames = solver.solve(u0, params, stamps, equation.lengths, progress or _ignore)
    finite = torch.isfinite(frames).flatten(1).all(dim=1)
    if not bool(finite.all()):
        sample = int(finite.logical_not().nonzero()[0, 0])
        raise BlownUp(f"{equation.name}: the solution of sample {sample} is not finite; check its initial state")
    return frames


def solver_of(equation: Equation) -> Solver:
    """The equation's reference solver.

    Raises:
        UsageError: there is none yet.
    """
    if equation.solver is None:
        raise UsageError(
            f"{equation.name} has no reference solver yet: its data can be read, but not made; download it"
        )
    return equation.solver


@contextmanager
def one_thread() -> Iterator[None]:
    """One CPU thread for each operation inside: so small that threads wait for each other longer than they work.

    On two busy cores the same trajectories took twenty times as long with two threads as with one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _ignore(share: float) -> None:
    """Tell nobody."""
