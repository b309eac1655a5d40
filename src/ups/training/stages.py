"""What each stage needs, trains and leaves behind: the only place where settings become models and objectives.

A stage is an objective over a part of the model; which part is said by `requires_grad`. The loop that runs it knows
nothing of stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int64
from torch import Tensor

from ups.config.learning import OptimizerSettings
from ups.config.schema import Settings, StageName
from ups.data.augment import Augment
from ups.data.normalize import FieldStatistics
from ups.data.trajectories import TrajectorySet
from ups.errors import DataError, UpsError
from ups.models.diffusion import DiffusionArchitecture
from ups.models.emulator import TaskSpec
from ups.models.simulator import Architecture, Simulator
from ups.runtime import seed_everything
from ups.training.diffusion import (
    DiffusionObjective,
    DiffusionTerms,
    DistillObjective,
    DistillTerms,
    tau_distribution,
)
from ups.training.losses import InverseCurriculum
from ups.training.objectives import CodecObjective, OperatorObjective, OperatorTerms
from ups.training.physics import build_priors

FIT_PAIRS = 8192  # pairs of frames the closed-form parts are fitted to, at most
FIT_VALUES = 2**24  # grid values of those pairs' first frames, at most: what is fitted at once stays small in memory
FIT_BATCH = 256
SHUFFLED_PAIRS = 2**22  # pairs up to which the choice is made without putting any back
LARGEST_PATCH = {1: 8, 2: 4, 3: 2}  # lattice cells per token and axis, by dimension (bench/results/ablations.md)

BASELINE_OPTIMIZERS = {
    "fno": OptimizerSettings(name="adamw", lr=8e-3, weight_decay=1e-4),
    "unet": OptimizerSettings(name="adamw", lr=1e-3, weight_decay=1e-4),
}
"""How FNO and U-Net are trained: AdamW, cosine to one percent. The rates had the best validation roll-out on Burgers
after 90 CPU seconds, of 1e-3, 2e-3, 4e-3 and 8e-3 for FNO (the highest won) and of 4e-4 and 1e-3 for U-Net."""


def describe_task(settings: Settings, train: TrajectorySet, statistics: FieldStatistics) -> TaskSpec:
    """What a model has to know of a task, from its train trajectories alone."""
    equation, grid = train.equation, train.grid
    logs = tuple(parameter.scale == "log" for parameter in equation.parameters)
    params = train.params.double()
    columns = [params[:, i].log() if log else params[:, i] for i, log in enumerate(logs)]
    return TaskSpec(
        name=train.task,
        fields=tuple(field.name for field in equation.fields),
        lattice=tuple(grid.shape),
        spacing=tuple(grid.spacing),
        origin=tuple(float(axis[0]) for axis in grid.axes),
        periodic=tuple(equation.periodic),
        form=equation.form,
        conserved=tuple(field.conserved for field in equation.fields),
        context=settings.data.context,
        dt=float(train.dt),
        mean=tuple(statistics.mean.tolist()) if settings.data.normalize else (0.0,) * len(equation.fields),
        std=tuple(statistics.std.tolist()) if settings.data.normalize else (1.0,) * len(equation.fields),
        param_names=tuple(parameter.name for parameter in equation.parameters),
        param_log=logs,
        param_mean=tuple(float(column.mean()) for column in columns),
        # A spread that is only rounding is no spread: the model then treats the parameter as the constant it is.
        param_std=tuple(
            float(s) if (s := column.std(correction=0)) > 1e-6 * (1 + column.abs().max()) else 0.0 for column in columns
        ),
        param_low=tuple(float(column.min()) for column in params.T),
        param_high=tuple(float(column.max()) for column in params.T),
        galilean="galilean" in equation.symmetries,
        static=0 if equation.forcing is None else len(equation.fields),
        given=tuple(field.name for field in equation.given),
        given_mean=tuple(statistics.given_mean.tolist()) if settings.data.normalize else (0.0,) * len(equation.given),
        given_std=tuple(statistics.given_std.tolist()) if settings.data.normalize else (1.0,) * len(equation.given),
    )


def choose_patch(wanted: int | str, latent_dim: int, specs: Mapping[str, TaskSpec]) -> int:
    """Lattice cells per token and axis: as asked, or the largest lossless power of two that divides every lattice.

    It is at most 8 in one dimension, 4 in two and 2 in three.

    Raises:
        UpsError: a token has no room for the values of a single cell.
    """
    if isinstance(wanted, int):
        return wanted
    largest = LARGEST_PATCH[max(spec.axes for spec in specs.values())]
    fits = [
        patch
        for patch in (8, 4, 2, 1)
        if patch <= largest
        and all(
            len(spec.fields) * patch**spec.axes <= latent_dim and not any(size % patch for size in spec.lattice)
            for spec in specs.values()
        )
    ]
    if not fits:
        task, spec = max(specs.items(), key=lambda item: len(item[1].fields))
        raise UpsError(
            f"latent.dim is {latent_dim} and {task} has {len(spec.fields)} fields: "
            "latent.dim must be at least the number of fields; raise it, or set latent.patch for a lossy codec"
        )
    return fits[0]


def choose_batch_size(wanted: int | str, specs: Mapping[str, TaskSpec]) -> int:
    """Windows per batch: as asked, or 32 in 1D, 8 in 2D (better there than 32) and 2 in 3D (not measured)."""
    return wanted if isinstance(wanted, int) else {1: 32, 2: 8, 3: 2}[max(spec.axes for spec in specs.values())]


def choose_depths(wanted: int | tuple[int, ...], architecture: str) -> tuple[int, ...]:
    """Blocks per level; one number stands for a stack, or for each of two levels of a U."""
    if isinstance(wanted, tuple):
        return wanted
    return (wanted, wanted) if architecture == "pdet_unet" else (wanted,)


def build_simulator(settings: Settings, specs: Mapping[str, TaskSpec]) -> Simulator:
    """The untrained simulator that the settings describe."""
    pdet, axes = settings.operator.pdet, max(spec.axes for spec in specs.values())
    return Simulator(
        specs,
        Architecture(
            latent_dim=settings.latent.dim,
            patch=choose_patch(settings.latent.patch, settings.latent.dim, specs),
            base=settings.operator.base,
            form=None if settings.operator.form == "auto" else settings.operator.form,
            moving_frame=settings.operator.moving_frame,
            architecture=settings.operator.architecture_type,
            hidden_dim=pdet.hidden_dim,
            depths=choose_depths(pdet.depths, settings.operator.architecture_type),
            heads=pdet.heads,
            window=pdet.window,
            mlp_ratio=pdet.mlp_ratio,
            qk_norm=pdet.qk_norm,
            drop_path=pdet.drop_path,
            stem_width=choose_stem(pdet.stem_width, axes),
            use_activation_checkpoint=pdet.use_activation_checkpoint,
            guards=tuple(name for name, wanted in settings.guards if wanted),
            corrector_every=settings.evaluation.corrector_every,
        ),
    )


def choose_stem(wanted: int | str, axes: int) -> int:
    """Channels at full resolution: as asked, or 32 in one dimension and 16 in more."""
    return wanted if isinstance(wanted, int) else 32 if axes == 1 else 16


def add_corrector(settings: Settings, simulator: Simulator) -> None:
    """Gives the simulator the untrained residual diffusion that the settings describe, the same at every call."""
    diffusion, pdet = settings.diffusion, settings.operator.pdet
    axes = max(spec.axes for spec in simulator.tasks.values())
    device = next(simulator.parameters()).device
    seed_everything(settings.seed)
    simulator.add_corrector(
        DiffusionArchitecture(
            architecture=diffusion.architecture,
            hidden_dim=diffusion.hidden_dim,
            depth=diffusion.depth,
            sampler=diffusion.sampler,
            sampler_steps=diffusion.sampler_steps,
            student_steps=diffusion.student_steps,
            stem_width=choose_stem(pdet.stem_width if diffusion.stem_width == "auto" else diffusion.stem_width, axes),
        )
    ).to(device)


class FramePairs:
    """Pairs of neighbouring frames in batches of (u_t, u_{t+dt}, params), gathered anew at every pass over them.

    Args:
        trajectory, start: number of the trajectory and first frame of every pair.
    """

    def __init__(self, train: TrajectorySet, trajectory: Tensor, start: Tensor) -> None:
        self.train, self.trajectory, self.start = train, trajectory, start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for trajectory, start in zip(self.trajectory.split(FIT_BATCH), self.start.split(FIT_BATCH), strict=True):
            frames = self.train.gather(trajectory, start, 2)
            yield frames[:, 0], frames[:, 1], self.train.params[trajectory]


def fit_pairs(train: TrajectorySet, rng: torch.Generator) -> FramePairs:
    """Random pairs of neighbouring train frames for the parts that have a closed form.

    They are distinct, except where there are so many that a draw hardly ever meets one twice.

    Raises:
        DataError: no trajectory holds two frames.
    """
    counts = (train.lengths - 1).clamp(min=0)
    ends = counts.cumsum(0)
    total = int(counts.sum())
    if total == 0:
        raise DataError(f"{train.task}: no train trajectory has two frames, so there is no step to learn")
    num = max(2, min(FIT_PAIRS, FIT_VALUES // (len(train.equation.fields) * math.prod(train.grid.shape))))
    if total <= SHUFFLED_PAIRS:
        chosen = torch.randperm(total, generator=rng)[:num]
    else:
        chosen = torch.randint(total, (num,), generator=rng)
    trajectory = torch.searchsorted(ends, chosen, right=True)
    order = halved(trajectory, rng)
    chosen, trajectory = chosen[order], trajectory[order]
    return FramePairs(train, trajectory, chosen - (ends - counts)[trajectory])


def halved(trajectory: Int64[Tensor, " pair"], rng: torch.Generator) -> Int64[Tensor, " pair"]:
    """An order of pairs in which the first half of a batch is of even trajectories and the second of odd ones.

    This holds as far as there are pairs of both kinds. Neighbouring trajectories are alike (of one file and its
    parameters), so that the halves are too, but independent. Batches come in random order.
    """
    order = trajectory.argsort(stable=True)
    even, odd = (order[trajectory[order] % 2 == parity] for parity in (0, 1))
    half = FIT_BATCH // 2
    batches = [
        torch.cat([even[low : low + half], odd[low : low + half]]) for low in range(0, max(len(even), len(odd)), half)
    ]
    whole = [batch for batch in batches if len(batch) == FIT_BATCH]
    shuffled = [whole[number] for number in torch.randperm(len(whole), generator=rng).tolist()]
    return torch.cat([*shuffled, *(batch for batch in batches if len(batch) < FIT_BATCH)])


def build_augments(settings: Settings, sets: Mapping[str, TrajectorySet]) -> dict[str, Augment]:
    """The random symmetries of every task; none of them where `training.augment` is off."""
    return {task: Augment(train.equation, enabled=settings.training.augment) for task, train in sets.items()}


def build_objective(
    stage: StageName, settings: Settings, simulator: Simulator, augments: Mapping[str, Augment]
) -> CodecObjective | OperatorObjective | DiffusionObjective | DistillObjective:
    """The objective of a stage; parameters that it does not train are frozen.

    The residual diffusion is added to the simulator where it has none yet.

    Raises:
        UpsError: a loss term is asked for that is zero whatever the operator does, or a prior that says nothing about
            a task.
    """
    if stage in ("diff_residual", "consistency_distill"):
        return build_corrector_objective(stage, settings, simulator, augments)
    training = settings.training
    queries = training.query_sampling.num_queries
    trains_codec = stage == "codec" or settings.latent.codec.train_with_operator
    simulator.requires_grad_(stage == "operator")
    simulator.codecs.requires_grad_(trains_codec)
    if stage == "codec":
        return CodecObjective(simulator, augments, queries)
    if not trains_codec and all(codec.lossless for codec in simulator.codecs.values()):
        for name, weight in (("lambda_inv_enc", training.lambda_inv_enc), ("lambda_inv_dec", training.lambda_inv_dec)):
            if weight > 0:
                raise UpsError(
                    f"training.{name} is {weight:g}, but its term is zero by construction: the codec loses nothing; "
                    "remove it or choose a lossy latent.dim"
                )
    terms = OperatorTerms(
        forward=training.lambda_forward,
        relative=training.lambda_relative,
        inv_enc=training.lambda_inv_enc,
        inv_dec=training.lambda_inv_dec,
        rollout=training.lambda_rollout,
        rollout_horizon=training.rollout_horizon,
        rollout_start=training.rollout_start,
        spectral=training.lambda_spectral,
        inverse_frequency=training.inverse_loss_frequency,
        num_queries=queries,
    )
    curriculum = InverseCurriculum(training.inverse_loss_warmup_epochs, training.inverse_loss_max_weight)
    priors = build_priors(training.physics_priors, simulator)
    return OperatorObjective(simulator, augments, terms, curriculum, priors)


def build_corrector_objective(
    stage: StageName, settings: Settings, simulator: Simulator, augments: Mapping[str, Augment]
) -> DiffusionObjective | DistillObjective:
    """The objective of a stage that trains the corrector beside the frozen operator."""
    if simulator.corrector is None:
        add_corrector(settings, simulator)
    if stage == "diff_residual":
        diffusion = settings.diffusion
        terms = DiffusionTerms(spectral=diffusion.lambda_spectral, relative=diffusion.lambda_relative)
        return DiffusionObjective(simulator, augments, tau_distribution(diffusion.tau_distribution), terms)
    chosen = settings.stages.consistency_distill
    taus = chosen.tau_schedule or (chosen.distill_num_taus,)
    return DistillObjective(simulator, augments, DistillTerms(taus, chosen.distill_micro_batch, chosen.teacher_steps))
