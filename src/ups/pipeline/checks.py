"""Everything that can be known to be wrong before training: folders, data, and one batch through every stage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from ups.data.files import find_files
from ups.data.problems import BadDataError, DataProblem
from ups.data.validate import find_problems
from ups.errors import UpsError
from ups.pipeline.dry_run import dry_run
from ups.pipeline.workspace import Workspace

SPACE_NEEDED = 200 * 2**20  # bytes: checkpoints, model and report of a run at default sizes, with room to spare


@dataclass(frozen=True)
class Problem:
    """One thing that would stop or spoil a run.

    Args:
        kind: `folder`, `data` or `model`.
        where: the file, folder or setting it is in.
        what: what is wrong.
        remedy: what to do about it.
    """

    kind: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


class ChecksFailed(UpsError):
    """The checks found problems; the message lists every one."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__("\n".join([f"the checks found {count}", *(f"  {problem}" for problem in problems)]))


def find_all_problems(workspace: Workspace) -> list[Problem]:
    """Every problem of a run's folder and data; where there is none, those of a dry run of every stage."""
    sinks = [
        Problem("settings", name, "cannot be tracked", what)
        for name, what in workspace.settings.logging.missing().items()
    ]
    problems = [*sinks, *_folder_problems(workspace), *_data_problems(workspace)]
    if problems:
        return problems
    try:
        dry_run(workspace)
    except UpsError as error:
        return [Problem("model", "dry run", str(error), "change the setting it names")]
    return []


def _folder_problems(workspace: Workspace) -> Iterator[Problem]:
    place = workspace.run_dir
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Problem("folder", str(place), "is not a folder that can be written to", "choose another with runs_dir")
    elif (free := shutil.disk_usage(place).free) < SPACE_NEEDED:
        megabytes = f"{free / 2**20:.0f} MiB are free, a run needs {SPACE_NEEDED / 2**20:.0f}"
        yield Problem("folder", str(place), megabytes, "free space, or choose another with runs_dir")


def _data_problems(workspace: Workspace) -> list[Problem]:
    """Every problem of every file; where there is none, those of the files together and of the splits."""
    try:
        files = find_files(workspace.settings.data)
        found = [problem for task, of in files.items() for path in of.all for problem in find_problems(path, task)]
        if not found:
            _ = workspace.splits, workspace.specs
    except BadDataError as error:
        found = list(error.problems)
    return [_as_problem(problem) for problem in found]


def _as_problem(problem: DataProblem) -> Problem:
    return Problem(
        "data", problem.file, f"{problem.what} ({problem.where})" if problem.where else problem.what, problem.remedy
    )
