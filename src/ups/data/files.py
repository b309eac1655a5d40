"""Which files the settings name, for each task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py

from ups.config.data import DataSettings
from ups.data.named import SEARCHED, expand_each, is_named_hdf5, of_tasks
from ups.data.pdebench import possible_tasks, predicted_by
from ups.data.problems import BadDataError, DataProblem, raise_if_any
from ups.physics.equations import get_equation


@dataclass(frozen=True)
class TaskFiles:
    """The files of one task: together, to be cut by fractions, or named for each split.

    Args:
        together: files whose trajectories are shared out over the splits.
        by_split: files of each split, where the settings name them so.
    """

    together: tuple[Path, ...] = ()
    by_split: tuple[tuple[str, tuple[Path, ...]], ...] = ()

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file, each once."""
        named = (path for _, paths in self.by_split for path in paths)
        return tuple(dict.fromkeys([*self.together, *named]))


def find_files(data: DataSettings) -> dict[str, TaskFiles]:
    """The files of every task. A name may hold `*`, `?` or `[...]`; without names, the root folder is searched.

    Raises:
        UsageError: there is no equation of a task's name.
        DataError: a pattern without a match, a root folder that is missing or holds no file of a task; all are listed.
    """
    found, problems = survey_files(data)
    raise_if_any(problems)
    return found


def survey_files(data: DataSettings) -> tuple[dict[str, TaskFiles], list[DataProblem]]:
    """As many of the files of every task as can be told, and why others cannot, see `find_files`.

    Raises:
        UsageError: there is no equation of a task's name.
    """
    for task in data.task:
        get_equation(task)
    root = Path(data.root)
    problems: list[DataProblem] = []

    def expanded(names: tuple[str, ...]) -> tuple[Path, ...]:
        paths, wrong = expand_each(root, names)
        problems.extend(problem for problem in wrong if problem not in problems)
        return paths

    if data.split.by_files:
        chosen = {"train": data.split.train_files, "valid": data.split.valid_files, "test": data.split.test_files}
        named = {split: of_tasks(data, files) for split, files in chosen.items() if files is not None}
        by_split = {
            task: TaskFiles(by_split=tuple((split, expanded(of[task])) for split, of in named.items()))
            for task in data.task
        }
        return by_split, problems
    if data.files is not None:
        return {task: TaskFiles(expanded(names)) for task, names in of_tasks(data, data.files).items()}, problems
    searched, problems = _search(root, data.task)
    return {task: TaskFiles(paths) for task, paths in searched.items()}, problems


def is_prediction(path: Path) -> bool:
    """Whether a file is marked as what a model predicted; one that cannot be read is not."""
    try:
        with h5py.File(path) as file:
            return predicted_by(file) is not None
    except OSError:
        return False


def _search(root: Path, tasks: tuple[str, ...]) -> tuple[dict[str, tuple[Path, ...]], list[DataProblem]]:
    """Every HDF5 file of the folder whose task is one of those asked for; predictions are no data."""
    if not root.is_dir():
        return {}, [DataProblem(str(root), "no such folder", "", SEARCHED)]
    paths = sorted(path for path in root.iterdir() if is_named_hdf5(path) and not is_prediction(path))
    if not paths:
        return {}, [DataProblem(str(root), "holds no HDF5 file", "", SEARCHED)]
    found: dict[str, list[Path]] = {task: [] for task in tasks}
    problems: list[DataProblem] = []
    for path in paths:
        try:
            possible = possible_tasks(path)
        except BadDataError as error:
            problems += error.problems
            continue
        wanted = [task for task in possible if task in tasks]
        if len(possible) == 1 and wanted:
            found[wanted[0]].append(path)
        elif wanted:
            what = f"cannot tell its task (could be: {', '.join(possible)})"
            problems.append(DataProblem(str(path), what, "", "name the files of each task in data.files"))
    problems += [DataProblem(str(root), f"holds no file of {task}", "", SEARCHED) for task in tasks if not found[task]]
    return {task: tuple(paths) for task, paths in found.items()}, problems
