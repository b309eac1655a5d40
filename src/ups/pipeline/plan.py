"""One training of a run, whatever is trained: its plan, and the way from there to a saved model and a record."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from ups.config.architecture import PriorSettings
from ups.config.learning import OptimizerSettings
from ups.config.load import resolved
from ups.config.schema import Settings
from ups.data.trajectories import Frames
from ups.data.windows import WindowLoader
from ups.models.emulator import Emulator
from ups.models.prior import SteadyPrior
from ups.models.simulator import Simulator
from ups.models.store import save_model
from ups.pipeline.before import PREDICTING, STAGES
from ups.pipeline.records import digest
from ups.pipeline.tracking import open_sinks
from ups.pipeline.workspace import Workspace
from ups.training.checkpoint import CheckpointStore
from ups.training.ema import build_ema
from ups.training.focus import Focus
from ups.training.loop import LoopSettings, Objective, StageOutcome, fit
from ups.training.memory import explaining_memory
from ups.training.monitor import Monitor
from ups.training.optim import build_optimizer
from ups.training.schedule import Budget, build_schedule
from ups.versions import MODEL_FORMAT


@dataclass(frozen=True)
class Plan:
    """One training: what is minimised, for how long, with what.

    Args:
        target: validation score at which training stops.
        beside: scores that are logged with those of every validation.
        auto_validations: of the whole budget, where `training.validate_every` is `auto`; None is what is usual.
        checkpoint_interval: steps between checkpoints; None is that of `training`.
        made_from: what the outcome depends on, by name, see `made_from`.
        begin: fits in closed form, before training, what is fitted so.
        finish: what is set after training, by how it ended, before the model is saved.
        latents: of the train split by task, which training reads in place of frames.
    """

    name: str
    emulator: Emulator
    objective: Objective
    budget: Budget
    optimizer: OptimizerSettings
    batch_size: int
    patience: int | None
    validate: Callable[[], float]
    made_from: Mapping[str, Any]
    focus: Focus | None = None
    target: float | None = None
    beside: Callable[[], Mapping[str, float]] = dict
    auto_validations: int | None = None
    checkpoint_interval: int | None = None
    begin: Callable[[], None] | None = None
    finish: Callable[[StageOutcome], None] | None = None
    latents: Mapping[str, Frames] | None = None

    @property
    def key(self) -> str:
        """Of the step's record."""
        return digest(self.made_from)


def made_from(workspace: Workspace, step: str, before: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the outcome of a training depends on, by name: its hash is the key of the step, and differences are shown.

    Args:
        before: key of the step that it starts from; None where it starts from data alone.
        settings: those that it reads, as a tree.
    """
    return {
        "step": step,
        "starts from": before,
        "data": workspace.data_hash,
        "model format": MODEL_FORMAT,
        "settings": settings,
    }


def run_plan(workspace: Workspace, plan: Plan, folder: Path) -> StageOutcome:
    """Runs one training to its end, saves the model, and notes the step as done."""
    with workspace.timings.part(f"{plan.name}: rest"):
        return _run(workspace, plan, folder)


def _run(workspace: Workspace, plan: Plan, folder: Path) -> StageOutcome:
    settings, began = workspace.settings, time.perf_counter()
    train = partial(workspace.timings.part, f"{plan.name}: train", compute=True)
    training = settings.training
    module = plan.objective.module
    place = workspace.run_dir / "checkpoints" / plan.name
    if workspace.records.key(plan.name) is not None:  # finished, but from something else: only its record knows
        workspace.progress.say(f"{plan.name}: trained again, because what it depends on has changed")
        discard_followers(workspace, plan.name)
        shutil.rmtree(place, ignore_errors=True)
        workspace.records.forget(plan.name)
    store = TimedStore(
        place,
        fingerprint=fingerprint(workspace, plan),
        keep=training.keep_checkpoints,
        say=workspace.progress.say,
    ).timed(partial(workspace.timings.part, f"{plan.name}: checkpoints"))
    sinks = open_sinks(settings, workspace.run_dir)
    monitor = Monitor(plan.name, sinks, per_task=training.log_per_task_metrics, beside=plan.beside)
    module.train()
    with (
        closing(make_loader(workspace, plan.batch_size, plan.focus, plan.latents)) as loader,
        closing(monitor),
        explaining_memory(
            plan.name,
            batch_size=plan.batch_size,
            tokens=tokens_of(plan.emulator),
            remedies=memory_remedies(settings, plan.name, plan.batch_size),
        ),
    ):
        if plan.begin is not None:
            with train():
                plan.begin()
        optimizer = build_optimizer(module, plan.optimizer)
        loop = LoopSettings.of(
            training,
            patience=plan.patience,
            target=plan.target,
            checkpoint_interval=plan.checkpoint_interval,
            auto_validations=plan.auto_validations,
        )
        with train():
            outcome = fit(
                plan.objective,
                loader,
                budget=plan.budget,
                optimizer=optimizer,
                schedule=build_schedule(plan.optimizer.scheduler),
                ema=build_ema(module, training.ema_decay),
                settings=loop,
                validate=timed(plan.validate, partial(workspace.timings.part, f"{plan.name}: validate", compute=True)),
                checkpoints=store,
                monitor=monitor,
                progress=workspace.progress,
                device=workspace.device,
                seed=settings.seed,
                refocus=None if plan.focus is None else plan.focus.by_error,
            )
        if plan.finish is not None:
            with workspace.timings.part(f"{plan.name}: calibrate", compute=True):
                plan.finish(outcome)
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


def discard_followers(workspace: Workspace, step: str) -> None:
    """Discards checkpoints of interrupted trainings that start from a step that is about to be trained again.

    Those of finished ones are known to be stale by their records. A kill in between leaves the record of the step
    itself, by which it is all done again.
    """
    for place in sorted((workspace.run_dir / "checkpoints").glob("*")):
        if follows(place.name, step) and workspace.records.key(place.name) is None:
            workspace.progress.say(f"{place.name}: its checkpoints are discarded, because {step} is trained again")
            shutil.rmtree(place, ignore_errors=True)


def follows(later: str, step: str) -> bool:
    """Whether a training starts from another, or, a baseline's, is given as many seconds as that took."""
    if later in STAGES:
        return step in STAGES[: STAGES.index(later)]
    return step in PREDICTING


class TimedStore(CheckpointStore):
    """A store whose work, as far as training waits for it, is counted as a part of its own."""

    def timed(self, part: Callable[[], AbstractContextManager[None]]) -> Self:
        """This store, from now on inside `part` while it works."""
        self.part = part
        return self

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        with self.part():
            return super().save(step, state)

    def load(self) -> dict[str, Any] | None:
        with self.part():
            return super().load()


def timed(work: Callable[[], float], part: Callable[[], AbstractContextManager[None]]) -> Callable[[], float]:
    """The same work, done inside `part`."""

    def inside() -> float:
        with part():
            return work()

    return inside


def make_loader(
    workspace: Workspace, batch_size: int, focus: Focus | None = None, latents: Mapping[str, Frames] | None = None
) -> WindowLoader:
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
        latents=latents,
        workers=1 if workers == "auto" else workers,
        prefetch=settings.training.prefetch_factor,
    )


