"""Finds everything that makes data unfit for training: in one file, and between the files that the settings name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import h5py

from ups.config.data import DataSettings
from ups.data.files import survey_files
from ups.data.identify import can_hold
from ups.data.layouts import find_layout
from ups.data.pdebench import TrajectoryFile, damage_named, open_hdf5
from ups.data.problems import BadDataError, DataProblem
from ups.data.scan import FieldRange, repeated_ends, scan
from ups.data.split import load_splits
from ups.physics.equations import EQUATIONS

__all__ = ["DataProblem", "FileCheck", "check_file", "find_data_problems", "find_problems"]


@dataclass(frozen=True)
class FileCheck:
    """What one file holds, as far as it can be read, and everything that is wrong with it.

    Args:
        path: the file.
        size: bytes on disk.
        trajectories: how many (samples, of a steady problem).
        frames: fewest and most frames of a trajectory.
        grid: cells along each axis.
        ranges: of each field's values, NaN and Inf counted.
        params: lowest and highest value of each PDE parameter.
        content_hash: of all trajectories in order; None where they cannot be read.
        problems: what makes it unfit for training.
    """

    path: str
    size: int = 0
    trajectories: int = 0
    frames: tuple[int, int] = (0, 0)
    grid: tuple[int, ...] = ()
    ranges: tuple[FieldRange, ...] = ()
    params: dict[str, tuple[float, float]] | None = None
    content_hash: str | None = None
    problems: tuple[DataProblem, ...] = ()


def check_file(path: Path | str, task: str | None) -> FileCheck:
    """Reads one file whole: its structure, and its values where the structure lets them be read.

    Args:
        path: the HDF5 file.
        task: what it should hold; None infers it.
    """
    try:
        with open_hdf5(Path(path)) as file:
            return _check(file, task)
    except BadDataError as error:
        return FileCheck(str(path), problems=error.problems)


def find_problems(path: Path | str, task: str | None) -> list[DataProblem]:
    """Every problem of one file, see `check_file`."""
    return list(check_file(path, task).problems)


def find_data_problems(data: DataSettings) -> list[DataProblem]:
    """Every problem of the data that the settings name: of each file, then of the files together and of the splits."""
    files, problems = survey_files(data)
    problems += [problem for task, of in files.items() for path in of.all for problem in find_problems(path, task)]
    if problems:
        return problems
    try:
        load_splits(data)
    except BadDataError as error:
        return list(error.problems)
    return []


def _check(file: h5py.File, task: str | None) -> FileCheck:
    path = Path(file.filename)
    with damage_named(path, "its structure"):
        layout = find_layout(file)
    found = FileCheck(
        str(path),
        size=path.stat().st_size,
        trajectories=len(layout.lengths),
        frames=(min(layout.lengths, default=0), max(layout.lengths, default=0)),
        grid=layout.grid_shape,
    )
    problems: list[DataProblem] = []
    equation = EQUATIONS.get(task) if task else None
    try:
        trajectories = TrajectoryFile(file, task)
        equation = trajectories.equation
        columns = zip(equation.parameters, trajectories.params.T, strict=True)
        found = replace(found, params={one.name: (float(of.min()), float(of.max())) for one, of in columns})
    except BadDataError as error:
        problems += error.problems
    if not layout.problems:
        if equation is not None and can_hold(layout, equation):
            layout = replace(layout, fields=tuple(field.name for field in equation.fields))
        scanned = scan(file, layout)
        problems += scanned.problems
        if equation is not None:
            problems += repeated_ends(path, equation, scanned)
        found = replace(found, ranges=scanned.ranges, content_hash=scanned.content)
    return replace(found, problems=tuple(problems))
