"""What an evaluation found: every emulator's scores on every task, and the files they are written to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ups.evaluation import showcase
from ups.evaluation.scores import SCHEMA_VERSION, Score, TaskScores
from ups.evaluation.showcase import Showcase
from ups.files import write_whole
from ups.physics.solvers.cost import SolverCost


@dataclass(frozen=True)
class TaskEvaluation:
    """Every emulator's scores on one task.

    Args:
        emulators: by name, the one under judgement first.
        modes: scores of that one in the roll-out mode that is not the protocol's.
        facts: what a reader of the scores needs to know of the task.
        showcases: trajectories to look at.
    """

    emulators: Mapping[str, TaskScores]
    modes: Mapping[str, TaskScores]
    facts: Mapping[str, Any]
    showcases: tuple[Showcase, ...]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one emulator and its baselines on one or more tasks.

    Args:
        protocol: what was scored, and how, with the hash of that.
        tasks: by name.
    """

    protocol: Mapping[str, Any]
    tasks: Mapping[str, TaskEvaluation]
    subject: str = field(default="ups")

    def scores(self, task: str, emulator: str | None = None) -> Mapping[str, Score]:
        """Scores by metric of one emulator, by default the one under judgement."""
        return self.tasks[task].emulators[emulator or self.subject].scores

    def with_solver_costs(
        self, costs: Mapping[str, SolverCost], seconds: Mapping[str, float], reasons: Mapping[str, str] | None = None
    ) -> Evaluation:
        """The evaluation with `solver_speedup` filled in: the solver's seconds per trajectory over the emulator's.

        Args:
            costs: by task, of the coarsest reference solution at least as accurate as the emulator, over the same
                frames.
            seconds: by task, of the emulator per trajectory, of a batch of the solver's trajectories: together, more
                would each take less.
            reasons: by task, why the reference solver could not be timed.
        """
        tasks = dict(self.tasks)
        for name, reason in (reasons or {}).items():
            tasks[name] = self._with_speedup(tasks[name], Score(None, reason))
        for name, cost in costs.items():
            task = tasks[name]
            speedup = _speedup(cost, seconds[name])
            solver = {
                "resolution": cost.resolution,
                "nrmse": cost.nrmse,
                "seconds": cost.seconds_per_trajectory,
                "found": cost.found,
                "samples": cost.samples,
                "target": cost.target,
                "model_seconds": seconds[name],
            }
            tasks[name] = replace(self._with_speedup(task, speedup), facts={**task.facts, "solver": solver})
        return replace(self, tasks=tasks)

    def _with_speedup(self, task: TaskEvaluation, speedup: Score) -> TaskEvaluation:
        ours = task.emulators[self.subject]
        ours = replace(ours, scores={**ours.scores, "solver_speedup": speedup})
        return replace(task, emulators={**task.emulators, self.subject: ours})

    def to_json(self) -> dict[str, Any]:
        """The scores in the layout of `evaluation/full.json`; `reasons` mirrors it where a score is null."""
        found: dict[str, Any] = {"tasks": {}, "baselines": {}, "modes": {}}
        for task, result in self.tasks.items():
            for name, scores in result.emulators.items():
                group = found["tasks"] if name == self.subject else found["baselines"].setdefault(name, {})
                group[task] = scores.scores
            for mode, scores in result.modes.items():
                found["modes"].setdefault(mode, {})[task] = scores.scores
        return {
            "schema_version": SCHEMA_VERSION,
            "protocol": dict(self.protocol),
            **_leaves(found, lambda score: score.value),
            "reasons": _leaves(found, lambda score: score.reason, keep_none=False),
            "details": {task: _details(result) for task, result in self.tasks.items()},
        }

    def save(self, folder: Path, scope: str) -> None:
        """Writes `SCOPE.json`, and for the scope `full` the trajectories to look at, `fields.npz`.

        Args:
            folder: the run's `evaluation` folder, made when it is missing.
            scope: `small` or `full`.

        Raises:
            UpsError: the folder cannot be written.
        """
        if scope == "full":
            showcase.save(folder / "fields.npz", [one for task in self.tasks.values() for one in task.showcases])
        write_whole(folder / f"{scope}.json", json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")


def _speedup(cost: SolverCost, seconds: float) -> Score:
    if not cost.found:
        return Score(None, "the reference solver did not reach this nrmse at any resolution tried")
    return Score(cost.seconds_per_trajectory / seconds)


def _leaves(tree: Any, read: Any, keep_none: bool = True) -> Any:
    """The same nested dictionaries with what `read` makes of each score."""
    if isinstance(tree, Score):
        return read(tree)
    found = {key: _leaves(value, read, keep_none) for key, value in tree.items()}
    return found if keep_none else {key: value for key, value in found.items() if value not in (None, {})}


def _details(task: TaskEvaluation) -> dict[str, Any]:
    def of(scores: TaskScores) -> dict[str, Any]:
        spectrum, ensemble, drift = scores.spectrum, scores.ensemble, scores.conservation
        return {
            "per_sample": {str(index): error for index, error in scores.per_sample.items()},
            "error_curve": vars(scores.curve),
            "spectrum": None if spectrum is None else vars(spectrum),
            "ensemble": None if ensemble is None else asdict(ensemble),
            "conservation": None if drift is None else vars(drift),
        }

    return {
        **task.facts,
        "emulators": {name: of(scores) for name, scores in task.emulators.items()},
        "modes": {mode: of(scores) for mode, scores in task.modes.items()},
    }
