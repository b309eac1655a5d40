"""One real batch, forward and backward, through everything that a run will train: what would fail later fails now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ups.config.schema import INVERSE_TERMS, Settings, StageName
from ups.data.augment import Augment
from ups.data.latents import free_memory
from ups.errors import UpsError
from ups.models.baselines import NETWORKS, make_baseline
from ups.pipeline.before import PREDICTING, STAGES, stages_of
from ups.pipeline.check_report import duration
from ups.pipeline.effort import Effort
from ups.pipeline.plan import make_loader
from ups.pipeline.workspace import Workspace
from ups.training.baselines import baseline_objective, baseline_training
from ups.training.diffusion import DiffusionObjective, DistillObjective
from ups.training.loop import LoopSettings, Objective
from ups.training.memory import peak_memory
from ups.training.objectives import CodecObjective
from ups.training.prior import SteadyPriorObjective
from ups.training.schedule import Budget
from ups.training.stages import build_augments, build_objective

BYTES = 4  # of a float32
IN_CHECKPOINT = 5  # floats of a trained parameter: itself, two moments, average, best value so far
LATE = 10**6  # an epoch at which every term of a loss counts
IN_MEMORY = 1 + 2 * IN_CHECKPOINT  # its gradient besides, and a copy of what is being saved

Build = Callable[[], tuple[Objective, int]]
"""Builds a training's objective and says how many windows a batch has."""


@dataclass(frozen=True)
class Trial:
    """What one batch of a training showed of all of it.

    Args:
        name: of the stage, or `baseline` and its name.
        parameters: that are trained.
        batch_size: windows per batch.
        step_seconds: of one optimizer step, all its batches.
        steps: of the whole budget; None where that is in seconds.
        seconds: of the whole budget, validations not counted; None where it depends on stages of other budgets.
        validation_seconds: that a stage's ensembles take besides: its validations and its calibration; None for other
            trainings.
        memory_bytes: that the process takes at most, estimated.
        checkpoint_bytes: of one checkpoint.
        model_bytes: of the model that is left.
    """

    name: str
    parameters: int
    batch_size: int
    step_seconds: float
    steps: int | None
    seconds: float | None
    validation_seconds: float | None
    memory_bytes: int
    checkpoint_bytes: int
    model_bytes: int

    def __str__(self) -> str:
        line = f"dry run {self.name}: {self.parameters:,} parameters, {1000 * self.step_seconds:.0f} ms a step"
        steps = "" if self.steps is None else f", {self.steps:,} steps"
        line += steps + ("" if self.seconds is None else f": about {duration(self.seconds)}")
        return (
            line if self.validation_seconds is None else f"{line}, and {duration(self.validation_seconds)} of ensembles"
        )


def dry_run(workspace: Workspace) -> tuple[tuple[Trial, ...], list[str]]:
    """Sends one batch through every enabled stage and baseline, and says what each step costs.

    Returns:
        what was seen of the trainings; what stops those that cannot be run, such as a loss that is not finite.

    Raises:
        UpsError: a model cannot be built for this data.
    """
    trials: list[Trial] = []
    problems: list[str] = []
    before = peak_memory(workspace.device)
    for name, build, budget in _trainings(workspace):
        if budget is None:  # of a baseline: as long as what predicts
            predicting = [trial.seconds for trial in trials if trial.name in PREDICTING]
            known = [seconds for seconds in predicting if seconds is not None]
            budget = Budget("seconds", sum(known)) if not problems and len(known) == len(predicting) else None
        try:
            objective, batch_size = build()
            trials.append(_try_batch(workspace, name, objective, batch_size, budget, before))
        except UpsError as error:
            problems.append(str(error))
            continue
        workspace.progress.say(str(trials[-1]))
    return tuple(trials), list(dict.fromkeys(problems))


