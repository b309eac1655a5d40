"""`ups evaluate`: scores a trained run on one of its splits, or on any files of a supported layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from ups.config.data import DataSettings
from ups.config.load import load_settings
from ups.data.pdebench import open_trajectories
from ups.data.split import load_files
from ups.data.trajectories import TrajectorySet
from ups.errors import DataError, UpsError, UsageError
from ups.evaluation.evaluate import Protocol, evaluate
from ups.files import require_files
from ups.models.baselines import make_baseline
from ups.models.emulator import TaskSpec
from ups.models.simulator import Simulator
from ups.models.surrogate import EDGE, Surrogate, load
from ups.pipeline.baselines import trained_baselines
from ups.pipeline.before import require_run
from ups.pipeline.doubts import beside_solver, doubt_of
from ups.pipeline.judge import Row, score_table
from ups.pipeline.records import digest, read_record, write_json
from ups.pipeline.workspace import Workspace
from ups.runtime import Progress


def open_run(run: Path, progress: Progress, device: str | None = None) -> Workspace:
    """The workspace of a run that exists.

    Args:
        device: to compute on, `auto`, `cpu` or `cuda`; None takes the run's own.

    Raises:
        UsageError: the folder is no run.
        SettingsError: there is no such device here.
    """
    settings = load_settings(require_run(run))
    workspace = Workspace(settings if device is None else settings.model_copy(update={"device": device}), progress)
    workspace.run_dir = run
    return workspace


def evaluate_run(
    run: Path,
    files: Sequence[Path],
    split: str,
    progress: Progress,
    device: str | None = None,
    *,
    members: int | None = None,
    views: int | None = None,
) -> list[Row]:
    """Scores the run's model, persistence and the baselines that were fitted or trained beside it.

    Writes `split-<split>.json` or `files-<hash>.json` in `evaluation/`, with members and views in the name where they
    were chosen.

    Args:
        files: trajectories to score instead of the run's own; each of a task of the model.
        device: to compute on, `auto`, `cpu` or `cuda`; None takes the run's own.
        members: of the ensemble of each trajectory, where the model draws any; 0 is none, None as in the settings.
        views: of the field that a step of the model is the mean over, instead of those trained with.

    Raises:
        UsageError: there is no such run, no such file, or what is asked for is nothing that the model does.
        DataError: a file is of no task of the model, or on another grid or time step than it was trained on.
    """
    workspace = open_run(run, progress, device)
    require_files(*files)
    surrogate = load(run, workspace.device)
    simulator, some = surrogate.emulator, surrogate.tasks[0]
    manner = surrogate.manner(some, views=views)
    if members and not simulator.draws:
        raise UsageError(
            f"members: this model ('{simulator.name}') is deterministic; train the stage diff_residual for an ensemble"
        )
    sets = load_sets(files, simulator.tasks, workspace.settings.data) if files else own_split(workspace, split)
    if files:
        warn_of_overlap(workspace, sets)
        for task, given in sets.items():
            warn_of_extrapolation(simulator.tasks[task], given.params.numpy(), progress)
            doubt = doubt_of(given, beside_solver(given))
            if doubt is not None:
                progress.say(f"warning: {doubt}")
    settings = workspace.settings.evaluation
    full = settings.full
    name = "files" if files else split
    protocol = Protocol(
        name,
        full.max_samples,
        full.steps,
        settings.rollout_mode,
        settings.batch_size,
        settings.members if members is None else members,
        views=views,
    )
    if simulator.draws and protocol.members:
        warn_of_views(surrogate, views, progress)
    emulators = {
        "ups": simulator,
        "persistence": make_baseline("persistence", simulator.tasks),
        **trained_baselines(workspace, simulator.tasks),
    }
    with surrogate.switched(some, manner):  # views are those of all tasks
        found = evaluate(
            emulators, sets, protocol=protocol, device=workspace.device, progress=progress, showcases=False
        )
    place = f"files-{digest([str(path) for path in files])[:8]}" if files else f"split-{split}"
    place += "" if members is None else f"-members-{members}"
    place += "" if views is None else f"-views-{views}"
    path = run / "evaluation" / f"{place}.json"
    write_json(path, found.to_json())
    progress.say(f"scores: {path}")
    return score_table(found.to_json())


def warn_of_views(surrogate: Surrogate, views: int | None, progress: Progress) -> None:
    """Says of views that are not those trained with that members were calibrated for others; None is as trained."""
    trained = surrogate.emulator.symmetrize if isinstance(surrogate.emulator, Simulator) else views
    if views not in (None, trained):
        progress.say(
            f"views: how far members are apart was calibrated with {trained} a step; "
            f"with {views} they may be too near to each other or too far apart; "
            f"train with operator.symmetrize={views} for members that are calibrated so"
        )


def own_split(workspace: Workspace, split: str) -> dict[str, TrajectorySet]:
    """A split of the run's own data, as it was when the run was trained.

    Raises:
        UpsError: the run is not finished, or its record is damaged.
        DataError: the files have changed since, so that the split could hold trajectories that were trained on.
    """
    known = read_record(workspace.run_dir / "metadata.json").get("data_hash")
    if known is None:
        raise UpsError(
            f"{workspace.run_dir} is not finished, so that it is not known which data it was trained on; run 'ups run' "
            "on its settings again, or score files with --data"
        )
    if known != workspace.data_hash:
        raise DataError(
            f"the data files have changed since {workspace.run_dir} was trained: their {split} split may hold "
            "trajectories that were trained on; put the files back, or score other files with --data"
        )
    return workspace.splits[split]


def warn_of_overlap(workspace: Workspace, sets: Mapping[str, TrajectorySet]) -> None:
    """Says how many of the given trajectories the run was trained or chosen on."""
    known = read_record(workspace.run_dir / "data.json")
    for task, given in sets.items():
        for split, verb in (("train", "trained"), ("valid", "chosen")):
            seen = len(set(given.hashes) & set(known.get(split, {}).get(task, ())))
            if seen:
                workspace.progress.say(
                    f"warning: {seen} of {given.num} {task} trajectories are those the model was {verb} on"
                )


def warn_of_extrapolation(
    spec: TaskSpec, params: Float[np.ndarray, "trajectory parameter"], progress: Progress
) -> None:
    """Says which parameters of a file reach beyond those that the model was trained on."""
    for name, low, high, values in zip(spec.param_names, spec.param_low, spec.param_high, params.T, strict=False):
        slack = EDGE * max(abs(low), abs(high))
        if low < high and (values.min() < low - slack or values.max() > high + slack):
            progress.say(
                f"warning: {name} reaches from {values.min():g} to {values.max():g}; the model was trained on {low:g} "
                f"to {high:g}, and extrapolates beyond"
            )


def load_sets(files: Sequence[Path], tasks: Mapping[str, TaskSpec], data: DataSettings) -> dict[str, TrajectorySet]:
    """All trajectories of some files, by task of the model; a model of one task takes every file to be of that one."""
    by_task: dict[str, list[Path]] = {}
    for path in files:
        if len(tasks) == 1:
            task = next(iter(tasks))
        else:
            with open_trajectories(path) as file:
                task = file.task
        by_task.setdefault(task, []).append(path)
    sets = {}
    for task, paths in by_task.items():
        if task not in tasks:
            raise DataError(f"{paths[0]} is of the task {task}; this model knows {', '.join(tasks)}")
        sets[task] = load_files(paths, task, data.model_copy(update={"max_samples": None}))
        require_fit(tasks[task], sets[task], paths[0])
    return sets


def require_fit(spec: TaskSpec, trajectories: TrajectorySet, path: Path) -> None:
    """Refuses trajectories on another grid or time step than the model's."""
    if spec.steady:
        return  # its model says itself which grids it can solve on
    if tuple(trajectories.grid.shape) != spec.lattice:
        found, wanted = (" x ".join(map(str, shape)) for shape in (trajectories.grid.shape, spec.lattice))
        raise DataError(
            f"{path}: its grid is {found}, but the model was trained on {wanted}; give files of that resolution"
        )
    spacing = tuple(trajectories.grid.spacing)
    if not all(math.isclose(found, wanted, rel_tol=1e-3) for found, wanted in zip(spacing, spec.spacing, strict=True)):
        raise DataError(
            f"{path}: its cells are {spacing} wide, but the model was trained on {spec.spacing}; the domains differ"
        )
    for name, low, high, column in zip(
        spec.param_names, spec.param_low, spec.param_high, trajectories.params.T, strict=True
    ):
        if low == high and not torch.allclose(column, torch.full_like(column, low), rtol=1e-3):
            raise DataError(
                f"{path}: {name} reaches from {column.min():g} to {column.max():g}; the model knows {low:g} alone"
            )
    if not math.isclose(float(trajectories.dt), spec.dt, rel_tol=1e-3):
        raise DataError(
            f"{path}: its frames are {float(trajectories.dt):g} apart, but the model steps {spec.dt:g}; "
            "give files of that time step"
        )
