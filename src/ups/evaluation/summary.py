"""Scores put into words and tables: the verdict of a report, and what each metric means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

BASELINES = ("persistence", "linear", "fno", "unet")
"""Every baseline that a run can be compared with."""

SAME = 0.05
"""Two errors closer than this part of the smaller one are called about equal."""

FEW = 5
"""On fewer trajectories than these, a verdict says so."""


@dataclass(frozen=True)
class MetricText:
    """What a reader is told of a metric."""

    key: str
    label: str
    meaning: str
    larger_is_better: bool = False
    unit: str = ""
    target: float | None = None
    """What the best value is near; None where it is as small, or as large, as can be."""

    def rank(self, value: float) -> float:
        """Less for the better of two values."""
        if self.target is not None:
            return abs(math.log(value / self.target)) if value > 0 else math.inf
        return -value if self.larger_is_better else value


GROUPS: tuple[tuple[str, tuple[MetricText, ...]], ...] = (
    (
        "Accuracy of the roll-out",
        (
            MetricText("nrmse", "nRMSE", "error over the size of the field, all frames of a trajectory together"),
            MetricText("pdebench_nrmse", "nRMSE, PDEBench", "the same frame by frame, then averaged"),
            MetricText("rel_l2", "relative L2", "the same with all fields together"),
            MetricText("vrmse", "VRMSE", "error over the field's own variation in each frame, as The Well has it"),
            MetricText("rmse", "RMSE", "root mean square error, in the field's unit"),
            MetricText("mae", "mean absolute error", "in the field's unit"),
            MetricText("mae_relative", "the same, relative", "over the size of each field"),
            MetricText("max_error", "largest error", "anywhere, at any time, in the field's unit"),
            MetricText("diverged", "diverged", "roll-outs that became NaN or infinite"),
        ),
    ),
    (
        "Where the error is made",
        (
            MetricText("one_step_nrmse", "nRMSE of one step", "from the true frame before, every frame"),
            MetricText("codec_nrmse", "nRMSE of the codec", "a true frame, encoded and decoded"),
            MetricText("spectral_low", "large scales", "error of wave numbers 0 to 3 (PDEBench's fRMSE)"),
            MetricText("spectral_mid", "middle scales", "wave numbers 4 to 11"),
            MetricText("spectral_high", "small scales", "wave numbers from 12 on"),
        ),
    ),
    (
        "Physics",
        (
            MetricText("conservation_gap", "conservation gap", "drift of a conserved integral beyond that of the data"),
            MetricText(
                "bc_violation", "boundary violation",
                "error at walls, of the slope or of a fixed value, over the size of the field",
            ),
        ),
    ),
    (
        "Uncertainty",
        (
            MetricText("ensemble_nrmse", "nRMSE of the mean", "of the members' mean, as for one roll-out"),
            MetricText("crps", "CRPS", "error of the whole ensemble; compare with the mean absolute error"),
            MetricText("crps_relative", "CRPS, relative", "over the size of each field"),
            MetricText("spread_skill", "spread over skill", "one when the ensemble knows how wrong it is", target=1.0),
            MetricText("ece", "calibration error", "how far coverage is from what was promised"),
        ),
    ),
    (
        "Speed",
        (
            MetricText("wall_clock", "time per step", "of one trajectory of a batch, on this device", unit="s"),
            MetricText("ensemble_wall_clock", "time per step, ensemble", "of all members of one trajectory", unit="s"),
            MetricText(
                "solver_speedup", "speed-up over the solver",
                "against the coarsest reference solution that is at least as accurate",
                larger_is_better=True, unit="×",
            ),
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One number of the table, or the reason why there is none."""

    text: Markup | str
    best: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """One metric of the table."""

    metric: MetricText
    cells: tuple[Cell, ...]