def memory_there(device: torch.device) -> int | None:
    """Bytes that this process has or can still get on a device; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device)
    free = free_memory()
    return free + peak_memory(device) if free else None


def _trainings(workspace: Workspace) -> Iterator[tuple[str, Build, Budget | None]]:
    """Every training by its name, what builds it, and its budget; None is of a baseline."""
    settings = workspace.settings
    augments = build_augments(settings, workspace.splits["train"])

    def of_stage(stage: StageName, build: Callable[[], Objective]) -> tuple[str, Build, Budget | None]:
        return stage, lambda: (build(), workspace.batch_size(stage)), Budget.of(settings.stage(stage))

    if workspace.steady:
        prior = workspace.new_prior().to(workspace.device)
        yield of_stage(STAGES[-1], lambda: SteadyPriorObjective(prior, augments))
    else:
        simulator = workspace.new_simulator().to(workspace.device)
        for stage in stages_of(settings.data.task):
            if not settings.stage(stage).skipped:
                yield of_stage(stage, partial(build_objective, stage, settings, simulator, augments))
    for name in settings.evaluation.baselines:
        if name in NETWORKS:
            yield f"baseline {name}", partial(_of_baseline, workspace, name, augments), None


def _of_baseline(workspace: Workspace, name: str, augments: Mapping[str, Augment]) -> tuple[Objective, int]:
    emulator = make_baseline(name, workspace.specs).to(workspace.device)
    batch_size = workspace.baseline_batch_size(baseline_training(emulator).batch_size)
    return baseline_objective(emulator, augments), batch_size


def _try_batch(
    workspace: Workspace, name: str, objective: Objective, batch_size: int, budget: Budget | None, before: int
) -> Trial:
    """Runs the heaviest batch of a training twice: the first time what is held is counted, the second it is timed.

    Args:
        before: bytes that the process takes without any training.
    """
    with closing(make_loader(workspace, batch_size)) as loader:
        loader.set_horizon(objective.plan(LATE, 1.0))
        batch, steps_per_epoch = next(iter(loader)).to(workspace.device), loader.steps_per_epoch
    loop = LoopSettings.of(workspace.settings.training, patience=None)
    rng = torch.Generator(workspace.device).manual_seed(0)

    def step() -> Tensor:
        with torch.autocast(workspace.device.type, dtype=loop.amp, enabled=loop.amp is not None):
            loss, _ = objective(batch, rng)
        loss.backward()
        return loss.detach()

    held = Held()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda tensor: tensor):
        step()
    objective.module.zero_grad()
    began = time.perf_counter()
    loss = step()
    finite = bool(torch.isfinite(loss))  # waits for the device
    seconds = (time.perf_counter() - began) * loop.accum_steps
    objective.module.zero_grad()
    if not finite:
        raise UpsError(
            f"{name}: the loss of the first batch is {loss.item()}; check the data's ranges, or lower training.lambda_*"
        )
    count, everything = _sizes(objective.module)
    steps = None if budget is None else budget.steps(steps_per_epoch / loop.accum_steps)
    steps = 0 if _is_exact(objective) else steps
    _require_inverse_terms(workspace.settings, name, budget, steps, seconds, steps_per_epoch / loop.accum_steps)
    return Trial(
        name=name,
        parameters=count,
        batch_size=batch_size,
        step_seconds=seconds,
        steps=steps,
        seconds=(whole := _seconds(budget, steps, seconds)),
        validation_seconds=_ensembles(workspace, objective, batch_size, whole, seconds),
        memory_bytes=before + IN_MEMORY * BYTES * count + held.bytes,
        checkpoint_bytes=BYTES * (everything + (IN_CHECKPOINT - 1) * count),
        model_bytes=BYTES * everything,
    )


class Held:
    """Counts the bytes that a graph keeps for its backward pass, each storage once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()

    def pack(self, tensor: Tensor) -> Tensor:
        """Counts a tensor that the graph saves, and leaves it as it is; parameters do not count."""
        storage, whole = tensor.untyped_storage(), tensor if tensor._base is None else tensor._base
        if storage.data_ptr() not in self._seen and not isinstance(whole, nn.Parameter):
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Numbers of a module that are trained, and all that it holds."""
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return trained, sum(value.numel() for value in module.state_dict().values())


def _is_exact(objective: Objective) -> bool:
    """Whether there is nothing to train, because the codec loses nothing."""
    return isinstance(objective, CodecObjective) and all(one.lossless for one in objective.simulator.codecs.values())


def _require_inverse_terms(
    settings: Settings, name: str, budget: Budget | None, steps: int | None, seconds: float, per_epoch: float
) -> None:
    """Refuses terms `lambda_inv_*` of a training that ends before they begin.

    Raises:
        UpsError: so it does; one with a budget in seconds would at twice the speed of the step tried, too.
    """
    training = settings.training
    wanted = [name for name in INVERSE_TERMS if getattr(training, name) > 0]
    if name != "operator" or not wanted or budget is None:
        return
    epochs = (2 * budget.amount / seconds if steps is None else steps) / per_epoch
    if epochs <= training.inverse_loss_warmup_epochs + (training.inverse_loss_warmup_epochs > 0):
        raise UpsError(
            f"training.{' and training.'.join(wanted)} would never count: the operator trains for at most {epochs:.3g} "
            f"epochs, and training.inverse_loss_warmup_epochs is {training.inverse_loss_warmup_epochs}; lower that, or "
            "give the operator a larger budget"
        )


def _seconds(budget: Budget | None, steps: int | None, seconds: float) -> float | None:
    """Seconds of a budget, by those of a step."""
    if steps is not None:
        return steps * seconds
    return None if budget is None else float(budget.amount)


def _ensembles(
    workspace: Workspace, objective: Objective, batch_size: int, whole: float | None, step: float
) -> float | None:
    """Seconds of the ensembles beside a training of `whole` seconds, by those of a step; None where there are none."""
    if whole is None or not isinstance(objective, DiffusionObjective | DistillObjective):
        return None
    effort = Effort.of(workspace, objective, batch_size)
    return effort.beside_training(max(1, round(whole / step))) * step / effort.of_step
