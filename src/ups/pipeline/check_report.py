"""What the checks of a run found: problems, and the figures of its data and of its dry run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # wrong settings are told of without PyTorch
    from ups.data.validate import FileCheck
    from ups.models.emulator import TaskSpec
    from ups.physics.solvers.agreement import Agreement
    from ups.pipeline.dry_run import Trial

SCHEMA = 1

Row = dict[str, str]


@dataclass(frozen=True)
class Problem:
    """One thing that would stop or spoil a run.

    Args:
        kind: `settings`, `folder`, `data`, `model` or `memory`.
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


@dataclass(frozen=True)
class Folder:
    """Where a run is written: whether it can be, and bytes that are free there and that the run needs."""

    path: str
    writable: bool
    free: int
    needed: int


@dataclass(frozen=True)
class Memory:
    """Bytes that the largest training takes, estimated, and that can be had; None where the system does not say."""

    needed: int
    available: int | None


@dataclass(frozen=True)
class TaskReport:
    """The data of one task.

    Args:
        files: each read whole.
        splits: trajectories of each; empty where they were not made.
        spec: what a model is told of it: grid, time step, statistics of the train split; None without splits.
        agreement: the reference solver beside the first frames of some; or why there is none; None where there was
            nothing to look at.
        doubt: what speaks by that against the data being of their equation; None where nothing does.
    """

    files: tuple[FileCheck, ...]
    splits: dict[str, int] = field(default_factory=dict)
    spec: TaskSpec | None = None
    agreement: Agreement | str | None = None
    doubt: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; the problems of files are listed elsewhere."""
        files = [{name: value for name, value in asdict(one).items() if name != "problems"} for one in self.files]
        found: dict[str, Any] = {"files": files, "splits": self.splits}
        if self.spec is None:
            nothing = ("in_two_splits", "statistics", "agreement", "no_agreement")
            return {**found, **dict.fromkeys(nothing)}
        spec, agreement = self.spec, self.agreement
        fields = zip(spec.fields, spec.mean, spec.std, strict=True)
        params = zip(spec.param_names, spec.param_low, spec.param_high, strict=True)
        return {
            **found,
            "in_two_splits": 0,  # or it would be a problem, and there were no splits
            "grid": list(spec.lattice),
            "time_step": None if spec.steady else spec.dt,
            "statistics": {name: {"mean": mean, "std": std} for name, mean, std in fields},
            "parameters": {name: {"low": low, "high": high} for name, low, high in params},
            "agreement": as_json(agreement),
            "no_agreement": agreement if isinstance(agreement, str) else None,
        }

    def __str__(self) -> str:
        if self.spec is None:
            return f"{len(self.files)} file{'s' if len(self.files) != 1 else ''}"
        splits = ", ".join(f"{num} {split}" for split, num in self.splits.items())
        values = ", ".join(
            f"{name} {mean:.3g} +- {std:.3g}"
            for name, mean, std in zip(self.spec.fields, self.spec.mean, self.spec.std, strict=True)
        )
        grid = " x ".join(map(str, self.spec.lattice))
        follows = "" if self.agreement is None else f"; {in_words(self.agreement)}"
        return f"trajectories {splits}, none in two of them; grid {grid}; {values}{follows}"


@dataclass(frozen=True)
class CheckReport:
    """What the checks found.

    Args:
        run_dir: folder of the run that was checked.
        problems: all that would stop or spoil it.
        folder: where it is written.
        data: by task.
        trainings: the dry run of every stage and baseline; empty where problems kept it from being made.
        memory: of the trainings.
    """

    run_dir: str
    problems: tuple[Problem, ...]
    folder: Folder
    data: dict[str, TaskReport]
    trainings: tuple[Trial, ...] = ()
    memory: Memory | None = None

    @property
    def doubts(self) -> tuple[str, ...]:
        """What does not stop a run and should be known before it."""
        return tuple(filter(None, (of.doubt for of in self.data.values())))

    def to_json(self) -> dict[str, Any]:
        """What `ups check --json` prints; bytes and seconds, null where something is not known."""
        memory, folder = self.memory, self.folder
        known = [one.seconds for one in self.trainings if one.seconds is not None]
        beside = [one.validation_seconds for one in self.trainings if one.validation_seconds is not None]
        whole = self.trainings and len(known) == len(self.trainings)
        return {
            "schema_version": SCHEMA,
            "passed": not self.problems,
            "problems": [asdict(problem) for problem in self.problems],
            "doubts": list(self.doubts),
            "run_dir": self.run_dir,
            "folder": {
                "path": folder.path,
                "writable": folder.writable,
                "disk_free_bytes": folder.free,
                "disk_needed_bytes": folder.needed,
            },
            "data": {task: of.to_json() for task, of in self.data.items()},
            "dry_run": [asdict(one) for one in self.trainings],
            "memory": {
                "needed_bytes": None if memory is None else memory.needed,
                "available_bytes": None if memory is None else memory.available,
            },
            "training_seconds": sum(known) if whole else None,
            "validation_seconds": sum(beside) if whole else None,
        }

    def rows(self) -> list[Row]:
        """What was checked and passed, one row each; of problems, nothing."""
        wrong = {problem.kind for problem in self.problems}
        folder = f"{self.folder.path}: {_bytes(self.folder.needed)} needed, {_bytes(self.folder.free)} free"
        found = [] if "folder" in wrong else [("folder", folder)]
        found += [] if "data" in wrong else [(task, str(of)) for task, of in self.data.items()]
        if self.memory is not None and "memory" not in wrong:
            there = "" if self.memory.available is None else f", {_bytes(self.memory.available)} available"
            found.append(("memory", f"about {_bytes(self.memory.needed)} needed{there}"))
        return [{"passed": name, "details": what} for name, what in found]

    def training_rows(self) -> list[Row]:
        """One row for every training that was tried."""
        return [
            {
                "training": one.name,
                "parameters": f"{one.parameters:,}",
                "batch": str(one.batch_size),
                "ms a step": f"{1000 * one.step_seconds:.0f}",
                "steps": "-" if one.steps is None else f"{one.steps:,}",
                "time": "-" if one.seconds is None else duration(one.seconds),
                "ensembles": "-" if one.validation_seconds is None else duration(one.validation_seconds),
                "memory": _bytes(one.memory_bytes),
                "checkpoint": _bytes(one.checkpoint_bytes),
            }
            for one in self.trainings
        ]


def in_words(found: Agreement | str) -> str:
    """How far the solver leads away, or why nothing was compared."""
    if isinstance(found, str):
        return f"not compared with a solver: {found}"
    frames = f"{found.frames} frame{'s' if found.frames > 1 else ''}"
    if math.isinf(found.nrmse):
        return f"the reference solver blows up within {frames}"
    return f"the reference solver is {found.nrmse:.2g} off after {frames}"


def as_json(found: Agreement | str | None) -> dict[str, Any] | None:
    """Numbers; null for one that is infinite, and for all where nothing was compared."""
    if found is None or isinstance(found, str):
        return None
    shares = {"nrmse": found.nrmse, "persistence": found.persistence, "unresolved": found.unresolved}
    numbers = {name: value if math.isfinite(value) else None for name, value in shares.items()}
    return {**numbers, "frames": found.frames, "samples": found.samples, "holds": found.holds}


def failed_before(problems: list[Problem]) -> dict[str, Any]:
    """What `ups check --json` prints where something, such as wrong settings, kept all else from being looked at."""
    return {"schema_version": SCHEMA, "passed": False, "problems": [asdict(problem) for problem in problems]}


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
