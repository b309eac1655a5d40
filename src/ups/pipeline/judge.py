"""Scores a trained simulator beside its baselines, times the reference solver, and lays the scores out for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ups.data.trajectories import TrajectorySet
from ups.errors import UpsError
from ups.evaluation.evaluate import Evaluation, Protocol, evaluate
from ups.models.emulator import Emulator
from ups.physics.solvers.cost import SolverCost, coarsest_solver
from ups.pipeline.workspace import Workspace

Row = dict[str, str]
SOLVER_SAMPLES = 4  # trajectories the reference solver is timed on


def evaluate_models(
    workspace: Workspace, emulators: Mapping[str, Emulator], scope: str, split: str = "test"
) -> Evaluation:
    """Scores the emulators (the simulator first) on a split of the run's own data and saves `evaluation/<scope>.json`.

    Args:
        scope: `small` or `full`: which part of `evaluation` in the settings says how much.
    """
    settings = workspace.settings.evaluation
    wanted = settings.small if scope == "small" else settings.full
    protocol = Protocol(split, wanted.max_samples, wanted.steps, settings.rollout_mode, settings.batch_size)
    sets = workspace.splits[split]
    found = evaluate(
        emulators,
        sets,
        protocol=protocol,
        device=workspace.device,
        progress=workspace.progress,
        showcases=scope == "full",
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


def score_table(scores: Mapping[str, Any]) -> list[Row]:
    """One row per task and model: error, and seconds per trajectory; from what `evaluation/full.json` holds."""
    rows = []
    for task, ours in scores["tasks"].items():
        facts = scores["details"][task]
        models = {**{name: of_task[task] for name, of_task in scores["baselines"].items()}, "ups": ours}
        for name, found in models.items():
            seconds = found["wall_clock"]
            per_trajectory = None if seconds is None else seconds * facts["steps"]
            rows.append(_row(task, name, found["nrmse"], found["one_step_nrmse"], found["codec_nrmse"], per_trajectory))
        solver = facts.get("solver")
        if solver is not None:
            label = f"solver at {solver['resolution']}" + ("" if solver["found"] else " (finest tried)")
            rows.append(_row(task, label, solver["nrmse"], None, None, solver["seconds"]))
    return rows


def read_table(run_dir: Path) -> list[Row]:
    """The table of a run's full evaluation.

    Raises:
        UpsError: the evaluation is missing or damaged.
    """
    path = run_dir / "evaluation" / "full.json"
    try:
        return score_table(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError) as error:
        raise UpsError(
            f"{path} is missing or damaged ({error}); evaluate again with 'ups run --force evaluate'"
        ) from error


def _row(
    task: str, model: str, nrmse: float | None, step: float | None, codec: float | None, seconds: float | None
) -> Row:
    return {
        "task": task,
        "model": model,
        "nrmse": _number(nrmse),
        "one step": _number(step),
        "codec": _number(codec),
        "s / trajectory": _number(seconds),
    }


def _number(value: float | None) -> str:
    """Three digits, or a dash for what does not exist or could not be computed."""
    return "-" if value is None else f"{value:.3g}"
