"""Steady problems as data: samples of two frames, what is given and what is sought, each checked as what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tests.layouts import write_task

from ups.config.data import DataSettings
from ups.data.augment import Augment
from ups.data.fields import Batch
from ups.data.generate import generate
from ups.data.inspect import inspect_file, readable
from ups.data.normalize import FieldStatistics, compute_statistics
from ups.data.pdebench import open_trajectories, possible_tasks
from ups.data.split import SPLITS, load_splits
from ups.data.validate import find_problems
from ups.data.windows import WindowLoader
from ups.errors import DataError, UsageError
from ups.physics.equations import get_equation
from ups.physics.solvers.darcy import DarcySolver


def made(folder: Path, samples: int = 12, **params: float) -> Path:
    path = folder / f"made_{samples}.hdf5"
    generate("darcy2d", path, samples, 3, params, resolution=16)
    return path


def settings(folder: Path, *files: str, **changes: object) -> DataSettings:
    return DataSettings(task=("darcy2d",), root=str(folder), files=files, **changes)  # type: ignore[arg-type]


def test_the_published_layout_is_written_and_solves_the_equation(tmp_path: Path) -> None:
    with h5py.File(made(tmp_path, beta=2.0)) as file:
        assert (file["nu"].shape, file["tensor"].shape) == ((12, 16, 16), (12, 1, 16, 16))
        assert file.attrs["beta"] == 2.0
        np.testing.assert_allclose(file["y-coordinate"][:], (np.arange(16) + 0.5) / 16, rtol=1e-6)
        medium = np.where(file["nu"][5] > 0.5, 1.0, 0.1)
        u = DarcySolver().solve_one(medium, np.full((16, 16), 2.0), (1.0, 1.0))
        np.testing.assert_allclose(file["tensor"][5, 0], u, rtol=1e-5)


def test_a_sample_depends_on_seed_and_number_alone(tmp_path: Path) -> None:
    with open_trajectories(made(tmp_path, 2)) as few, open_trajectories(made(tmp_path, 4)) as many:
        np.testing.assert_array_equal(few.read([0, 1]), many.read([0, 1]))
        assert np.abs(many.read([2]) - many.read([3])).max() > 0.5


@pytest.mark.parametrize("of_time", [{"frames": 2}, {"time": 1.0}])
def test_frames_and_time_are_refused(tmp_path: Path, of_time: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="darcy2d has no time; leave out frames and time"):
        generate("darcy2d", tmp_path / "some.h5", 2, 0, {}, **of_time)  # type: ignore[arg-type]


def test_a_sample_is_read_as_two_frames(tmp_path: Path) -> None:
    path = write_task(tmp_path / "2D_DarcyFlow_beta0.1_Train.hdf5", "darcy2d", num=5, resolution=16, beta=None)
    assert possible_tasks(path) == ("darcy2d",)
    with h5py.File(path) as file, open_trajectories(path) as samples:
        written = np.stack([file["nu"][:][:, None], file["tensor"][:]], axis=1)
        assert samples.lengths.tolist() == [2] * 5
        np.testing.assert_allclose(samples.params, np.full((5, 1), 0.1))
        np.testing.assert_array_equal(samples.read(range(5)), written)
        np.testing.assert_array_equal(samples.read([4, 1], 1, 2), written[[4, 1], 1:])
        np.testing.assert_array_equal(samples.read([3], 0, 1), written[[3], :1])


def test_coefficients_alone_are_read_where_no_solution_is_asked_for(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "darcy2d", num=3, resolution=8)
    with h5py.File(path, "r+") as file:
        del file["tensor"]
        given = file["nu"][:]
    with pytest.raises(DataError, match="fewer than 2 frames"):
        open_trajectories(path)
    with open_trajectories(path, min_frames=1) as samples:
        np.testing.assert_array_equal(samples.read([0, 1, 2])[:, 0, 0], given)


def test_inspection_tells_the_roles_apart(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "darcy2d", num=3, resolution=8)
    with h5py.File(path) as file:
        given, sought = file["nu"][:], file["tensor"][:]
    summary = inspect_file(path)
    assert (summary.task, summary.trainable, summary.fields, summary.problems) == ("darcy2d", True, ("a", "u"), ())
    assert [(field.name, field.low, field.high) for field in summary.ranges] == [
        ("a", given.min(), given.max()),
        ("u", sought.min(), sought.max()),
    ]
    assert [axis.name for axis in summary.coordinates] == ["x", "y"]
    assert readable(summary)["parameters"] == {"beta": "1"}


def test_the_content_hash_is_of_both_frames(tmp_path: Path) -> None:
    hashes = set()
    for name in ("none", "nu", "tensor"):
        path = write_task(tmp_path / f"{name}.h5", "darcy2d", num=3, resolution=8)
        if name != "none":
            with h5py.File(path, "r+") as file:
                file[name][1] += 0.5
        hashes.add(inspect_file(path).content_hash)
    assert len(hashes) == 3


def spoil(name: str, value: float, place: object = 1) -> Callable[[h5py.File], None]:
    return lambda file: file[name].__setitem__(place, value)


def replace_dataset(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def rewrite(file: h5py.File) -> None:
        values = change(file[name][:])
        del file[name]
        file[name] = values

    return rewrite


FAULTS = {
    "64 values are NaN or Inf (sample 1, field a, first in frame 0)": spoil("nu", np.nan),
    "1 value is NaN or Inf (sample 1, field u, first in frame 1)": spoil("tensor", np.inf, (1, 0, 2, 3)),
    "is constant (0.25) (sample 1, field u)": spoil("tensor", 0.25),
    "is constant (3) over all samples (field a)": spoil("nu", 3.0, ...),
    "its shape (3, 2, 8, 8) does not fit 3 solutions": replace_dataset("tensor", lambda u: np.repeat(u, 2, axis=1)),
    "does not fit 2 solutions on a grid of (8, 8)": replace_dataset("nu", lambda a: a[:2]),
    "holds int64, not floats": replace_dataset("nu", lambda a: (a > 0.5).astype(np.int64)),
    "parameter beta is missing": lambda file: file.attrs.__delitem__("beta"),
    "has no coordinates of the y axis": lambda file: file.__delitem__("y-coordinate"),
    "have fewer than 2 frames (the first is sample 0)": lambda file: file.__delitem__("tensor"),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_fault_is_named_with_its_file_and_place(tmp_path: Path, message: str) -> None:
    path = write_task(tmp_path / "some.h5", "darcy2d", num=3, resolution=8)
    assert find_problems(path, "darcy2d") == []
    with h5py.File(path, "r+") as file:
        FAULTS[message](file)
    (problem,) = find_problems(path, None)
    assert message in str(problem)
    assert str(path) in str(problem)


def test_a_uniform_medium_is_no_fault(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "darcy2d", num=3, resolution=8)
    with h5py.File(path, "r+") as file:
        file["nu"][1] = 1.0
    assert find_problems(path, "darcy2d") == []


def test_loading_names_the_role_of_what_is_not_finite(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "darcy2d", num=6, resolution=8)
    with h5py.File(path, "r+") as file:
        file["nu"][2, 3, 4] = np.nan
        file["tensor"][4, 0, 0, 0] = np.nan
    with pytest.raises(DataError) as raised:
        load_splits(settings(tmp_path, "some.h5"))
    assert "sample 2, frame 0, field a" in str(raised.value)
    assert "sample 4, frame 1, field u" in str(raised.value)


def test_a_task_with_time_cannot_be_read_from_it(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "darcy2d", resolution=8)
    with pytest.raises(DataError, match="holds darcy2d, not shallow_water2d"):
        open_trajectories(path, "shallow_water2d")
    with pytest.raises(DataError, match="holds shallow_water2d, not darcy2d"):
        open_trajectories(write_task(tmp_path / "other.h5", "shallow_water2d", resolution=8), "darcy2d")


def test_splits_statistics_and_windows(tmp_path: Path) -> None:
    path = made(tmp_path, 20)
    splits = load_splits(settings(tmp_path, path.name))
    assert [splits[split]["darcy2d"].num for split in SPLITS] == [16, 2, 2]
    train = splits["train"]["darcy2d"]
    assert train.dt == 1.0
    frames = torch.stack([train.trajectory(number) for number in range(16)]).double()
    found = compute_statistics(train)
    for values, (mean, std) in zip(
        (frames[:, 0], frames[:, 1]), ((found.given_mean, found.given_std), (found.mean, found.std)), strict=True
    ):
        torch.testing.assert_close(mean, values.mean().reshape(1))
        torch.testing.assert_close(std, values.std(correction=0).reshape(1))
    again = FieldStatistics.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    batch = WindowLoader({"darcy2d": train}, 4, context=1, horizon=1, seed=0).next_batch()
    assert (batch.inputs.shape, batch.targets.shape) == ((4, 1, 1, 16, 16), (4, 1, 1, 16, 16))
    assert set(batch.inputs.unique().tolist()) == {torch.tensor(0.1).item(), 1.0}


def test_statistics_of_a_task_with_time_have_no_given_part() -> None:
    plain = FieldStatistics(torch.ones(2).double(), torch.ones(2).double())
    assert plain.to_json() == {"mean": [1.0, 1.0], "std": [1.0, 1.0]}
    assert len(FieldStatistics.from_json(plain.to_json()).given_mean) == 0
    with pytest.raises(KeyError):
        FieldStatistics.from_json({"mean": [1.0]})


def test_symmetries_turn_both_frames_alike(tmp_path: Path) -> None:
    """The solution of every transformed coefficient is the transformed solution."""
    path = made(tmp_path, 8)
    with open_trajectories(path) as file:
        frames, grid = torch.from_numpy(file.read(range(8))), file.grid
    batch = Batch("darcy2d", frames, torch.ones(8), torch.ones(8, 1), grid, context=1)
    turned = Augment(get_equation("darcy2d"))(batch, torch.Generator().manual_seed(1)).frames
    assert not torch.equal(turned, frames)
    for medium, u in turned[:, :, 0].double().numpy():
        exact = DarcySolver().solve_one(np.where(medium > 0.5, 1.0, 0.1), np.ones((16, 16)), (1.0, 1.0))
        np.testing.assert_allclose(u, exact, rtol=1e-5)
