"""What the stages that draw ensembles may spend beside their training, counted in work and never by a clock.

A roll-out of an ensemble costs what many steps of training do. So that a budget in steps ends with the same bits on
every machine, its size follows from counts alone. A budget in seconds is turned into steps once, by a step that is
timed, and the run keeps to what was found: see `expected_steps`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ups.models.diffusion import EVALUATIONS
from ups.models.noise import MEMORY
from ups.pipeline.plan import make_loader
from ups.pipeline.workspace import Workspace
from ups.training.diffusion import DiffusionObjective, DistillObjective
from ups.training.schedule import Budget
from ups.training.state import AUTO_VALIDATIONS, CLOCKS

CHOICE_SHARE = 1 / 12  # of a training's work that its validations may take
CALIBRATION_SHARE = 5 / 12  # and the calibration after it, which needs whole roll-outs: errors add up over them
COMPARISON_SHARE = 1 / 6  # and of a distillation's work, comparing the student's ensembles with its teacher's
VALIDATIONS = (3, 6)  # fewest and most by ensembles, of any budget, where `training.validate_every` is `auto`
DISTANCES = (3, AUTO_VALIDATIONS)  # and by the student's distance
TRIALS = 3  # ensembles that a calibration draws, beside one of the mean errors alone
COMPARED = 2  # ensembles that a comparison draws
CALL = 6  # rows that calling a network costs besides its own: fields of 256 cells, on one core
BACKWARD = 2  # passes of a network that its gradient costs
LEAST_FRAMES = 8  # of a roll-out, where there are as many
CHOICE = ((3, 8), (2, 8), (2, 4))  # members and trajectories of the ensembles that weights are chosen by, best first
CALIBRATION = ((8, 16), (6, 16), (4, 16), (3, 16), (2, 16), (2, 8), (2, 4))  # and of those that the spread is chosen by
MEMORY_WINDOWS = 16  # of each task that show how long errors of the operator last
SAMPLER_CALLS = 5  # of the network for a sample of validation ensembles, at most
DISTANCE_BATCHES = 2  # of each task that a student's distance to its teacher is measured on
QUICK = 0.01  # of a budget in seconds: a step within it is timed twice, as the first one warms up


@dataclass(frozen=True)
class EnsembleSize:
    """How large validation ensembles are.

    Args:
        members: of each ensemble.
        samples: trajectories of each task, spread evenly over them.
        frames: of each roll-out, at most.
    """

    members: int
    samples: int
    frames: int

    def __str__(self) -> str:
        trajectories = "1 trajectory" if self.samples == 1 else f"{self.samples} trajectories"
        return f"{self.members} members of {trajectories} over {self.frames} frames"


@dataclass(frozen=True)
class Effort:
    """The work of one stage, in rows: passes of one field through one network.

    Args:
        of_step: rows of an optimizer step.
        rollouts: of the validation split, by task: how many there are, and frames of the longest.
        sampler: by which members are drawn.
        sampler_steps: of a draw.
        corrector_every: steps of the operator between draws.
        views: of the fields that a step of the operator is the mean over.
        of_distance: rows of a validation by the student's distance to its teacher; 0 where ensembles validate, and
            calibrate at the end: the student spreads as far as its teacher.
        validate_every: steps between validations.
    """

    of_step: float
    rollouts: tuple[tuple[int, int], ...]
    sampler: Literal["heun", "euler"]
    sampler_steps: int
    corrector_every: int = 1
    views: int = 1
    of_distance: float = 0.0
    validate_every: int | Literal["auto"] = "auto"

    @classmethod
    def of(cls, workspace: Workspace, objective: DiffusionObjective | DistillObjective, batch_size: int) -> Effort:
        """The work of a stage that trains by batches of so many windows."""
        settings, sizes = workspace.settings, objective.corrector.architecture
        views = max(objective.steps.simulator.look(task, 0)[1] for task in workspace.splits["valid"])
        called, step = batch_size + CALL, views + 2.0 * (1 + BACKWARD)  # the operator; moments and flow with gradients
        distance = 0.0
        if isinstance(objective, DistillObjective):
            taught = views + 1 + objective.terms.teacher_steps * EVALUATIONS[sizes.sampler]  # ..., moments, path
            step = taught + (2 + BACKWARD) * max(objective.terms.num_taus)  # the graph is made twice
            passes = DISTANCE_BATCHES * len(workspace.splits["valid"])
            distance = passes * (taught + len(objective.own_places())) * called
        return cls(
            of_step=step * called * settings.training.accum_steps,
            rollouts=validation_rollouts(workspace),
            sampler=sizes.sampler,
            sampler_steps=sizes.sampler_steps,
            corrector_every=settings.evaluation.corrector_every,
            views=views,
            of_distance=distance,
            validate_every=settings.training.validate_every,
        )

    def of_ensembles(self, size: EnsembleSize, *, drawn: bool = True) -> float:
        """Rows of rolling validation ensembles out once: at every frame operator, moments, and where drawn the sampler.

        Before, both networks are called on the steps that show how long errors last.
        """
        calls = min(SAMPLER_CALLS, self.sampler_steps * EVALUATIONS[self.sampler]) if drawn else 0
        passes = self.views + (1 + calls) / self.corrector_every
        rows = sum(
            min(size.frames, longest) * (size.members * min(size.samples, num) + CALL) for num, longest in self.rollouts
        )
        return passes * rows + (1 + self.views) * (MEMORY + 1) * (MEMORY_WINDOWS + CALL) * len(self.rollouts)

    def validations(self, steps: int) -> int:
        """How often a stage of so many steps is validated; where that is `auto`, seldom if its share allows no more."""
        if self.validate_every != "auto":
            return math.ceil(steps / self.validate_every)
        fewest, most = DISTANCES if self.of_distance else VALIDATIONS
        least = self.of_distance or self.of_ensembles(EnsembleSize(*CHOICE[-1], LEAST_FRAMES))
        return max(fewest, min(most, int(CHOICE_SHARE * steps * self.of_step / least)))

    def choice(self, steps: int) -> EnsembleSize:
        """Ensembles by which the weights of a stage of so many steps are chosen."""
        return self._largest(CHOICE, CHOICE_SHARE * steps * self.of_step / self.validations(steps), self.of_ensembles)

    def calibration(self, steps: int) -> EnsembleSize:
        """Ensembles by which the spread of samples is chosen after so many steps."""
        return self._largest(CALIBRATION, CALIBRATION_SHARE * steps * self.of_step, self.of_calibration)

    def of_calibration(self, size: EnsembleSize) -> float:
        """Rows of a calibration by ensembles of a size."""
        return TRIALS * self.of_ensembles(size) + self.of_ensembles(size, drawn=False)

    def comparison(self, steps: int) -> EnsembleSize:
        """Ensembles by which a student is compared with its teacher after so many steps."""
        return self._largest(CALIBRATION, COMPARISON_SHARE * steps * self.of_step / COMPARED, self.of_ensembles)

    def beside_training(self, steps: int) -> float:
        """Rows of all validations of a stage of so many steps, and of its calibration or comparison."""
        if self.of_distance:
            return self.validations(steps) * self.of_distance + COMPARED * self.of_ensembles(self.comparison(steps))
        choosing = self.validations(steps) * self.of_ensembles(self.choice(steps))
        return choosing + self.of_calibration(self.calibration(steps))

    def _largest(
        self, sizes: Sequence[tuple[int, int]], most: float, rows: Callable[[EnsembleSize], float]
    ) -> EnsembleSize:
        """The best of these ensembles within so many rows; where none is, the last over fewer frames."""
        there, frames = (max(found) for found in zip(*self.rollouts, strict=True))
        found = [EnsembleSize(members, min(samples, there), frames) for members, samples in sizes]
        found += [replace(found[-1], frames=fewer) for fewer in range(frames - 1, LEAST_FRAMES - 1, -1)]
        return next((size for size in found if rows(size) <= most), found[-1])


def validation_rollouts(workspace: Workspace) -> tuple[tuple[int, int], ...]:
    """Validation trajectories of each task that may be scored, and the frames of the longest roll-out."""
    settings = workspace.settings
    scope, context = settings.evaluation.small, settings.data.context
    found = []
    for valid in workspace.splits["valid"].values():
        num = min(valid.num, scope.max_samples or valid.num)
        longest = int(valid.lengths.max()) - context
        found.append((num, min(longest, scope.steps or longest)))
    return tuple(found)


def expected_steps(
    workspace: Workspace,
    stage: str,
    objective: DiffusionObjective | DistillObjective,
    batch_size: int,
    budget: Budget,
    key: str,
) -> int:
    """Optimizer steps that a stage's budget is good for.

    For seconds, a step is timed once and the result is noted in the run's records: a training that goes on after it was
    stopped must be validated as before.

    Args:
        key: of the stage; what was noted for another one, or another budget, is not taken.
    """
    training = workspace.settings.training
    with closing(make_loader(workspace, batch_size)) as loader:
        steps = budget.steps(loader.steps_per_epoch / training.accum_steps)
        if steps is not None:
            return max(1, steps)
        record, made_for = f"effort-{stage}", f"{key}-{budget.amount:g}"
        if workspace.records.done(record, made_for):
            return int(workspace.records.note(record, "steps", 1))
        began, batch = time.perf_counter(), next(iter(loader)).to(workspace.device)
    rng, clock = torch.Generator(workspace.device).manual_seed(0), CLOCKS[training.clock]

    def step() -> float:
        start = clock()
        objective(batch, rng)[0].backward()
        if workspace.device.type == "cuda":
            torch.cuda.synchronize(workspace.device)
        return clock() - start

    seconds = step()
    cold = workspace.device.type == "cuda"  # it loads and tunes what it meets first
    if cold or seconds < QUICK * budget.amount:
        seconds = min(seconds, step())
    objective.module.zero_grad()
    steps = max(1, round(budget.amount / (seconds * training.accum_steps)))
    workspace.records.finish(record, made_for, time.perf_counter() - began, steps=steps)
    return steps