class Scores:
    """The content of `evaluation/full.json`, asked by task and emulator.

    Args:
        content: as the file has it.
        subject: what the emulator under judgement is called on the page.
    """

    def __init__(self, content: Mapping[str, Any], subject: str = "ups") -> None:
        self.content, self.subject = content, subject

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.content["tasks"])

    @property
    def emulators(self) -> tuple[str, ...]:
        """Names of all emulators, the one under judgement first."""
        return (self.subject, *self.content["baselines"])

    @property
    def missing_baselines(self) -> tuple[str, ...]:
        """Baselines that exist and were not asked for."""
        return tuple(name for name in BASELINES if name not in self.content["baselines"])

    def of(self, emulator: str, task: str) -> Mapping[str, float | None]:
        """Scores by metric; none where the emulator was not scored on the task."""
        found = self.content["tasks"] if emulator == self.subject else self.content["baselines"].get(emulator, {})
        scores: Mapping[str, float | None] = found.get(task, {})
        return scores

    def reason(self, emulator: str, task: str, metric: str) -> str:
        """Why a score is missing."""
        reasons = self.content.get("reasons", {})
        found = reasons.get("tasks", {}) if emulator == self.subject else reasons.get("baselines", {}).get(emulator, {})
        return str(found.get(task, {}).get(metric, "not measured"))

    def details(self, task: str) -> Mapping[str, Any]:
        """Grid, steps, curves and spectra of a task."""
        details: Mapping[str, Any] = self.content["details"][task]
        return details

    def ensembles(self, task: str) -> dict[str, Mapping[str, Any]]:
        """Members, coverage and curves of every emulator that drew an ensemble on a task, by its name."""
        details = self.details(task)["emulators"]
        found = {name: details[name].get("ensemble") for name in self.emulators if name in details}
        return {name: one for name, one in found.items() if one is not None}

    def knows(self, task: str, index: int) -> bool:
        """Whether a trajectory of a task is among those scored."""
        return task in self.tasks and str(index) in self.details(task)["emulators"][self.subject]["per_sample"]

    def solver(self, task: str) -> Markup | None:
        """What the reference solver needed, in a sentence; None when it was not timed."""
        solver = self.details(task).get("solver")
        if solver is None:
            return None
        reached = "at least as accurate" if solver["found"] else "the finest tried and still less accurate"
        told = Markup(
            "The reference solver at {} points per axis, {}, has an nRMSE of {} and takes {} per trajectory."
        ).format(solver["resolution"], reached, number(solver["nrmse"]), with_unit(solver["seconds"], "s"))
        if "samples" not in solver:  # written by an older version
            return told
        num = solver["samples"]
        where = f"{num} of the {self.num_samples(task)}" if num < self.num_samples(task) else f"all {num}"
        told += Markup(" That is over {} trajectories, on which {} has {}").format(
            where, self.subject, number(solver["target"])
        )
        if "model_seconds" not in solver:  # written by an older version
            return told + "."
        return told + Markup(" and takes {} per trajectory, as one batch, too.").format(
            with_unit(solver["model_seconds"], "s")
        )

    def best_baseline(self, task: str) -> tuple[str, float] | None:
        """Name and nrmse of the most accurate baseline; None where no baseline has a score."""
        found = [
            (score, name) for name in self.emulators[1:] if (score := self.of(name, task).get("nrmse")) is not None
        ]
        return (min(found)[1], min(found)[0]) if found else None

    def verdict(self, task: str) -> tuple[str, str]:
        """Whether the emulator is worth having on this task: `good`, `even`, `bad` or `unknown`, and a sentence."""
        kind, sentence = self._verdict(task)
        num = self.num_samples(task)
        if num < FEW:
            sentence += f" That is judged on {'one trajectory' if num == 1 else f'{num} trajectories'} only."
        return kind, sentence

    def num_samples(self, task: str) -> int:
        """How many trajectories of a task were scored."""
        return int(self.content["protocol"]["tasks"][task]["num_samples"])

    def _verdict(self, task: str) -> tuple[str, str]:
        ours, best = self.of(self.subject, task).get("nrmse"), self.best_baseline(task)
        if ours is None:
            return "bad", f"The roll-out has no score: {self.reason(self.subject, task, 'nrmse')}."
        if best is None:
            return "unknown", "No baseline has a score, so that there is nothing to compare it with."
        name, theirs = best
        if ours == 0 or theirs == 0:
            return "unknown", f"The best baseline, {name}, has an nRMSE of {plain(theirs)}."
        if max(ours, theirs) <= (1 + SAME) * min(ours, theirs):
            return (
                "even",
                f"It is about as good as the best baseline, {name}: their errors are within {100 * SAME:.0f} %.",
            )
        if ours < theirs:
            return "good", f"Its error is {plain(theirs / ours)} times smaller than that of the best baseline, {name}."
        return (
            "bad",
            f"Its error is {plain(ours / theirs)} times that of the best baseline, {name}: not worth using yet.",
        )

    def table(self, task: str) -> list[tuple[str, list[Row]]]:
        """Rows of the task's table by group, one cell per emulator; `notes` has what no emulator has a score of."""
        groups = [(title, [Row(metric, self._cells(task, metric)) for metric in metrics]) for title, metrics in GROUPS]
        scored = [
            (title, [row for row in rows if any(cell.reason is None for cell in row.cells)]) for title, rows in groups
        ]
        return [(title, rows) for title, rows in scored if rows]

    def _cells(self, task: str, metric: MetricText) -> tuple[Cell, ...]:
        values = {name: self.of(name, task).get(metric.key) for name in self.emulators}
        found = [value for value in values.values() if value is not None]
        best = min(found, key=metric.rank) if len(found) > 1 and min(found) < max(found) else None
        return tuple(
            Cell("–", reason=self.reason(name, task, metric.key))
            if value is None
            else Cell(with_unit(value, metric.unit), best=value == best)
            for name, value in values.items()
        )

    def notes(self, task: str) -> list[tuple[str, str]]:
        """Reasons for what is missing on a task, each once, with the metrics and emulators concerned."""
        found: dict[str, dict[str, list[str]]] = {}
        for _, metrics in GROUPS:
            for metric in metrics:
                for name in self.emulators:
                    scores = self.of(name, task)
                    if metric.key in scores and scores[metric.key] is None:
                        found.setdefault(self.reason(name, task, metric.key), {}).setdefault(metric.label, []).append(
                            name
                        )
        return [(self._concerned(by_metric), reason) for reason, by_metric in found.items()]

    def _concerned(self, by_metric: Mapping[str, Sequence[str]]) -> str:
        """`nRMSE, CRPS`, followed by the emulators where it is not all of them."""
        names = list(dict.fromkeys(name for group in by_metric.values() for name in group))
        whose = "" if len(names) == len(self.emulators) else f" ({', '.join(names)})"
        return ", ".join(by_metric) + whose


def number(value: float, digits: int = 3) -> Markup:
    """A number for people: plain where that is short, otherwise a power of ten."""
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return Markup.escape(plain(value, digits))
    leading, exponent = f"{value:.{digits - 1}e}".split("e")
    return Markup("{}&#8202;×&#8202;10<sup>{}</sup>").format(leading, str(int(exponent)).replace("-", "−"))


def plain(value: float, digits: int = 3) -> str:
    """A number rounded to so many significant digits, written without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    rounded = float(f"{value:.{digits - 1}e}")
    return f"{rounded:.{max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)}f}"


def with_unit(value: float, unit: str) -> Markup:
    """A number with its unit; seconds are scaled."""
    if unit == "s":
        for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if value >= size:
                return Markup("{} {}").format(plain(value / size), name)
        return Markup("{} ns").format(plain(value / 1e-9))
    if value == round(value) and abs(value) < 1e5 and not unit:
        return Markup.escape(f"{value:.0f}")
    return number(value) + unit


def span(values: Sequence[float]) -> str:
    """A parameter's value, or the range of its values."""
    low, high = values
    return f"{low:.4g}" if math.isclose(low, high, rel_tol=1e-6) else f"{low:.4g} to {high:.4g}"
