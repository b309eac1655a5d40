"""`ups rollout`: predicts from the first frames of a file and writes the trajectories, on the grid or at any points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from ups.config.data import DataSettings
from ups.data.fields import centred_axes
from ups.data.pdebench import PREDICTED_BY, TrajectoryFile, open_trajectories
from ups.data.problems import BadDataError
from ups.data.trajectories import Source, not_finite, time_step
from ups.errors import UpsError, UsageError
from ups.files import write_whole
from ups.models.emulator import TaskSpec
from ups.models.surrogate import Surrogate, load
from ups.physics.equations import get_equation
from ups.pipeline.before import require_rollout
from ups.pipeline.evaluate import open_run, warn_of_extrapolation, warn_of_views
from ups.pipeline.judge import read_scores
from ups.runtime import Progress, SilentProgress

BATCH = 32


def rollout_file(
    run: Path,
    source: Path,
    steps: int,
    out: Path,
    points: Path | None,
    members: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    mode: str | None = None,
    guards: Sequence[str] | None = None,
    corrector_every: int | None = None,
    views: int | None = None,
    device: str | None = None,
) -> None:
    """Rolls the model of `run` out from the first frames of every trajectory of `source`, and writes `out`.

    The file is marked as a prediction, so that it is not taken for data, and says how it was made (`rollout_*`). On the
    grid, it holds the given frames and the predicted ones in the layout of the task's own files. At points, it holds
    the predicted frames alone: each field (trajectory, time, point), `points` (point, axis), `t-coordinate`.

    With `members`, these are the means of ensembles, and the members' predicted frames stand beside them in `members`:
    (member, trajectory, time, field, *grid) or (member, trajectory, time, field, point).

    Args:
        progress: told after every batch of trajectories.
        mode: `latent` or `physical`; None is as the run was evaluated.
        guards: instead of those that the model was trained with; () is none of them.
        corrector_every: steps between corrections of an ensemble's members, instead of those trained with.
        views: that a step is the mean over, instead of those trained with, for which members were calibrated.
        device: to compute on, `auto`, `cpu` or `cuda`; None takes the run's own.

    Raises:
        UsageError: there is no such run or file, `out` exists, or what is asked for is nothing that the model does.
        UpsError: the file does not fit the model, or `out` cannot be written.
    """
    require_rollout(run, source, out, points)
    where = None if points is None else read_points(points)
    workspace = open_run(run, SilentProgress(), device)
    evaluated = workspace.settings.evaluation.rollout_mode
    surrogate, progress = load(run, workspace.device), progress or SilentProgress()
    only = surrogate.tasks[0] if len(surrogate.tasks) == 1 else None
    with open_trajectories(source, only, min_frames=1, predictions=True) as file:
        kept = thinned(surrogate, file, workspace.settings.data)
        spec, axes = matching_spec(surrogate, kept)
        warn_of_extrapolation(spec, file.params, progress)
        mode = mode or (None if spec.steady else evaluated)
        manner = surrogate.manner(spec.name, mode=mode, guards=guards, corrector_every=corrector_every, views=views)
        if members:
            warn_of_views(surrogate, views, progress)
        predictions, context = [], first_frames(kept, spec.context)
        warn_of_the_unknown(run, spec, context, steps, progress)
        together = max(1, BATCH // (members or 1))
        progress.start("roll out", float(file.num_trajectories), "trajectories")
        for first in range(0, file.num_trajectories, together):
            part = slice(first, first + together)
            params = {name: file.params[part, column].tolist() for column, name in enumerate(spec.param_names)}
            predictions.append(
                surrogate.rollout(
                    torch.from_numpy(context[part]),
                    steps,
                    params,
                    task=spec.name,
                    points=where,
                    members=members,
                    seed=seed + first,
                    mode=mode,
                    guards=guards,
                    corrector_every=corrector_every,
                    views=views,
                    extrapolate=True,  # a file's parameters are what they are
                ).cpu()
            )
            progress.update(float(min(first + together, file.num_trajectories)))
        progress.finish(f"{steps} step{'s' if steps > 1 else ''}{f', {members} members' if members else ''}")
        times = float(file.times[0]) + spec.dt * np.arange(spec.context + steps)
        parameters = {p.keys[0]: file.params[:, i] for i, p in enumerate(get_equation(spec.name).parameters)}
    drawn = None if members is None else torch.cat(predictions, dim=1)
    predicted = torch.cat(predictions) if drawn is None else drawn.mean(dim=0)
    with h5py.File(out.name, "w", driver="core", backing_store=False) as target:  # in memory: a full disk meets bytes
        target.attrs["task"] = spec.name
        target.attrs[PREDICTED_BY] = f"run {run.resolve().name}, {steps} steps from {source.name}"
        mark_manner(target, manner, members, seed)
        for name, values in parameters.items():
            target.attrs[name] = values[0] if np.all(values == values[0]) else values
        if spec.steady:
            write_steady(target, context[:, 0, 0], predicted[:, 0, 0].numpy(), axes)
        elif where is None:
            write_grid(target, spec, np.concatenate([context, predicted.numpy()], axis=1), axes, times)
        else:
            write_points(target, spec, predicted, where, times[spec.context :])
        if drawn is not None:
            target["members"] = drawn.numpy()
        target.flush()
        write_whole(out, target.id.get_file_image())


FAR = 10.0
"""Standard deviations of the training data that given fields may be away from their mean, root mean square; on
published files, those that decay begin at up to four."""


def warn_of_the_unknown(
    run: Path,
    spec: TaskSpec,
    context: Float32[np.ndarray, "trajectory time channel *grid"],
    steps: int,
    progress: Progress,
) -> None:
    """Says what no score of the run speaks for: more steps than were scored, and fields much larger than trained on."""
    scores = run / "evaluation" / "full.json"
    scored = read_scores(scores)["details"][spec.name]["steps"] if scores.exists() and not spec.steady else steps
    if steps > scored:
        progress.say(f"warning: the run was scored over {scored} steps; of the other {steps - scored} nothing is known")
    by_channel = np.moveaxis(context.astype(np.float64), 2, -1)
    away = (by_channel - np.array(spec.given_mean or spec.mean)) / np.array(spec.given_std or spec.std)
    far = np.sqrt(np.square(away).reshape(len(away), -1, away.shape[-1]).mean(axis=1))
    if far.max() > FAR:
        trajectory, channel = np.unravel_index(far.argmax(), far.shape)
        name = (spec.given or spec.fields)[channel]
        progress.say(
            f"warning: {(far > FAR).any(axis=1).sum()} of {len(far)} trajectories begin far from the training data "
            f"({name} of trajectory {trajectory} by {far.max():.3g} standard deviations): nothing is known there"
        )


def mark_manner(target: h5py.File, manner: Mapping[str, Any], members: int | None, seed: int) -> None:
    """Says in attributes how predictions were made: what would have to be asked for to make them again."""
    told = {name: ", ".join(value) if name == "guards" else value for name, value in manner.items()}
    if members is None:
        told.pop("corrector_every", None)
    else:
        told |= {"members": members, "seed": seed}
    for name, value in told.items():
        target.attrs[f"rollout_{name}"] = value


def read_points(path: Path) -> np.ndarray:
    """Coordinates (point, axis) from a `.npy` file; nothing in it is unpickled."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} holds no array of points; write one with numpy.save") from error
    if (
        not isinstance(values, np.ndarray)
        or values.ndim not in (1, 2)
        or values.size == 0
        or values.dtype.kind not in "fiu"
    ):
        raise UsageError(f"{path} holds no array (points, axes) of coordinates; write one with numpy.save")
    if not np.isfinite(values).all():
        raise UsageError(f"{path} holds coordinates that are NaN or infinite")
    return values.astype(np.float64)


