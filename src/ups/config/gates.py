"""Settings of the gates that a run must pass to become the champion."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from ups.config.kinds import BelowOne, Group, Word

RatioLimit = PositiveFloat | Literal["auto"] | None
"""Largest ratio of candidate to champion. `auto` is 1.0 wherever the metric has a meaning; a number is demanded
everywhere; null does not judge."""

JudgedMetric = Literal[
    "nrmse",
    "pdebench_nrmse",
    "rel_l2",
    "vrmse",
    "rmse",
    "mae",
    "mae_relative",
    "max_error",
    "one_step_nrmse",
    "ensemble_nrmse",
    "crps",
    "crps_relative",
]
"""Errors that runs can be ranked by: the smaller the better."""


class GateRatios(Group):
    """How much worse than the champion a candidate may be in what is not its metric; each gate stands for every task.

    Under `auto` a ratio is left out of the judgement only where the problem itself has no such thing: no boundary on a
    periodic domain, no integral that is conserved, no calibration where neither model draws an ensemble. A metric that
    is merely missing fails. So does one that has no meaning where a number is given: write null to leave it out.
    """

    conservation_gap: RatioLimit = "auto"
    """What is lost of a conserved integral beyond what the data loses."""
    bc_violation: RatioLimit = "auto"
    """Error at walls: of the slope through no-flow ones, of the value at those of fixed values."""
    ece: RatioLimit = "auto"
    """Calibration of the ensemble."""
    wall_clock: RatioLimit = "auto"
    """Times of two runs on one machine differ, and far more where other programs run: at 1, an equally fast run fails
    about half the time. Of different machines they are not compared, which fails."""


class GateSettings(Group):
    """What a run must show to become the champion of its tasks and protocol. Whatever is missing fails."""

    metric: JudgedMetric = "nrmse"
    """Must be smaller than the champion's in every task."""
    min_delta: BelowOne = 0.0
    """By how much, as a part of the champion's value: 0.05 asks for 5 % less error."""
    ratios: GateRatios = GateRatios()
    """Limits on what is not the metric."""
    first_champion: bool = False
    """Accept that there is no champion yet; all else must still be there. Where there is one, it changes nothing."""
    leaderboard: Word | None = None
    """File that champions are kept in, on a local disk; null is `leaderboard.sqlite` in `runs_dir`."""
