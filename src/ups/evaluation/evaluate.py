"""Scores emulators side by side on the same trajectories, under one protocol that is written down with the scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ups.data.trajectories import TrajectorySet
from ups.errors import UpsError
from ups.evaluation import metrics, showcase
from ups.evaluation.protocol import MODES, Protocol, describe
from ups.evaluation.rollout import has_codec, predict_single_steps, reconstruct, rollout_trajectories
from ups.evaluation.scores import SCHEMA_VERSION, Score, ScoreAccumulator, TaskScores, mean_score
from ups.evaluation.showcase import Showcase
from ups.files import write_whole
from ups.models.emulator import Emulator
from ups.physics.solvers.cost import SolverCost
from ups.runtime import Progress, SilentProgress

__all__ = ["Evaluation", "Protocol", "TaskEvaluation", "evaluate"]


DETERMINISTIC = "the prediction is deterministic: there is no ensemble to score"
NO_SOLVER = "no reference solver was timed"


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
        self, costs: Mapping[str, SolverCost], reasons: Mapping[str, str] | None = None
    ) -> Evaluation:
        """The evaluation with `solver_speedup` filled in: the solver's seconds per trajectory over the emulator's.

        Args:
            costs: by task, of the coarsest reference solution at least as accurate as the emulator, over the same
                frames.
            reasons: by task, why the reference solver could not be timed.
        """
        tasks = dict(self.tasks)
        for name, reason in (reasons or {}).items():
            tasks[name] = self._with_speedup(tasks[name], Score(None, reason))
        for name, cost in costs.items():
            task = tasks[name]
            speedup = _speedup(task.emulators[self.subject], cost, task.facts["steps"])
            solver = {
                "resolution": cost.resolution,
                "nrmse": cost.nrmse,
                "seconds": cost.seconds_per_trajectory,
                "found": cost.found,
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


def evaluate(
    emulators: Mapping[str, Emulator],
    sets: Mapping[str, TrajectorySet],
    *,
    protocol: Protocol,
    device: torch.device | None = None,
    progress: Progress | None = None,
    showcases: bool = True,
) -> Evaluation:
    """Scores every emulator on every task.

    Args:
        emulators: by name; the first is under judgement, the others are its baselines.
        sets: the trajectories of each task.
        protocol: which trajectories, how far, how.
        device: where to compute; the CPU by default. The emulators are moved there.
        progress: told after every batch.
        showcases: keep trajectories to look at.

    Raises:
        UpsError: nothing to score, or a mode that does not exist.
        DataError: a trajectory too short to predict anything.
    """
    if not emulators or not sets or any(one.num == 0 for one in sets.values()):
        raise UpsError("nothing to evaluate: the split holds no trajectories; give data.split a larger part for it")
    if protocol.mode not in MODES:
        raise UpsError(f"the roll-out mode is '{protocol.mode}'; set evaluation.rollout_mode to latent or physical")
    device, progress = device or torch.device("cpu"), progress or SilentProgress()
    for emulator in emulators.values():
        emulator.to(device).eval()
    subject = next(iter(emulators))
    chosen = {task: protocol.choose(trajectories) for task, trajectories in sets.items()}
    progress.start(f"evaluate {protocol.split}", (len(emulators) + 1) * sum(map(len, chosen.values())), "roll-outs")
    scorer = _Scorer(protocol, device, progress)
    tasks = {}
    for task, trajectories in sets.items():
        indices = chosen[task]
        found = {name: scorer.score(emulator, trajectories, indices) for name, emulator in emulators.items()}
        only_subject = {"solver_speedup": Score(None, f"only computed for {subject}")}
        for name in found.keys() - {subject}:
            found[name] = replace(found[name], scores={**found[name].scores, **only_subject})
        other = MODES[1 - MODES.index(protocol.mode)]
        modes = {other: scorer.score(emulators[subject], trajectories, indices, mode=other)}
        kept: tuple[Showcase, ...] = ()
        if showcases:
            context = emulators[subject].tasks[task].context
            options: dict[str, Any] = {
                "context": context,
                "steps": protocol.steps,
                "mode": protocol.mode,
                "device": device,
            }
            kept = showcase.take(emulators, trajectories, showcase.choose(found[subject].per_sample), **options)
        tasks[task] = TaskEvaluation(found, modes, _facts(trajectories, found[subject]), kept)
    progress.finish(f"nrmse {_text(tasks, subject)}")
    contexts = {task: emulators[subject].tasks[task].context for task in sets}
    return Evaluation(describe(protocol, sets, chosen, contexts, device), tasks, subject)


@dataclass(frozen=True)
class _Scorer:
    """Scores one emulator on one task under the protocol."""

    protocol: Protocol
    device: torch.device
    progress: Progress
    done: list[int] = field(default_factory=list)

    def score(
        self, emulator: Emulator, trajectories: TrajectorySet, indices: Sequence[int], mode: str | None = None
    ) -> TaskScores:
        context, size = emulator.tasks[trajectories.task].context, self.protocol.batch_size
        steps, device = self.protocol.steps, self.device
        gathered = ScoreAccumulator(trajectories.equation, trajectories.grid)
        for batch in rollout_trajectories(
            emulator,
            trajectories,
            indices,
            context=context,
            steps=steps,
            mode=mode or self.protocol.mode,
            batch_size=size,
            device=device,
            timed=True,
        ):
            gathered.add(batch)
            self.done.append(len(batch.indices))
            self.progress.update(sum(self.done), f"{trajectories.task} {emulator.name}")
        result = gathered.finish()
        single, codec = [], []
        for index in indices:
            pair = predict_single_steps(
                emulator, trajectories, index, context=context, steps=steps, batch_size=size, device=device
            )
            single += metrics.nrmse(*pair).tolist()
            if has_codec(emulator):
                pair = reconstruct(emulator, trajectories, index, batch_size=size, device=device)
                codec += metrics.nrmse(*pair).tolist()
        more = {
            "one_step_nrmse": mean_score(
                single, "a single step from true frames is not finite, or a true field is zero"
            ),
            "codec_nrmse": mean_score(codec, "a decoded frame is not finite, or a true field is zero"),
            **{name: Score(None, DETERMINISTIC) for name in ("crps", "spread_skill", "ece")},
            "solver_speedup": Score(None, NO_SOLVER),
        }
        if not has_codec(emulator):
            more["codec_nrmse"] = Score(None, f"{emulator.name} has no codec")
        return replace(result, scores={**result.scores, **more})


def _speedup(ours: TaskScores, cost: SolverCost, steps: int) -> Score:
    if not cost.found:
        return Score(None, "the reference solver did not reach this nrmse at any resolution tried")
    seconds = ours.scores["wall_clock"].value
    if seconds is None or seconds <= 0:
        return Score(None, "the emulator's own time is not known")
    return Score(cost.seconds_per_trajectory / (seconds * steps))


def _facts(trajectories: TrajectorySet, ours: TaskScores) -> dict[str, Any]:
    equation = trajectories.equation
    values = trajectories.params
    ranges = {
        parameter.name: [float(column.min()), float(column.max())]
        for parameter, column in zip(equation.parameters, values.T, strict=True)
    }
    return {
        "fields": [one.name for one in equation.fields],
        "grid": list(trajectories.grid.shape),
        "dt": float(trajectories.dt),
        "steps": len(ours.curve.mean),
        "timed_batch": ours.timed_batch,
        "parameters": ranges,
    }


def _leaves(tree: Any, read: Any, keep_none: bool = True) -> Any:
    """The same nested dictionaries with what `read` makes of each score."""
    if isinstance(tree, Score):
        return read(tree)
    found = {key: _leaves(value, read, keep_none) for key, value in tree.items()}
    return found if keep_none else {key: value for key, value in found.items() if value not in (None, {})}


def _details(task: TaskEvaluation) -> dict[str, Any]:
    def of(scores: TaskScores) -> dict[str, Any]:
        spectrum = scores.spectrum
        return {
            "per_sample": {str(index): error for index, error in scores.per_sample.items()},
            "error_curve": vars(scores.curve),
            "spectrum": None if spectrum is None else vars(spectrum),
        }

    return {
        **task.facts,
        "emulators": {name: of(scores) for name, scores in task.emulators.items()},
        "modes": {mode: of(scores) for mode, scores in task.modes.items()},
    }


def _text(tasks: Mapping[str, TaskEvaluation], subject: str) -> str:
    values = {task: result.emulators[subject].scores["nrmse"].value for task, result in tasks.items()}
    return ", ".join(f"{task} " + ("diverged" if value is None else f"{value:.3g}") for task, value in values.items())
