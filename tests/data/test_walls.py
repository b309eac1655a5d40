"""Walls are found where solutions vanish, whatever the coordinates say."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from ups.config.data import DataSettings
from ups.data.split import load_files
from ups.data.trajectories import TrajectorySet
from ups.data.walls import cells_to_walls, first_cells


def write(path: Path, first: float, size: int = 16, written: float = 0.5) -> TrajectorySet:
    """Solutions whose first value stands `first` cells from the wall, with the coordinates of another place."""
    rng = np.random.default_rng(0)
    # `size` cells from wall to wall, or one more of them where both ends stand a whole cell inside.
    x = (np.arange(size) + first) / size
    shape = np.sin(math.pi * x)[:, None] * (x * (1 - x))[None]
    scale = rng.uniform(0.5, 2, (12, 1, 1, 1))
    with h5py.File(path, "w") as file:
        file["nu"] = rng.uniform(0.1, 1.0, (12, size, size)).astype(np.float32)
        file["tensor"] = (scale * shape).astype(np.float32)
        for axis in "xy":
            file[f"{axis}-coordinate"] = ((np.arange(size) + written) / size).astype(np.float32)
        file.attrs["beta"] = 1.0
    return load_files([path], "darcy2d", DataSettings(task="darcy2d"))


@pytest.mark.parametrize("first", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("written", [0.0, 0.5])
def test_the_place_of_the_first_value_is_that_of_the_solutions(tmp_path: Path, first: float, written: float) -> None:
    found = write(tmp_path / "d.hdf5", first, written=written)
    assert first_cells(found) == pytest.approx((first, first), abs=1e-4)
    assert cells_to_walls(found) == pytest.approx(np.array([(first, 1 - first)] * 2), abs=1e-4)


@pytest.mark.parametrize(("places", "wanted"), [("both ends", 0.0), ("inside", 1.0)])
def test_coordinates_whose_spacing_tells_the_walls_are_believed(tmp_path: Path, places: str, wanted: float) -> None:
    x = np.linspace(0, 1, 17) if places == "both ends" else np.linspace(0, 1, 18)[1:-1]
    shape = np.sin(math.pi * x)[:, None] * np.sin(math.pi * x)[None]
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file["nu"] = np.random.default_rng(0).uniform(0.1, 1.0, (6, len(x), len(x))).astype(np.float32)
        file["tensor"] = np.broadcast_to(shape, (6, 1, len(x), len(x))).astype(np.float32) * np.arange(
            1, 7, dtype=np.float32
        ).reshape(-1, 1, 1, 1)
        file["x-coordinate"], file["y-coordinate"] = x.astype(np.float32), x.astype(np.float32)
        file.attrs["beta"] = 1.0
    found = load_files([tmp_path / "d.hdf5"], "darcy2d", DataSettings(task="darcy2d"))
    assert first_cells(found) == pytest.approx((wanted, wanted), abs=1e-3)
    assert cells_to_walls(found) == pytest.approx(np.full((2, 2), wanted), abs=1e-3)
