"""What each stage needs, trains and leaves behind: the only place where settings become objectives.

A stage is an objective over a part of the model; which part is said by `requires_grad`. The loop that runs it knows
nothing of stages.
"""

from __future__ import annotations

from collections.abc import Mapping

from ups.config.schema import Settings, StageName
from ups.data.augment import Augment
from ups.data.trajectories import TrajectorySet
from ups.models.simulator import Simulator
from ups.training.builders import add_corrector
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


def build_augments(settings: Settings, sets: Mapping[str, TrajectorySet]) -> dict[str, Augment]:
    """The random symmetries of every task; none of them where `training.augment` is off."""
    return {task: Augment(train.equation, enabled=settings.training.augment) for task, train in sets.items()}


def build_objective(
    stage: StageName, settings: Settings, simulator: Simulator, augments: Mapping[str, Augment]
) -> CodecObjective | OperatorObjective | DiffusionObjective | DistillObjective:
    """The objective of a stage; parameters that it does not train are frozen.

    The residual diffusion is added to the simulator where it has none yet.

    Raises:
        UpsError: a prior is asked for that says nothing about a task, or that is zero whatever the operator does.
    """
    if stage in ("diff_residual", "consistency_distill"):
        return build_corrector_objective(stage, settings, simulator, augments)
    training = settings.training
    queries = training.query_sampling.num_queries
    trains_codec = stage == "codec" or settings.latent.codec.train_with_operator
    simulator.requires_grad_(stage == "operator")
    simulator.codecs.requires_grad_(trains_codec)
    if stage == "codec":
        asked = training.physics_priors
        return CodecObjective(
            simulator,
            augments,
            queries,
            latent_norm=asked.lambda_latent_norm,
            latent_diversity=asked.lambda_latent_diversity,
        )
    terms = OperatorTerms(
        forward=training.lambda_forward,
        relative=training.lambda_relative,
        inv_enc=training.lambda_inv_enc,
        inv_dec=training.lambda_inv_dec,
        rollout=training.lambda_rollout,
        rollout_horizon=training.rollout_horizon,
        rollout_start=training.rollout_start,
        rollout_gradient_steps=training.rollout_gradient_steps,
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
