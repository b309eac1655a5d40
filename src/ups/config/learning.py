"""Settings of learning: the optimizer and its schedule, what all stages share, and a stage's own budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from ups.config.kinds import BelowOne, Fraction, Group, Word, as_tuple
from ups.config.merge import BUDGETS
from ups.config.physics import PhysicsPriorSettings


class StepSchedule(Group):
    """The rate falls by `gamma` after every `step_size`."""

    name: Literal["step"] = "step"
    """Chooses this schedule."""
    warmup: BelowOne = 0.05
    """Fraction of the budget."""
    step_size: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Fraction of the budget."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    """What the rate is multiplied by."""


class CosineSchedule(Group):
    """The rate falls along half a cosine to `final` times its peak, and is there when the budget ends."""

    name: Literal["cosine"] = "cosine"
    """Chooses this schedule."""
    warmup: BelowOne = 0.05
    """Fraction of the budget."""
    final: Fraction = 0.01
    """Last rate over the peak."""


class PlateauSchedule(Group):
    """The rate falls by `factor` after `patience` validations without improvement."""

    name: Literal["plateau"] = "plateau"
    """Chooses this schedule."""
    warmup: BelowOne = 0.05
    """Fraction of the budget."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What the rate is multiplied by."""
    patience: PositiveInt = 5
    """Validations without improvement before the rate falls."""


