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

from ups.config.architecture import DiffusionSettings, LatentSettings, OperatorSettings, PriorSettings
from ups.config.data import DataSettings
from ups.config.gates import GateSettings
from ups.config.kinds import Group, PathComponent, Word, as_tuple
from ups.config.learning import DistillSettings, OptimizerSettings, StageSettings, TrainingSettings
from ups.config.merge import BUDGETS, deep_merge, move_task_alias
from ups.config.physics import GuardSettings
from ups.config.tracking import LoggingSettings

StageName = Literal["codec", "operator", "diff_residual", "consistency_distill", "steady_prior"]
BaselineName = Literal["persistence", "linear", "fno", "unet"]


INVERSE_TERMS = {
    "lambda_inv_enc": "there is nothing to train",
    "lambda_inv_dec": "and as it is linear, a latent that it encoded comes back from decoding and encoding as it was",
}
"""Terms of the operator's stage that need a codec that is trained with it, and why."""


class StagesSettings(Group):
    """The stages in the order in which they run; those of an ensemble are skipped unless they get a budget."""

    codec: StageSettings = StageSettings(epochs=20)
    """Trains encoder and decoder; done at once where they lose nothing."""
    operator: StageSettings = StageSettings(epochs=100)
    """Trains what advances latents; the codec is frozen unless `latent.codec.train_with_operator`."""
    diff_residual: StageSettings = StageSettings(epochs=0)
    """Residual diffusion: draws the operator's error, for ensembles. `diffusion_residual` is accepted too."""
    consistency_distill: DistillSettings = DistillSettings(epochs=0)
    """Distils the diffusion into a sampler of one to four steps."""
    steady_prior: StageSettings = StageSettings(epochs=100)
    """Problems without time: the one stage that is trained for them, and for no other."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        """Take the longer name, and let a stage that overrides something else keep its own budget."""
        if not isinstance(value, Mapping):
            return value
        if {"diff_residual", "diffusion_residual"} <= set(value):
            raise ValueError("diff_residual and diffusion_residual are one stage: name it once")
        named = {("diff_residual" if key == "diffusion_residual" else key): item for key, item in value.items()}
        for name, stage in named.items():
            usual = cls.model_fields[name].default if name in cls.model_fields else None
            if isinstance(stage, Mapping) and isinstance(usual, StageSettings) and not usual.skipped:
                given = any(stage.get(key) is not None for key in BUDGETS)
                named[name] = stage if given else {**stage, "epochs": usual.epochs}
        return named


class EvaluationScope(Group):
    """How much is evaluated; null is all there is."""

    max_samples: PositiveInt | None = None
    """Trajectories of each task."""
    steps: PositiveInt | None = None
    """Frames to predict after the context."""


def _with_persistence(value: Any) -> Any:
    names = as_tuple(value)
    return ("persistence", *names) if isinstance(names, tuple) and "persistence" not in names else names


class EvaluationSettings(Group):
    """How a trained model is judged."""

    small: EvaluationScope = EvaluationScope(max_samples=16)
    """On validation trajectories: what weights are chosen by, and the gate before the full evaluation."""
    full: EvaluationScope = EvaluationScope()
    """On test trajectories: what is reported and judged."""
    rollout_mode: Literal["latent", "physical"] = "latent"
    """`latent` stays in latent space between steps, `physical` decodes and encodes at each."""
    baselines: Annotated[tuple[BaselineName, ...], BeforeValidator(_with_persistence)] = ("persistence",)
    """Trained on the same data and scored beside the model; persistence always is."""
    batch_size: PositiveInt = 32
    """Trajectories, or members of ensembles, rolled out together; the wall clock is taken of such a batch. Validations
    during training take as many trajectories, each with all its members."""
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
    """Of every random number of training."""
    deterministic: bool = False
    """Refuse operations that have no deterministic form."""
    benchmark: bool = True
    """Let cuDNN time its algorithms and keep the fastest."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` is the GPU where there is one."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of one operation; null takes what the environment says (`OMP_NUM_THREADS`), or else measures whether
    all threads are faster than one. A run keeps to what it was started with."""
    runs_dir: Word = "runs"
    """Folder of the runs' folders."""
    data: DataSettings
    """Which data, and how it is cut."""
    latent: LatentSettings = LatentSettings()
    """The latent space."""
    operator: OperatorSettings = OperatorSettings()
    """What advances latents in time."""
    diffusion: DiffusionSettings = DiffusionSettings()
    """Samples of the operator's error, for ensembles."""
    prior: PriorSettings = PriorSettings()
    """Problems without time."""
    training: TrainingSettings = TrainingSettings()
    """What all stages share."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer and its schedule."""
    stages: StagesSettings = StagesSettings()
    """Budgets, and what a stage has of its own."""
    guards: GuardSettings = GuardSettings()
    """Projections of every predicted frame."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How a trained model is judged."""
    gates: GateSettings = GateSettings()
    """What makes it the champion."""
    logging: LoggingSettings = LoggingSettings()
    """Where the log goes."""

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
        guards = [f"guards.{name}" for name, wanted in self.guards if wanted]
        if guards and self.latent.codec.train_with_operator:
            raise ValueError(
                f"{' and '.join(guards)}: a guard is exact only where decoding undoes encoding, but "
                "latent.codec.train_with_operator is true: a codec that is trained does not stay so; make it false, or "
                "leave the guards out"
            )
        if not self.latent.codec.train_with_operator:
            for name, why in INVERSE_TERMS.items():
                if getattr(self.training, name) > 0:
                    raise ValueError(
                        f"training.{name} is above 0, but latent.codec.train_with_operator is false: the codec is "
                        f"frozen, {why}; make it true, or give {name} 0"
                    )
        priors = self.training.physics_priors
        of_codec = not self.stages.codec.skipped and priors.of_latents == priors.weighted
        if priors.enabled and self.stages.operator.skipped and not of_codec:
            raise ValueError(
                "training.physics_priors.enabled is true, but stages.operator.epochs is 0: only lambda_latent_norm and "
                "lambda_latent_diversity train the codec, too; give the operator a budget, or make enabled false"
            )
        if self.guards.conservation and priors.lambda_conservation > 0:
            raise ValueError(
                "training.physics_priors.lambda_conservation is above 0, but guards.conservation keeps the integrals "
                "already: the term would be zero by construction; give it 0, or make guards.conservation false"
            )
        if not self.stages.consistency_distill.skipped:
            self._check_student()
        if self.training.latent_cache_dir is not None:
            self._check_latent_cache()
        if not self.training.augment and self.operator.symmetrize not in ("auto", 0):
            raise ValueError(
                f"operator.symmetrize is {self.operator.symmetrize}, but training.augment is false: roll-outs would "
                "see fields in ways that training never did; make augment true, or give symmetrize auto or 0"
            )
        return self

    def _check_student(self) -> None:
        """A student is taught at every place that it samples from."""
        wanted, distill = self.diffusion.student_steps, self.stages.consistency_distill
        if wanted > distill.teacher_steps:
            raise ValueError(
                f"diffusion.student_steps is {wanted}, but the teacher's path has "
                f"{distill.teacher_steps} steps to land from: give stages.consistency_distill.teacher_steps at least "
                f"{wanted}, or fewer student_steps"
            )
        if wanted > 1 and (distill.tau_schedule or (distill.distill_num_taus,))[-1] == 1:
            raise ValueError(
                f"diffusion.student_steps is {wanted}, but the student would be taught at one tau alone, that of pure "
                "noise: give stages.consistency_distill.distill_num_taus (or the last of tau_schedule) at least 2, or "
                "student_steps 1"
            )

    def _check_latent_cache(self) -> None:
        """Latents are kept for a codec and for fields that stay as they are."""
        if self.latent.codec.train_with_operator:
            raise ValueError(
                "training.latent_cache_dir is given, but latent.codec.train_with_operator is true: latents of a codec "
                "that is being trained do not last; make it false, or give latent_cache_dir null"
            )
        if self.training.augment:
            raise ValueError(
                "training.latent_cache_dir is given, but training.augment is true: latents of moved fields are not "
                "cached; make augment false, or give latent_cache_dir null"
            )

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

    def checkpoint_interval_of(self, name: StageName) -> int:
        """Steps between checkpoints of a stage."""
        return self.stage(name).checkpoint_interval or self.training.checkpoint_interval

    def patience_of(self, name: StageName) -> int | None:
        """Validations without improvement before a stage stops early."""
        return self.stage(name).patience or self.training.patience
