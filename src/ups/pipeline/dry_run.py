"""One real batch, forward and backward, through everything that a run will train: what would fail later fails now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import torch

from ups.errors import UpsError
from ups.models.baselines import make_baseline
from ups.models.step import StepEmulator
from ups.pipeline.plan import make_loader
from ups.pipeline.train import STAGES, stages_of
from ups.pipeline.workspace import Workspace
from ups.training.loop import LoopSettings, Objective
from ups.training.objectives import EmulatorObjective
from ups.training.prior import SteadyPriorObjective
from ups.training.schedule import Budget
from ups.training.stages import build_augments, build_objective


def dry_run(workspace: Workspace) -> None:
    """Sends one batch through every enabled stage and baseline, and says what each step costs.

    Raises:
        UpsError: a model cannot be built for this data, or a loss is not finite.
    """
    for name, objective, batch_size, budget in _trainings(workspace):
        workspace.progress.say(_try_batch(workspace, name, objective, batch_size, budget))


def _trainings(workspace: Workspace) -> Iterator[tuple[str, Objective, int, Budget | None]]:
    settings = workspace.settings
    augments = build_augments(settings, workspace.splits["train"])
    if workspace.steady:
        prior, stage = workspace.new_prior().to(workspace.device), STAGES[-1]
        yield (
            stage,
            SteadyPriorObjective(prior, augments),
            workspace.batch_size(stage),
            Budget.of(settings.stage(stage)),
        )
        return
    simulator = workspace.new_simulator().to(workspace.device)
    for stage in stages_of(workspace):
        if not settings.stage(stage).skipped:
            objective = build_objective(stage, settings, simulator, augments)
            yield stage, objective, workspace.batch_size(stage), Budget.of(settings.stage(stage))
    for name in settings.evaluation.baselines:
        emulator = make_baseline(name, workspace.specs).to(workspace.device)
        if isinstance(emulator, StepEmulator) and any(p.requires_grad for p in emulator.parameters()):
            yield f"baseline {name}", EmulatorObjective(emulator, augments), workspace.batch_size("operator"), None


def _try_batch(workspace: Workspace, name: str, objective: Objective, batch_size: int, budget: Budget | None) -> str:
    """Runs the heaviest batch of a training twice, the second time measured; what it found, in a line."""
    with closing(make_loader(workspace, batch_size)) as loader:
        loader.set_horizon(objective.plan(0, 1.0))
        batch, steps_per_epoch = next(iter(loader)).to(workspace.device), loader.steps_per_epoch
    rng = torch.Generator(workspace.device).manual_seed(0)
    amp = LoopSettings.of(workspace.settings.training, patience=None).amp
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        with torch.autocast(workspace.device.type, dtype=amp, enabled=amp is not None):
            loss, _ = objective(batch, rng)
        loss.backward()
        finite = bool(torch.isfinite(loss))  # waits for the device
        seconds = time.perf_counter() - began
        objective.module.zero_grad()
    if not finite:
        raise UpsError(
            f"{name}: the loss of the first batch is {loss.item()}; check the data's ranges, or lower training.lambda_*"
        )
    count = sum(p.numel() for p in objective.module.parameters() if p.requires_grad)
    line = f"dry run {name}: {count:,} parameters, {1000 * seconds:.0f} ms a step"
    steps = _steps(budget, steps_per_epoch)
    return line if steps is None else f"{line}, {steps:,} steps: about {_duration(steps * seconds)}"


def _steps(budget: Budget | None, steps_per_epoch: int) -> int | None:
    """Optimizer steps of a budget; None where it is in seconds."""
    if budget is None or budget.unit == "seconds":
        return None
    return int(budget.amount * (steps_per_epoch if budget.unit == "epochs" else 1))


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