class WsdSchedule(Group):
    """Warm up, stay, and decay to `final` times the peak over the last `decay` of the budget."""

    name: Literal["wsd"] = "wsd"
    """Chooses this schedule."""
    warmup: BelowOne = 0.05
    """Fraction of the budget."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Fraction of the budget, the last."""
    final: Fraction = 0.01
    """Last rate over the peak."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup + self.decay > 1:
            raise ValueError(f"warmup + decay is {self.warmup + self.decay:g}; the budget has only 1")
        return self


def _schedule_name(value: Any) -> Any:
    return value.get("name", "cosine") if isinstance(value, Mapping) else getattr(value, "name", None)


Schedule = Annotated[
    Annotated[StepSchedule, Tag("step")]
    | Annotated[CosineSchedule, Tag("cosine")]
    | Annotated[PlateauSchedule, Tag("plateau")]
    | Annotated[WsdSchedule, Tag("wsd")],
    Discriminator(_schedule_name),
]


class OptimizerSettings(Group):
    """The optimizer. Under `muon`, matrices are trained by Muon and the rest by AdamW at `adam_lr`."""

    name: Literal["adam", "adamw", "sgd", "muon"] = "muon"
    """Which optimizer."""
    lr: PositiveFloat = 5e-3
    """Peak rate; under `muon`, that of matrices."""
    weight_decay: NonNegativeFloat = 0.0
    """On matrices, not on biases, norms and other vectors."""
    betas: Annotated[tuple[BelowOne, BelowOne], BeforeValidator(as_tuple)] = (0.9, 0.99)
    """Of `adam`, of `adamw`, and of what `muon` leaves to AdamW."""
    momentum: BelowOne = 0.9
    """Of `sgd`."""
    muon_momentum: BelowOne = 0.95
    """Of the matrices under `muon`."""
    muon_ns_steps: PositiveInt = 5
    """Newton-Schulz iterations by which `muon` orthogonalises a step."""
    adam_lr: PositiveFloat = 2e-3
    """Peak rate of what is no matrix, under `muon`."""
    scheduler: Schedule = CosineSchedule()
    """How the rates run over the budget."""


class QuerySamplingSettings(Group):
    """Random points at which decoded fields are compared."""

    num_queries: PositiveInt | None = None
    """null compares at every grid point."""


class TrainingSettings(Group):
    """What every stage's training shares."""

    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Windows per rank and accumulation step; `auto` is 16 in one dimension, 4 in two, 2 in three."""
    accum_steps: PositiveInt = 1
    """Batches per optimizer step."""
    num_workers: NonNegativeInt | Literal["auto"] = "auto"
    """Threads that read ahead where a split is not in memory; `auto` is 1, 0 does not read ahead."""
    prefetch_factor: PositiveInt = 2
    """Batches that they read ahead."""
    amp: bool | Literal["auto"] = "auto"
    """Mixed precision. `auto` is off: on a CPU, bfloat16 made the error of a roll-out up to four times as large for the
    same seconds (bench/results/ablations.md)."""
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """What mixed precision computes in; float16 scales the loss."""
    ema_decay: BelowOne = 0.999
    """Of the running average of the weights, which is what is judged and kept; 0 keeps the last weights themselves."""
    grad_clip: PositiveFloat | None = 1.0
    """Largest 2-norm of the gradient; null does not clip."""
    patience: PositiveInt | None = None
    """Validations without improvement before a stage stops early; null never does."""
    clock: Literal["wall", "process"] = "wall"
    """What a budget in seconds is measured by: `process` counts CPU time."""
    validate_every: PositiveInt | Literal["auto"] = "auto"
    """Steps between validations; `auto` is an epoch, or a twentieth of a budget in steps or seconds; in the
    stages that draw ensembles, between a third and a sixth (`diff_residual`) or twentieth of any budget, as its length
    allows."""
    log_every: PositiveInt = 20
    """Steps between records of the log."""
    log_per_task_metrics: bool = False
    """Log the loss and its components, and the validation nrmse, of each task beside those of all."""
    max_bad_steps: PositiveInt = 5
    """Steps in a row whose loss or gradient is not finite, all of them skipped, after which training rolls back to its
    last good checkpoint, from where it goes on with other batches at half the rate."""
    max_rollbacks: NonNegativeInt = 3
    """Roll-backs after which training ends with an error."""
    lambda_forward: NonNegativeFloat = 1.0
    """Weight of the next latent's squared error over its squared size."""
    lambda_relative: NonNegativeFloat = 1.0
    """Weight of the decoded prediction's relative L2 error."""
    lambda_inv_enc: NonNegativeFloat = 0.0
    """Weight of the mean squared error of fields that are encoded and decoded; trains the codec."""
    lambda_inv_dec: NonNegativeFloat = 0.0
    """Weight of the mean squared error of predicted latents that are decoded and encoded; trains the operator."""
    lambda_rollout: NonNegativeFloat = 0.0
    """Weight of the relative L2 error of all steps of a roll-out but the first."""
    rollout_horizon: PositiveInt = 1
    """Steps of that roll-out."""
    rollout_gradient_steps: PositiveInt | None = None
    """Steps at the roll-out's end that the term is of, and that its gradient goes back through (1 is the pushforward
    of Brandstetter et al. 2022); null takes all."""
    rollout_start: Fraction = 0.7
    """Part of the budget after which roll-outs join the loss."""
    lambda_spectral: NonNegativeFloat = 0.0
    """Weight of the relative error of the decoded prediction's energy in eight bands of wave numbers."""
    inverse_loss_warmup_epochs: NonNegativeInt = 15
    """Epochs without the terms `lambda_inv_*`, whose weights then rise linearly over as many."""
    inverse_loss_max_weight: NonNegativeFloat = 0.05
    """No weight `lambda_inv_*` counts for more."""
    inverse_loss_frequency: PositiveInt = 1
    """The terms `lambda_inv_*` are computed for every so many batches."""
    physics_priors: PhysicsPriorSettings = PhysicsPriorSettings()
    """Terms that hold predictions to the physics."""
    query_sampling: QuerySamplingSettings = QuerySamplingSettings()
    """Where decoded fields are compared."""
    checkpoint_interval: PositiveInt = 500
    """Steps between checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Latest checkpoints of a stage that are kept."""
    augment: bool = True
    """Apply the equation's symmetries at random."""
    latent_cache_dir: Word | None = None
    """Folder where the train split's latents are kept, from which the operator is trained with a frozen codec; null
    encodes every batch. A lossy codec's operator is then compared with fields as the codec reproduces them."""
    latent_cache_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """What latents are kept in."""
    preload: bool | Literal["auto"] = "auto"
    """Hold cached latents in memory; `auto` where they fit in half of what is free, on the GPU or else in RAM."""
    focus: NonNegativeFloat = 2.0
    """Windows are drawn in proportion to this power of the error of one step from their first frame, measured anew at
    every validation; 0 draws all alike."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.lambda_rollout > 0 and self.rollout_horizon < 2:
            raise ValueError("lambda_rollout is above 0, but rollout_horizon is 1: give rollout_horizon at least 2")
        if self.rollout_horizon > 1 and self.lambda_rollout == 0:
            raise ValueError(
                f"rollout_horizon is {self.rollout_horizon}, but lambda_rollout is 0: roll-outs would have no weight; "
                "give lambda_rollout above 0, or rollout_horizon 1"
            )
        if self.rollout_gradient_steps is not None and self.rollout_gradient_steps >= self.rollout_horizon:
            raise ValueError(
                f"rollout_gradient_steps is {self.rollout_gradient_steps}, of a rollout_horizon of "
                f"{self.rollout_horizon}: that is all of them; give fewer, or null"
            )
        always_rolls_out = self.lambda_rollout > 0 and self.rollout_start == 0
        if self.lambda_forward == self.lambda_relative == self.lambda_spectral == 0 and not always_rolls_out:
            raise ValueError(
                "lambda_forward, lambda_relative and lambda_spectral are all 0: there is nothing to minimise; give one "
                "of them above 0, or lambda_rollout above 0 with rollout_start 0"
            )
        inverse = [key for key in ("lambda_inv_enc", "lambda_inv_dec") if getattr(self, key) > 0]
        if inverse and self.inverse_loss_max_weight == 0:
            raise ValueError(
                f"{' and '.join(inverse)} above 0 would have no weight: inverse_loss_max_weight is 0; raise it, or "
                f"give {' and '.join(inverse)} 0"
            )
        return self


class StageSettings(Group):
    """A stage's budget, exactly one of `epochs` (0 skips the stage), `steps` and `seconds`, and what it overrides."""

    epochs: NonNegativeInt | None = None
    """Budget in passes over the train windows; 0 skips the stage."""
    steps: PositiveInt | None = None
    """Budget in optimizer steps."""
    seconds: PositiveFloat | None = None
    """Budget in seconds of training; validations do not count."""
    optimizer: OptimizerSettings | None = None
    """Keys that are not given are those of the top `optimizer`."""
    scheduler: Schedule | None = None
    """Instead of that of the optimizer."""
    patience: PositiveInt | None = None
    """Instead of `training.patience`."""
    batch_size: PositiveInt | None = None
    """Instead of `training.batch_size`."""
    checkpoint_interval: PositiveInt | None = None
    """Instead of `training.checkpoint_interval`."""

    @property
    def skipped(self) -> bool:
        """Whether the stage is not trained at all."""
        return self.epochs == 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one budget out of epochs, steps and seconds; found {found}")
        return self


class DistillSettings(StageSettings):
    """The budget of `consistency_distill`, and how the student is taught."""

    distill_num_taus: PositiveInt = 3
    """Places on the teacher's path that the student learns to land from, in every batch: first those of its own
    `student_steps`, then others at random."""
    distill_micro_batch: PositiveInt = 8
    """Windows whose graphs are held in memory at once."""
    tau_schedule: Annotated[tuple[PositiveInt, ...], BeforeValidator(as_tuple)] | None = None
    """`distill_num_taus` of the first epochs, one by one; the last holds for all further ones."""
    target_loss: PositiveFloat | None = None
    """Training stops when a validation is as good: the student's distance to its teacher, in spreads, squared."""
    teacher_steps: PositiveInt = 8
    """Steps of the teacher's path from noise to a sample; most of what a step of this stage costs."""

    @model_validator(mode="after")
    def _check_taus(self) -> Self:
        wanted = max(self.tau_schedule or (self.distill_num_taus,))
        if wanted > self.teacher_steps:
            raise ValueError(f"there are {self.teacher_steps} teacher_steps to land from; {wanted} taus are too many")
        return self
