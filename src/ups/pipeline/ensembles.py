"""Scores of validation ensembles: what the residual diffusion's weights are chosen by, and how far samples spread."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from statistics import fmean, pvariance

import numpy as np
import torch

from ups.data.windows import WindowLoader
from ups.evaluation.metrics import relative_absolute_error
from ups.evaluation.validate import validation_crps, validation_error
from ups.models.noise import MEMORY
from ups.models.simulator import Simulator
from ups.pipeline.effort import DISTANCE_BATCHES, MEMORY_WINDOWS, SAMPLER_CALLS, EnsembleSize
from ups.pipeline.workspace import Workspace
from ups.training.diffusion import DiffusionObjective, DistillObjective, ResidualSteps, fit_memory
from ups.training.monitor import DivergedError

WORSE = 1.1  # times its teacher's CRPS, at which a student's is told of as worse
WIDENINGS = (0.0, 1.0, 2.0)  # of the samples' spread, at which validation ensembles are scored
NARROWER = 0.5  # of it, where ensembles that spread as far as trained diverge
NARROWEST, WIDEST = 0.1, 3.3  # that a calibration may choose: members differ, and little beyond those scored


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
    assert simulator.corrector is not None
    with simulator.corrector.sampling(SAMPLER_CALLS):
        return validation_crps(
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


def calibrate(workspace: Workspace, stage: str, simulator: Simulator, steps: ResidualSteps, size: EnsembleSize) -> None:
    """Sets how long errors last, and how far samples spread to what makes validation ensembles best, by their CRPS.

    Errors on train data are smaller than on others; and what a place is like later than a few steps is not told.

    Raises:
        DivergedError: no ensemble is finite.
    """
    corrector, progress = simulator.corrector, workspace.progress
    assert corrector is not None
    simulator.eval()
    measure_memory(workspace, steps)
    found: dict[float, list[list[float]]] = {}
    progress.start(f"calibrate {stage}", unit="ensembles")
    progress.say(f"calibrating how far samples of {stage} spread, by validation ensembles: {size}")
    for widen in (*WIDENINGS, NARROWER):
        if widen == NARROWER and any(drawn and _finite(scores) for drawn, scores in found.items()):
            break
        corrector.widen(widen)
        found[widen] = ensemble_errors(workspace, simulator, size)
        progress.update(len(found))
    means = {widen: fmean(map(fmean, scores)) for widen, scores in found.items()}
    if not any(drawn and _finite(scores) for drawn, scores in found.items()):
        raise DivergedError(
            "every validation ensemble diverged; train the residual diffusion longer, or lower its rate"
        )
    best = {
        task: trusted_widening({widen: scores[number] for widen, scores in found.items()})
        for number, task in enumerate(workspace.splits["valid"])
    }
    for task, factor in best.items():
        corrector.widen(factor, task)
    alone, least = operator_error(workspace, simulator, size), min(filter(math.isfinite, means.values()))
    spread = ", ".join(f"{factor:.3g}" for factor in best.values())
    progress.finish(
        f"samples spread {spread} times as far as trained; the least CRPS of those tried is {least:.3g} of the "
        f"field's size, the operator's absolute error {alone:.3g} of it"
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
    if not _finite(own):
        raise DivergedError("the student's validation ensembles diverged; train it longer, or lower its rate")
    ratio, deviation = ratio_of_means(own, teacher)
    progress.finish(f"validation CRPS {ratio:.3g} (+- {deviation:.2g}) times the teacher's ({size})")
    if ratio > WORSE and not ratio - deviation <= 1:
        progress.say(
            f"consistency_distill: the student's ensembles are worse than its teacher's by {ratio - 1:.0%} "
            "of their CRPS; give the stage a larger budget, or leave it out (stages.consistency_distill.epochs=0)"
        )


def _finite(scores: Sequence[Sequence[float]]) -> bool:
    """Whether every trajectory of every task has a score that is a number."""
    return all(map(math.isfinite, chain.from_iterable(scores)))


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


def trusted_widening(scores: Mapping[float, Sequence[float]]) -> float:
    """The best widening, drawn back to 1, as trained, by as much as trajectories do not agree on it.

    Trajectories count alike, however large their errors: of scores over the trajectory's mean score the least is taken.
    The distance of log(1 + w) from that of 1 is multiplied by 1 - var / distance^2 where that is positive, else by 0
    (James and Stein 1961, for one number), with the variance by the jackknife: w without each of the trajectories in
    turn.

    Args:
        scores: CRPS of each trajectory, by widening; those of one widening are finite.
    """
    finite = {widen: each for widen, each in scores.items() if all(map(math.isfinite, each))}
    sizes = [max(fmean(of_one), 0.0) or 1.0 for of_one in zip(*finite.values(), strict=True)]
    finite = {w: [score / size for score, size in zip(each, sizes, strict=True)] for w, each in finite.items()}
    trained = math.log(2.0)
    best = math.log1p(best_widening({widen: fmean(each) for widen, each in finite.items()})) - trained
    num = len(sizes)
    if 1.0 in finite and best != 0:
        if num == 1:
            return 1.0
        others = [
            math.log1p(best_widening({w: (sum(each) - each[left]) / (num - 1) for w, each in finite.items()}))
            for left in range(num)
        ]
        best *= max(0.0, 1 - (num - 1) * pvariance(others) / best**2)
    return math.expm1(best + trained)


def best_widening(scores: Mapping[float, float]) -> float:
    """Where the CRPS of ensembles is least, by a curve through the scores of some widenings, each of which is noisy.

    Members deviate by s^2 = a^2 + w^2, where a is what their views alone set them apart. Of a Gaussian of deviation s,
    where the truth deviates by t, the expected CRPS is (sqrt(2 (s^2 + t^2)) - s) / sqrt(pi) (from its form as
    E|X - Y| - E|X - X'| / 2, Gneiting and Raftery 2007), which is least at s = t. Scale, t and a of the curve whose
    relative errors are least square; what is not finite does not count.

    Args:
        scores: CRPS by widening; one of them is finite.
    """
    finite = {widen: score for widen, score in scores.items() if math.isfinite(score)}
    if len(finite) < 3 or min(finite.values()) <= 0:
        return max(NARROWEST, min(finite, key=lambda widen: finite[widen]))
    widen, score = (np.array(values) for values in (list(finite), list(finite.values())))
    t, a = np.meshgrid(np.geomspace(NARROWEST, 2 * WIDEST, 200), [0.0, *np.geomspace(NARROWEST, WIDEST, 60)])
    deviation = np.hypot(widen, a[..., None])
    curve = (np.sqrt(2 * (deviation**2 + t[..., None] ** 2)) - deviation) / score
    scale = curve.sum(-1, keepdims=True) / np.square(curve).sum(-1, keepdims=True)
    nearest = np.square(scale * curve - 1).sum(-1).argmin()
    best = math.sqrt(max(0.0, t.flat[nearest] ** 2 - a.flat[nearest] ** 2))
    return min(max(best, NARROWEST), WIDEST)


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