def thinned(surrogate: Surrogate, file: TrajectoryFile, data: DataSettings) -> Source:
    """All trajectories of a file, thinned as the run's own data were where it does not fit the model as it is.

    Raises:
        UpsError: the model was not trained on the file's task.
    """
    spec, shape = surrogate.spec(file.task), tuple(file.grid.shape)
    strides, stride = (1,) * len(shape), 1
    if data.resolution and not surrogate.emulator.takes_grid(shape, spec):
        coarse = tuple(size // data.resolution for size in shape if size % data.resolution == 0)
        strides = coarse if len(coarse) == len(shape) else strides
    if len(file.times) > 1 and math.isclose(data.time_stride * time_step(file), spec.dt, rel_tol=1e-3):
        stride = data.time_stride
    return Source(file, np.arange(file.num_trajectories), stride, strides)


def first_frames(kept: Source, num: int) -> Float32[np.ndarray, "trajectory time channel *grid"]:
    """The first frames that are kept of every trajectory.

    Raises:
        UpsError: a trajectory has fewer.
        BadDataError: values are not finite.
    """
    file, numbers = kept.file, np.arange(kept.file.num_trajectories)
    short = int(kept.lengths.argmin())
    if kept.lengths[short] < num:
        every = f" of those {kept.time_stride} apart" if kept.time_stride > 1 else ""
        raise UpsError(
            f"{file.path}: {file.place(short)} has {kept.lengths[short]} frame(s){every}, but the model is given {num}"
        )
    frames = file.read(numbers, 0, (num - 1) * kept.time_stride + 1, kept.time_stride)
    problems = not_finite(file, numbers, frames, kept.time_stride)
    if problems:
        raise BadDataError(problems)
    return kept.thin(frames)


def matching_spec(surrogate: Surrogate, kept: Source) -> tuple[TaskSpec, tuple[np.ndarray, ...]]:
    """The task of the model that a file belongs to, and the axes of what is kept of the file.

    Raises:
        UpsError: the model was trained on another grid or time step.
    """
    file = kept.file
    spec = surrogate.spec(file.task)
    grid = file.grid.subsample(kept.space_strides, centred_axes(file.equation))
    if not surrogate.emulator.takes_grid(tuple(grid.shape), spec):
        found, wanted = (" x ".join(map(str, shape)) for shape in (grid.shape, spec.lattice))
        advice = surrogate.emulator.grid_advice(spec)
        raise UpsError(f"{file.path}: its grid is {found}, but the model was trained on {wanted}; {advice}")
    spacing = tuple(grid.spacing)
    if tuple(grid.shape) == spec.lattice and not np.allclose(spacing, spec.spacing, rtol=1e-3):
        found, wanted = (" x ".join(f"{step:g}" for step in steps) for steps in (spacing, spec.spacing))
        raise UpsError(
            f"{file.path}: its cells are {found} wide, but the model was trained on {wanted}; give one of that domain"
        )
    dt = kept.time_stride * time_step(file) if len(file.times) > 1 else math.nan
    if (spec.context > 1 or math.isfinite(dt)) and not spec.steady and not math.isclose(dt, spec.dt, rel_tol=1e-3):
        raise UpsError(
            f"{file.path}: its frames are {dt:g} apart, but the model steps {spec.dt:g}; give a file of that time step"
            + ("" if spec.context > 1 else ", or one that holds first frames alone")
        )
    return spec, grid.axes


def write_grid(
    target: h5py.File, spec: TaskSpec, frames: np.ndarray, axes: tuple[np.ndarray, ...], times: np.ndarray
) -> None:
    """Frames (trajectory, time, channel, *grid) in the layout of PDEBench's files of as many dimensions."""
    names = "xyz"[: len(axes)]
    if spec.axes == 1:
        target["tensor"] = frames[:, :, 0]
        target["x-coordinate"], target["t-coordinate"] = axes[0].astype(np.float32), times.astype(np.float32)
        return
    for number, trajectory in enumerate(np.moveaxis(frames, 2, -1)):
        group = target.create_group(f"{number:04d}")
        group["data"] = trajectory
        for name, axis in zip(names, axes, strict=True):
            group[f"grid/{name}"] = axis.astype(np.float32)
        group["grid/t"] = times.astype(np.float32)


def write_steady(target: h5py.File, given: np.ndarray, sought: np.ndarray, axes: tuple[np.ndarray, ...]) -> None:
    """What was given and what was found, each (sample, *grid), in the layout of PDEBench's steady problems."""
    target["nu"], target["tensor"] = given, sought[:, None]
    for name, axis in zip("xyz", axes, strict=False):
        target[f"{name}-coordinate"] = axis.astype(np.float32)


def write_points(target: h5py.File, spec: TaskSpec, values: Tensor, where: np.ndarray, times: np.ndarray) -> None:
    """Each field (trajectory, time, point) with the points' coordinates."""
    for channel, name in enumerate(spec.fields):
        target[name] = values[:, :, channel].numpy()
    target["points"] = where.reshape(-1, spec.axes)
    target["t-coordinate"] = times.astype(np.float32)
