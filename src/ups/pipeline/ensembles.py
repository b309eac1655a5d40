"""Scores of validation ensembles: what the residual diffusion's weights are chosen by, and its student compared by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain, islice
from statistics import fmean, pvariance

import torch
from torch import Tensor

from ups.data.windows import WindowLoader
from ups.evaluation.metrics import relative_absolute_error
from ups.evaluation.uncertainty import relative_crps
from ups.evaluation.validate import validation_ensembles, validation_error
from ups.models.noise import MEMORY
from ups.models.simulator import Simulator
from ups.pipeline.effort import DISTANCE_BATCHES, MEMORY_WINDOWS, SAMPLER_CALLS, EnsembleSize
from ups.pipeline.workspace import Workspace
from ups.training.diffusion import DiffusionObjective, DistillObjective, ResidualSteps, fit_memory
from ups.training.monitor import DivergedError

WORSE = 1.1  # times its teacher's CRPS, at which a student's is told of as worse


class EnsembleScore:
    """CRPS of validation ensembles over the truth's size, and the same of the operator alone, once it was called."""

    def __init__(
        self, workspace: Workspace, simulator: Simulator, objective: DiffusionObjective, size: EnsembleSize
    ) -> None:
        self.workspace, self.simulator, self.size = workspace, simulator, size
        self.steps, self._alone = objective.steps, math.nan

    def __call__(self) -> float:
        if math.isnan(self._alone):
            self._alone = operator_error(self.workspace, self.simulator, self.size)
        measure_memory(self.workspace, self.steps)
        return ensemble_error(self.workspace, self.simulator, self.size)

    def beside(self) -> dict[str, float]:
        """What the score is compared with in the log."""
        return {"operator_crps": self._alone}


def ensemble_error(workspace: Workspace, simulator: Simulator, size: EnsembleSize) -> float:
    """CRPS of the diffusion's ensembles over the truth's size, mean over tasks; infinite where one is not finite."""
    score = fmean(map(fmean, ensemble_errors(workspace, simulator, size)))
    return score if math.isfinite(score) else math.inf


def ensemble_errors(workspace: Workspace, simulator: Simulator, size: EnsembleSize) -> list[list[float]]:
    """The same of each of some validation trajectories, task by task."""
    return [each.tolist() for each in score_ensembles(relative_crps, workspace, simulator, size)]


def score_ensembles(
    metric: Callable[[Tensor, Tensor], Tensor], workspace: Workspace, simulator: Simulator, size: EnsembleSize
) -> list[Tensor]:
    """A metric of the ensembles of some validation trajectories, as `validation_ensembles`."""
    assert simulator.corrector is not None
    with simulator.corrector.sampling(SAMPLER_CALLS):
        return validation_ensembles(
            metric,
            simulator,
            workspace.splits["valid"],
            members=size.members,
            max_samples=_samples(workspace, size),
            steps=_frames(workspace, size),
            mode=workspace.settings.evaluation.rollout_mode,
            batch_size=workspace.settings.evaluation.batch_size,
            device=workspace.device,
        )


def measure_memory(workspace: Workspace, steps: ResidualSteps) -> None:
    """Sets how long errors of the operator last, from a few windows of train trajectories."""
    context = workspace.settings.data.context
    for task, train in workspace.splits["train"].items():
        lags = min(MEMORY, int(train.lengths.max()) - context - 1)
        if lags > 0:
            with WindowLoader({task: train}, MEMORY_WINDOWS, context, lags + 1, workspace.settings.seed) as loader:
                fit_memory(steps, loader.next_batch().to(workspace.device))


def operator_error(workspace: Workspace, simulator: Simulator, size: EnsembleSize) -> float:
    """The same of the operator's own prediction, which is an ensemble without spread: its absolute error."""
    return validation_error(
        relative_absolute_error,
        simulator,
        workspace.splits["valid"],
        max_samples=_samples(workspace, size),
        steps=_frames(workspace, size),
        mode=workspace.settings.evaluation.rollout_mode,
        batch_size=workspace.settings.evaluation.batch_size,
        device=workspace.device,
    )


def compare_student(workspace: Workspace, simulator: Simulator, size: EnsembleSize) -> None:
    """Says how good the student's validation ensembles are beside its teacher's, and where they are clearly worse.

    Raises:
        DivergedError: the student's ensembles are not finite.
    """
    corrector, progress = simulator.corrector, workspace.progress
    assert corrector is not None
    simulator.eval()
    progress.start("compare consistency_distill", unit="ensembles")
    own = ensemble_errors(workspace, simulator, size)
    progress.update(1)
    student, corrector.student = corrector.student, None
    try:
        teacher = ensemble_errors(workspace, simulator, size)
    finally:
        corrector.student = student
    if not all(map(math.isfinite, chain.from_iterable(own))):
        raise DivergedError("the student's validation ensembles diverged; train it longer, or lower its rate")
    ratio, deviation = ratio_of_means(own, teacher)
    progress.finish(f"validation CRPS {ratio:.3g} (+- {deviation:.2g}) times the teacher's ({size})")
    if ratio > WORSE and not ratio - deviation <= 1:
        progress.say(
            f"consistency_distill: the student's ensembles are worse than its teacher's by {ratio - 1:.0%} "
            "of their CRPS; give the stage a larger budget, or leave it out (stages.consistency_distill.epochs=0)"
        )


def ratio_of_means(scores: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> tuple[float, float]:
    """How many times the other scores these are, by their means over tasks and trajectories, and how uncertain that is.

    The deviation is that of the ratio estimator over paired trajectories (Cochran 1977, Sampling Techniques, section
    2.11), not a number where a task has one trajectory.

    Args:
        scores, others: of the same trajectories, task by task.
    """
    whole, variance = fmean(map(fmean, others)), 0.0
    ratio = fmean(map(fmean, scores)) / whole
    for each, other in zip(scores, others, strict=True):
        left = [one - ratio * its for one, its in zip(each, other, strict=True)]
        variance += pvariance(left) / (len(left) - 1) if len(left) > 1 else math.nan
    return ratio, math.sqrt(variance) / len(scores) / whole


class DistanceToTeacher:
    """How far from its teacher's samples the student lands, mean over tasks: the same batches, places and noise."""

    def __init__(self, workspace: Workspace, objective: DistillObjective) -> None:
        self.workspace, self.objective = workspace, objective
        self.places = objective.own_places()

    @torch.no_grad()
    def __call__(self) -> float:
        workspace = self.workspace
        rng = torch.Generator(workspace.device).manual_seed(0)
        batch_size, context = workspace.batch_size("consistency_distill"), workspace.settings.data.context
        found = []
        for task, valid in workspace.splits["valid"].items():
            with WindowLoader({task: valid}, batch_size, context, 1, 0) as loader:
                for batch in islice(loader, DISTANCE_BATCHES):
                    found.append(float(self.objective.distance(batch.to(workspace.device), rng, self.places)))
        return fmean(found)


def _samples(workspace: Workspace, size: EnsembleSize) -> int:
    return min(size.samples, workspace.settings.evaluation.small.max_samples or size.samples)


def _frames(workspace: Workspace, size: EnsembleSize) -> int:
    return min(size.frames, workspace.settings.evaluation.small.steps or size.frames)
