"""Every published layout is recognised, and read as it was written."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.layouts import FINAL_TIME, travelling_waves, write_task

from ups.data.inspect import inspect_file
from ups.data.pdebench import open_trajectories, possible_tasks
from ups.errors import DataError, UpsError

TRAINABLE = ["advection1d", "burgers1d", "reaction_diffusion1d", "reaction_diffusion2d", "shallow_water2d"]
RECOGNISED = ["diffusion_sorption1d", "cfd1d", "cfd2d", "navier_stokes2d"]


@pytest.mark.parametrize("task", TRAINABLE + RECOGNISED)
def test_the_task_is_told_from_layout_and_attributes(tmp_path: Path, task: str) -> None:
    assert possible_tasks(write_task(tmp_path / "some.h5", task)) == (task,)


@pytest.mark.parametrize("task", TRAINABLE)
def test_frames_are_read_as_they_were_written(tmp_path: Path, task: str) -> None:
    path = write_task(tmp_path / "some.h5", task, num=5, frames=7, resolution=16)
    with h5py.File(path) as file:
        if "tensor" in file:
            written = file["tensor"][:][:, :, None]
        else:
            written = np.moveaxis(np.stack([file[name]["data"][:] for name in sorted(file)]), -1, 2)
    with open_trajectories(path) as trajectories:
        assert trajectories.task == task
        assert (trajectories.num_trajectories, trajectories.num_frames) == (5, 7)
        assert trajectories.frame_shape == written.shape[2:]
        assert trajectories.num_bytes == written.nbytes
        np.testing.assert_array_equal(trajectories.read(range(5)), written)
        np.testing.assert_array_equal(trajectories.read([4, 0, 0, 3], 1, 6, 2), written[[4, 0, 0, 3], 1:6:2])


def test_the_surplus_time_stamp_is_left_out(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "burgers1d", frames=11)
    with h5py.File(path) as file:
        assert file["t-coordinate"].shape == (12,)
    with open_trajectories(path) as trajectories:
        np.testing.assert_allclose(trajectories.times, np.linspace(0, FINAL_TIME, 11), rtol=1e-6)


def test_axes_keep_their_order(tmp_path: Path) -> None:
    """The first axis of the array is x, as in PDEBench's `data` (T, X, Y, C)."""
    path = tmp_path / "some.h5"
    with h5py.File(path, "w") as file:
        file["0000/data"] = np.random.default_rng(0).normal(size=(3, 8, 12, 1)).astype(np.float32)
        file["0000/grid/x"], file["0000/grid/y"] = np.linspace(-1, 1, 8), np.linspace(0, 1, 12)
        file["0000/grid/t"] = np.arange(3.0)
        with open_trajectories(write_copy(file, tmp_path)) as trajectories:
            assert trajectories.grid.shape == (8, 12)
            np.testing.assert_array_equal(trajectories.read([0])[0, :, 0], file["0000/data"][..., 0])


def write_copy(file: h5py.File, folder: Path) -> Path:
    with h5py.File(folder / "copy.h5", "w") as copy:
        for name in file:
            file.copy(name, copy)
    return folder / "copy.h5"


@pytest.mark.parametrize(
    ("name", "task", "params"),
    [
        ("1D_Burgers_Sols_Nu0.01.hdf5", "burgers1d", {"nu": 0.01}),
        ("1D_Advection_Sols_beta0.4.hdf5", "advection1d", {"beta": 0.4}),
        ("ReacDiff_Nu0.5_Rho1.0.hdf5", "reaction_diffusion1d", {"nu": 0.5, "rho": 1.0}),
        ("burgers_nu1e-3_more.h5", "burgers1d", {"nu": 1e-3}),
    ],
)
def test_parameters_stand_in_the_name(tmp_path: Path, name: str, task: str, params: dict[str, float]) -> None:
    write_task(tmp_path / name, task, num=3, Nu=None, beta=None, Rho=None)
    with open_trajectories(tmp_path / name) as trajectories:
        assert trajectories.task == task
        names = [parameter.name for parameter in trajectories.equation.parameters]
        expected = np.tile([params[name] for name in names], (3, 1))
        np.testing.assert_allclose(trajectories.params, expected)


def test_an_attribute_may_hold_one_value_per_trajectory(tmp_path: Path) -> None:
    viscosities = np.array([0.1, 0.2, 0.4])
    with open_trajectories(write_task(tmp_path / "some.h5", "burgers1d", num=3, Nu=viscosities)) as trajectories:
        np.testing.assert_array_equal(trajectories.params[:, 0], viscosities)


def test_trajectories_may_differ_in_length(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "shallow_water2d", num=3, frames=9, resolution=8, lengths=[5, 9, 7])
    waves = travelling_waves(3, 9, 8, 2)
    with open_trajectories(path) as trajectories:
        assert trajectories.lengths.tolist() == [5, 9, 7]
        assert len(trajectories.times) == 9
        np.testing.assert_array_equal(trajectories.read([1, 2], 2, 7)[:, :, 0], waves[1:, 2:7])
        with pytest.raises(IndexError, match="the shortest trajectory has 5"):
            trajectories.read([0, 1], 0, 6)


