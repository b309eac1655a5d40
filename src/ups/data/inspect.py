"""What is in a file, for a person to read: layout, task, shapes, ranges, parameters, content hash, problems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from ups.data.identify import can_hold, candidate_tasks, read_parameters
from ups.data.layouts import AXES, Layout, find_layout
from ups.data.pdebench import TrajectoryFile, damage_named, open_hdf5, predicted_by
from ups.data.problems import BadDataError, DataProblem, bad
from ups.data.scan import FieldRange, repeated_ends, scan
from ups.physics.equations import EQUATIONS, Equation


@dataclass(frozen=True)
class CoordinateRange:
    """One coordinate: how many values, from where to where."""

    name: str
    num: int
    first: float
    last: float


@dataclass(frozen=True)
class FileSummary:
    """What `inspect_file` found.

    Args:
        path: the file.
        size: bytes on disk.
        layout: name of its layout.
        task: what it holds; None when that cannot be told.
        trainable: whether `ups` trains on this task.
        fields: names of its fields; of a steady problem, what is given and then what is sought.
        num_trajectories: how many (samples, of a steady problem).
        frames: fewest and most frames of a trajectory.
        grid: cells along each axis.
        datasets: shape of each dataset (of the first trajectory's, where each has its own group).
        coordinates: of axes and time, as they stand in the file.
        ranges: of each field's values.
        params: the values that each parameter takes, sorted.
        content_hash: of all trajectories in order.
        problems: what makes it unfit for training.
        predicted_by: what its mark says of the model that predicted it; None where it is data.
    """

    path: str
    size: int
    layout: str
    task: str | None
    trainable: bool
    fields: tuple[str, ...]
    num_trajectories: int
    frames: tuple[int, int]
    grid: tuple[int, ...]
    datasets: dict[str, tuple[int, ...]]
    coordinates: tuple[CoordinateRange, ...]
    ranges: tuple[FieldRange, ...]
    params: dict[str, tuple[float, ...]]
    content_hash: str | None
    problems: tuple[DataProblem, ...]
    predicted_by: str | None = None


def inspect_file(path: Path | str) -> FileSummary:
    """Reads a whole file once and says what is in it.

    Raises:
        DataError: missing, not HDF5, truncated, or none of the published layouts.
    """
    path = Path(path)
    with open_hdf5(path) as file:
        with damage_named(path, "its structure"):
            if (mark := predicted_by(file)) and "points" in file:
                what = f"holds predictions at {len(file['points'])} points ({mark}), which is no layout of data"
                raise bad(
                    path, what, "read it with h5py: `points` (point, axis) and every field (trajectory, time, point)"
                )
            layout = find_layout(file)
            tasks = candidate_tasks(file, layout)
            datasets = _datasets(file)
            task = tasks[0] if len(tasks) == 1 else None
            equation = EQUATIONS.get(task) if task else None
            if equation is not None and can_hold(layout, equation):
                fields, given = (tuple(one.name for one in role) for role in (equation.fields, equation.given))
                layout = replace(layout, fields=fields, given=given)
            params = _parameters(file, layout, equation) if equation else {}
        problems = [*layout.problems, _untrainable(path, tasks)] if equation is None else _training_problems(file, task)
        scanned = None if layout.problems else scan(file, layout)
        if scanned is not None:
            ends = repeated_ends(path, equation, scanned) if equation is not None else []
            problems = [*problems, *scanned.problems, *ends]
        return FileSummary(
            path=str(path),
            size=path.stat().st_size,
            layout=layout.name,
            task=task,
            trainable=equation is not None,
            fields=(*layout.given, *layout.fields),
            num_trajectories=len(layout.lengths),
            frames=(min(layout.lengths, default=0), max(layout.lengths, default=0)),
            grid=layout.grid_shape,
            datasets=datasets,
            coordinates=_coordinates(layout),
            ranges=scanned.ranges if scanned else (),
            params=params,
            content_hash=scanned.content if scanned else None,
            problems=tuple(problems),
            predicted_by=predicted_by(file),
        )


def readable(summary: FileSummary) -> dict[str, object]:
    """The summary as a person reads it: text, texts by name, or lines."""
    return {
        "path": summary.path,
        "size": _bytes(float(summary.size)),
        "layout": summary.layout,
        "task": summary.task or "unknown",
        **({"predicted by": summary.predicted_by} if summary.predicted_by else {}),
        "can be trained on": "no" if summary.problems else "yes",
        "fields": ", ".join(summary.fields),
        "trajectories": str(summary.num_trajectories),
        "frames": " to ".join(map(str, dict.fromkeys(summary.frames))),
        "grid": _shape(summary.grid),
        "datasets": {name: _shape(shape) for name, shape in summary.datasets.items()},
        "coordinates": {
            axis.name: f"{axis.first:.4g} to {axis.last:.4g} ({_count(axis.num, 'value')})"
            for axis in summary.coordinates
        },
        "ranges": {field.name: _range(field) for field in summary.ranges},
        "parameters": {name: _values(values) for name, values in summary.params.items()} or "none",
        "content hash": summary.content_hash or "not known",
        "problems": [str(problem) for problem in summary.problems] or "none",
    }


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one value"


def _count(num: int, what: str) -> str:
    return f"{num} {what}{'' if num == 1 else 's'}"


def _range(field: FieldRange) -> str:
    values = "no finite value"
    if field.low is not None:
        values = f"{field.low:.4g} to {field.high:.4g}, mean {field.mean:.4g}"
    return values + "".join(f", {num} {kind}" for num, kind in ((field.num_nan, "NaN"), (field.num_inf, "Inf")) if num)


def _values(values: tuple[float, ...]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{values[0]:.4g} to {values[-1]:.4g} ({_count(len(values), 'value')})"


def _parameters(file: h5py.File, layout: Layout, equation: Equation) -> dict[str, tuple[float, ...]]:
    """The values that each parameter takes; none where the file does not say."""
    values, problems = read_parameters(file, layout, equation)
    names = [parameter.name for parameter in equation.parameters]
    return (
        {}
        if problems
        else {name: tuple(np.unique(column).tolist()) for name, column in zip(names, values.T, strict=True)}
    )


def _untrainable(path: Path, tasks: tuple[str, ...]) -> DataProblem:
    """Why a file's task is not one that can be trained on."""
    if len(tasks) == 1:
        known = f"there are {', '.join(EQUATIONS)}"
        return DataProblem(str(path), f"cannot be trained on: its task {tasks[0]} is not supported yet", "", known)
    could = ", ".join(tasks) or "none that is known by its shapes"
    what = f"cannot be trained on: cannot tell its task (could be: {could})"
    return DataProblem(str(path), what, "", "name the task in the attribute `task`, or in the settings")


def _training_problems(file: h5py.File, task: str | None) -> list[DataProblem]:
    try:
        TrajectoryFile(file, task)
    except BadDataError as error:
        return list(error.problems)
    return []


def _datasets(file: h5py.File) -> dict[str, tuple[int, ...]]:
    """Shapes of the datasets at the top and in the first group."""
    shapes: dict[str, tuple[int, ...]] = {}
    groups = [name for name in file if isinstance(file[name], h5py.Group)]
    holders = [("", file), *((f"{name}/", file[name]) for name in groups[:1])]
    for prefix, holder in holders:

        def note(name: str, item: h5py.Group | h5py.Dataset, prefix: str = prefix) -> None:
            if isinstance(item, h5py.Dataset) and (prefix or "/" not in name):
                shapes[prefix + name] = item.shape

        holder.visititems(note)
    return shapes


def _coordinates(layout: Layout) -> tuple[CoordinateRange, ...]:
    times = None if layout.given else layout.times
    named = [*zip(AXES, layout.axes, strict=False), ("t", times)]
    return tuple(
        CoordinateRange(name, axis.size, float(axis.flat[0]), float(axis.flat[-1]))
        for name, axis in named
        if axis is not None and axis.size
    )
