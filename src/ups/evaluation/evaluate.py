"""Scores emulators side by side on the same trajectories, under one protocol that is written down with the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ups.data.trajectories import TrajectorySet
from ups.data.walls import cells_to_walls
from ups.errors import UpsError
from ups.evaluation import metrics, showcase
from ups.evaluation.ensembles import EnsembleAccumulator, no_ensemble
from ups.evaluation.protocol import MODES, Protocol, describe
from ups.evaluation.result import Evaluation, TaskEvaluation
from ups.evaluation.rollout import (
    has_codec,
    predict_single_steps,
    reconstruct,
    rollout_ensembles,
    rollout_trajectories,
)
from ups.evaluation.scores import EnsembleSummary, Score, ScoreAccumulator, TaskScores, mean_score
from ups.evaluation.showcase import Showcase
from ups.models.emulator import Emulator
from ups.runtime import Progress, SilentProgress

__all__ = ["Evaluation", "Protocol", "TaskEvaluation", "evaluate"]


DETERMINISTIC = "the prediction is deterministic: there is no ensemble to score"
NO_MEMBERS = "no ensemble was rolled out: evaluation.members is less than two"
OTHER_MODE = "ensembles are rolled out in the protocol's own mode alone"
NO_SOLVER = "no reference solver was timed"


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
    passes = len(emulators) + 1 + sum(emulator.draws and protocol.members > 1 for emulator in emulators.values())
    progress.start(f"evaluate {protocol.split}", passes * sum(map(len, chosen.values())), "roll-outs")
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
            roles = showcase.choose(found[subject].per_sample)
            kept = showcase.take(emulators, trajectories, roles, protocol=protocol, device=device)
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
        gathered = ScoreAccumulator(trajectories.equation, trajectories.grid, cells_to_walls(trajectories))
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
            self._count(batch.indices, f"{trajectories.task} {emulator.name}")
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
            "solver_speedup": Score(None, NO_SOLVER),
        }
        if not has_codec(emulator):
            more["codec_nrmse"] = Score(None, f"{emulator.name} has no codec")
        spread, ensemble = self._ensembles(emulator, trajectories, indices, mode)
        return replace(result, scores={**result.scores, **more, **spread}, ensemble=ensemble)

    def _ensembles(
        self, emulator: Emulator, trajectories: TrajectorySet, indices: Sequence[int], mode: str | None
    ) -> tuple[dict[str, Score], EnsembleSummary | None]:
        """Scores of the emulator's ensembles, or why it has none."""
        protocol = self.protocol
        if not emulator.draws:
            return no_ensemble(DETERMINISTIC), None
        if protocol.members < 2:
            return no_ensemble(NO_MEMBERS), None
        if mode is not None and mode != protocol.mode:
            return no_ensemble(OTHER_MODE), None
        gathered = EnsembleAccumulator([one.name for one in trajectories.equation.fields], protocol.members)
        for batch in rollout_ensembles(
            emulator,
            trajectories,
            indices,
            members=protocol.members,
            seed=protocol.seed,
            context=emulator.tasks[trajectories.task].context,
            steps=protocol.steps,
            mode=protocol.mode,
            batch_size=protocol.batch_size,
            device=self.device,
            timed=True,
        ):
            gathered.add(batch)
            self._count(batch.indices, f"{trajectories.task} {emulator.name}, {protocol.members} members")
        return gathered.finish()

    def _count(self, indices: Sequence[int], what: str) -> None:
        self.done.append(len(indices))
        self.progress.update(sum(self.done), what)


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


def _text(tasks: Mapping[str, TaskEvaluation], subject: str) -> str:
    values = {task: result.emulators[subject].scores["nrmse"].value for task, result in tasks.items()}
    return ", ".join(f"{task} " + ("diverged" if value is None else f"{value:.3g}") for task, value in values.items())
