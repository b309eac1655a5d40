"""What options may be, where that is one of a few words."""

from __future__ import annotations

from enum import StrEnum


class StageChoice(StrEnum):
    """Stages that can be trained by name."""

    codec = "codec"
    operator = "operator"
    diff_residual = "diff_residual"
    consistency_distill = "consistency_distill"
    steady_prior = "steady_prior"
    all = "all"


class SplitChoice(StrEnum):
    """Splits that can be scored."""

    train = "train"
    valid = "valid"
    test = "test"


class GuardChoice(StrEnum):
    """Projections that a step may end with."""

    conservation = "conservation"
    positivity = "positivity"
    divergence = "divergence"
    boundary = "boundary"


class DeviceChoice(StrEnum):
    """Where a model computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class ModeChoice(StrEnum):
    """Where a roll-out is between steps."""

    latent = "latent"
    physical = "physical"
