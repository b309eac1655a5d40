"""Charts of a report as SVG that follows the page: its text and colours are the page's, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

INK, MUTED, HAIR, TRUTH = "#010101", "#010102", "#010103", "#010104"
"""Colours that stand for the page's own; `_svg` puts CSS variables in their place."""

SERIES = tuple(f"#0101{10 + number:02d}" for number in range(7))
"""The same for emulators, in the order of the page."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", HAIR: "--hair", TRUTH: "--truth"}
_VARIABLES |= {colour: f"--series-{number}" for number, colour in enumerate(SERIES)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ups",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.linewidth": 0.7,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": HAIR,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "text.parse_math": False,
}

WIDTH, HEIGHT = 4.9, 2.9
_TALLEST_RANGE = 1e-12
"""Energies below this part of the largest are rounding, and are not shown."""


ROUNDING = 1e-9
"""Drifts below this are drawn here: a logarithmic axis has no zero."""


def error_against_time(curves: Mapping[int, Mapping[str, Sequence[float | None]]], dt: float) -> Markup:
    """Relative error of each frame, for each emulator; the band of the first holds the middle 80 % of samples.

    Args:
        curves: `mean`, `low` and `high` of each emulator, by its number on the page.
        dt: time between frames.
    """
    with _chart("Relative error against time") as (figure, axes):
        for number, curve in reversed(list(curves.items())):
            times = [dt * (frame + 1) for frame in range(len(curve["mean"]))]
            colour = SERIES[number % len(SERIES)]
            if number == 0:
                low, high = _gaps(curve["low"]), _gaps(curve["high"])
                axes.fill_between(times, low, high, color=colour, alpha=0.18, linewidth=0)
            mean = _gaps(curve["mean"])
            axes.plot(times, mean, color=colour, linewidth=2.0 if number == 0 else 1.4, marker=_marker(mean))
        _log(axes)
        axes.set_xlabel("time")
        axes.set_ylabel("error / field")
        return _svg(figure)


def conservation(truth: Sequence[float | None], predictions: Mapping[int, Sequence[float | None]], dt: float) -> Markup:
    """Drift of the worst conserved integral, over the size of the field: truth broad, predictions fine.

    Args:
        truth: one value per frame.
        predictions: the same of each emulator, by its number on the page.
        dt: time between frames.
    """
    with _chart("Drift of a conserved integral against time") as (figure, axes):
        for number, curve in [(None, truth), *reversed(list(predictions.items()))]:
            values = [ROUNDING if value <= ROUNDING else value for value in _gaps(curve)]  # a gap stays one
            times = [dt * (frame + 1) for frame in range(len(values))]
            if number is None:
                axes.plot(times, values, color=TRUTH, linewidth=3.2, alpha=0.45, marker=_marker(values))
            else:
                width = 2.0 if number == 0 else 1.4
                axes.plot(times, values, color=SERIES[number % len(SERIES)], linewidth=width, marker=_marker(values))
        _log(axes)
        axes.set_xlabel("time")
        axes.set_ylabel("drift / size of the field")
        return _svg(figure)


def spectrum(
    truth: Sequence[float], predictions: Mapping[int, Sequence[float]], errors: Mapping[int, Sequence[float]]
) -> Markup:
    """Energy against wave number at the last frame: truth, predictions, and (dashed) the errors.

    Args:
        truth: energy per shell.
        predictions: energy per shell of each emulator, by its number on the page.
        errors: energy of the error per shell, likewise.
    """
    with _chart("Energy spectrum at the last frame") as (figure, axes):
        waves = range(1, len(truth))
        axes.plot(waves, truth[1:], color=TRUTH, linewidth=3.2, alpha=0.45)
        for number, energy in reversed(list(predictions.items())):
            axes.plot(waves, energy[1:], color=SERIES[number % len(SERIES)], linewidth=1.3)
        for number, energy in errors.items():
            axes.plot(waves, energy[1:], color=SERIES[number % len(SERIES)], linewidth=1.2, linestyle=(0, (3, 2)))
        _log(axes, "x", "y")
        top = max(truth[1:], default=1.0) or 1.0
        lowest = min((e for row in (truth, *errors.values()) for e in row[1:] if e > 0), default=top)
        axes.set_ylim(max(lowest / 2, top * _TALLEST_RANGE), top * 4)
        axes.set_xlim(1, max(len(truth) - 1, 2))
        axes.set_xlabel("wave number")
        axes.set_ylabel("energy")
        return _svg(figure)


def reliability(coverage: Mapping[int, tuple[Sequence[float], Sequence[float]]]) -> Markup:
    """Empirical against nominal coverage of central intervals; the diagonal is perfect.

    Args:
        coverage: nominal and empirical coverage of each ensemble, by its emulator's number on the page.
    """
    with _chart("Reliability: empirical against promised coverage") as (figure, axes):
        axes.plot([0, 1], [0, 1], color=TRUTH, linewidth=3.2, alpha=0.35)
        for number, (nominal, empirical) in reversed(list(coverage.items())):
            colour = SERIES[number % len(SERIES)]
            axes.plot(nominal, empirical, color=colour, linewidth=1.6, marker="o", markersize=3.6)
        axes.text(0.03, 0.96, "too wide", color=MUTED, fontsize=8, va="top")
        axes.text(0.97, 0.05, "too narrow", color=MUTED, fontsize=8, ha="right", va="bottom")
        axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
        axes.set_xlabel("interval of so many %")
        axes.set_ylabel("holds the truth in so many %")
        return _svg(figure)


def spread_and_skill(
    number: int, skill: Sequence[float], spread: Sequence[float], crps: Sequence[float], dt: float
) -> Markup:
    """Error of an ensemble's mean (line), spread of its members (dashed) and CRPS (dotted) against time.

    Args:
        number: the emulator's on the page.
        skill: one value per frame, as of `spread` and `crps`.
        dt: time between frames.
    """
    with _chart("Spread and error against time") as (figure, axes):
        colour, times = SERIES[number % len(SERIES)], [dt * (frame + 1) for frame in range(len(skill))]
        for curve, line, width in ((skill, "-", 2.0), (spread, (0, (4, 2)), 1.8), (crps, (0, (1, 1.6)), 1.4)):
            values = [value if value > 0 else math.nan for value in curve]  # the axis is logarithmic
            axes.plot(times, values, color=colour, linewidth=width, linestyle=line, marker=_marker(values))
        _log(axes)
        axes.set_xlabel("time")
        axes.set_ylabel("in the field's unit")
        return _svg(figure)


def sample_errors(errors: Mapping[str, Sequence[float | None]]) -> Markup:
    """The nrmse of every trajectory, one row of marks for each emulator, its median as a bar."""
    with _chart("nRMSE of every trajectory", height=0.75 + 0.36 * len(errors)) as (figure, axes):
        for number, values in enumerate(errors.values()):
            colour, row = SERIES[number % len(SERIES)], -number
            found = sorted(value for value in values if value is not None and value > 0)
            axes.plot(found, [row] * len(found), "|", color=colour, markersize=10, markeredgewidth=1.3, alpha=0.75)
            if found:
                middle = found[(len(found) - 1) // 2]
                axes.plot([middle], [row], "o", color=colour, markersize=5)
            if len(found) < len(values):
                axes.annotate(
                    f"{len(values) - len(found)} without a value", (1, row), xycoords=("axes fraction", "data"),
                    ha="right", va="center", color=MUTED, fontsize=8,
                )  # fmt: skip
        axes.set_yticks([-number for number in range(len(errors))], list(errors))
        axes.set_ylim(0.6 - len(errors), 0.5)
        axes.tick_params(axis="y", colors=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        _log(axes, "x")
        axes.set_xlabel("nRMSE of a trajectory (dot: median)")
        return _svg(figure)


def losses(
    steps: Sequence[int], loss: Sequence[float | None], valid_steps: Sequence[int], valid: Sequence[float | None]
) -> Markup:
    """Training loss, and the validation score that chooses the weights, against the optimizer's steps."""
    with _chart("Loss against steps") as (figure, axes):
        axes.plot(steps, _gaps(loss), color=MUTED, linewidth=1.1, marker=_marker(_gaps(loss)), markersize=4)
        if valid:
            axes.plot(valid_steps, _gaps(valid), color=SERIES[0], linewidth=1.8, marker="o", markersize=2.6)
        _log(axes)
        axes.set_xlabel("step")
        return _svg(figure)


