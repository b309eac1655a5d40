"""The tasks: which trajectories train, choose and judge, and how the files that are ours to make are made.

Published files are cut by position, the first to test, the next to validation, the rest to train. What our solvers make
is one file per split and parameter value, of its own seed, made once; test files of those go on for twice the horizon.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from ups.data.generate import generate
from ups.errors import UsageError
from ups.physics.equations import get_equation
from ups.terminal import LineProgress

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Published:
    """A task whose trajectories stand in one published file.

    Args:
        equation: name of the equation.
        file: name in the data folder.
        test, valid: fractions of the distinct trajectories, in the order of the file.
    """

    equation: str
    file: str
    test: float
    valid: float

    def prepare(self, cache: Path, say: Callable[[str], None]) -> None:
        """Nothing: the file is there."""

    def overrides(self, data: Path | None, cache: Path) -> list[str]:
        """Settings that name the data and its split."""
        if data is None:
            raise UsageError(f"{self.file} is published data: name its folder with --data")
        train = round(1 - self.test - self.valid, 6)
        return [
            f"task={self.equation}",
            f"data.root={json.dumps(str(data))}",
            f"data.files={json.dumps(self.file)}",
            f"data.split={json.dumps({'order': 'file', 'test': self.test, 'valid': self.valid, 'train': train})}",
        ]


@dataclass(frozen=True)
class Made:
    """A task whose trajectories are made by our own solver.

    Args:
        equation: name of the equation.
        counts: trajectories of train, valid and test for each parameter value.
        values: of `parameter`, one file per split each; None takes the equation's defaults, once.
        unseen: numbers of the values that are in test alone.
    """

    equation: str
    counts: tuple[int, int, int]
    parameter: str = ""
    values: tuple[float | None, ...] = (None,)
    unseen: tuple[int, ...] = ()
    name: str = field(default="")

    def files(self, split: str) -> list[tuple[str, int, dict[str, float]]]:
        """Name, seed and parameters of each file of a split."""
        found = []
        for number, value in enumerate(self.values):
            if split == "test" or number not in self.unseen:
                params = {} if value is None else {self.parameter: value}
                seed = 1000 * (1 + SPLITS.index(split)) + number
                found.append((f"{self.name or self.equation}_{split}_{number:02d}.hdf5", seed, params))
        return found

    def prepare(self, cache: Path, say: Callable[[str], None]) -> None:
        """Makes the files that are missing.

        Raises:
            UsageError: a file is there, but is not what would be made now.
        """
        equation = get_equation(self.equation)
        for split, count in zip(SPLITS, self.counts, strict=True):
            twice = 2 if split == "test" else 1
            frames, time = twice * (equation.make_frames - 1) + 1, twice * equation.time
            for name, seed, params in self.files(split):
                path = cache / name
                if not path.exists():
                    generate(
                        self.equation, path, count, seed, params, frames=frames, time=time, progress=LineProgress(say)
                    )
                wanted = {"samples": count, "frames": frames, "time": time, "points": equation.make_resolution}
                wanted |= {"seed": seed, **params}
                found = describe(path, equation.dim, tuple(params))
                if any(not np.isclose(found[key], value, rtol=1e-5) for key, value in wanted.items()):
                    raise UsageError(f"{path} holds {found}, but the task asks for {wanted}; delete it to have it made")

    def overrides(self, data: Path | None, cache: Path) -> list[str]:
        """Settings that name the data and its split."""
        names = {f"{split}_files": [name for name, _, _ in self.files(split)] for split in SPLITS}
        return [
            f"task={self.equation}",
            f"data.root={json.dumps(str(cache))}",
            f"data.split={json.dumps(names)}",
            "evaluation.small.max_samples=null",
        ]

    def is_unseen(self, params: Sequence[float]) -> bool:
        """Whether training saw no trajectory of these parameters."""
        if not self.unseen:
            return False
        place = [parameter.name for parameter in get_equation(self.equation).parameters].index(self.parameter)
        return any(bool(np.isclose(params[place], self.values[number], rtol=1e-3)) for number in self.unseen)


def describe(path: Path, dim: int, params: Sequence[str]) -> dict[str, float]:
    """What a made file holds: trajectories, frames, last time, points per axis, seed, values of parameters."""
    with h5py.File(path) as file:
        groups = [key for key in file if key.isdigit()]
        first = file[groups[0]] if dim > 1 else file
        shape = first["data"].shape if dim > 1 else file["tensor"].shape[1:]
        times = first["grid/t"] if dim > 1 else file["t-coordinate"]
        names = {name: get_name(name, file.attrs) for name in params}
        return {
            "samples": len(groups) if dim > 1 else file["tensor"].shape[0],
            "frames": shape[0],
            "time": float(times[-1]),
            "points": shape[1],
            "seed": float(file.attrs["seed"]),
            **{name: float(file.attrs[key]) for name, key in names.items()},
        }


def get_name(name: str, attributes: Mapping[str, object]) -> str:
    """What a file calls a parameter."""
    equation = get_equation(str(attributes["task"]))
    keys = next(parameter.keys for parameter in equation.parameters if parameter.name == name)
    return keys[0]


NU = tuple(float(f"{value:.4g}") for value in np.geomspace(0.004, 0.05, 12))

TASKS: dict[str, Published | Made] = {
    "burgers": Published("burgers1d", "1D_Burgers_Sols_Nu0.01.hdf5", test=0.1, valid=0.08),
    "advection": Published("advection1d", "1D_Advection_Sols_beta0.4.hdf5", test=0.1, valid=0.08),
    "diffusion_reaction2d": Published("reaction_diffusion2d", "2D_diff-react_NA_NA.h5", test=0.2, valid=0.1),
    "shallow_water": Published("shallow_water2d", "2D_rdb_NA_NA.h5", test=0.25, valid=0.15),
    "reaction_diffusion1d": Made("reaction_diffusion1d", (164, 16, 20)),
    "burgers_multi": Made("burgers1d", (18, 2, 3), "nu", NU, unseen=(4, 8), name="burgers_multi"),
    "ks": Made("kuramoto_sivashinsky1d", (164, 16, 20)),
    "kolmogorov": Made("kolmogorov2d", (60, 8, 12)),
}
"""By the name that the bench calls them by."""


def get_task(name: str) -> Published | Made:
    """The task of a name.

    Raises:
        UsageError: there is none, or its equation is not known.
    """
    if name not in TASKS:
        raise UsageError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    get_equation(TASKS[name].equation)
    return TASKS[name]


def horizon(name: str, length: int) -> int:
    """Frames of a test trajectory that are scored, the first included; what a file holds beyond is the extension."""
    task = TASKS[name]
    return length if isinstance(task, Published) else (length - 1) // 2 + 1
