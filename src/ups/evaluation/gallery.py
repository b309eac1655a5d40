"""Still pictures of a trajectory: truth, prediction and error, in space and time or frame by frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ups.evaluation import pictures, plots
from ups.evaluation.showcase import Array, Showcase

FRAMES_SHOWN = 5
"""Frames of a two-dimensional trajectory that stand side by side."""

BANDS_SHOWN = 4
"""Frames of a one-dimensional ensemble that stand side by side."""


@dataclass(frozen=True)
class Picture:
    """A picture with the ends of its colour scale."""

    source: str
    label: str
    low: str
    high: str
    gradient: str


@dataclass(frozen=True)
class EnsembleGallery:
    """Pictures of one field of the ensemble of one trajectory.

    Args:
        rows: mean, error of the mean and spread, several frames each; empty in one dimension.
        bands: truth, mean and the members' band of several frames; empty in two.
        times: of the frames.
    """

    rows: tuple[tuple[str, tuple[Picture, ...]], ...]
    bands: tuple[Markup, ...]
    times: tuple[str, ...]


@dataclass(frozen=True)
class Gallery:
    """Pictures of one field of one trajectory.

    Args:
        field: its name; empty where there is only one.
        rows: truth, prediction and error; one picture each in one dimension, several frames in two.
        times: above the frames of a row; empty in one dimension.
    """

    field: str
    rows: tuple[tuple[str, tuple[Picture, ...]], ...]
    times: tuple[str, ...]
    profile: Markup | None
    ensemble: EnsembleGallery | None


def make_gallery(one: Showcase, channel: int, ours: Array, drawn: Mapping[int, Array]) -> Gallery:
    """Truth and prediction on one scale, the error on its own, centred at zero."""
    truth, prediction = one.truth[:, channel], ours[:, channel]
    error = prediction - truth
    low, high = pictures.shown(truth)
    most = pictures.reach(error)
    field = (low, high, pictures.FIELD_MAP)
    centred = (-most, most, pictures.ERROR_MAP)
    rows = (("truth", truth, field), ("prediction", prediction, field), ("error", error, centred))
    plane = truth.ndim == 3
    shown = min(FRAMES_SHOWN, len(truth)) if plane else 1
    frames = np.linspace(0, len(truth) - 1, shown).round().astype(int).tolist()
    made = tuple(
        (label, tuple(_picture(values[frame] if plane else values.T, label, *scale) for frame in frames))
        for label, values, scale in rows
    )
    times = tuple(f"t = {one.times[frame]:.3g}" for frame in frames) if plane else ()
    profile = None
    if not plane:
        points = np.linspace(*one.extent[0], truth.shape[1]).tolist()
        profile = plots.profile(points, truth[-1].tolist(), {k: p[-1, channel].tolist() for k, p in drawn.items()})
    name = one.fields[channel] if len(one.fields) > 1 else ""
    return Gallery(name, made, times, profile, _ensemble(one, channel) if one.ensemble else None)


def _ensemble(one: Showcase, channel: int) -> EnsembleGallery:
    """In a plane mean, error of the mean and spread, the last two on one scale; on a line bands at a few times."""
    truth, mean = one.truth[:, channel], one.ensemble["mean"][:, channel]
    plane = truth.ndim == 3
    shown = min(FRAMES_SHOWN if plane else BANDS_SHOWN, len(truth) - 1)
    frames = np.linspace(0, len(truth) - 1, shown + 1).round().astype(int).tolist()[1:]  # the first is given
    times = tuple(f"t = {one.times[frame]:.3g}" for frame in frames)
    if not plane:
        points = np.linspace(*one.extent[0], truth.shape[1]).tolist()
        lines = (truth, mean, *(one.ensemble[name][:, channel] for name in ("low", "high")))
        bands = tuple(plots.band(points, *(values[frame].tolist() for values in lines)) for frame in frames)
        return EnsembleGallery((), bands, times)
    error, spread = np.abs(mean - truth), one.ensemble["spread"][:, channel]
    size = (0.0, max(pictures.reach(error), pictures.reach(spread)), pictures.SIZE_MAP)
    field = (*pictures.shown(truth), pictures.FIELD_MAP)
    rows = (("ensemble mean", mean, field), ("|error| of the mean", error, size), ("spread", spread, size))
    made = tuple(
        (label, tuple(_picture(values[frame], label, *scale) for frame in frames)) for label, values, scale in rows
    )
    return EnsembleGallery(made, (), times)


def _picture(values: Array, label: str, low: float, high: float, colours: str) -> Picture:
    source = pictures.picture(values, low, high, colours)
    return Picture(source, label, _end(low), _end(high), pictures.gradient(colours))


def _end(value: float) -> str:
    """The end of a colour scale, short."""
    return f"{value:.2g}".replace("-", "−")
