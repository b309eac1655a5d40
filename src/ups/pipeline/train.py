"""Trains the stages of a run, one after the other, all through the same loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ups.config.load import resolved
from ups.config.schema import Settings, StageName
from ups.data.latents import LatentStore
from ups.data.trajectories import Frames
from ups.data.windows import WindowLoader
from ups.errors import DataError, UsageError
from ups.evaluation.validate import validation_crps, validation_nrmse, validation_reconstruction
from ups.models.emulator import Emulator
from ups.models.prior import SteadyPrior
from ups.models.simulator import Simulator
from ups.models.step import StepEmulator
from ups.models.store import adopt, load_weights, save_model
from ups.physics.equations import get_equation
from ups.pipeline.before import STAGES
from ups.pipeline.plan import Plan, model_settings, run_plan
from ups.pipeline.records import digest
from ups.pipeline.workspace import Workspace
from ups.training.diffusion import DiffusionObjective, DistillObjective, fit_scales
from ups.training.focus import Focus
from ups.training.monitor import DivergedError
from ups.training.pairs import fit_pairs
from ups.training.prior import SteadyPriorObjective
from ups.training.prior import calibrate as calibrate_prior
from ups.training.schedule import Budget
from ups.training.stages import build_augments, build_objective

CODEC_IS_EXACT = 1e-5  # validation nrmse of a codec below which there is nothing to train
SCALE_BATCHES = 64  # batches that the size of the operator's error is taken of
# Members, trajectories and sampler steps of the ensembles by which the diffusion's weights are chosen, and its spread:
# few, as each validation would otherwise take longer than the training between two of them.
CHOICE, CALIBRATION = (3, 8, 2), (4, 16, 4)
DISTANCE_BATCHES = 2  # that the student's distance to its teacher is measured on
WIDENINGS = (0.7, 1.0, 1.4, 2.0, 2.8)  # of the samples' spread, of which the best by validation is kept
FINER = 1.2  # and then by so much more or less


def train_stages(workspace: Workspace, upto: StageName | None = None) -> Emulator:
    """Trains the stages that are not done yet, in order; after the last that has a budget, the result is in `model/`.

    Args:
        upto: the last stage to train; None trains all.
    """
    require_stage(workspace.settings, upto)
    stages = stages_of(workspace)
    if workspace.steady:
        return train_prior(workspace)
    stages = stages if upto is None else stages[: stages.index(upto) + 1]
    simulator = workspace.new_simulator().to(workspace.device)
    key = fit_closed_form(workspace, simulator)
    for stage in stages:
        if workspace.settings.stage(stage).skipped:
            continue
        key = train_stage(workspace, stage, simulator, key)
    with_budget = [stage for stage in stages_of(workspace) if not workspace.settings.stage(stage).skipped]
    if with_budget[-1] in stages:
        save_model(simulator.requires_grad_(True), workspace.run_dir / "model")
    return simulator.eval()


def stages_of(workspace: Workspace) -> tuple[StageName, ...]:
    """The stages that there are for the tasks, in order."""
    return STAGES[-1:] if workspace.steady else STAGES[:-1]


def require_stage(settings: Settings, stage: StageName | None) -> None:
    """Refuses a stage that is not trained for these tasks; None is all that there are.

    Raises:
        UsageError: a task has, or has not, time; or there is none of that name.
    """
    steady = {get_equation(task).steady for task in settings.data.task}
    if stage is not None and steady != {stage == STAGES[-1]}:
        stages = STAGES[-1:] if steady == {True} else STAGES[:-1]
        raise UsageError(f"{stage} is no stage of {', '.join(settings.data.task)}: those are {', '.join(stages)}")


def train_prior(workspace: Workspace) -> SteadyPrior:
    """Trains the steady prior, unless its record says that it is done; the result is in `model/`."""
    settings = workspace.settings
    prior = workspace.new_prior().to(workspace.device)
    choices, stage = resolved(settings), STAGES[-1]
    parts = ("data", "prior", "seed", "training", "optimizer")
    key = digest({name: choices[name] for name in parts}, choices["stages"][stage], workspace.data_hash)
    folder = workspace.run_dir / "checkpoints" / stage / "model"
    if workspace.records.done(stage, key, folder):
        load_weights(prior, folder)
    elif settings.stage(stage).skipped:
        raise UsageError(f"stages.{stage}.epochs is 0: nothing would be trained; give the stage a budget")
    else:
        valid, device = workspace.splits["valid"], workspace.device
        batch_size = workspace.batch_size(stage)

        def finish() -> None:
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
            validate=validation_of(workspace, stage, prior),
            key=key,
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
    choices = resolved(settings)
    key = digest(before, stage, choices["stages"][stage], choices["training"], choices["optimizer"], settings.seed)
    if stage in ("diff_residual", "consistency_distill"):
        key = digest(key, choices["diffusion"], choices["evaluation"]["corrector_every"])
    folder = workspace.run_dir / "checkpoints" / stage / "model"
    if workspace.records.done(stage, key, folder):
        adopt(simulator, folder)
        return key
    if stage == "codec" and (error := codec_error(workspace, simulator)) < CODEC_IS_EXACT:
        save_model(simulator, folder)
        workspace.progress.say("codec: reproduces the fields to rounding; nothing to train")
        workspace.records.finish(stage, key, 0.0, steps=0, best_valid=error, exact=True)
        return key
    augments = build_augments(settings, workspace.splits["train"])
    objective = build_objective(stage, settings, simulator, augments)
    plan = Plan(
        name=stage,
        emulator=simulator,
        objective=objective,
        budget=budget or Budget.of(settings.stage(stage)),
        optimizer=settings.optimizer_of(stage),
        batch_size=workspace.batch_size(stage),
        patience=settings.patience_of(stage),
        checkpoint_interval=settings.checkpoint_interval_of(stage),
        validate=validation_of(workspace, stage, simulator),
        key=key,
        focus=find_focus(workspace, simulator) if stage == "operator" else None,
        latents=cached_latents(workspace, simulator) if stage == "operator" else None,
    )
    if isinstance(objective, DiffusionObjective):
        plan = replace(
            plan,
            begin=lambda loader: fit_scales(
                objective.steps, (batch.to(workspace.device) for batch in islice(loader, SCALE_BATCHES))
            ),
            finish=lambda: calibrate(workspace, simulator),
        )
    if isinstance(objective, DistillObjective):
        distance = DistanceToTeacher(workspace, objective)
        plan = replace(
            plan,
            validate=distance,
            target=settings.stages.consistency_distill.target_loss,
            finish=lambda: calibrate(workspace, simulator),
        )
    run_plan(workspace, plan, folder)
    return key


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


def validation_of(workspace: Workspace, stage: str, emulator: Emulator) -> Callable[[], float]:
    """What a stage's weights are chosen by: reconstruction, an ensemble's CRPS for `diff_residual`, else a nrmse."""
    scope, valid = workspace.settings.evaluation.small, workspace.splits["valid"]
    if not all(part.num for part in valid.values()):
        raise DataError("no validation trajectories: raise data.split.valid, or name data.split.valid_files")
    if stage == "codec":
        return lambda: validation_reconstruction(emulator, valid, device=workspace.device)
    mode, device = workspace.settings.evaluation.rollout_mode, workspace.device
    if stage == "diff_residual":
        return lambda: ensemble_error(workspace, emulator, *CHOICE)
    return lambda: validation_nrmse(
        emulator, valid, max_samples=scope.max_samples, steps=scope.steps, mode=mode, device=device
    )


def ensemble_error(workspace: Workspace, emulator: Emulator, members: int, samples: int, steps: int) -> float:
    """CRPS of the diffusion's ensembles over the truth's size, on the first validation trajectories.

    Args:
        steps: of the sampler, at most.
    """
    assert isinstance(emulator, Simulator)
    assert emulator.corrector is not None
    scope = workspace.settings.evaluation.small
    with emulator.corrector.sampling(steps):
        return validation_crps(
            emulator,
            workspace.splits["valid"],
            members=members,
            max_samples=min(samples, scope.max_samples or samples),
            steps=scope.steps,
            mode=workspace.settings.evaluation.rollout_mode,
            device=workspace.device,
        )


def calibrate(workspace: Workspace, simulator: Simulator) -> None:
    """Sets how far samples spread to what makes validation ensembles best, by their CRPS.

    Errors of a roll-out are correlated from step to step, which samples are not; and those on train data are smaller.
    """
    assert simulator.corrector is not None
    simulator.eval()
    found: dict[float, float] = {}

    def try_all(widenings: Iterable[float]) -> float:
        assert simulator.corrector is not None
        for widen in widenings:
            simulator.corrector.widen(widen)
            found[widen] = ensemble_error(workspace, simulator, *CALIBRATION)
        return min(found, key=lambda widen: found[widen])

    best = try_all(WIDENINGS)
    best = try_all((best / FINER, best * FINER))
    if not math.isfinite(found[best]):
        raise DivergedError(
            "every validation ensemble diverged; train the residual diffusion longer, or lower its rate"
        )
    simulator.corrector.widen(best)
    workspace.progress.say(f"samples spread {best:g} times as far as trained, by validation ensembles")


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
