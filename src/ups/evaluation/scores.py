"""Gathers the scores of one emulator on one task, batch by batch; what cannot be computed is said, never made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ups.data.fields import Grid
from ups.evaluation import metrics
from ups.evaluation.rollout import RolloutBatch
from ups.physics.equations import Equation

SCHEMA_VERSION = 1
"""Of the files that scores are written to."""

CHUNK_VALUES = 1 << 22
"""Values that are compared at once in float64."""


@dataclass(frozen=True)
class Score:
    """A number, or the reason why there is none."""

    value: float | None
    reason: str | None = None

    @classmethod
    def of(cls, value: float, otherwise: str) -> Score:
        """The value when it is finite, else no value for the reason `otherwise`."""
        return cls(value) if math.isfinite(value) else cls(None, otherwise)


@dataclass(frozen=True)
class ErrorCurve:
    """Relative error frame by frame: mean over samples, and the range of their middle 80 %; None after divergence."""

    mean: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True)
class ConservationCurve:
    """Drift of the worst conserved integral frame by frame, mean over samples; None after divergence."""

    prediction: tuple[float | None, ...]
    truth: tuple[float | None, ...]


@dataclass(frozen=True)
class Spectrum:
    """Energy per shell of wave numbers at the last predicted frame, mean over samples; one row per field."""

    truth: tuple[tuple[float, ...], ...]
    prediction: tuple[tuple[float, ...], ...]
    error: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class EnsembleCurves:
    """One field's ensemble against time, frame by frame over all samples, in the field's unit.

    Args:
        field: its name.
        crps: fair CRPS.
        spread: standard deviation of the members, corrected for their number.
        skill: root mean square error of their mean, which the spread should equal.
    """

    field: str
    crps: tuple[float, ...]
    spread: tuple[float, ...]
    skill: tuple[float, ...]


@dataclass(frozen=True)
class EnsembleSummary:
    """What is shown of an emulator's ensembles besides their scores.

    Args:
        members: how many each has.
        nominal: coverage that central intervals promise.
        empirical: coverage that they have.
        ranks: how often the truth is larger than exactly 0, 1, ... members.
        curves: against time, of each field.
    """

    members: int
    nominal: tuple[float, ...]
    empirical: tuple[float, ...]
    ranks: tuple[float, ...]
    curves: tuple[EnsembleCurves, ...]


@dataclass(frozen=True)
class TaskScores:
    """Everything measured of one emulator on one task.

    Args:
        scores: by metric.
        per_sample: index of each trajectory with its nrmse, None where the roll-out diverged.
        curve: error against time.
        spectrum: None when no sample reached the last frame with finite values.
        timed_batch: trajectories in the batch that the wall clock was taken of.
        ensemble: None where no ensemble was rolled out, or one of them diverged.
        conservation: None where the equation conserves no integral.
    """

    scores: Mapping[str, Score]
    per_sample: Mapping[int, float | None]
    curve: ErrorCurve
    spectrum: Spectrum | None
    timed_batch: int | None
    ensemble: EnsembleSummary | None = None
    conservation: ConservationCurve | None = None


def _mean(values: Tensor) -> float:
    return float(values.mean())


_REDUCTIONS: dict[str, Callable[[Tensor], float]] = {
    "rmse": lambda squares: float(squares.mean().sqrt()),
    "max_error": lambda values: float(values.max()),
}
"""How the values of samples make one, where it is not their mean."""


class ScoreAccumulator:
    """Takes batches of roll-outs and keeps a few numbers of each sample.

    Args:
        equation: description of the task.
        grid: where the fields live.
        to_wall: for walls of fixed values, cells between them and the outermost values of each axis; see
            `metrics.bc_violation`.
    """

    def __init__(self, equation: Equation, grid: Grid, to_wall: Sequence[tuple[float, float]] | None = None) -> None:
        self.equation, self.grid, self.to_wall = equation, grid, to_wall
        self._unavailable = _unavailable(equation, grid)
        self._values: dict[str, list[Tensor]] = {}
        self._by_frame: list[Tensor] = []
        self._drift: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._per_sample: dict[int, float | None] = {}
        self._diverged: list[int] = []
        self._wall_clock: float | None = None
        self._timed_batch: int | None = None
        self._energy: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def add(self, batch: RolloutBatch) -> None:
        """Takes a batch of roll-outs, compared in pieces that bound the memory."""
        if batch.seconds is not None:
            self._timed_batch, steps = batch.truth.shape[:2]
            self._wall_clock = batch.seconds / (self._timed_batch * steps)
        chunk = max(1, CHUNK_VALUES // batch.truth[0].numel())
        for first in range(0, len(batch.indices), chunk):
            self._add(batch, slice(first, first + chunk))

    def _add(self, batch: RolloutBatch, part: slice) -> None:
        prediction, truth = batch.prediction[part].double(), batch.truth[part].double()
        bad = metrics.first_bad_frame(prediction)
        self._diverged += [frame for frame in bad if frame is not None]
        errors = self._errors(prediction, truth, batch.initial[part], batch.params[part])
        for name, values in errors.items():
            self._values.setdefault(name, []).append(values.cpu())
        for index, frame, value in zip(batch.indices[part], bad, errors["nrmse"].tolist(), strict=True):
            self._per_sample[index] = value if frame is None and math.isfinite(value) else None
        self._by_frame += metrics.error_by_frame(prediction, truth).cpu().unbind()
        finite = torch.tensor([frame is None for frame in bad], device=truth.device)
        if finite.any():
            ends = [u[finite, -1] for u in (truth, prediction, prediction - truth)]
            spectra = [metrics.energy_spectrum(u, self.grid.periodic).cpu() for u in ends]
            self._energy.setdefault(truth.shape[1], []).append((spectra[0], spectra[1], spectra[2]))

    def _errors(self, prediction: Tensor, truth: Tensor, initial: Tensor, params: Tensor) -> dict[str, Tensor]:
        low, mid, high = metrics.fourier_rmse(prediction, truth).unbind(dim=1)
        errors = {
            "nrmse": metrics.nrmse(prediction, truth),
            "pdebench_nrmse": metrics.pdebench_nrmse(prediction, truth),
            "rel_l2": metrics.rel_l2(prediction, truth),
            "rmse": metrics.mean_squared_error(prediction, truth),
            "mae": metrics.mean_absolute_error(prediction, truth),
            "mae_relative": metrics.relative_absolute_error(prediction, truth),
            "max_error": metrics.max_error(prediction, truth),
            "vrmse": metrics.vrmse(prediction, truth),
            "spectral_low": low,
            "spectral_mid": mid,
            "spectral_high": high,
        }
        if "conservation_gap" not in self._unavailable:
            given = initial, params, self.equation, self.grid.spacing
            errors["conservation_gap"] = metrics.conservation_gap(prediction, truth, *given)
            for kept, u in zip(self._drift, (prediction, truth), strict=True):
                kept += metrics.conservation_drift(u, *given).amax(dim=2).cpu().unbind()
        if "bc_violation" not in self._unavailable:
            errors["bc_violation"] = metrics.bc_violation(prediction, truth, self.grid.periodic, self.to_wall)
        return errors

    def finish(self) -> TaskScores:
        """The scores of everything added."""
        scores = {name: self._reduce(name, torch.cat(values)) for name, values in self._values.items()}
        scores |= {name: Score(None, reason) for name, reason in self._unavailable.items()}
        scores["diverged"] = Score(float(len(self._diverged)))
        scores["wall_clock"] = Score(self._wall_clock, None if self._wall_clock is not None else "it was not timed")
        per_sample = dict(sorted(self._per_sample.items()))
        drift = ConservationCurve(*map(_frame_means, self._drift)) if self._drift[0] else None
        return TaskScores(scores, per_sample, self._curve(), self._spectrum(), self._timed_batch, conservation=drift)

    def _reduce(self, name: str, values: Tensor) -> Score:
        if self._diverged:
            some = f"{len(self._diverged)} of {len(self._per_sample)} roll-outs diverged"
            return Score(None, f"{some}, the first at frame {min(self._diverged) + 1} after the initial one")
        reason = "a true field is zero throughout a frame: its relative error is not defined"
        if name == "spectral_high" and max(self.grid.shape) < 2 * metrics.BANDS[2][0]:
            reason = "the grid resolves no wave number from 12 on"
        return Score.of(_REDUCTIONS.get(name, _mean)(values), reason)

    def _curve(self) -> ErrorCurve:
        length = max(len(errors) for errors in self._by_frame)
        curves: tuple[list[float | None], ...] = ([], [], [])
        for frame in range(length):
            values = torch.stack([errors[frame] for errors in self._by_frame if frame < len(errors)])
            points = [values.mean(), values.quantile(0.1), values.quantile(0.9)]
            for curve, point in zip(curves, points, strict=True):
                curve.append(float(point) if bool(torch.isfinite(values).all()) else None)
        return ErrorCurve(*(tuple(curve) for curve in curves))

    def _spectrum(self) -> Spectrum | None:
        """Over the samples that reach the latest frame, where any of them stayed finite."""
        if not self._energy:
            return None
        parts = self._energy[max(self._energy)]
        truth, prediction, error = (torch.cat(group) for group in zip(*parts, strict=True))
        return Spectrum(*(_rows(energy.mean(dim=0)) for energy in (truth, prediction, error)))


def _unavailable(equation: Equation, grid: Grid) -> dict[str, str]:
    """Metrics that make no sense for an equation, with the reason."""
    reasons = {}
    probe = torch.zeros(1, len(equation.fields), *grid.shape, dtype=torch.float64)
    params = torch.ones(1, len(equation.parameters), dtype=torch.float64)
    if not equation.invariants(probe, params, grid.spacing):
        reasons["conservation_gap"] = f"{equation.name} conserves no integral"
    if all(grid.periodic):
        reasons["bc_violation"] = "the domain is periodic: there is no boundary"
    elif min(grid.shape) < 3:
        reasons["bc_violation"] = "the grid has fewer than three points along an axis"
    return reasons


def _frame_means(curves: Sequence[Tensor]) -> tuple[float | None, ...]:
    """Mean over the samples that reach each frame; None where one of them is not finite."""
    frames = range(max(map(len, curves)))
    means = [float(torch.stack([curve[t] for curve in curves if t < len(curve)]).mean()) for t in frames]
    return tuple(mean if math.isfinite(mean) else None for mean in means)


def _rows(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())


def mean_score(values: Sequence[float], otherwise: str) -> Score:
    """The mean of the values of samples, when it is finite."""
    return Score.of(math.fsum(values) / len(values) if values else math.nan, otherwise)
