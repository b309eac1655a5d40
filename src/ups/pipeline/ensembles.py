"""Scores of validation ensembles: what the residual diffusion's weights are chosen by, and how far samples spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice

import torch

from ups.data.windows import WindowLoader
from ups.evaluation.metrics import relative_absolute_error
from ups.evaluation.validate import validation_crps, validation_error
from ups.models.simulator import Simulator
from ups.pipeline.effort import DISTANCE_BATCHES, EnsembleSize
from ups.pipeline.workspace import Workspace
from ups.training.diffusion import DistillObjective
from ups.training.monitor import DivergedError

WIDENINGS = (0.7, 1.0, 1.4, 2.0, 2.8)  # of the samples' spread, of which the best by validation is kept
FINER = 1.2  # and then by so much more or less


class EnsembleScore:
    """CRPS of validation ensembles over the truth's size, and the same of the operator alone, once it was called."""

    def __init__(self, workspace: Workspace, simulator: Simulator, size: EnsembleSize) -> None:
        self.workspace, self.simulator, self.size = workspace, simulator, size
        self._alone = math.nan

    def __call__(self) -> float:
        if math.isnan(self._alone):
            self._alone = operator_error(self.workspace, self.simulator, self.size)
        return ensemble_error(self.workspace, self.simulator, self.size)

    def beside(self) -> dict[str, float]:
        """What the score is compared with in the log."""
        return {"operator_crps": self._alone}


def ensemble_error(workspace: Workspace, simulator: Simulator, size: EnsembleSize) -> float:
    """CRPS of the diffusion's ensembles over the truth's size, on the first validation trajectories."""
    assert simulator.corrector is not None
    with simulator.corrector.sampling(size.sampler_steps):
        return validation_crps(
            simulator,
            workspace.splits["valid"],
            members=size.members,
            max_samples=_samples(workspace, size),
            steps=_frames(workspace, size),
            mode=workspace.settings.evaluation.rollout_mode,
            device=workspace.device,
        )


def operator_error(workspace: Workspace, simulator: Simulator, size: EnsembleSize) -> float:
    """The same of the operator's own prediction, which is an ensemble without spread: its absolute error."""
    return validation_error(
        relative_absolute_error,
        simulator,
        workspace.splits["valid"],
        max_samples=_samples(workspace, size),
        steps=_frames(workspace, size),
        mode=workspace.settings.evaluation.rollout_mode,
        device=workspace.device,
    )


def calibrate(workspace: Workspace, stage: str, simulator: Simulator, size: EnsembleSize) -> None:
    """Sets how far samples spread to what makes validation ensembles best, by their CRPS.

    Errors of a roll-out are correlated from step to step, which samples are not; and those on train data are smaller.

    Raises:
        DivergedError: no ensemble is finite.
    """
    corrector, progress = simulator.corrector, workspace.progress
    assert corrector is not None
    simulator.eval()
    tried: dict[float, float] = {}
    progress.start(f"calibrate {stage}", unit="ensembles")
    progress.say(f"calibrating how far samples of {stage} spread, by validation ensembles: {size}")

    def score(widen: float) -> float:
        corrector.widen(widen)
        tried[widen] = ensemble_error(workspace, simulator, size)
        progress.update(len(tried))
        return tried[widen]

    best = best_widening(score)
    if not math.isfinite(tried[best]):
        raise DivergedError(
            "every validation ensemble diverged; train the residual diffusion longer, or lower its rate"
        )
    corrector.widen(best)
    alone = operator_error(workspace, simulator, size)
    progress.finish(
        f"samples spread {best:.3g} times as far as trained: "
        f"CRPS {tried[best]:.3g} of the field's size, the operator's absolute error {alone:.3g} of it"
    )


def best_widening(score: Callable[[float], float]) -> float:
    """Where the score is lowest: a walk over `WIDENINGS` from 1 on while it falls, and then finer places beside."""
    found: dict[float, float] = {}

    def falls(place: int, to: int) -> bool:
        if to not in range(len(WIDENINGS)):
            return False
        found[WIDENINGS[to]] = score(WIDENINGS[to])
        return found[WIDENINGS[to]] < found[WIDENINGS[place]]

    start = WIDENINGS.index(1.0)
    found[1.0] = score(1.0)
    place = start
    while falls(place, place + 1):
        place += 1
    if place == start:
        while falls(place, place - 1):
            place -= 1
    for finer in (WIDENINGS[place] / FINER, WIDENINGS[place] * FINER):
        found[finer] = score(finer)
    return min(found, key=lambda widen: found[widen])


class DistanceToTeacher:
    """How far from its teacher's samples the student lands: a few validation batches, the same places and noise."""

    def __init__(self, workspace: Workspace, objective: DistillObjective) -> None:
        self.workspace, self.objective = workspace, objective
        self.places = objective.own_places()

    @torch.no_grad()
    def __call__(self) -> float:
        workspace = self.workspace
        rng = torch.Generator(workspace.device).manual_seed(0)
        batch_size, context = workspace.batch_size("consistency_distill"), workspace.settings.data.context
        total = torch.zeros(())
        with WindowLoader(workspace.splits["valid"], batch_size, context, 1, 0) as loader:
            batches = list(islice(loader, DISTANCE_BATCHES))
        for batch in batches:
            total += self.objective.distance(batch.to(workspace.device), rng, self.places).cpu()
        return float(total / len(batches))


def _samples(workspace: Workspace, size: EnsembleSize) -> int:
    return min(size.samples, workspace.settings.evaluation.small.max_samples or size.samples)


def _frames(workspace: Workspace, size: EnsembleSize) -> int:
    return min(size.frames, workspace.settings.evaluation.small.steps or size.frames)
