"""Scores a trained simulator beside its baselines, times the reference solver, and lays the scores out for people."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ups.data.trajectories import TrajectorySet
from ups.errors import UpsError
from ups.evaluation.evaluate import Evaluation, Protocol, evaluate
from ups.evaluation.gates import Judgement, judge_small
from ups.evaluation.rollout import rollout_trajectories
from ups.models.emulator import Emulator
from ups.physics.solvers.cost import SolverCost, coarsest_solver
from ups.pipeline.promote import current_hashes, file_hash
from ups.pipeline.records import StepRecords
from ups.pipeline.workspace import Workspace

Row = dict[str, str]
COLUMNS = {
    "nrmse": "nrmse",
    "ensemble": "ensemble_nrmse",
    "crps": "crps",
    "one step": "one_step_nrmse",
    "codec": "codec_nrmse",
}
"""Columns of the table of scores, with the metric in each."""

OF_ENSEMBLES = ("ensemble", "crps")
"""Columns that are left out where there is no ensemble."""

SOLVER_SAMPLES = 4  # trajectories the reference solver is timed on


def evaluate_in_steps(workspace: Workspace, emulators: Mapping[str, Emulator], key: str) -> Judgement:
    """The small evaluation and, where that passes its gate, the full one; what was done from `key` is not done again.

    Each is recorded with the hashes of what it was made from and of the file it was written to. A small evaluation that
    was edited is done again before it lets a full one through.

    Returns:
        how the small evaluation was judged.
    """
    records, folder = workspace.records, workspace.run_dir / "evaluation"
    small, *full = folder / "small.json", folder / "full.json", folder / "fields.npz"
    edited = not records.done("evaluate", key, *full) and small.is_file() and file_hash(small) != _recorded(records)
    if edited or not records.done("evaluate-small", key, small):
        records.forget("evaluate")
        for path in full:  # of another model
            path.unlink(missing_ok=True)
        _evaluate_step(workspace, emulators, "small", "valid", key)
    judgement = judge_small(read_scores(small))
    if judgement.passed and not records.done("evaluate", key, *full):
        _evaluate_step(workspace, emulators, "full", "test", key)
    return judgement


def _recorded(records: StepRecords) -> str | None:
    """The hash of the small evaluation as it was written."""
    hashes = records.note("evaluate-small", "hashes", {})
    return hashes.get("small evaluation") if isinstance(hashes, dict) else None


def _evaluate_step(workspace: Workspace, emulators: Mapping[str, Emulator], scope: str, split: str, key: str) -> None:
    """One evaluation and its record; the model's hash is taken before it, that of the file after."""
    with workspace.timings.part("evaluate: rest"):
        _evaluate_and_record(workspace, emulators, scope, split, key)


def _evaluate_and_record(
    workspace: Workspace, emulators: Mapping[str, Emulator], scope: str, split: str, key: str
) -> None:
    began = time.perf_counter()
    before = current_hashes(workspace.run_dir, workspace.data_hash)
    evaluate_models(workspace, emulators, scope, split)
    after = current_hashes(workspace.run_dir, workspace.data_hash)
    name = "evaluate" if scope == "full" else "evaluate-small"
    workspace.records.finish(name, key, time.perf_counter() - began, hashes={**after, **_sources(before)})


def _sources(hashes: Mapping[str, str]) -> dict[str, str]:
    return {name: hashes[name] for name in ("data", "config", "model")}


