"""What the lines say together: medians over seeds, the ratio to the best peer, and the cells that are missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from accuracy_bench.results import Cell, Line

OURS = "ups"
SEEDS = (0, 1, 2)
UNTRAINED = ("persistence", "linear")
MAIN_SECONDS = 200.0

TASKS_1D = ("burgers", "advection", "reaction_diffusion1d", "burgers_multi", "ks")
TASKS_2D = ("diffusion_reaction2d", "shallow_water", "kolmogorov")
ALL_TASKS = (*TASKS_1D, *TASKS_2D)
PEERS = ("persistence", "linear", "fno", "unet", "ups_stack", "ups_unet")
STRUCTURAL = ("fno+", "unet+")
EXTERNAL = ("neuralop_fno", "neuralop_uno", "pdetransformer")
EXTERNAL_TASKS = ("burgers", "diffusion_reaction2d", "shallow_water")
KNOWN = (OURS, *PEERS, *STRUCTURAL, *EXTERNAL)
CURVE_TASKS = ("burgers", "diffusion_reaction2d", "ks", "burgers_multi")
CURVE_SECONDS = (60.0, 200.0, 600.0)
CURVE_MODELS = (OURS, "fno", "unet", "ups_stack")
LOW_DATA_TASKS = ("burgers", "reaction_diffusion1d")
LOW_DATA = (20, 60)
LOW_DATA_MODELS = (OURS, "fno", "unet")

Cells = Mapping[Cell, Line]


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the seeds that are there; None is worse than any number.

    Args:
        values: of the seeds, ascending; infinite where a roll-out was not finite.
        asked: how many seeds there should be.
    """

    values: tuple[float, ...]
    asked: int

    @classmethod
    def of(cls, values: Iterable[float | None], asked: int) -> Spread:
        """Of the values of seeds."""
        return cls(tuple(sorted(math.inf if value is None else value for value in values)), asked)

    @property
    def median(self) -> float | None:
        """None where no seed is there."""
        return median(self.values) if self.values else None

    def __str__(self) -> str:
        if not self.values:
            return "missing"
        if len(self.values) == self.asked == 1:
            return number(self.values[0])
        low, high = number(self.values[0]), number(self.values[-1])
        few = f", n = {len(self.values)}" if len(self.values) != self.asked else ""
        return f"{number(median(self.values))} [{low} - {high}{few}]"


def number(value: float | None) -> str:
    """Three digits; what is not there or not finite is said so."""
    if value is None:
        return "missing"
    return f"{value:.3g}" if math.isfinite(value) else "diverged"


def seeds_of(model: str) -> tuple[int, ...]:
    """The seeds that a model is asked for: what is fitted in closed form has only one result."""
    return SEEDS[:1] if model in UNTRAINED else SEEDS


def wanted(task: str, model: str, seconds: float = MAIN_SECONDS, train: int | None = None) -> list[Cell]:
    """The cells of one entry of a table; those of a model that is not trained count for every budget."""
    if model in UNTRAINED:
        seconds = MAIN_SECONDS
    return [Cell(task, model, seconds, seed, "cpu", train) for seed in seeds_of(model)]


def peers_of(task: str) -> tuple[str, ...]:
    """The peers that ours is held against on a task; those with our structural parts are not among them."""
    external = [model for model in EXTERNAL if model != "pdetransformer" or task in TASKS_2D]
    return (*PEERS, *external) if task in EXTERNAL_TASKS else PEERS


def gather(cells: Cells, asked: Sequence[Cell], read: Callable[[Line], float | None]) -> Spread:
    """The spread of one number over the cells of an entry."""
    return Spread.of((read(cells[cell]) for cell in asked if cell in cells), len(asked))


def nrmse(line: Line) -> float | None:
    """The line's main number."""
    value: float | None = line["nrmse"]
    return value


def missing(cells: Cells, asked: Iterable[Cell]) -> list[Cell]:
    """The cells asked for that nobody has computed."""
    return [cell for cell in asked if cell not in cells]


@dataclass(frozen=True)
class Ratio:
    """Ours over the best peer's on one task; no value where either is missing.

    Args:
        peer: the best one's name.
        complete: whether every peer's and our own seeds are all there.
    """

    value: float | None
    peer: str
    complete: bool


def ratio(cells: Cells, task: str, peers: Sequence[str], seconds: float = MAIN_SECONDS) -> Ratio:
    """Median nrmse of ours over that of the best peer."""
    ours = gather(cells, wanted(task, OURS, seconds), nrmse).median
    medians = {peer: gather(cells, wanted(task, peer, seconds), nrmse).median for peer in peers}
    there = {peer: value for peer, value in medians.items() if value is not None}
    entries = [cell for model in (OURS, *peers) for cell in wanted(task, model, seconds)]
    complete = not missing(cells, entries)
    if ours is None or not there:
        return Ratio(None, "", complete)
    best = min(there, key=lambda peer: there[peer])
    return Ratio(ours / there[best] if math.isfinite(there[best]) else None, best, complete)


def geometric_mean(values: Sequence[float]) -> float | None:
    """exp of the mean logarithm; None of nothing."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if values else None


def stability(line: Line, frames: int | None = None) -> float | None:
    """The largest error over persistence's at any frame, up to `frames`; None where a roll-out is not finite.

    Persistence counts with its largest error so far: where a wave has come back to its start persistence would be
    perfect for a moment.
    """
    if "curve" not in line:
        return None
    found, still = 0.0, 0.0
    for error, reference in zip(line["curve"][:frames], line["persistence"][:frames], strict=True):
        if error is None:
            return None
        still = max(still, reference)
        found = max(found, error / still)
    return found


def worst(line: Line, frames: int | None = None) -> float | None:
    """The largest relative error of any trajectory at any frame."""
    if "worst" not in line or None in line["worst"][:frames]:
        return None
    return float(max(line["worst"][:frames]))