@pytest.mark.parametrize("task", RECOGNISED)
def test_other_layouts_are_recognised_but_not_trained_on(tmp_path: Path, task: str) -> None:
    path = write_task(tmp_path / "some.h5", task, resolution=8)
    with pytest.raises(DataError, match=f"recognised as {task}, but training on it is not supported yet"):
        open_trajectories(path)
    summary = inspect_file(path)
    assert (summary.task, summary.trainable) == (task, False)
    assert [problem.what for problem in summary.problems] == [
        f"cannot be trained on: its task {task} is not supported yet"
    ]
    assert summary.num_trajectories == 6
    assert all(field.num_nan == 0 and field.low is not None for field in summary.ranges)


def test_initial_states_alone_are_read_when_asked_for(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "shallow_water2d", frames=4, resolution=8, lengths=[1] * 6)
    with pytest.raises(DataError, match="fewer than 2 frames"):
        open_trajectories(path)
    with open_trajectories(path, min_frames=1) as initial:
        assert initial.read([0, 5]).shape == (2, 1, 1, 8, 8)
        assert initial.times.tolist() == [0]


def test_an_ambiguous_file_is_read_as_asked(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "burgers1d", Nu=None)
    with pytest.raises(DataError, match="cannot tell its task"):
        open_trajectories(path)
    with pytest.raises(DataError, match="parameter nu is missing"):
        open_trajectories(path, "burgers1d")
    summary = inspect_file(path)
    assert (summary.task, summary.trainable) == (None, False)
    assert "cannot tell its task" in str(summary.problems[0])


def test_an_equation_that_is_not_published_in_a_layout_is_read_where_its_file_names_it(tmp_path: Path) -> None:
    """By the attribute, by the name, or by the reader; a file that names another task is not it."""
    names = ("some.h5", "my_kolmogorov2d_runs.h5", "marked.h5")
    some, named, marked = (write_task(tmp_path / name, "shallow_water2d", resolution=8, Nu=0.01) for name in names)
    with h5py.File(marked, "r+") as file:
        file.attrs["task"] = "kolmogorov2d"
    assert possible_tasks(some) == ("shallow_water2d",)
    for path, asked in ((some, "kolmogorov2d"), (named, None), (named, "kolmogorov2d"), (marked, None)):
        with open_trajectories(path, asked) as file:
            assert (file.task, file.fields, file.params[0].tolist()) == ("kolmogorov2d", ("w",), [0.01, 0.1])
    for path in (named, marked):
        assert [field.name for field in inspect_file(path).ranges] == ["w"]
        with pytest.raises(DataError, match="holds kolmogorov2d, not shallow_water2d"):
            open_trajectories(path, "shallow_water2d")
    burgers = write_task(tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", "burgers1d")
    with pytest.raises(DataError, match="holds burgers1d, not kuramoto_sivashinsky1d"):
        open_trajectories(burgers, "kuramoto_sivashinsky1d")


def test_an_unknown_task_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UpsError, match="burgers1"):
        open_trajectories(write_task(tmp_path / "some.h5", "burgers1d"), "burgers1")


def test_inspect_reports_ranges_counts_and_parameters(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "reaction_diffusion2d", num=2, frames=4, resolution=8)
    with h5py.File(path, "r+") as file:
        file["0001/data"][2, 3, 4, 1] = np.nan
        file["0001/data"][3, 0, 0, 1] = -np.inf
        values = np.stack([file[name]["data"][:] for name in sorted(file)])
    summary = inspect_file(path)
    finite = np.where(np.isfinite(values[..., 1]), values[..., 1], 0)
    u, v = summary.ranges
    assert (u.name, u.num_nan, u.num_inf) == ("u", 0, 0)
    assert (v.name, v.num_nan, v.num_inf) == ("v", 1, 1)
    assert (v.low, v.high) == (finite.min(), finite.max())
    assert u.mean == pytest.approx(values[..., 0].mean(dtype=np.float64))
    assert [(c.name, c.num) for c in summary.coordinates] == [("x", 8), ("y", 8), ("t", 4)]
    assert summary.datasets["0000/data"] == (4, 8, 8, 2)
    assert len(summary.problems) == 1
    assert "group 0001, field v, first in frame 2" in str(summary.problems[0])


def test_the_content_hash_is_of_values_not_of_storage(tmp_path: Path) -> None:
    plain = write_task(tmp_path / "a.h5", "burgers1d")
    packed, other = tmp_path / "b.h5", write_task(tmp_path / "c.h5", "burgers1d", seed=1)
    with h5py.File(plain) as source, h5py.File(packed, "w") as target:
        target.attrs["Nu"] = 0.01
        target.create_dataset(
            "tensor", data=source["tensor"][:].astype(np.float64), chunks=(1, 2, 8), compression="gzip"
        )
        for name in ("x-coordinate", "t-coordinate"):
            target[name] = source[name][:]
    hashes = [inspect_file(path).content_hash for path in (plain, packed, other)]
    assert hashes[0] == hashes[1] != hashes[2]
