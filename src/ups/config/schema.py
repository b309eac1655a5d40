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
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from ups.config.architecture import DiffusionSettings, LatentSettings, OperatorSettings
from ups.config.data import DataSettings
from ups.config.kinds import Group, PathComponent, Word, as_tuple
from ups.config.learning import DistillSettings, OptimizerSettings, StageSettings, TrainingSettings
from ups.config.merge import deep_merge, move_task_alias
from ups.config.physics import GuardSettings

StageName = Literal["codec", "operator", "diff_residual", "consistency_distill"]
BaselineName = Literal["persistence", "linear", "fno", "unet"]


class StagesSettings(Group):
    """The stages in the order in which they run; those of an ensemble are skipped unless they get a budget."""

    codec: StageSettings = StageSettings(epochs=20)
    operator: StageSettings = StageSettings(epochs=100)
    diff_residual: StageSettings = StageSettings(epochs=0)
    """Residual diffusion: draws the operator's error, for ensembles. `diffusion_residual` is accepted too."""
    consistency_distill: DistillSettings = DistillSettings(epochs=0)
    """Distils the diffusion into a sampler of one to four steps."""

    @model_validator(mode="before")
    @classmethod
    def _alias(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "diffusion_residual" not in value:
            return value
        if "diff_residual" in value:
            raise ValueError("diff_residual and diffusion_residual are one stage: name it once")
        return {("diff_residual" if key == "diffusion_residual" else key): item for key, item in value.items()}


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
    members: NonNegativeInt = 8
    """Roll-outs in the ensemble of each trajectory, where the model draws; 0 or 1 rolls no ensemble."""
    corrector_every: PositiveInt = 1
    """Steps between corrections of an ensemble's members by the residual diffusion."""
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
    diffusion: DiffusionSettings = DiffusionSettings()
    training: TrainingSettings = TrainingSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    stages: StagesSettings = StagesSettings()
    guards: GuardSettings = GuardSettings()
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
            raise ValueError("codec and operator have epochs: 0; nothing would be trained")
        if stages.operator.skipped and not stages.diff_residual.skipped:
            raise ValueError("diff_residual corrects the operator, whose epochs are 0: give the operator a budget")
        if stages.diff_residual.skipped and not stages.consistency_distill.skipped:
            raise ValueError("consistency_distill needs its teacher: give diff_residual a budget")
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
        found: StageSettings = getattr(self.stages, name)
        return found

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
