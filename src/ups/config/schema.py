"""The settings as frozen, typed objects: what may be written in a settings file, and nothing else.

Values are strict: the text "3" is not a number (a whole number may stand for a float). Unknown keys are refused. Rules
between keys of one group are checked in that group, rules between groups in `Settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ups.config.data import DataSettings
from ups.config.kinds import BelowOne, Group, PathComponent, Word, as_tuple
from ups.config.learning import OptimizerSettings, StageSettings, TrainingSettings
from ups.config.merge import deep_merge, move_task_alias

StageName = Literal["codec", "operator"]
BaselineName = Literal["persistence", "linear", "fno", "unet"]


class CodecSettings(Group):
    """Encoder and decoder between fields and latent tokens."""

    train_with_operator: bool = False
    """Whether the operator's stage trains the codec too, instead of freezing it."""


class LatentSettings(Group):
    """The latent space shared by all discretisations."""

    dim: PositiveInt = 64
    patch: PositiveInt | Literal["auto"] = "auto"
    """Grid points per token along each axis."""
    codec: CodecSettings = CodecSettings()


class PdetSettings(Group):
    """The transformer that mixes tokens."""

    hidden_dim: PositiveInt = 64
    depths: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1), BeforeValidator(as_tuple)] = 3
    """Blocks: of a stack, or of each of two levels of a U; a list is one number per level."""
    heads: PositiveInt = 4
    window: PositiveInt | None = None
    """Tokens per side of an attention window; null attends globally."""
    mlp_ratio: PositiveFloat = 2.0
    qk_norm: bool = True
    drop_path: BelowOne = 0.0
    stem_width: PositiveInt | Literal["auto"] = "auto"
    """Channels of the layers at full resolution, around the tokens; `auto` is 32 in one dimension, else 16."""
    use_activation_checkpoint: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_dim % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide hidden_dim, {self.hidden_dim}")
        width = self.hidden_dim // self.heads
        if width % 2:
            raise ValueError(
                f"hidden_dim // heads is {self.hidden_dim} // {self.heads} = {width}; rotary pairs need an even head "
                "width: change heads or hidden_dim"
            )
        return self


class OperatorSettings(Group):
    """The operator that advances latents in time."""

    architecture_type: Literal["pdet_unet", "pdet_stack"] = "pdet_stack"
    base: Literal["linear", "persistence"] = "linear"
    """What the learned rest is added to: the best linear propagator of the training data, or the last frame."""
    form: Literal["auto", "flux", "flux_open", "flux_source", "increment"] = "auto"
    """How the rest is read: `auto` takes the equation's own; a flux between cells keeps the integral of a field."""
    moving_frame: bool = True
    """Take the mean velocity out of every step where the equation is Galilean-invariant."""
    pdet: PdetSettings = PdetSettings()


class StagesSettings(Group):
    """The stages in the order in which they run."""

    codec: StageSettings = StageSettings(epochs=20)
    operator: StageSettings = StageSettings(epochs=100)


class EvaluationScope(Group):
    """How much is evaluated; null is all there is."""

    max_samples: PositiveInt | None = None
    steps: PositiveInt | None = None


def _with_persistence(value: Any) -> Any:
    names = as_tuple(value)
    return ("persistence", *names) if isinstance(names, tuple) and "persistence" not in names else names


class EvaluationSettings(Group):
    """How a trained model is judged."""

    small: EvaluationScope = EvaluationScope(max_samples=16)
    full: EvaluationScope = EvaluationScope()
    rollout_mode: Literal["latent", "physical"] = "latent"
    baselines: Annotated[tuple[BaselineName, ...], BeforeValidator(_with_persistence)] = ("persistence",)
    """Trained on the same data and scored beside the model; persistence always is."""
    batch_size: PositiveInt = 32
    solver_reference: bool = True
    """Time the reference solver at the coarsest resolution that is as accurate as the model."""


class Settings(Group):
    """Everything a run is made of."""

    name: PathComponent | None = None
    """First part of the run's identifier; letters, digits, dot, dash and underscore."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 17
    deterministic: bool = False
    benchmark: bool = True
    """Let cuDNN time its algorithms and keep the fastest."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    runs_dir: Word = "runs"
    data: DataSettings
    latent: LatentSettings = LatentSettings()
    operator: OperatorSettings = OperatorSettings()
    training: TrainingSettings = TrainingSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    stages: StagesSettings = StagesSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, value: Any) -> Any:
        """Read `task` as `data.task`, and let a stage's optimizer inherit what it leaves out."""
        if not isinstance(value, Mapping):
            return value
        tree = move_task_alias(value)
        shared, stages = tree.get("optimizer", {}), tree.get("stages", {})
        if not (isinstance(shared, Mapping) and isinstance(stages, Mapping)):
            return tree
        inherited = {
            name: {**stage, "optimizer": deep_merge(shared, stage["optimizer"])}
            for name, stage in stages.items()
            if isinstance(stage, Mapping) and isinstance(stage.get("optimizer"), Mapping)
        }
        return {**tree, "stages": {**stages, **inherited}} if inherited else tree

    @field_validator("stages")
    @classmethod
    def _something_to_do(cls, stages: StagesSettings) -> StagesSettings:
        if stages.codec.skipped and stages.operator.skipped:
            raise ValueError("every stage has epochs: 0; nothing would be trained")
        return stages

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.latent.codec.train_with_operator and self.stages.operator.skipped:
            raise ValueError("latent.codec.train_with_operator is true, but stages.operator.epochs is 0")
        if self.training.lambda_inv_enc > 0 and not self.latent.codec.train_with_operator:
            raise ValueError(
                "training.lambda_inv_enc is above 0, but latent.codec.train_with_operator is false: the codec is "
                "frozen, there is nothing to train; make it true, or give lambda_inv_enc 0"
            )
        return self

    def stage(self, name: StageName) -> StageSettings:
        """The settings of one stage."""
        return self.stages.codec if name == "codec" else self.stages.operator

    def optimizer_of(self, name: StageName) -> OptimizerSettings:
        """The optimizer that a stage trains with, its schedule included."""
        stage = self.stage(name)
        optimizer = stage.optimizer or self.optimizer
        return optimizer if stage.scheduler is None else optimizer.model_copy(update={"scheduler": stage.scheduler})

    def batch_size_of(self, name: StageName) -> int | Literal["auto"]:
        """Windows per batch of a stage; `auto` is settled by the data's dimensions."""
        return self.stage(name).batch_size or self.training.batch_size

    def patience_of(self, name: StageName) -> int | None:
        """Validations without improvement before a stage stops early."""
        return self.stage(name).patience or self.training.patience
