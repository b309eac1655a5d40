"""Trains the stages of a run, one after the other, all through the same loop."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ups.config.load import resolved
from ups.config.schema import Settings, StageName
from ups.data.latents import LatentStore
from ups.data.trajectories import Frames
from ups.data.windows import WindowLoader
from ups.errors import UsageError
from ups.models.emulator import Emulator
from ups.models.prior import SteadyPrior
from ups.models.simulator import Simulator
from ups.models.step import StepEmulator
from ups.models.store import adopt, load_weights, save_model
from ups.pipeline.before import PREDICTING, STAGES, require_stage, stages_of
from ups.pipeline.calibration import calibrate
from ups.pipeline.effort import Effort, expected_steps
from ups.pipeline.ensembles import DistanceToTeacher, EnsembleScore, compare_student
from ups.pipeline.plan import Plan, made_from, model_settings, run_plan
from ups.pipeline.records import digest
from ups.pipeline.validation import chosen_on, validation_of
from ups.pipeline.workspace import Workspace
from ups.training.diffusion import DiffusionObjective, DistillObjective, fit_scales
from ups.training.focus import Focus
from ups.training.loop import StageOutcome
from ups.training.pairs import fit_pairs
from ups.training.prior import SteadyPriorObjective
from ups.training.prior import calibrate as calibrate_prior
from ups.training.schedule import Budget
from ups.training.stages import build_augments, build_objective

CODEC_IS_EXACT = 1e-5  # validation nrmse of a codec below which there is nothing to train
CUTOFFS = (1.0, 2 / 3, 1 / 2)  # shares of the wave numbers that are tried, all of them first
WORTH = 0.98  # of the validation error: to leave out waves must bring more than chance does
SCALE_BATCHES = 64  # batches of each task that the size of the operator's error is taken of, at most


def train_stages(workspace: Workspace, upto: StageName | None = None) -> Emulator:
    """Trains the stages that are not done yet, in order; after the last that has a budget, the result is in `model/`.

    Args:
        upto: the last stage to train; None trains all.
    """
    require_stage(workspace.settings, upto)
    of_tasks = stages_of(workspace.settings.data.task)
    if workspace.steady:
        return train_prior(workspace)
    stages = of_tasks if upto is None else of_tasks[: of_tasks.index(upto) + 1]
    simulator = workspace.new_simulator().to(workspace.device)
    key = fit_closed_form(workspace, simulator)
    for stage in stages:
        if workspace.settings.stage(stage).skipped:
            if stage == "operator":
                workspace.progress.say("warning: stages.operator.epochs is 0: a step is its base alone, not trained")
            continue
        key = train_stage(workspace, stage, simulator, key)
    with_budget = [stage for stage in of_tasks if not workspace.settings.stage(stage).skipped]
    if with_budget[-1] in stages:
        save_model(simulator.requires_grad_(True), workspace.run_dir / "model")
    return simulator.eval()


def train_prior(workspace: Workspace) -> SteadyPrior:
    """Trains the steady prior, unless its record says that it is done; the result is in `model/`."""
    settings = workspace.settings
    prior = workspace.new_prior().to(workspace.device)
    stage = STAGES[-1]
    parts = made_from(workspace, stage, None, settings_of(settings, stage, "data", "prior"))
    folder = workspace.run_dir / "checkpoints" / stage / "model"
    if workspace.records.done(stage, digest(parts), folder):
        load_weights(prior, folder)
    elif settings.stage(stage).skipped:
        raise UsageError(f"stages.{stage}.epochs is 0: nothing would be trained; give the stage a budget")
    else:
        valid, device = workspace.splits["valid"], workspace.device
        batch_size, validate = workspace.batch_size(stage), validation_of(workspace, stage, prior)

        def finish(_: StageOutcome) -> None:
            with WindowLoader(valid, batch_size, 1, 1, settings.seed, shuffle=False) as loader:
                batches = (one.to(device) for one in islice(loader, loader.steps_per_epoch))
                found = calibrate_prior(prior.eval(), batches)
            levels = ", ".join(f"{level:.2g}" for level in found.values())
            workspace.progress.say(f"steady_prior: samples spread {levels} times as far as trained, by validation")

        plan = Plan(
            name=stage,
            emulator=prior,
            objective=SteadyPriorObjective(prior, build_augments(settings, workspace.splits["train"])),
            budget=Budget.of(settings.stage(stage)),
            optimizer=settings.optimizer_of(stage),
            batch_size=batch_size,
            patience=settings.patience_of(stage),
            checkpoint_interval=settings.checkpoint_interval_of(stage),
            validate=validate,
            beside=validate.beside,
            made_from=parts,
            finish=finish,
        )
        run_plan(workspace, plan, folder)
    save_model(prior, workspace.run_dir / "model")
    return prior.eval()


def fit_closed_form(workspace: Workspace, emulator: Emulator) -> str:
    """Fits propagator, scales and codec subspace to train frames; returns the key of what was fitted to what."""
    settings = workspace.settings
    with workspace.timings.part("closed form", compute=True):
        _fit(workspace, emulator)
    return digest(
        model_settings(settings), workspace.data_hash, {t: asdict(spec) for t, spec in workspace.specs.items()}
    )


def _fit(workspace: Workspace, emulator: Emulator) -> None:
    if isinstance(emulator, StepEmulator):
        rng = torch.Generator().manual_seed(workspace.settings.seed)
        emulator.to("cpu")  # a second's work in float64
        for task, train in workspace.splits["train"].items():
            emulator.fit(task, fit_pairs(train, rng))
            physics = emulator.physics[task]
            if physics.chooses and physics.base_leaves is not None:
                taken = "linear" if physics.is_linear else "the last frame"
                share = f"a linear propagator leaves {physics.base_leaves:.3g} of a step to be learned"
                workspace.progress.say(f"base of {task}: {taken} ({share})")
        emulator.to(workspace.device)


def train_stage(
    workspace: Workspace, stage: StageName, simulator: Simulator, before: str, budget: Budget | None = None
) -> str:
    """Trains one stage of the simulator, unless its record says that it is done; returns the stage's key.

    Args:
        before: key of what the stage starts from.
        budget: instead of the one that the settings give the stage.
    """
    settings = workspace.settings
    of_network = () if stage in PREDICTING else ("diffusion",)
    parts = made_from(workspace, stage, before, settings_of(settings, stage, *of_network))
    key = digest(parts)
    folder = workspace.run_dir / "checkpoints" / stage / "model"
    if workspace.records.done(stage, key, folder):
        adopt(simulator, folder)
        return key
    if stage == "codec" and (error := codec_error(workspace, simulator)) < CODEC_IS_EXACT:
        save_model(simulator, folder)
        priors = settings.training.physics_priors
        left_out = f", and {' and '.join(priors.of_latents)} left out" if priors.of_latents else ""
        workspace.progress.say(f"codec: reproduces the fields to rounding; nothing to train{left_out}")
        workspace.records.finish(stage, key, 0.0, steps=0, best_valid=error, exact=True)
        return key
    augments = build_augments(settings, workspace.splits["train"])
    objective = build_objective(stage, settings, simulator, augments)
    validate = validation_of(workspace, stage, simulator)
    plan = Plan(
        name=stage,
        emulator=simulator,
        objective=objective,
        budget=budget or Budget.of(settings.stage(stage)),
        optimizer=settings.optimizer_of(stage),
        batch_size=workspace.batch_size(stage),
        patience=settings.patience_of(stage),
        checkpoint_interval=settings.checkpoint_interval_of(stage),
        validate=validate,
        beside=validate.beside,
        made_from=parts,
        focus=find_focus(workspace, simulator) if stage == "operator" else None,
        latents=cached_latents(workspace, simulator) if stage == "operator" else None,
    )
    if stage == "operator" and settings.operator.cutoff == "auto":
        plan = replace(plan, finish=lambda _: choose_cutoff(workspace, simulator))
    if isinstance(objective, DiffusionObjective | DistillObjective):
        plan = with_ensembles(workspace, plan, simulator, objective)
    run_plan(workspace, plan, folder)
    return key


def settings_of(settings: Settings, stage: StageName, *more: str) -> dict[str, Any]:
    """The settings that a stage reads beside those of what it starts from, as a tree.

    Args:
        more: groups of settings that only this stage reads.
    """
    choices = resolved(settings)
    return {
        **{name: choices[name] for name in ("training", "optimizer", "seed", *more)},
        "stages": {stage: choices["stages"][stage]},
        "evaluation": chosen_on(settings, stage),
    }


def with_ensembles(
    workspace: Workspace, plan: Plan, simulator: Simulator, objective: DiffusionObjective | DistillObjective
) -> Plan:
    """The plan of a stage that draws ensembles, validated and calibrated within a share of its training.

    The student's samples are its teacher's, and spread as far as those were found to have to; at the end, both draw
    ensembles that are compared.
    """
    settings = workspace.settings
    effort = Effort.of(workspace, objective, plan.batch_size)
    steps = expected_steps(workspace, plan.name, objective, plan.batch_size, plan.budget, plan.key)
    plan = replace(plan, auto_validations=effort.validations(steps))
    if isinstance(objective, DistillObjective):
        target = workspace.settings.stages.consistency_distill.target_loss
        return replace(
            plan,
            validate=DistanceToTeacher(workspace, objective),
            beside=dict,
            target=target,
            finish=lambda found: compare_student(workspace, simulator, effort.comparison(found.steps)),
        )
    score = EnsembleScore(workspace, simulator, objective, effort.choice(steps))

    def begin() -> None:
        for task, train in workspace.splits["train"].items():
            with WindowLoader({task: train}, plan.batch_size, settings.data.context, 1, settings.seed) as loader:
                batches = islice(loader, min(SCALE_BATCHES, loader.steps_per_epoch))
                fit_scales(objective.steps, task, (batch.to(workspace.device) for batch in batches))

    def finish(outcome: StageOutcome) -> None:
        calibrate(workspace, plan.name, simulator, objective.steps, effort.calibration(outcome.steps))

    return replace(plan, validate=score, beside=score.beside, begin=begin, finish=finish)


def choose_cutoff(workspace: Workspace, simulator: Simulator) -> None:
    """Sets which of the shortest waves a step leaves out, to what validation roll-outs are best with."""
    if not any(any(spec.periodic) for spec in simulator.tasks.values()):
        return
    simulator.eval()
    validate, scores = validation_of(workspace, "operator", simulator), dict[float, float]()
    for cutoff in CUTOFFS:
        simulator.architecture = replace(simulator.architecture, cutoff=cutoff)
        scores[cutoff] = validate()
    best = min(scores, key=lambda cutoff: scores[cutoff])
    chosen = best if scores[best] < WORTH * scores[1.0] else 1.0
    simulator.architecture = replace(simulator.architecture, cutoff=chosen)
    found = ", ".join(f"{score:.3g} with {_share(cutoff)}" for cutoff, score in scores.items())
    workspace.progress.say(f"operator: a step keeps {_share(chosen)} of the wave numbers (validation nrmse {found})")


def _share(cutoff: float) -> str:
    return "all" if cutoff == 1.0 else f"{cutoff:.2g}"


def codec_error(workspace: Workspace, simulator: Simulator) -> float:
    """Validation nrmse of the codec as it is."""
    with workspace.timings.part("codec: validate", compute=True):
        return validation_of(workspace, "codec", simulator)()


def find_focus(workspace: Workspace, emulator: StepEmulator) -> Focus | None:
    """What says which windows come more often; None where all come alike."""
    settings = workspace.settings
    if settings.training.focus == 0:
        return None
    sets, device = workspace.splits["train"], workspace.device
    return Focus(emulator, sets, power=settings.training.focus, seed=settings.seed, device=device)


def cached_latents(workspace: Workspace, simulator: Simulator) -> dict[str, Frames] | None:
    """The train split's latents by the frozen codecs, encoded if no cache has them; None where none is asked for."""
    training, device = workspace.settings.training, workspace.device
    if training.latent_cache_dir is None:
        return None
    store = LatentStore(
        Path(training.latent_cache_dir),
        dtype=training.latent_cache_dtype,
        preload=training.preload,
        device=device,
        say=workspace.progress.say,
    )
    found: dict[str, Frames] = {}
    for task, train in workspace.splits["train"].items():
        spec, weights = simulator.tasks[task], simulator.codecs[task].state_dict()
        weights |= {"mean": torch.tensor(spec.mean), "std": torch.tensor(spec.std)}
        found[task] = store.load("train", train, partial(encode_frames, simulator, task), weights)
    return found


def encode_frames(simulator: Simulator, task: str, frames: Tensor) -> Tensor:
    """Physical frames (frame, channel, *grid), from wherever they are, to their latents."""
    device = simulator.codecs[task].encoder.device
    return simulator.encode(frames[:, None].to(device), task=task)[:, 0]
