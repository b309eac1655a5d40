"""What the weights of a stage are chosen by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import Any

from ups.config.load import resolved
from ups.config.schema import Settings, StageName
from ups.data.trajectories import TrajectorySet
from ups.errors import DataError
from ups.evaluation.metrics import nrmse
from ups.evaluation.validate import validation_error, validation_reconstruction
from ups.models.emulator import Emulator
from ups.pipeline.before import PREDICTING
from ups.pipeline.workspace import Workspace


class Validation:
    """A score of validation trajectories, mean over tasks; lower is better.

    Args:
        measure: of one task's trajectories, given by its name.
        by_task: whether the score of each of several tasks is logged, too.
    """

    def __init__(
        self, measure: Callable[[Mapping[str, TrajectorySet]], float], sets: Mapping[str, TrajectorySet], by_task: bool
    ) -> None:
        self.measure, self.sets, self.by_task = measure, sets, by_task and len(sets) > 1
        self._last: dict[str, float] = {}

    def __call__(self) -> float:
        self._last = {task: self.measure({task: part}) for task, part in self.sets.items()}
        return fmean(self._last.values())

    def beside(self) -> dict[str, float]:
        """What is logged with the score: the last one of every task."""
        return {f"{task}/valid_nrmse": score for task, score in self._last.items()} if self.by_task else {}


def validation_of(workspace: Workspace, stage: str, emulator: Emulator) -> Validation:
    """What a stage's weights are chosen by: reconstruction for the codec, else a roll-out's nrmse.

    Raises:
        DataError: there are no validation trajectories.
    """
    evaluation, valid = workspace.settings.evaluation, workspace.splits["valid"]
    if not all(part.num for part in valid.values()):
        raise DataError("no validation trajectories: raise data.split.valid, or name data.split.valid_files")
    by_task, device = workspace.settings.training.log_per_task_metrics, workspace.device
    if stage == "codec":
        reconstruct = partial(validation_reconstruction, emulator, batch_size=evaluation.batch_size, device=device)
        return Validation(reconstruct, valid, by_task)
    measure = partial(
        validation_error,
        nrmse,
        emulator,
        max_samples=evaluation.small.max_samples,
        steps=evaluation.small.steps,
        mode=evaluation.rollout_mode,
        batch_size=evaluation.batch_size,
        device=device,
    )
    return Validation(measure, valid, by_task)


def chosen_on(settings: Settings, stage: StageName) -> dict[str, Any]:
    """The settings of the roll-outs by which a stage's weights and spread are chosen; a codec is not rolled out."""
    evaluation = resolved(settings)["evaluation"]
    names = () if stage == "codec" else ("small", "rollout_mode")
    if stage not in PREDICTING:
        names = (*names, "corrector_every")
    return {name: evaluation[name] for name in names}
