"""Gathers the scores of an emulator's ensembles on one task, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from ups.evaluation import metrics, uncertainty
from ups.evaluation.rollout import EnsembleBatch
from ups.evaluation.scores import EnsembleCurves, EnsembleSummary, Score, mean_score

SCORES = ("crps", "crps_relative", "spread_skill", "ece", "ensemble_nrmse", "ensemble_wall_clock")
"""What only an ensemble has."""

ZERO_FIELD = "a true field is zero throughout a trajectory: its relative error is not defined"
NO_ERROR = "the ensemble's mean has no error in a field: there is nothing to compare its spread with"


def no_ensemble(reason: str) -> dict[str, Score]:
    """The scores of an emulator without an ensemble."""
    return {name: Score(None, reason) for name in SCORES}


class EnsembleAccumulator:
    """Takes batches of ensembles and keeps a few numbers of each sample, field and frame.

    Args:
        fields: names of the channels.
        members: how many members each ensemble has, two or more.
    """

    def __init__(self, fields: Sequence[str], members: int) -> None:
        self.fields, self.members = tuple(fields), members
        self._values: dict[str, list[Tensor]] = {name: [] for name in ("crps", "relative", "nrmse", "ranks")}
        self._frames: dict[str, list[Tensor]] = {name: [] for name in ("crps", "variance", "error")}
        self._diverged = self._samples = 0
        self._wall_clock: float | None = None

    def add(self, batch: EnsembleBatch) -> None:
        """Takes a batch; what is not finite makes the scores missing."""
        if batch.seconds is not None:
            samples, steps = batch.truth.shape[:2]
            self._wall_clock = batch.seconds / (samples * steps)
        self._samples += len(batch.indices)
        bad = [metrics.first_bad_frame(member) for member in batch.members]
        self._diverged += sum(any(frame is not None for frame in frames) for frames in zip(*bad, strict=True))
        if self._diverged:
            return
        crps = uncertainty.fair_crps(batch.members, batch.truth)
        frames = {
            "crps": crps,
            "variance": uncertainty.member_variance(batch.members),
            "error": uncertainty.mean_squared_error_of_mean(batch.members, batch.truth),
        }
        samples_of = {
            "crps": crps.mean(dim=(1, 2)),
            "relative": metrics.over_size(crps.mean(dim=1), metrics.mean_square(batch.truth)),
            "nrmse": metrics.nrmse(batch.members.mean(dim=0, dtype=torch.float64), batch.truth),
            "ranks": uncertainty.rank_histograms(batch.members, batch.truth),
        }
        for kept, found in ((self._frames, frames), (self._values, samples_of)):
            for name, values in found.items():
                kept[name] += values.cpu().unbind()

    def finish(self) -> tuple[dict[str, Score], EnsembleSummary | None]:
        """The scores of everything added, and what is shown beside them."""
        if self._diverged:
            return no_ensemble(f"{self._diverged} of {self._samples} ensembles have members that diverged"), None
        crps, relative, nrmse, ranks = (torch.stack(values) for values in self._values.values())
        histogram = ranks.mean(dim=0).tolist()
        scores = {
            "crps": mean_score(crps.tolist(), "an ensemble is not finite"),
            "crps_relative": mean_score(relative.tolist(), ZERO_FIELD),
            "spread_skill": Score.of(self._spread_skill(), NO_ERROR),
            "ece": Score(uncertainty.calibration_error(histogram)),
            "ensemble_nrmse": mean_score(nrmse.tolist(), ZERO_FIELD),
            "ensemble_wall_clock": Score(
                self._wall_clock, None if self._wall_clock is not None else "it was not timed"
            ),
        }
        nominal, empirical = uncertainty.NOMINAL, uncertainty.coverage(histogram)
        return scores, EnsembleSummary(self.members, nominal, tuple(empirical), tuple(histogram), self._curves())

    def _spread_skill(self) -> float:
        """Spread over skill of each field, averaged over the fields: no unit outweighs another."""
        variance, error = (
            torch.stack([values.mean(dim=0) for values in self._frames[name]]).mean(dim=0)
            for name in ("variance", "error")
        )
        return float((uncertainty.corrected_spread(variance, self.members) / error.sqrt()).mean())

    def _curves(self) -> tuple[EnsembleCurves, ...]:
        crps, variance, error = (_by_frame(values) for values in self._frames.values())
        spread, skill = uncertainty.corrected_spread(variance, self.members), error.sqrt()
        return tuple(
            EnsembleCurves(name, *(tuple(curve[:, channel].tolist()) for curve in (crps, spread, skill)))
            for channel, name in enumerate(self.fields)
        )


def _by_frame(values: Sequence[Tensor]) -> Tensor:
    """Mean over the samples that reach each frame, of (time, channel) of every sample; (time, channel)."""
    rows = zip_longest(*(one.unbind() for one in values))
    return torch.stack([torch.stack([row for row in frame if row is not None]).mean(dim=0) for frame in rows])
