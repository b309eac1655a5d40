"""The loop that every stage trains in.

A stage is an `Objective`; what it needs besides is handed in: batches, optimizer, schedule, average, validation,
checkpoints and monitor. The loop owns the order of things, and the promise that a training which was killed and resumed
ends bit for bit where an uninterrupted one ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ups.config.learning import TrainingSettings
from ups.data.fields import Batch
from ups.runtime import Progress, SilentProgress
from ups.training.checkpoint import CheckpointStore
from ups.training.ema import Ema
from ups.training.flops import FlopMeter
from ups.training.guard import StepGuard
from ups.training.monitor import DivergedError, Moment, Monitor
from ups.training.optim import clip_gradients, gradient_norms, set_rate
from ups.training.saver import BackgroundSaver
from ups.training.schedule import Budget, Schedule
from ups.training.signals import StopSignals
from ups.training.state import Position, RandomState, Stateful, TrainingClock, TrainState

SCALER_HALVINGS = 17
"""Steps in a row that a loss scaler may need to come down from its first scale, 2^16; they are skipped as well."""


@runtime_checkable
class Objective(Protocol):
    """What a stage minimises.

    `module` holds the parameters that are trained (those which require gradients) and what a checkpoint must hold. An
    objective that counts or remembers has `state_dict` and `load_state_dict` besides, and is in the checkpoint itself.
    """

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of a batch, and components to log. Random numbers come from `rng` or PyTorch's own stream."""

    def plan(self, epoch: int, fraction: float) -> int:
        """Told before each batch where training stands, in whole epochs and as the part of the budget that is done.

        Returns:
            The horizon that the batch should have.
        """


