"""Everything that can be known to be wrong before training: folders, data, and one batch through every stage."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ups.data.files import survey_files
from ups.data.problems import BadDataError, DataProblem
from ups.data.validate import FileCheck, check_file
from ups.errors import UpsError
from ups.pipeline.check_report import CheckReport, Folder, Memory, Problem, TaskReport
from ups.pipeline.doubts import beside_solver, doubt_of
from ups.pipeline.dry_run import Trial, dry_run, memory_there
from ups.pipeline.plan import memory_remedies
from ups.pipeline.records import leaderboard_of
from ups.pipeline.threads import settle_threads
from ups.pipeline.workspace import Workspace

SPACE_NEEDED = 50 * 2**20  # bytes beside checkpoints, models and cached latents: evaluations, fields, log and report

MEND = "change the setting it names"


class ChecksFailed(UpsError):
    """The checks found problems; the message lists every one."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__("\n".join([f"the checks found {count}", *(f"  {problem}" for problem in problems)]))


def check_everything(workspace: Workspace) -> CheckReport:
    """Every problem of a run's folder and data; where there is none, those of a dry run of every stage."""
    timings = workspace.timings
    with timings.part("check: folder"):
        folder = find_folder(workspace)
        problems = [*_sink_problems(workspace), *_folder_problems(folder), *_place_problems(workspace)]
    with timings.part("check: data"):
        files, wrong = check_files(workspace)
    if not wrong:
        wrong = [*_split_problems(workspace)]
    with timings.part("check: reference solver"):
        tasks = _tasks(workspace, files, whole=not wrong)
    report = CheckReport(str(workspace.run_dir), (*problems, *wrong), folder, tasks)
    if report.problems:
        return report
    try:
        with timings.part("check: threads"):
            settle_threads(workspace)
        with timings.part("check: dry run"):
            trials, failed = dry_run(workspace)
    except UpsError as error:
        trials, failed = (), [str(error)]
    wrong = [Problem("model", "dry run", one, MEND) for one in failed]
    needed = _space_needed(workspace, trials)
    memory = Memory(max((one.memory_bytes for one in trials), default=0), memory_there(workspace.device))
    report = replace(report, trainings=trials, memory=memory, folder=replace(folder, needed=needed))
    more = (*_folder_problems(report.folder), *_memory_problems(workspace, memory, trials))
    return replace(report, problems=(*wrong, *more))


def find_folder(workspace: Workspace) -> Folder:
    """Where the run is written, or would be: the first folder above that exists."""
    place, writable = _nearest(workspace.run_dir)
    return Folder(str(place), writable, shutil.disk_usage(place).free, SPACE_NEEDED)


def _nearest(place: Path) -> tuple[Path, bool]:
    """The place, or the first that exists of those above it; and whether it is a folder that can be written to."""
    while not place.exists():
        place = place.parent
    return place, place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def check_files(workspace: Workspace) -> tuple[dict[str, list[FileCheck]], list[Problem]]:
    """Every file of every task, read whole, and what is wrong with them."""
    files, found = survey_files(workspace.settings.data)
    checked = {task: [check_file(path, task) for path in of.all] for task, of in files.items()}
    found += [problem for of in checked.values() for one in of for problem in one.problems]
    return checked, [_as_problem(problem) for problem in found]


def _sink_problems(workspace: Workspace) -> Iterator[Problem]:
    for name, what in workspace.settings.logging.missing().items():
        yield Problem("settings", name, "cannot be tracked", what)


def _folder_problems(folder: Folder) -> Iterator[Problem]:
    if not folder.writable:
        yield Problem("folder", folder.path, "is not a folder that can be written to", "choose another with runs_dir")
    elif folder.free < folder.needed:
        megabytes = f"{folder.free / 2**20:.0f} MiB are free, a run needs {folder.needed / 2**20:.0f}"
        yield Problem("folder", folder.path, megabytes, "free space, or choose another with runs_dir")


def _place_problems(workspace: Workspace) -> Iterator[Problem]:
    """What is wrong with the places beside the run's folder that it would write to much later."""
    settings = workspace.settings
    board = leaderboard_of(settings).path
    cache = settings.training.latent_cache_dir
    places = {
        "gates.leaderboard": board.parent if settings.gates.leaderboard else None,  # else it is in runs_dir
        "training.latent_cache_dir": Path(cache) if cache else None,
    }
    for name, place in places.items():
        if place is not None and not _nearest(place)[1]:
            yield Problem("folder", f"{name}: {place}", "is no folder that can be written to", f"choose another {name}")
    if not board.exists():
        return
    if not os.access(board, os.W_OK):
        yield Problem("folder", str(board), "the leaderboard cannot be written to", "choose another gates.leaderboard")
        return
    try:
        leaderboard_of(settings).reigns()
    except UpsError as error:
        yield Problem("folder", str(board), str(error), "move it away, or choose another gates.leaderboard")


def _split_problems(workspace: Workspace) -> Iterator[Problem]:
    """What is wrong with the files together, and with the splits: a trajectory in two of them, too few, no spread."""
    try:
        _ = workspace.splits, workspace.specs
    except BadDataError as error:
        yield from (_as_problem(problem) for problem in error.problems)


def _memory_problems(workspace: Workspace, memory: Memory, trials: tuple[Trial, ...]) -> Iterator[Problem]:
    if memory.available is not None and memory.needed > memory.available:
        largest = max(trials, key=lambda one: one.memory_bytes)
        what = f"{memory.needed / 2**30:.1f} GiB are needed, {memory.available / 2**30:.1f} can be had"
        remedies = memory_remedies(workspace.settings, largest.name, largest.batch_size)
        yield Problem("memory", largest.name, what, f"any of these needs less: {'; '.join(remedies)}")


def _tasks(workspace: Workspace, files: dict[str, list[FileCheck]], *, whole: bool) -> dict[str, TaskReport]:
    """What is known of the data of every task; splits and statistics where they could be made."""
    if not whole:
        return {task: TaskReport(tuple(of)) for task, of in files.items()}
    found = {task: beside_solver(train) for task, train in workspace.splits["train"].items()}
    return {
        task: TaskReport(
            tuple(of),
            splits={split: sets[task].num for split, sets in workspace.splits.items() if task in sets},
            spec=workspace.specs[task],
            agreement=found[task],
            doubt=doubt_of(workspace.splits["train"][task], found[task]),
        )
        for task, of in files.items()
    }


def _space_needed(workspace: Workspace, trials: tuple[Trial, ...]) -> int:
    """Bytes of a whole run: checkpoints (one more than are kept while one is written), models, cached latents."""
    kept = workspace.settings.training.keep_checkpoints + 1
    models = max((one.model_bytes for one in trials), default=0)
    each = sum(kept * one.checkpoint_bytes + one.model_bytes for one in trials)
    return SPACE_NEEDED + each + models + _latents_bytes(workspace)


def _latents_bytes(workspace: Workspace) -> int:
    """Bytes of the cache of latents, where there is one: as many values as the train frames, or fewer."""
    if workspace.settings.training.latent_cache_dir is None:
        return 0
    width = 4 if workspace.settings.training.latent_cache_dtype == "float32" else 2
    return sum(
        int(train.lengths.sum()) * len(train.equation.fields) * math.prod(train.grid.shape) * width
        for train in workspace.splits["train"].values()
    )


def _as_problem(problem: DataProblem) -> Problem:
    return Problem(
        "data", problem.file, f"{problem.what} ({problem.where})" if problem.where else problem.what, problem.remedy
    )
