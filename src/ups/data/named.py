"""The files that settings name, and whether they are there: told without opening any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ups.config.data import DataSettings
from ups.config.kinds import Files
from ups.data.problems import BadDataError, DataProblem, bad

SEARCHED = "set data.root and data.files, or make data with `ups data make`"
"""What to do where a folder that is searched for data has none."""


def is_named_hdf5(path: Path) -> bool:
    """Whether a file's name ends as those of HDF5 files do; a folder is searched for such."""
    return path.suffix.lower() in (".h5", ".hdf5")


def of_tasks(data: DataSettings, files: Files) -> Mapping[str, tuple[str, ...]]:
    """The names of each task's files."""
    return files if isinstance(files, Mapping) else {data.task[0]: files}


def expand_each(root: Path, names: Iterable[str]) -> tuple[tuple[Path, ...], list[DataProblem]]:
    """The paths of as many names as there are any of, each once, and why there are none of others; see `expand`."""
    paths: list[Path] = []
    problems: list[DataProblem] = []
    for name in dict.fromkeys(names):
        try:
            paths += expand(root, name)
        except BadDataError as error:
            problems += error.problems
    return tuple(dict.fromkeys(paths)), problems


def expand(root: Path, name: str) -> list[Path]:
    """The paths of a name relative to `root`, which may hold `*`, `?` or `[...]`.

    Raises:
        DataError: nothing matches a pattern, or the name begins with `root` itself.
    """
    if not any(sign in name for sign in "*?["):
        if not (root / name).exists() and Path(name).is_relative_to(root) and Path(name).exists():
            inside = Path(name).relative_to(root)
            raise bad(root / name, "no such file", f"names are relative to data.root, {root}: write {inside}")
        return [root / name]
    found = sorted(root.glob(name))
    if not found:
        raise bad(root / name, "no file matches", "check data.root and data.files")
    return found


def missing_files(data: DataSettings) -> list[DataProblem]:
    """What the settings name and is not there: files, patterns without a match, or the folder that is searched.

    Files that are made where they are absent (`data.generate`) are not missing.
    """
    if data.generate is not None:
        return []
    root, split = Path(data.root), data.split
    given = (data.files, split.train_files, split.valid_files, split.test_files)
    names = [name for files in given if files is not None for of in of_tasks(data, files).values() for name in of]
    if not names and not root.is_dir():
        return [DataProblem(str(root), "no such folder", "", SEARCHED)]
    paths, problems = expand_each(root, names)
    remedy = f"check its name; names are relative to data.root, {root}; `ups data make` makes files"
    return [*problems, *(DataProblem(str(path), "no such file", "", remedy) for path in paths if not path.exists())]