def evaluate_models(
    workspace: Workspace, emulators: Mapping[str, Emulator], scope: str, split: str = "test"
) -> Evaluation:
    """Scores the emulators (the simulator first) on a split of the run's own data and saves `evaluation/<scope>.json`.

    Args:
        scope: `small` or `full`: which part of `evaluation` in the settings says how much.
    """
    settings = workspace.settings.evaluation
    wanted = settings.small if scope == "small" else settings.full
    context = workspace.settings.data.context
    longest = max(int(one.lengths.max()) for one in workspace.splits[split].values()) - context
    steps = wanted.steps if wanted.steps is not None and wanted.steps < longest else None  # more is all there are
    protocol = Protocol(split, wanted.max_samples, steps, settings.rollout_mode, settings.batch_size, settings.members)
    sets, part = workspace.splits[split], workspace.timings.part
    with part(f"evaluate: {scope}", compute=True):
        found = evaluate(
            emulators,
            sets,
            protocol=protocol,
            device=workspace.device,
            progress=workspace.progress,
            showcases=scope == "full",
        )
    found.save(workspace.run_dir / "evaluation", scope)
    if scope == "full" and settings.solver_reference:
        with part("evaluate: reference solver", compute=True):
            found = time_solvers(found, emulators[found.subject], sets, workspace)
        found.save(workspace.run_dir / "evaluation", scope)
    return found


def time_solvers(
    found: Evaluation, emulator: Emulator, sets: Mapping[str, TrajectorySet], workspace: Workspace
) -> Evaluation:
    """The evaluation with the reference solver at the coarsest resolution that is as accurate as the simulator.

    Both are timed on the same trajectories, as one batch. Where there is no solver, because of the equation, the data
    or the simulator's own error, the score says why.
    """
    costs, seconds, reasons = {}, {}, {}
    for task, trajectories in sets.items():
        try:
            errors = solver_trajectories(found, task, trajectories, workspace)
            seconds[task] = model_seconds(found, emulator, trajectories, list(errors), workspace)
            costs[task] = solver_cost(found, task, trajectories, errors, workspace)
        except UpsError as error:  # of the solver alone: the simulator's scores stand
            reasons[task] = str(error)
            workspace.progress.say(f"{task}: no reference solver: {error}")
    return found.with_solver_costs(costs, seconds, reasons)


def solver_trajectories(
    found: Evaluation, task: str, trajectories: TrajectorySet, workspace: Workspace
) -> dict[int, float]:
    """The trajectories that the solver is timed on, by number, and the simulator's error on each.

    Raises:
        UpsError: the simulator has no error to reach.
    """
    ours = found.tasks[task].emulators[found.subject]
    frames = workspace.settings.data.context + len(ours.curve.mean)
    scored = {index: error for index, error in ours.per_sample.items() if error is not None}
    whole = [index for index in scored if int(trajectories.lengths[index]) >= frames][:SOLVER_SAMPLES]
    if not whole:
        raise UpsError("the simulator has no error that a solver could be asked to reach")
    return {index: scored[index] for index in whole}


def model_seconds(
    found: Evaluation, emulator: Emulator, trajectories: TrajectorySet, indices: Sequence[int], workspace: Workspace
) -> float:
    """Seconds per trajectory of rolling these out together, as many frames as were scored."""
    settings = workspace.settings
    batches = rollout_trajectories(
        emulator,
        trajectories,
        indices,
        context=settings.data.context,
        steps=len(found.tasks[trajectories.task].emulators[found.subject].curve.mean),
        mode=settings.evaluation.rollout_mode,
        batch_size=len(indices),
        device=workspace.device,
        timed=True,
    )
    seconds = next(iter(batches)).seconds
    assert seconds is not None
    return seconds / len(indices)


def solver_cost(
    found: Evaluation, task: str, trajectories: TrajectorySet, errors: Mapping[int, float], workspace: Workspace
) -> SolverCost:
    """What the reference solver costs at the simulator's own error, over the same frames of the same trajectories.

    Args:
        errors: of the simulator, by the number of the trajectory.

    Raises:
        UpsError: there is no solver for this equation or this domain.
    """
    ours = found.tasks[task].emulators[found.subject]
    context, steps = workspace.settings.data.context, len(ours.curve.mean)
    target, index = fmean(errors.values()), torch.tensor(list(errors))
    frames = trajectories.gather(index, torch.full_like(index, context - 1), steps + 1).double()
    workspace.progress.say(f"{task}: timing the reference solver at nrmse {target:.3g}")
    return coarsest_solver(
        trajectories.equation,
        frames[:, 0],
        frames,
        trajectories.params[index].double(),
        float(trajectories.dt) * torch.arange(steps + 1, dtype=torch.float64).numpy(),
        trajectories.grid.spacing,
        target,
    )


