"""Trains what a run's simulator is compared with, for as many seconds as the simulator was trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ups.config.learning import OptimizerSettings
from ups.config.load import resolved
from ups.errors import CheckpointError
from ups.models.baselines import NetworkEmulator, make_baseline, without_derived
from ups.models.emulator import Emulator, TaskSpec
from ups.models.step import StepEmulator
from ups.models.store import load_model, load_weights, save_model
from ups.pipeline.before import PREDICTING
from ups.pipeline.plan import Plan, made_from, run_plan
from ups.pipeline.records import digest
from ups.pipeline.train import find_focus, fit_closed_form
from ups.pipeline.validation import chosen_on, validation_of
from ups.pipeline.workspace import Workspace
from ups.runtime import seed_everything
from ups.training.baselines import baseline_objective, baseline_training
from ups.training.schedule import Budget
from ups.training.stages import build_augments


def training_seconds(workspace: Workspace) -> float:
    """Seconds that what predicts was given, or took where its budget is in steps or epochs; ensembles' do not count."""
    seconds = 0.0
    for stage in PREDICTING:
        if workspace.records.note(stage, "steps", 0) > 0:
            took = math.ceil(workspace.records.note(stage, "training_seconds", 0.0))
            seconds += workspace.settings.stage(stage).seconds or took
    return seconds


def train_baseline(workspace: Workspace, name: str) -> Emulator:
    """Trains a baseline for as many seconds as the simulator, or fits it, or takes it as it is."""
    seed_everything(workspace.settings.seed)
    emulator = make_baseline(name, workspace.specs).to(workspace.device)
    budget = Budget("seconds", training_seconds(workspace))
    fitted = fit_closed_form(workspace, emulator)
    if not any(p.requires_grad for p in emulator.parameters()):
        if isinstance(emulator, StepEmulator):  # fitted: `ups evaluate` has no train data to do it again
            save_model(emulator, folder_of_baseline(workspace, name))
        return emulator.eval()
    training = baseline_training(emulator)
    batch_size = workspace.baseline_batch_size(training.batch_size)
    return train_emulator(workspace, emulator, fitted, training.optimizer, budget, batch_size)


def folder_of_baseline(workspace: Workspace, name: str) -> Path:
    """Where the model of a fitted or trained baseline lies."""
    return workspace.run_dir / "baselines" / name / "model"


def trained_baselines(workspace: Workspace, tasks: Mapping[str, TaskSpec]) -> dict[str, Emulator]:
    """What was fitted or trained beside a run's model, by name; those that do not belong to it are said and left out.

    Args:
        tasks: of the run's model.
    """
    found: dict[str, Emulator] = {}
    for folder in sorted(workspace.run_dir.glob("baselines/*/model")):
        name = folder.parent.name
        try:
            baseline = load_model(folder, workspace.device)
        except CheckpointError as error:
            workspace.progress.say(f"warning: {error}; {name} is left out")
            continue
        if without_derived(baseline.tasks) == without_derived(tasks):
            found[name] = baseline
        else:
            workspace.progress.say(f"warning: {folder} was trained on other data than the model; {name} is left out")
    return found


def train_emulator(
    workspace: Workspace,
    emulator: Emulator,
    before: str,
    optimizer: OptimizerSettings,
    budget: Budget,
    batch_size: int,
    *,
    focused: bool = False,
) -> Emulator:
    """Trains an emulator other than the simulator one step ahead, or to solve, unless its record says that it is done.

    Args:
        emulator: on the workspace's device; what it has in closed form is fitted.
        before: key of what training starts from.
        focused: draw windows as the simulator's training does (`training.focus`), rather than evenly.
    """
    settings, step = workspace.settings, f"baselines-{emulator.name}"
    training = resolved(settings)["training"]
    if not focused:
        training.pop("focus")
    chosen_by = chosen_on(settings, workspace.main_stage)
    read = {"training": training, "optimizer": optimizer.model_dump(mode="json"), "evaluation": chosen_by}
    parts = {
        **made_from(workspace, step, before, read),
        "budget": {budget.unit: budget.amount},
        "shapes": {name: tuple(value.shape) for name, value in emulator.state_dict().items()},
        "parts": emulator.parts if isinstance(emulator, NetworkEmulator) else {},
    }
    folder = folder_of_baseline(workspace, emulator.name)
    if workspace.records.done(step, digest(parts), folder):
        load_weights(emulator, folder)
        return emulator.eval()
    validate = validation_of(workspace, step, emulator)
    plan = Plan(
        name=step,
        emulator=emulator,
        objective=baseline_objective(emulator, build_augments(settings, workspace.splits["train"])),
        budget=budget,
        optimizer=optimizer,
        batch_size=batch_size,
        patience=None,
        validate=validate,
        beside=validate.beside,
        made_from=parts,
        focus=find_focus(workspace, emulator) if focused and isinstance(emulator, StepEmulator) else None,
    )
    run_plan(workspace, plan, folder)
    return emulator.eval()
