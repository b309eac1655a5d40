"""Files of the steady state of a relaxing field: written, told apart from Darcy flow, read, turned."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ups.data.augment import Augment
from ups.data.fields import Batch
from ups.data.generate import generate
from ups.data.inspect import inspect_file, readable
from ups.data.pdebench import open_trajectories
from ups.errors import DataError
from ups.physics.equations import get_equation
from ups.physics.solvers import solve

RELAXATION = get_equation("relaxation2d")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    generate("relaxation2d", tmp_path / "some.hdf5", 8, 3, {"diffusion": 0.02}, resolution=16)
    return tmp_path / "some.hdf5"


def steady(sources: np.ndarray) -> torch.Tensor:
    f = torch.from_numpy(sources)[:, None].double()
    return solve(RELAXATION, f, torch.full((len(f), 1), 0.02, dtype=torch.float64), np.array([0.0, 1.0]))[:, 1, 0]


def test_what_is_written_is_at_rest(made: Path) -> None:
    with h5py.File(made) as file:
        assert (file["nu"].shape, file["tensor"].shape) == ((8, 16, 16), (8, 1, 16, 16))
        assert file.attrs["diffusion"] == 0.02
        np.testing.assert_allclose(file["tensor"][:, 0], steady(file["nu"][:]).numpy(), rtol=1e-4, atol=1e-5)


def test_it_is_told_apart_from_darcy_flow(made: Path) -> None:
    summary = inspect_file(made)
    assert (summary.task, summary.trainable, summary.fields, summary.problems) == ("relaxation2d", True, ("f", "u"), ())
    assert readable(summary)["parameters"] == {"diffusion": "0.02"}
    with pytest.raises(DataError, match="holds relaxation2d, not darcy2d"):
        open_trajectories(made, "darcy2d")


def test_symmetries_turn_source_and_state_alike(made: Path) -> None:
    """The state of every transformed source is the transformed state."""
    with open_trajectories(made) as file:
        frames, grid = torch.from_numpy(file.read(range(8))), file.grid
    batch = Batch("relaxation2d", frames, torch.ones(8), torch.full((8, 1), 0.02), grid, context=1)
    turned = Augment(RELAXATION)(batch, torch.Generator().manual_seed(1)).frames
    assert not torch.equal(turned, frames)
    torch.testing.assert_close(turned[:, 1, 0].double(), steady(turned[:, 0, 0].numpy()), rtol=1e-4, atol=1e-5)