def score_table(scores: Mapping[str, Any]) -> list[Row]:
    """One row per task and model: error, and seconds per trajectory; from what `evaluation/full.json` holds.

    The error of the ensemble's mean and the CRPS stand beside the error where any model draws an ensemble. The solver's
    row says how many trajectories it is of: fewer than those of all others.
    """
    rows = []
    for task, ours in scores["tasks"].items():
        facts = scores["details"][task]
        models = {**{name: of_task[task] for name, of_task in scores["baselines"].items()}, "ups": ours}
        for name, found in models.items():
            seconds = found["wall_clock"]
            values = {column: found[metric] for column, metric in COLUMNS.items() if column not in OF_ENSEMBLES}
            values |= {column: found.get(COLUMNS[column]) for column in OF_ENSEMBLES}  # older files have none
            per_trajectory = None if seconds is None else seconds * facts["steps"]
            rows.append((task, name, {**values, "s / trajectory": per_trajectory}))
        solver = facts.get("solver")
        if solver is not None:
            label = f"solver at {solver['resolution']}"
            notes = [trajectories(solver["samples"])] if "samples" in solver else []  # older files do not say
            notes += [] if solver["found"] else ["best tried"]
            label += f" ({', '.join(notes)})" if notes else ""
            rows.append((task, label, {"nrmse": solver["nrmse"], "s / trajectory": solver["seconds"]}))
    drawn = any(values.get(column) is not None for _, _, values in rows for column in OF_ENSEMBLES)
    columns = [column for column in (*COLUMNS, "s / trajectory") if drawn or column not in OF_ENSEMBLES]
    return [
        {"task": task, "model": model, **{column: _number(values.get(column)) for column in columns}}
        for task, model, values in rows
    ]


def trajectories(num: int) -> str:
    """So many trajectories, in words."""
    return f"{num} trajector{'y' if num == 1 else 'ies'}"


def read_table(run_dir: Path) -> list[Row]:
    """The table of a run's full evaluation; of the small one where that is all there is.

    Raises:
        UpsError: the evaluation is missing or damaged.
    """
    full, small = (run_dir / "evaluation" / f"{scope}.json" for scope in ("full", "small"))
    path = full if full.exists() or not small.exists() else small
    try:
        return score_table(read_scores(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise UpsError(f"{path} is damaged ({error}); evaluate again with 'ups run --force evaluate'") from error


def poor_ensembles(table: Sequence[Row]) -> tuple[str, ...]:
    """What to say of ensembles whose mean is further from the truth than the operator alone, by a table of scores."""
    found = []
    for row in table:
        alone, mean = _cell_value(row.get("nrmse")), _cell_value(row.get("ensemble"))
        if alone is not None and mean is not None and mean > alone:
            found.append(
                f"{row['task']}: the ensemble's mean (nrmse {mean:.3g}) is further from the truth than the operator "
                f"alone ({alone:.3g}); trust its members no more than that"
            )
    return tuple(found)


def _cell_value(cell: str | None) -> float | None:
    try:
        return float(cell) if cell is not None else None
    except ValueError:
        return None  # a dash, where there is no score


def read_scores(path: Path) -> dict[str, Any]:
    """What an evaluation wrote.

    Raises:
        UpsError: the file is missing or holds no scores.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(found[part], dict) for part in ("tasks", "baselines")):
            raise ValueError("it holds no scores")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UpsError(
            f"{path} is missing or damaged ({error}); evaluate again with 'ups run --force evaluate'"
        ) from error
    return found


def _number(value: float | None) -> str:
    """Three digits, or a dash for what does not exist or could not be computed."""
    return "-" if value is None else f"{value:.3g}"
