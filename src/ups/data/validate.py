"""Finds everything that makes data unfit for training: in one file, and between the files that the settings name."""

from __future__ import annotations

from pathlib import Path

import h5py

from ups.config.data import DataSettings
from ups.data.files import find_files
from ups.data.layouts import find_layout
from ups.data.pdebench import TrajectoryFile, damage_named, open_hdf5
from ups.data.problems import BadDataError, DataProblem
from ups.data.scan import scan
from ups.data.split import load_splits

__all__ = ["DataProblem", "find_data_problems", "find_problems"]


def find_problems(path: Path | str, task: str | None) -> list[DataProblem]:
    """Every problem of one file: of its structure, and of its values where the structure lets them be read.

    Args:
        path: the HDF5 file.
        task: what it should hold; None infers it.
    """
    try:
        with open_hdf5(Path(path)) as file:
            return _problems_of(file, task)
    except BadDataError as error:
        return list(error.problems)


def find_data_problems(data: DataSettings) -> list[DataProblem]:
    """Every problem of the data that the settings name: of each file, then of the files together and of the splits."""
    try:
        files = find_files(data)
    except BadDataError as error:
        return list(error.problems)
    problems = [problem for task, of in files.items() for path in of.all for problem in find_problems(path, task)]
    if problems:
        return problems
    try:
        load_splits(data)
    except BadDataError as error:
        return list(error.problems)
    return []


def _problems_of(file: h5py.File, task: str | None) -> list[DataProblem]:
    problems: list[DataProblem] = []
    path = Path(file.filename)
    with damage_named(path, "its structure"):
        layout = find_layout(file)
    try:
        TrajectoryFile(file, task)
    except BadDataError as error:
        problems += error.problems
    if not layout.problems:
        problems += scan(file, layout).problems
    return problems
