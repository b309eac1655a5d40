"""What the scores of an ensemble mean, in words: a table that says what is good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ups.evaluation import plots
from ups.evaluation.summary import SAME, Scores, number, plain, with_unit

MATCHED = 1.25
"""Spread and error that differ by less than this factor are called equal."""

TIGHT, LOOSE = 0.03, 0.1
"""Calibration errors up to which intervals are called right, and about right."""


@dataclass(frozen=True)
class Reading:
    """One score with what it says.

    Args:
        kind: `good`, `even`, `bad`, or `unknown` where there is no score or no judgement.
    """

    label: str
    value: Markup | str
    kind: str
    text: str


@dataclass(frozen=True)
class EnsembleView:
    """What the page shows of one emulator's ensembles on one task.

    Args:
        emulator: its name.
        members: how many each ensemble has.
        readings: its scores in words.
        charts: of spread and error against time, by field.
    """

    emulator: str
    members: int
    readings: tuple[Reading, ...]
    charts: tuple[tuple[str, Markup], ...]


def view_ensembles(scores: Scores, task: str) -> list[EnsembleView]:
    """Every emulator's ensembles on a task; none where no emulator draws."""
    views = []
    for name, details in scores.ensembles(task).items():
        place, dt = scores.emulators.index(name), scores.details(task)["dt"]
        charts = tuple(
            (one["field"], plots.spread_and_skill(place, one["skill"], one["spread"], one["crps"], dt))
            for one in details["curves"]
        )
        views.append(EnsembleView(name, details["members"], read(scores.of(name, task)), charts))
    return views


def reliability_chart(scores: Scores, task: str) -> Markup:
    """Coverage of all ensembles on a task."""
    found: Mapping[str, Mapping[str, Any]] = scores.ensembles(task)
    lines = {scores.emulators.index(name): (one["nominal"], one["empirical"]) for name, one in found.items()}
    return plots.reliability(lines)


def read(scores: Mapping[str, float | None]) -> tuple[Reading, ...]:
    """The scores of an ensemble, each with what is good and how this one does."""
    crps, mae = scores["crps"], scores["mae"]
    mean, single = scores["ensemble_nrmse"], scores["nrmse"]
    ratio, ece, seconds = scores["spread_skill"], scores["ece"], scores["ensemble_wall_clock"]
    readings = [
        Reading("CRPS", _value(crps), *_against(crps, mae, "the mean absolute error of the single prediction")),
        Reading(
            "mean absolute error", _value(mae), "unknown", "Of the single prediction: its CRPS, as it has no spread."
        ),
        Reading("spread over skill", _value(ratio), *_spread(ratio)),
        Reading("calibration error", _value(ece), *_calibration(ece)),
        Reading("nRMSE of the mean", _value(mean), *_against(mean, single, "the nRMSE of the single prediction")),
    ]
    if seconds is not None:
        readings.append(
            Reading("time per step", with_unit(seconds, "s"), "unknown", _cost(seconds, scores["wall_clock"]))
        )
    return tuple(readings)


def _value(value: float | None) -> Markup | str:
    return "–" if value is None else number(value)


def _against(ours: float | None, theirs: float | None, what: str) -> tuple[str, str]:
    """How an error of the ensemble compares with one of the single prediction."""
    if ours is None or theirs is None or ours <= 0 or theirs <= 0:
        return "unknown", f"Smaller is better; to be compared with {what}."
    if max(ours, theirs) <= (1 + SAME) * min(ours, theirs):
        return "even", f"About equal to {what}: the ensemble gains nothing on it."
    if ours < theirs:
        return "good", f"{100 * (1 - ours / theirs):.0f} % smaller than {what}."
    return "bad", f"{plain(ours / theirs)} times {what}: the single prediction is better."


def _spread(ratio: float | None) -> tuple[str, str]:
    if ratio is None:
        return "unknown", "One is right; less is overconfident, more is too cautious."
    if ratio <= 0:
        return "bad", "The members are all the same: there is no spread at all."
    if 1 / MATCHED <= ratio <= MATCHED:
        return "good", "The spread is about as large as the error: the ensemble knows how wrong it is."
    if ratio < 1:
        return "bad", f"Overconfident: the error is {plain(1 / ratio)} times what the spread promises."
    return "bad", f"Too cautious: the spread is {plain(ratio)} times as large as the error."


def _calibration(ece: float | None) -> tuple[str, str]:
    if ece is None:
        return "unknown", "Zero is right: intervals hold the truth as often as they promise."
    points = f"off by {plain(100 * ece, 2)} percentage points on average"
    if ece <= TIGHT:
        return "good", f"Intervals hold the truth as often as they promise ({points})."
    if ece <= LOOSE:
        return "even", f"Intervals hold the truth about as often as they promise ({points})."
    return "bad", f"Intervals do not hold what they promise ({points})."


def _cost(seconds: float, single: float | None) -> str:
    """What all members of a trajectory cost together."""
    if single is None or single <= 0:
        return "Of all members of a trajectory together."
    return f"Of all members of a trajectory together: {plain(seconds / single, 2)} times that of the single prediction."
