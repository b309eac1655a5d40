"""Lines of the accuracy bench as if they had been measured, and what its commands are called with."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from accuracy_bench import results, summary
from accuracy_bench.results import Cell

CELL = Cell("burgers", "ups", 200.0, 0)


def make_line(cell: Cell, value: float | None, **more: Any) -> dict[str, Any]:
    """The line of a cell whose nrmse is `value`, at its only scored frame and the one after."""
    curve: list[float | None] = [value, value]
    return {
        **results.key_of(cell),
        "nrmse": value,
        "source": "now",
        "trajectories": {"train": 164},
        "curve": curve,
        "persistence": [0.5, 1.0],
        "scored_frames": 1,
    } | more


def cells_of(values: dict[tuple[str, str], list[float | None]], seconds: float = 200.0) -> summary.Cells:
    """One line for every (task, model) and value; the values are those of seeds 0, 1, and so on."""
    return {
        (cell := Cell(task, model, seconds, seed)): make_line(cell, value)
        for (task, model), of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    }


def arguments(work: Path, **changes: Any) -> Namespace:
    """What is given to `accuracy.py run`, with its files in the folder `work`."""
    given = {"tasks": ["burgers"], "models": ["fno"], "seconds": [60.0, 200.0], "seeds": [0, 1], "device": "cpu"}
    rest = {
        "train": None,
        "label": None,
        "set": None,
        "redo": False,
        "data": None,
        "work": work,
        "results": work / "results",
    }
    return Namespace(**{**given, **rest, **changes})
