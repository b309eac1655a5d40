"""Trains what a run is made of: its stages, and the baselines it is compared with, all through the same loop."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ups.config.learning import OptimizerSettings
from ups.config.load import resolved
from ups.config.schema import Settings, StageName
from ups.data.windows import WindowLoader
from ups.errors import DataError
from ups.evaluation.validate import validation_nrmse, validation_reconstruction
from ups.models.baselines import NetworkEmulator, make_baseline
from ups.models.emulator import Emulator
from ups.models.simulator import Simulator
from ups.models.step import StepEmulator
from ups.models.store import load_model, load_weights, save_model
from ups.pipeline.records import digest
from ups.pipeline.workspace import Workspace
from ups.runtime import seed_everything
from ups.training.checkpoint import CheckpointStore
from ups.training.ema import build_ema
from ups.training.focus import Focus
from ups.training.loop import LoopSettings, Objective, StageOutcome, fit
from ups.training.monitor import JsonlSink, Monitor
from ups.training.objectives import EmulatorObjective
from ups.training.optim import build_optimizer
from ups.training.schedule import Budget, build_schedule
from ups.training.stages import BASELINE_OPTIMIZERS, build_augments, build_objective, fit_pairs

STAGES: tuple[StageName, ...] = ("codec", "operator")
CODEC_IS_EXACT = 1e-5  # validation nrmse of a codec below which there is nothing to train


@dataclass(frozen=True)
class Plan:
    """One training: what is minimised, for how long, with what."""

    name: str
    emulator: Emulator
    objective: Objective
    budget: Budget
    optimizer: OptimizerSettings
    batch_size: int
    patience: int | None
    validate: Callable[[], float]
    key: str
    focus: Focus | None = None


def train_stages(workspace: Workspace, stages: tuple[StageName, ...] = STAGES) -> Simulator:
    """Trains the stages that are not done yet, in order; after the last of all, the result is in `model/`."""
    simulator = workspace.new_simulator().to(workspace.device)
    key = fit_closed_form(workspace, simulator)
    for stage in stages:
        if workspace.settings.stage(stage).skipped:
            continue
        key = train_stage(workspace, stage, simulator, key)
    if stages[-1] == STAGES[-1]:
        save_model(simulator, workspace.run_dir / "model")
    return simulator.eval()


def fit_closed_form(workspace: Workspace, emulator: Emulator) -> str:
    """Fits propagator, scales and codec subspace to train frames; returns the key of what was fitted to what."""
    settings = workspace.settings
    if isinstance(emulator, StepEmulator):
        rng = torch.Generator().manual_seed(settings.seed)
        emulator.to("cpu")  # a second's work in float64
        for task, train in workspace.splits["train"].items():
            emulator.fit(task, fit_pairs(train, rng))
        emulator.to(workspace.device)
    return digest(
        model_settings(settings), workspace.data_hash, {t: asdict(spec) for t, spec in workspace.specs.items()}
    )


def train_stage(
    workspace: Workspace, stage: StageName, simulator: Simulator, before: str, budget: Budget | None = None
) -> str:
    """Trains one stage of the simulator, unless its record says that it is done; returns the stage's key.

    Args:
        before: key of what the stage starts from.
        budget: instead of the one that the settings give the stage.
    """
    settings = workspace.settings
    choices = resolved(settings)
    key = digest(before, stage, choices["stages"][stage], choices["training"], choices["optimizer"], settings.seed)
    folder = workspace.run_dir / "checkpoints" / stage / "model"
    if workspace.records.done(stage, key, folder):
        simulator.load_state_dict(load_model(folder, workspace.device).state_dict())
        return key
    if stage == "codec" and (error := validation_of(workspace, stage, simulator)()) < CODEC_IS_EXACT:
        save_model(simulator, folder)
        workspace.progress.say("codec: reproduces the fields to rounding; nothing to train")
        workspace.records.finish(stage, key, 0.0, steps=0, best_valid=error, exact=True)
        return key
    augments = build_augments(settings, workspace.splits["train"])
    plan = Plan(
        name=stage,
        emulator=simulator,
        objective=build_objective(stage, settings, simulator, augments),
        budget=budget or Budget.of(settings.stage(stage)),
        optimizer=settings.optimizer_of(stage),
        batch_size=workspace.batch_size(stage),
        patience=settings.patience_of(stage),
        validate=validation_of(workspace, stage, simulator),
        key=key,
        focus=find_focus(workspace, simulator) if stage == "operator" else None,
    )
    run_plan(workspace, plan, folder)
    return key


def find_focus(workspace: Workspace, emulator: StepEmulator) -> Focus | None:
    """What says which windows come more often; None where all come alike."""
    settings = workspace.settings
    if settings.training.focus == 0:
        return None
    sets, device = workspace.splits["train"], workspace.device
    return Focus(emulator, sets, power=settings.training.focus, seed=settings.seed, device=device)


def validation_of(workspace: Workspace, stage: str, emulator: Emulator) -> Callable[[], float]:
    """What a stage's weights are chosen by: reconstruction for the codec, the roll-out's nrmse for all else."""
    scope, valid = workspace.settings.evaluation.small, workspace.splits["valid"]
    if not all(part.num for part in valid.values()):
        raise DataError("no validation trajectories: raise data.split.valid, or name data.split.valid_files")
    if stage == "codec":
        return lambda: validation_reconstruction(emulator, valid, device=workspace.device)
    mode, device = workspace.settings.evaluation.rollout_mode, workspace.device
    return lambda: validation_nrmse(
        emulator, valid, max_samples=scope.max_samples, steps=scope.steps, mode=mode, device=device
    )


def training_seconds(workspace: Workspace) -> float:
    """Seconds that the simulator's stages are given, or took where their budget is in steps or epochs."""
    seconds = 0.0
    for stage in STAGES:
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
    if not isinstance(emulator, StepEmulator) or not any(p.requires_grad for p in emulator.parameters()):
        return emulator.eval()
    batch_size = workspace.batch_size("operator")
    return train_emulator(workspace, emulator, fitted, BASELINE_OPTIMIZERS[name], budget, batch_size)


