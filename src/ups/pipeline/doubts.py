"""Whether trajectories are of the equation, and of the parameters, that their files name; what to say where not."""

from __future__ import annotations

import math

import numpy as np
import torch

from ups.data.trajectories import TrajectorySet
from ups.errors import UpsError
from ups.evaluation.protocol import spread_evenly
from ups.physics.solvers.agreement import Agreement, agreement
from ups.pipeline.check_report import in_words

FOLLOWED, FRAMES_FOLLOWED = 4, 10
"""Trajectories, and frames of each, that the reference solver is laid beside."""


def beside_solver(given: TrajectorySet) -> Agreement | str:
    """The reference solver beside the first frames of some trajectories, or why there is none."""
    chosen = torch.tensor(spread_evenly(given.num, FOLLOWED))
    frames = min(FRAMES_FOLLOWED + 1, int(given.lengths[chosen].min()))
    truth = given.gather(chosen, torch.zeros_like(chosen), frames).cpu().double()
    times = float(given.dt) * np.arange(frames)
    params, origin = given.params[chosen].double(), tuple(float(axis[0]) for axis in given.grid.axes)
    try:
        return agreement(given.equation, truth, params, times, origin, tuple(given.grid.spacing))
    except UpsError as error:
        return str(error).removeprefix(f"{given.task}: ")


def doubt_of(given: TrajectorySet, found: Agreement | str) -> str | None:
    """What speaks against the trajectories being what they are said to be; None where nothing does."""
    if isinstance(found, str) or found.holds:
        return None
    bounds = zip(given.equation.parameters, given.params.T, strict=True)
    named = [_span(parameter.name, float(values.min()), float(values.max())) for parameter, values in bounds]
    still = "" if math.isinf(found.nrmse) else f" (no change at all: {found.persistence:.2g})"
    return (
        f"{given.task}{' with ' if named else ''}{', '.join(named)}: the data go elsewhere than its solution from "
        f"first frames: {in_words(found)}{still}; check equation and parameters (in another convention?), time stamps "
        "and units"
    )


def _span(name: str, low: float, high: float) -> str:
    return f"{name} = {low:.6g}" if math.isclose(low, high, rel_tol=1e-5) else f"{name} from {low:.6g} to {high:.6g}"
