"""Grids and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ups.data.fields import Batch, Grid, thin, uniform_spacing
from ups.errors import DataError


def centres(low: float, high: float, cells: int) -> np.ndarray:
    return low + (high - low) * (np.arange(cells) + 0.5) / cells


@given(cells=st.integers(4, 2048), low=st.floats(-10, 10), length=st.floats(0.1, 20))
def test_spacing_and_length_are_those_of_the_cells_in_float32_too(cells: int, low: float, length: float) -> None:
    axis = centres(low, low + length, cells).astype(np.float32).astype(np.float64)
    grid = Grid((axis,), (True,))
    assert grid.spacing[0] == pytest.approx(length / cells, rel=1e-3)
    assert grid.lengths[0] == pytest.approx(length, rel=1e-3)


def test_cells_fill_the_domain() -> None:
    grid = Grid((centres(-1, 1, 16), centres(0, 3, 24)), (False, False))
    assert (grid.shape, grid.dim) == ((16, 24), 2)
    assert grid.cell_volume * 16 * 24 == pytest.approx(2 * 3)
    assert grid.points().shape == (384, 2)
    assert grid.points()[1] - grid.points()[0] == pytest.approx([0, 3 / 24])


def test_grids_are_equal_by_content() -> None:
    grid, again = (Grid((centres(0, 1, 16),), (True,)) for _ in range(2))
    assert grid == again
    assert hash(grid) == hash(again)
    assert grid != Grid((centres(0, 1, 16),), (False,))
    assert grid != Grid((centres(0, 2, 16),), (True,))
    rounded = Grid((centres(0, 1, 16) * (1 + 1e-7),), (True,))
    assert grid != rounded
    assert grid.matches(rounded)
    assert not grid.matches(Grid((centres(0.1, 1.1, 16),), (True,)))


def test_thinning_keeps_the_period() -> None:
    grid = Grid((centres(0, 1, 32),), (True,))
    for centred in (False, True):
        assert grid.subsample([4], [centred]).lengths == pytest.approx(grid.lengths)
    assert grid.subsample([4], [False]).axes[0][0] == grid.axes[0][0]


@pytest.mark.parametrize("every", [2, 3, 4])
def test_thinned_about_the_middle_cells_are_those_of_a_coarser_grid(every: int) -> None:
    fine, coarse = (Grid((centres(0, 1, size), centres(0, 3, 24)), (False, True)) for size in (12 * every, 12))
    assert fine.subsample([every, 1], [True, False]).matches(coarse)
    x, y = np.meshgrid(*fine.axes, indexing="ij")
    found = thin(np.stack([2 * x - 1, x + y]), [every, 1], [True, False])
    x, y = np.meshgrid(*coarse.axes, indexing="ij")
    np.testing.assert_allclose(found, np.stack([2 * x - 1, x + y]), atol=1e-12)
    np.testing.assert_allclose(found[0, ::-1], -found[0], atol=1e-12)  # as a reflection has to leave it


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ([0.0, 0.1, 0.1, 0.2], "does not increase after index 1"),
        ([0.3, 0.2, 0.1], "does not increase after index 0"),
        ([0.0, 0.1, 0.2, 0.4], "is not uniform: its step at index 2"),
        ([0.0, np.nan, 0.2], "not finite, at index 1"),
        ([0.0], "has 1 coordinates"),
    ],
)
def test_bad_axes_are_named(axis: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        uniform_spacing(np.array(axis))
    with pytest.raises(DataError, match=message):
        Grid((np.array(axis),), (True,))


def test_a_grid_cannot_be_changed() -> None:
    axis = centres(0, 1, 8)
    grid = Grid((axis,), (True,))
    axis[0] = 7
    assert grid.axes[0][0] == pytest.approx(1 / 16)
    with pytest.raises(ValueError, match="read-only"):
        grid.axes[0][0] = 7


def test_a_batch_knows_what_is_given_and_what_is_asked() -> None:
    frames = torch.arange(2.0 * 5 * 8).reshape(2, 5, 1, 8)
    batch = Batch("burgers1d", frames, torch.ones(2), torch.ones(2, 1), Grid((centres(0, 1, 8),), (True,)), context=2)
    assert torch.equal(torch.cat([batch.inputs, batch.targets], dim=1), frames)
    assert (len(batch), batch.horizon) == (2, 3)
    assert batch.to("cpu") is batch
    assert batch.to("meta").frames.device.type == "meta"