def train_emulator(
    workspace: Workspace,
    emulator: StepEmulator,
    before: str,
    optimizer: OptimizerSettings,
    budget: Budget,
    batch_size: int,
    *,
    focused: bool = False,
) -> Emulator:
    """Trains an emulator other than the simulator one step ahead, unless its record says that it is done.

    Args:
        emulator: on the workspace's device; what it has in closed form is fitted.
        before: key of what training starts from.
        focused: draw windows as the simulator's training does (`training.focus`), rather than evenly.
    """
    settings, step = workspace.settings, f"baselines-{emulator.name}"
    training = resolved(settings)["training"]
    if not focused:
        training.pop("focus")
    shapes = {name: tuple(value.shape) for name, value in emulator.state_dict().items()}
    parts = emulator.parts if isinstance(emulator, NetworkEmulator) else {}
    key = digest(before, step, budget.amount, training, optimizer.model_dump(mode="json"), shapes, parts)
    folder = workspace.run_dir / "baselines" / emulator.name / "model"
    if workspace.records.done(step, key, folder):
        load_weights(emulator, folder)
        return emulator.eval()
    plan = Plan(
        name=step,
        emulator=emulator,
        objective=EmulatorObjective(emulator, build_augments(settings, workspace.splits["train"])),
        budget=budget,
        optimizer=optimizer,
        batch_size=batch_size,
        patience=None,
        validate=validation_of(workspace, step, emulator),
        key=key,
        focus=find_focus(workspace, emulator) if focused else None,
    )
    run_plan(workspace, plan, folder)
    return emulator.eval()


def run_plan(workspace: Workspace, plan: Plan, folder: Path) -> StageOutcome:
    """Runs one training to its end, saves the model, and notes the step as done."""
    settings, began = workspace.settings, time.perf_counter()
    training = settings.training
    module = plan.objective.module
    place = workspace.run_dir / "checkpoints" / plan.name
    if workspace.records.key(plan.name) is not None:  # finished, but from something else: only its record knows
        workspace.progress.say(f"{plan.name}: trained again, because what it depends on has changed")
        workspace.records.forget(plan.name)
        shutil.rmtree(place, ignore_errors=True)
    store = CheckpointStore(
        place,
        fingerprint=fingerprint(workspace, plan),
        keep=training.keep_checkpoints,
        say=workspace.progress.say,
    )
    monitor = Monitor(plan.name, [JsonlSink(workspace.run_dir / "log.jsonl")])
    module.train()
    with closing(make_loader(workspace, plan.batch_size, plan.focus)) as loader, closing(monitor):
        outcome = fit(
            plan.objective,
            loader,
            budget=plan.budget,
            optimizer=build_optimizer(module, plan.optimizer),
            schedule=build_schedule(plan.optimizer.scheduler),
            ema=build_ema(module, training.ema_decay),
            settings=LoopSettings.of(training, patience=plan.patience),
            validate=plan.validate,
            checkpoints=store,
            monitor=monitor,
            progress=workspace.progress,
            device=workspace.device,
            seed=settings.seed,
            refocus=None if plan.focus is None else plan.focus.by_error,
        )
    save_model(plan.emulator, folder)
    notes: dict[str, Any] = {
        "steps": outcome.steps,
        "training_seconds": outcome.seconds,
        "best_valid": outcome.best_metric,
        "best_step": outcome.best_step,
        "stopped": outcome.stopped,
        "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }
    workspace.records.finish(plan.name, plan.key, time.perf_counter() - began, **notes)
    return outcome


def make_loader(workspace: Workspace, batch_size: int, focus: Focus | None = None) -> WindowLoader:
    """Shuffled batches of the train split."""
    settings = workspace.settings
    workers = settings.training.num_workers
    return WindowLoader(
        workspace.splits["train"],
        batch_size,
        settings.data.context,
        1,
        settings.seed,
        weights=None if focus is None else focus.by_base(),
        workers=1 if workers == "auto" else workers,
        prefetch=settings.training.prefetch_factor,
    )


def fingerprint(workspace: Workspace, plan: Plan) -> Mapping[str, Any]:
    """What a checkpoint must share with the training that resumes from it; shown where it does not."""
    return {
        "settings": model_settings(workspace.settings) | {"optimizer": plan.optimizer.model_dump(mode="json")},
        "budget": {plan.budget.unit: plan.budget.amount},
        "data": workspace.data_hash,
        "key": plan.key,
    }


def model_settings(settings: Settings) -> dict[str, Any]:
    """The settings that a model's weights depend on before any training."""
    choices = resolved(settings)
    return {name: choices[name] for name in ("data", "latent", "operator", "seed")}