@runtime_checkable
class Loader(Position, Protocol):
    """Batches without end, which can be put back to any place among them."""

    def set_horizon(self, horizon: int) -> None:
        """Frames to predict in the batches that follow."""

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """How often windows come in the batches that follow, by task and first frame."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches that follow."""

    def state_dict(self) -> dict[str, Any]:
        """The place among the batches: which of them were handed out."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the place that `state_dict` gave."""


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs.

    Attributes:
        accum_steps: batches per optimizer step; their losses are averaged.
        grad_clip: the gradient's largest 2-norm; None does not clip.
        amp: dtype of automatic mixed precision; None computes in float32. float16 scales the loss.
        log_every: steps between log records.
        validate_every: steps between validations; `auto`: every epoch, or every twentieth of a budget in other units.
        auto_validations: that `auto` makes over a budget of any unit instead; None makes those.
        checkpoint_interval: steps between checkpoints.
        patience: validations without improvement before training stops; None never does.
        max_bad_steps: steps in a row that are not finite, after which training goes back to a checkpoint.
        max_rollbacks: times that it does, before it is an error.
        target: validation score at which training stops; None never does.
        clock: what seconds are counted by, see `TrainingClock`.
    """

    accum_steps: int = 1
    grad_clip: float | None = 1.0
    amp: torch.dtype | None = None
    log_every: int = 20
    validate_every: int | Literal["auto"] = "auto"
    auto_validations: int | None = None
    checkpoint_interval: int = 500
    patience: int | None = None
    max_bad_steps: int = 5
    max_rollbacks: int = 3
    clock: Literal["wall", "process"] = "wall"
    target: float | None = None

    @classmethod
    def of(
        cls,
        training: TrainingSettings,
        *,
        patience: int | None,
        target: float | None = None,
        checkpoint_interval: int | None = None,
        auto_validations: int | None = None,
    ) -> LoopSettings:
        """The part of the settings that concerns the loop; `amp: auto` is off, for accuracy's sake.

        Args:
            checkpoint_interval: of the stage, instead of that of all training; None has no other.
        """
        use_amp = training.amp is True
        return cls(
            accum_steps=training.accum_steps,
            grad_clip=training.grad_clip,
            amp={"bfloat16": torch.bfloat16, "float16": torch.float16}[training.amp_dtype] if use_amp else None,
            log_every=training.log_every,
            validate_every=training.validate_every,
            auto_validations=auto_validations,
            checkpoint_interval=checkpoint_interval or training.checkpoint_interval,
            patience=patience,
            max_bad_steps=training.max_bad_steps,
            max_rollbacks=training.max_rollbacks,
            clock=training.clock,
            target=target,
        )


@dataclass(frozen=True)
class StageOutcome:
    """How a stage ended: optimizer steps, seconds of training, its best validation, and what stopped it."""

    steps: int
    seconds: float
    best_metric: float
    best_step: int
    stopped: Literal["budget", "patience", "target"]


def fit(
    objective: Objective,
    loader: Loader,
    *,
    budget: Budget,
    optimizer: Optimizer,
    schedule: Schedule,
    ema: Ema,
    settings: LoopSettings,
    validate: Callable[[], float],
    checkpoints: CheckpointStore,
    monitor: Monitor,
    progress: Progress | None = None,
    device: torch.device,
    seed: int,
    refocus: Callable[[], Mapping[str, Tensor]] | None = None,
) -> StageOutcome:
    """Trains `objective.module` within the budget and leaves in it the averaged weights of the best validation.

    Goes on from the latest checkpoint in `checkpoints`, if there is one, exactly as if training had never stopped.
    A step whose loss or gradient is not finite is skipped; after many in a row, training goes back: see `roll_back`.

    Args:
        objective: what to minimise; its module is on `device` and in the mode (train or eval) it shall be trained in.
        loader: batches of the train split.
        validate: scores the module as it stands; lower is better. It is called with the averaged weights in eval mode.
        seed: of the objective's generator and of PyTorch's own, when training starts anew.
        refocus: weights of the windows for the loader, asked for before every validation in the same mode; the time it
            takes counts as training.

    Raises:
        DivergedError: losses or gradients are not finite again and again, or no validation is.
        Interrupted: SIGINT or SIGTERM; the state is saved.
        CheckpointError: checkpoints cannot be written, are all damaged, or belong to another training.
    """
    module, progress = objective.module, progress or SilentProgress()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    names = {p: name for name, p in module.named_parameters()}
    autocast = torch.autocast(device.type, settings.amp, enabled=settings.amp is not None)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.amp is torch.float16)
    guard, meter = StepGuard(optimizer, scaler, on_device=device.type != "cpu"), FlopMeter.of(device, settings.amp)
    most_bad = settings.max_bad_steps + (SCALER_HALVINGS if scaler.is_enabled() else 0)
    clock, random = TrainingClock(settings.clock, device), RandomState(seed, device)
    parts: dict[str, Any] = {"module": module, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    parts |= {"scaler": scaler, "loader": loader, "monitor": monitor}
    parts |= {"objective": objective} if isinstance(objective, Stateful) else {}
    state = TrainState(budget, clock, random, loader, parts, auto_validations=settings.auto_validations)

    checkpoints.prepare()
    saved = checkpoints.load()
    if saved is not None:
        state.load_state_dict(saved)
        progress.say(f"stage {monitor.stage} goes on after step {state.step}")
    else:
        checkpoints.save(0, state.state_dict())  # where a roll-back goes before any other is due
    trained = [names.get(p, "?") for p in params]
    done = {"step": state.step, "rollbacks": state.rollbacks}
    monitor.start(progress, total=budget.amount, unit=budget.unit, **done, parameters=trained)

    with StopSignals() as stop, BackgroundSaver(checkpoints) as saver, clock.running(), closing(monitor):
        batches = iter(loader)
        while state.stopped is None:
            set_rate(optimizer, state.rate_factor * schedule(state.middle_of_next_step(settings.accum_steps)))
            for _ in range(settings.accum_steps):
                loader.set_horizon(objective.plan(loader.epoch, state.fraction()))
                asked = clock.seconds
                batch = next(batches).to(device)
                waited = clock.seconds - asked
                with meter.counting(batch):
                    with autocast:
                        loss, components = objective(batch, random.objective)
                    scaler.scale(loss / settings.accum_steps).backward()
                flops = meter.flops(batch)
                monitor.record_batch(batch, loss, components, epoch=state.epochs, waited=waited, flops=flops)
            scaler.unscale_(optimizer)
            norms = gradient_norms(params)
            guard.step(monitor.record_step(clip_gradients(params, settings.grad_clip, norms), norms))
            scaler.update()
            optimizer.zero_grad()
            ema.update()
            state.count_step()
            saver.poll()

            log = state.step % settings.log_every == 0
            save = state.step % settings.checkpoint_interval == 0
            score = state.validation_is_due(settings.validate_every)
            if score and refocus is not None and state.stopped is None:
                with ema.applied(), random.untouched(), evaluating(module):
                    loader.set_weights(refocus())
            due = log or save or score
            if due or stop.received is not None:
                with clock.paused():
                    rate = optimizer.param_groups[0]["lr"]
                    moment = Moment(state.step, state.epochs, clock.seconds, rate, state.fraction())
                    monitor.judge(moment, most=most_bad)
                    wrong = monitor.wrong if due else ""
                    if wrong:
                        roll_back(state, saver, monitor, settings.max_rollbacks)
                    elif score:
                        with ema.applied(), random.untouched(), evaluating(module):
                            metric = validate()
                            state.observe(metric, module.state_dict(), settings.patience, settings.target)
                        schedule.observe(metric)
                        monitor.log_validation(moment, metric, best=state.best_metric, best_step=state.best_step)
                    if not wrong and (log or state.stopped):
                        stale = state.epochs - state.best_epoch
                        monitor.log(
                            moment, epochs_since_improvement=stale, device=device,
                            grad_clip=settings.grad_clip, utilisation=meter.utilisation,
                        )  # fmt: skip
                    # Asked after the validation, which takes seconds; later signals wait for the end of the next step.
                    good = bool((save and monitor.last_was_good) or wrong or state.stopped)
                    save = good or stop.received is not None
                    if save:
                        state.anchor = None if good else state.anchor or saver.load()
                        monitor.record_save(saver.save(state.step, state.state_dict()))
                    if wrong:
                        saver.wait()  # from here on, nothing resumes from what was left
                if save:
                    stop.raise_if_received(monitor.stage, state.step)
            monitor.tell(state.fraction() * budget.amount)

    if not state.best_weights:
        raise DivergedError(
            f"stage {monitor.stage}: no validation gave a finite score, so there are no best weights; "
            "lower optimizer.lr, or give the stage a larger budget"
        )
    module.load_state_dict(state.best_weights)
    outcome = StageOutcome(state.step, clock.seconds, state.best_metric, state.best_step, state.stopped)
    monitor.finish(**asdict(outcome), checkpoint_stall=saver.stalled)
    return outcome


def roll_back(state: TrainState, saver: BackgroundSaver, monitor: Monitor, most: int) -> None:
    """Goes back to the last good checkpoint, for other batches at a lower rate.

    Args:
        most: times that this may be done in a stage.

    Raises:
        DivergedError: it was done as often already.
    """
    saved = state.anchor or saver.load() if state.rollbacks < most else None
    if saved is None:
        tries = f" after {state.rollbacks} roll-back{'s' if state.rollbacks != 1 else ''} to its last good checkpoint"
        raise DivergedError(
            f"stage {monitor.stage} diverged{tries}, each at half the rate of the one before: {monitor.wrong}. "
            "Steps that are not finite were skipped, so what was saved is intact"
        )
    state.roll_back(saved)
    moment = Moment(state.step, state.epochs, state.clock.seconds, 0.0, state.fraction())
    monitor.log_rollback(moment, rollbacks=state.rollbacks)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module is in eval mode inside, and every part in its own mode again after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