def profile(points: Sequence[float], truth: Sequence[float], predictions: Mapping[int, Sequence[float]]) -> Markup:
    """Values along the axis of a one-dimensional field: truth broad, predictions fine."""
    with _chart("Last frame", width=3.1, height=2.5) as (figure, axes):
        axes.plot(points, truth, color=TRUTH, linewidth=3.6, alpha=0.4)
        for number, values in reversed(list(predictions.items())):
            axes.plot(points, _gaps(values), color=SERIES[number % len(SERIES)], linewidth=1.4)
        axes.margins(x=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("x")
        return _svg(figure)


def band(
    points: Sequence[float], truth: Sequence[float], mean: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> Markup:
    """One frame of a one-dimensional field: truth broad, the ensemble's mean fine, and the band of its members."""
    with _chart("Truth, ensemble mean and band", width=3.1, height=2.5) as (figure, axes):
        axes.plot(points, truth, color=TRUTH, linewidth=3.6, alpha=0.4)
        axes.fill_between(points, low, high, color=SERIES[0], alpha=0.3, linewidth=0)
        axes.plot(points, mean, color=SERIES[0], linewidth=1.2)
        axes.margins(x=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("x")
        return _svg(figure)


@contextmanager
def _chart(label: str, *, width: float = WIDTH, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.set_label(label)
        yield figure, figure.add_subplot()


def _gaps(values: Sequence[float | None]) -> list[float]:
    """NaN, which leaves a gap in a line, in place of None."""
    return [math.nan if value is None else value for value in values]


def _marker(values: Sequence[float]) -> str:
    """A dot where there is one value only, of which no line can be drawn."""
    return "o" if np.isfinite(values).sum() == 1 else ""


def _log(axes: Axes, *which: str) -> None:
    """Logarithmic axes (`x`, `y`; by default `y`) with few labels, where all there is on them is positive."""
    for name in which or ("y",):
        lines = [np.asarray(line.get_ydata() if name == "y" else line.get_xdata(), float) for line in axes.get_lines()]
        values = [value for line in lines for value in line.tolist() if value > 0]
        if not values:
            continue
        axis = axes.yaxis if name == "y" else axes.xaxis
        (axes.set_yscale if name == "y" else axes.set_xscale)("log")
        subs = (1.0, 2.0, 5.0) if max(values) < 30 * min(values) else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=8))
        axis.set_major_formatter(_power)
        axis.set_minor_formatter(NullFormatter())


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(value: float, _position: float | int | None = None) -> str:
    """A tick's label in plain characters, so that the page's font can draw it."""
    if value <= 0:
        return ""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    leading = round(value / 10**exponent)
    power = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    return power if leading == 1 else f"{leading}·{power}"


def _svg(figure: Figure) -> Markup:
    """The figure as inline SVG in the page's colours."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None, "Format": None}
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z]+[\w.]*_\d+"', "", svg)  # the names of groups, which repeat from figure to figure
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    label = escape(str(figure.get_label()))
    return Markup(svg.replace("<svg", f'<svg class="plot" role="img" aria-label="{label}"', 1))
