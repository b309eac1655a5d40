"""What a classical solver needs, in seconds per trajectory, to be as accurate as ours on a task's test trajectories."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from accuracy_bench.cells import Places, open_workspace, settings_of
from accuracy_bench.models import get_model
from accuracy_bench.results import Cell, Line
from accuracy_bench.score import TIMED, load_truth
from accuracy_bench.summary import MAIN_SECONDS
from accuracy_bench.tasks import get_task
from ups.data.trajectories import TrajectorySet
from ups.models.emulator import Emulator
from ups.physics.solvers.cost import coarsest_solver
from ups.pipeline.train import fit_closed_form

LINES = "solvers.jsonl"
SAMPLES = 8  # test trajectories, solved and rolled out together


def measure(task: str, places: Places, say: Callable[[str], None], *, code: Mapping[str, str]) -> Line:
    """The reference solver on every grid, and the seconds of a roll-out of ours, which no weight changes.

    Both are wall seconds per trajectory on one thread in one process, fastest of a few rounds, ours before the solver
    and after it.
    """
    get_task(task).prepare(places.cache, say)
    cell = Cell(task, "solver", MAIN_SECONDS, 0)
    workspace = open_workspace(cell, settings_of(cell, get_model("ups"), places), say)
    test = next(iter(workspace.splits["test"].values()))
    simulator = workspace.new_simulator().to(workspace.device).eval()
    fit_closed_form(workspace, simulator)
    truth = load_truth(task, test, places.cache)
    spread = torch.linspace(0, test.num - 1, min(SAMPLES, test.num)).round().long()  # of all parameter values
    frames = truth.frames[spread, : truth.horizon]
    before = seconds_of(simulator, test, frames, test.params[spread])
    times = float(test.dt) * torch.arange(truth.horizon, dtype=torch.float64).numpy()
    params, exact = test.params[spread].double(), frames.double()
    cost = coarsest_solver(test.equation, exact[:, 0], exact, params, times, test.grid.spacing, target_nrmse=0.0)
    ours = min(before, seconds_of(simulator, test, frames, test.params[spread]))
    trials = [{**asdict(trial), "nrmse": trial.nrmse if math.isfinite(trial.nrmse) else None} for trial in cost.tried]
    return {"task": task, "samples": spread.tolist(), "ups_seconds": ours, "solver": trials, **code}


@torch.no_grad()
def seconds_of(emulator: Emulator, test: TrajectorySet, frames: torch.Tensor, params: torch.Tensor) -> float:
    """Wall seconds per trajectory of a roll-out from the first of `frames` (sample, time, channel, *grid)."""
    dt, steps, found = torch.full((len(frames),), float(test.dt)), frames.shape[1] - 1, []
    for _ in range(TIMED):
        began = time.perf_counter()
        emulator.rollout(frames[:, :1], steps, task=test.task, dt=dt, params=params, mode="latent")
        found.append(time.perf_counter() - began)
    return min(found) / len(frames)


def at_equal_error(line: Mapping[str, Any], error: float) -> Mapping[str, Any] | None:
    """The coarsest grid on which the solver's error is at most `error`; None where there is none."""
    good = [trial for trial in line["solver"] if trial["nrmse"] is not None and trial["nrmse"] <= error]
    found: Mapping[str, Any] | None = min(good, key=lambda trial: trial["resolution"], default=None)
    return found
