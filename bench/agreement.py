"""Which data the check of the equation doubts: right ones, and such as are not what they are said to be.

    python bench/agreement.py --data FOLDER --out bench/results

Right data are PDEBench's (with `--data`) and those that our solvers make, also on grids that do not resolve them and,
of chaos, with frames far apart. Wrong ones are the same with another parameter, unit or time step named. Four
trajectories of ten frames each, as before a training; the row is of the one that the solver follows worst.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is first imported

import numpy as np
import torch

from common import publish, say
from ups.data.generate import generate
from ups.data.pdebench import open_trajectories
from ups.data.trajectories import time_step
from ups.errors import UpsError
from ups.physics.equations import get_equation
from ups.physics.solvers.agreement import agreement
from ups.pipeline.doubts import FOLLOWED, FRAMES_FOLLOWED


@dataclass(frozen=True)
class Wrong:
    """What is named other than it is: parameters, the fields' unit, the time between frames."""

    params: Mapping[str, float] = field(default_factory=dict)
    unit: float = 1.0
    pace: float = 1.0

    def __str__(self) -> str:
        told = [f"{name} = {value:g} named" for name, value in self.params.items()]
        told += [f"fields times {self.unit:g}"] if self.unit != 1 else []
        return ", ".join([*told, *([f"time times {self.pace:g}"] if self.pace != 1 else [])]) or "right"


RIGHT = Wrong()
PUBLISHED: dict[str, tuple[Wrong, ...]] = {
    "1D_Burgers_Sols_Nu0.01.hdf5": (
        *(RIGHT, *(Wrong({"nu": nu}) for nu in (0.005, 0.02, 0.1)), *(Wrong(unit=unit) for unit in (0.5, 10, 100))),
    ),
    "1D_Advection_Sols_beta0.4.hdf5": (RIGHT, Wrong({"beta": 0.41}), Wrong({"beta": 0.44})),
    "2D_diff-react_NA_NA.h5": (RIGHT, Wrong(unit=2)),
}
MADE: tuple[tuple[str, dict[str, Any], tuple[Wrong, ...]], ...] = (
    ("burgers1d", {"params": {"nu": 0.01}}, (RIGHT, Wrong({"nu": 0.02}))),
    *(("burgers1d", {"params": {"nu": 0.001}, "resolution": cells}, (RIGHT,)) for cells in (256, 128, 64)),
    ("burgers1d", {"params": {"nu": 0.01}, "resolution": 32}, (RIGHT, Wrong({"nu": 0.1}))),
    ("advection1d", {"params": {"beta": 1.0}, "resolution": 16}, (RIGHT,)),
    ("reaction_diffusion1d", {}, (RIGHT, Wrong({"nu": 0.7}), Wrong({"rho": 1.2}), Wrong(unit=10))),
    ("reaction_diffusion1d", {"params": {"nu": 0.001, "rho": 10.0}, "resolution": 32, "frames": 8}, (RIGHT,)),
    ("reaction_diffusion2d", {"resolution": 32}, (RIGHT, Wrong(unit=2))),
    ("kuramoto_sivashinsky1d", {}, (RIGHT, Wrong({"nu": 1.2}), Wrong(unit=2), Wrong(pace=3600))),
    ("kuramoto_sivashinsky1d", {"frames": 11, "time": 200.0}, (RIGHT, Wrong({"nu": 1.5}))),
    ("kuramoto_sivashinsky1d", {"frames": 11, "time": 200.0, "resolution": 64}, (RIGHT,)),
    ("kolmogorov2d", {}, (RIGHT, Wrong({"nu": 0.02}), Wrong({"drag": 0.3}), Wrong(unit=1.3))),
)
"""Equation, what `generate` is told of it, and what the data are then said to be."""


def look(path: Path, what: str, wrong: Wrong) -> dict[str, float | str]:
    """One row: a file, said to be something."""
    with open_trajectories(path) as file:
        numbers = np.arange(min(FOLLOWED, file.num_trajectories))
        length = min(FRAMES_FOLLOWED + 1, len(file.times))
        truth = wrong.unit * torch.from_numpy(file.read(numbers, 0, length, 1)).double()
        params = torch.from_numpy(file.params[numbers].astype(np.float32)).double()
        for column, parameter in enumerate(file.equation.parameters):
            params[:, column] = wrong.params.get(parameter.name, params[0, column].item())
        times = wrong.pace * time_step(file) * np.arange(length)
        origin = tuple(float(axis[0]) for axis in file.grid.axes)
        equation, spacing = file.equation, tuple(file.grid.spacing)
    row: dict[str, float | str] = {"data": what, "said to be": str(wrong)}
    began = time.perf_counter()
    try:
        found = agreement(equation, truth, params, times, origin, spacing)
    except UpsError as error:
        shown: dict[str, float | str] = dict.fromkeys(("off by", "no change at all", "half the cells", "frames"), "-")
        return {**row, **shown, "verdict": f"not compared ({error})", "s": time.perf_counter() - began}
    return {
        **row,
        "off by": found.nrmse,
        "no change at all": found.persistence,
        "half the cells": found.unresolved,
        "frames": str(found.frames),
        "verdict": "holds" if found.holds else "doubted",
        "s": time.perf_counter() - began,
    }


def rows(data: Path | None, folder: Path) -> Iterator[dict[str, float | str]]:
    """All rows, as they come."""
    for name, cases in PUBLISHED.items() if data else ():
        assert data is not None
        for wrong in cases:
            yield look(data / name, name, wrong)
    for number, (name, told, cases) in enumerate(MADE):
        path = folder / f"{number}.hdf5"
        say(f"making {name} {told}")
        generate(name, path, FOLLOWED, 1, told.get("params", {}), **{k: v for k, v in told.items() if k != "params"})
        cells = told.get("resolution", get_equation(name).make_resolution)
        apart = f", frames {told['time'] / (told['frames'] - 1):g} apart" if "time" in told else ""
        named = "".join(f", {key} = {value:g}" for key, value in told.get("params", {}).items())
        for wrong in cases:
            yield look(path, f"{name}{named}, {cells} cells{apart}", wrong)


def main() -> int:
    """Prints the table; exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the published files")
    parser.add_argument("--out", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = list(rows(arguments.data, Path(folder)))
    right = [row for row in found if row["said to be"] == "right"]
    verdicts = {
        kind: {verdict: sum(str(row["verdict"]).startswith(verdict) for row in of) for verdict in VERDICTS}
        for kind, of in (("right", right), ("wrong", [row for row in found if row not in right]))
    }
    publish("agreement", found, verdicts, arguments.out)
    return 0


VERDICTS = ("holds", "doubted", "not compared")

if __name__ == "__main__":
    sys.exit(main())
