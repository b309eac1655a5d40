"""Scores a trained simulator beside its baselines, times the reference solver, and lays the scores out for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ups.data.trajectories import TrajectorySet
from ups.evaluation.evaluate import Evaluation, Protocol, evaluate
from ups.models.emulator import Emulator
from ups.physics.solvers.cost import SolverCost, coarsest_solver
from ups.pipeline.workspace import Workspace

Row = dict[str, str]
SOLVER_SAMPLES = 4  # trajectories the reference solver is timed on


def evaluate_models(workspace: Workspace, emulators: Mapping[str, Emulator], scope: str, split: str = "test") -> Evaluation:
    """Scores the emulators (the simulator first) on a split of the run's own data and saves `evaluation/<scope>.json`.

    Args:
        scope: `small` or `full`: which part of `evaluation` in the settings says how much.
    """
    settings = workspace.settings.evaluation
    wanted = settings.small if scope == "small" else settings.full
    protocol = Protocol(split, wanted.max_samples, wanted.steps, settings.rollout_mode, settings.batch_size)
    sets = workspace.splits[split]
    found = evaluate(
        emulators, sets, protocol=protocol, device=workspace.device, progress=workspace.progress, showcases=scope == "full"
    )
    if scope == "full" and settings.solver_reference:
        found = found.with_solver_costs(solver_costs(found, sets, workspace))
    found.save(workspace.run_dir / "evaluation", scope)
    return found


def solver_costs(found: Evaluation, sets: Mapping[str, TrajectorySet], workspace: Workspace) -> dict[str, SolverCost]:
    """By task, the reference solver at the coarsest resolution that is as accurate as the simulator.

    Tasks without a solver are left out, and so are those on which the simulator has no score to reach.
    """
    costs = {}
    for task, trajectories in sets.items():
        nrmse = found.scores(task)["nrmse"].value
        if nrmse is None or not trajectories.equation.has_solver:
            continue
        steps = len(found.tasks[task].emulators[found.subject].curve.mean)
        first = int(trajectories.lengths.max()) - steps  # the last context frame is the solver's initial condition
        index = torch.nonzero(trajectories.lengths == trajectories.lengths.max())[:SOLVER_SAMPLES, 0]
        frames = trajectories.gather(index, torch.full_like(index, first - 1), steps + 1).double()
        workspace.progress.say(f"{task}: timing the reference solver at nrmse {nrmse:.3g}")
        costs[task] = coarsest_solver(
            trajectories.equation,
            frames[:, 0],
            frames,
            trajectories.params[index].double(),
            float(trajectories.dt) * torch.arange(steps + 1, dtype=torch.float64).numpy(),
            trajectories.grid.spacing,
            nrmse,
        )
    return costs


def score_table(found: Evaluation, costs: Mapping[str, SolverCost] | None = None) -> list[Row]:
    """One row per task and emulator: error, and seconds per trajectory."""
    rows = []
    for task, result in found.tasks.items():
        for name, scores in sorted(result.emulators.items(), key=lambda item: item[0] == found.subject):
            steps = int(result.facts["steps"])
            seconds = scores.scores["wall_clock"].value
            rows.append(
                {
                    "task": task,
                    "model": name,
                    "nrmse": number(scores.scores["nrmse"].value),
                    "one step": number(scores.scores["one_step_nrmse"].value),
                    "codec": number(scores.scores["codec_nrmse"].value),
                    "s / trajectory": number(None if seconds is None else seconds * steps),
                }
            )
        cost = (costs or {}).get(task)
        if cost is not None:
            label = f"solver, {cost.resolution} points" if cost.found else f"solver, {cost.resolution} points (best tried)"
            rows.append(
                {
                    "task": task,
                    "model": label,
                    "nrmse": number(cost.nrmse),
                    "one step": "",
                    "codec": "",
                    "s / trajectory": number(cost.seconds_per_trajectory),
                }
            )
    return rows


def number(value: float | None) -> str:
    """Three digits, or a dash for what could not be computed."""
    return "-" if value is None else f"{value:.3g}"


def report_path(run_dir: Path) -> Path:
    """Where a run's report is."""
    return run_dir / "report.html"