def tokens_of(emulator: Emulator) -> int | None:
    """Tokens of one frame, of the task that has most; None where the emulator has none."""
    if not isinstance(emulator, Simulator | SteadyPrior):
        return None
    coarsen = emulator.architecture.coarsen if isinstance(emulator, Simulator) else (emulator.architecture.patch,)
    cells = math.prod(coarsen)
    return max(math.prod(size // cells for size in spec.lattice) for spec in emulator.tasks.values())


def memory_remedies(settings: Settings, training_of: str, batch_size: int) -> list[str]:
    """The settings that would reduce what a training step needs, as they stand.

    Args:
        training_of: name of a stage; any other name is a baseline's.
    """
    training = settings.training
    found = []
    if batch_size > 1:
        found.append(
            f"training.batch_size={batch_size // 2} training.accum_steps={2 * training.accum_steps} (the same gradient)"
        )
    return [
        *found,
        *_remedies_of_network(settings, training_of),
        "data.resolution below the file's",
        f"evaluation.batch_size below {settings.evaluation.batch_size}, where it ran out in a validation",
    ]


def _remedies_of_network(settings: Settings, training_of: str) -> list[str]:
    if training_of == "steady_prior":
        return _remedies_of_prior(settings.prior)
    if training_of in ("diff_residual", "consistency_distill"):
        return [f"diffusion.hidden_dim below {settings.diffusion.hidden_dim}"]
    return _remedies_of_operator(settings) if training_of in ("codec", "operator") else []


def _remedies_of_prior(prior: PriorSettings) -> list[str]:
    return [
        f"a larger prior.patch: fewer tokens (now {prior.patch})",
        f"prior.hidden_dim below {prior.hidden_dim}",
        *([f"prior.num_steps below {prior.num_steps}"] if prior.num_steps > 1 else []),
    ]


def _remedies_of_operator(settings: Settings) -> list[str]:
    horizon, pdet = settings.training.rollout_horizon, settings.operator.pdet
    found = [f"training.rollout_horizon={horizon - 1}"] if horizon > 1 else []
    if not pdet.use_activation_checkpoint:
        found.append("operator.pdet.use_activation_checkpoint=true (slower, the same weights)")
    return [
        *found,
        f"a larger operator.pdet.coarsen: fewer tokens (now {pdet.coarsen})",
        f"operator.pdet.hidden_dim below {pdet.hidden_dim}",
    ]


def fingerprint(workspace: Workspace, plan: Plan) -> Mapping[str, Any]:
    """What a checkpoint must share with the training that resumes from it; shown where it does not."""
    return {
        **plan.made_from,
        "settings": model_settings(workspace.settings) | plan.made_from["settings"],
        "budget": {plan.budget.unit: plan.budget.amount},
        "device": workspace.device.type,  # its generators have states of their own
    }


def model_settings(settings: Settings) -> dict[str, Any]:
    """The settings that a model's weights depend on before any training."""
    choices = resolved(settings)
    return {name: choices[name] for name in ("data", "latent", "operator", "seed")}
