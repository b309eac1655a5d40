"""Whatever is wrong with a file is named: the file, the place, the remedy. Nothing bad is trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.layouts import write_task

from ups.config.data import DataSettings, SplitSettings
from ups.data.inspect import inspect_file
from ups.data.pdebench import open_trajectories
from ups.data.split import load_splits
from ups.data.validate import find_data_problems, find_problems
from ups.errors import DataError, UsageError


def rewrite(file: h5py.File, name: str, values: np.ndarray) -> None:
    del file[name]
    file[name] = values


def spoil_values(place: tuple[int, ...], value: float) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        file["tensor"][place] = value

    return spoil


def spoil_axis(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    return lambda file: rewrite(file, name, change(file[name][:]))


STRUCTURE = {
    "has 33 coordinates for 32 cells": spoil_axis("x-coordinate", lambda x: np.append(x, 2.0)),
    "the axis does not increase after index 30": spoil_axis("x-coordinate", lambda x: np.r_[x[:31], x[0]]),
    "the axis is not uniform": spoil_axis("x-coordinate", lambda x: x**2),
    "has a coordinate that is not finite": spoil_axis("t-coordinate", lambda t: np.r_[t[:3], np.nan, t[4:]]),
    "has no coordinates of the x axis": lambda file: file.__delitem__("x-coordinate"),
    "has no time stamps": lambda file: file.__delitem__("t-coordinate"),
    "has 5 time stamps for 11 frames": spoil_axis("t-coordinate", lambda t: t[:5]),
    "has 20 time stamps for 11 frames": spoil_axis("t-coordinate", lambda t: np.arange(20.0)),
    "are trajectories and frames transposed?": lambda file: [
        rewrite(file, name, value)
        for name, value in (("tensor", file["tensor"][:, :4]), ("t-coordinate", np.arange(6.0)))
    ],
    "6 of 6 trajectories have fewer than 2 frames (the first is trajectory 0)": lambda file: rewrite(
        file, "tensor", file["tensor"][:, :1]
    ),
    "parameter nu is missing": lambda file: file.attrs.__delitem__("Nu"),
    "parameter nu has 2 values for 6 trajectories": lambda file: file.attrs.__setitem__("Nu", [0.1, 0.2]),
    "holds no trajectory": lambda file: rewrite(file, "tensor", file["tensor"][:0]),
    "holds int64, not floats": lambda file: rewrite(file, "tensor", np.ones((6, 11, 32), dtype=np.int64)),
    "none of the published layouts: found t-coordinate, x-coordinate": lambda file: file.__delitem__("tensor"),
    "none of the published layouts: found t-coordinate, tensor, x-coordinate with 2": lambda file: rewrite(
        file, "tensor", file["tensor"][0]
    ),
}

VALUES = {
    "1 value is NaN or Inf (trajectory 2, field u, first in frame 3)": spoil_values((2, 3, 4), np.nan),
    "32 values are NaN or Inf (trajectory 5, field u, first in frame 0)": spoil_values((5, 0), np.inf),
    "is constant (1.5) (trajectory 1, field u)": spoil_values((1,), 1.5),
}


@pytest.mark.parametrize("message", STRUCTURE | VALUES)
def test_a_fault_is_named_with_its_file_and_place(tmp_path: Path, message: str) -> None:
    path = write_task(tmp_path / "some.h5", "burgers1d")
    assert find_problems(path, "burgers1d") == []
    with h5py.File(path, "r+") as file:
        (STRUCTURE | VALUES)[message](file)
    (problem,) = find_problems(path, "burgers1d")
    assert message in str(problem)
    assert str(path) in str(problem)
    assert problem.remedy
    if message in STRUCTURE:
        with pytest.raises(DataError) as raised:
            open_trajectories(path, "burgers1d")
        assert message in str(raised.value)


GROUPS = {
    "`data` has shape (11, 8, 16, 1)": lambda file: rewrite(file, "0003/data", np.ones((11, 8, 16, 1), np.float32)),
    "`grid/x` differs from the first group's": lambda file: rewrite(file, "0003/grid/x", np.linspace(0, 9, 8)),
    "`grid/t` differs from the other groups'": lambda file: rewrite(file, "0003/grid/t", np.linspace(0, 9, 11)),
    "no dataset `data`": lambda file: file.__delitem__("0003/data"),
}


@pytest.mark.parametrize("message", GROUPS)
def test_a_group_unlike_the_others_is_named(tmp_path: Path, message: str) -> None:
    path = write_task(tmp_path / "some.h5", "shallow_water2d", resolution=8)
    with h5py.File(path, "r+") as file:
        GROUPS[message](file)
    found = "\n".join(map(str, find_problems(path, "shallow_water2d")))
    assert f"{message}" in found
    assert "group 0003" in found
    with pytest.raises(DataError, match="group 0003"):
        open_trajectories(path)


def test_every_problem_is_listed_not_only_the_first(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "burgers1d")
    with h5py.File(path, "r+") as file:
        del file.attrs["Nu"]
        rewrite(file, "x-coordinate", file["x-coordinate"][:][::-1])
        file["tensor"][0, 0, 0] = np.nan
        file["tensor"][4] = 0
    found = "\n".join(map(str, find_problems(path, "burgers1d")))
    for part in ("parameter nu", "does not increase", "trajectory 0", "trajectory 4"):
        assert part in found


def test_a_wholly_bad_file_is_not_listed_trajectory_by_trajectory(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "burgers1d", num=30, resolution=8)
    with h5py.File(path, "r+") as file:
        file["tensor"][:] = np.nan
    *listed, rest = find_problems(path, "burgers1d")
    assert len(listed) == 20
    assert "10 more" in rest.what


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "no such file" in str(find_problems(tmp_path / "none.h5", None)[0])
    assert "not a file" in str(find_problems(tmp_path, None)[0])


@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"x,y\n1,2\n" * 99, "is not an HDF5 file")])
def test_what_is_not_hdf5(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "some.h5"
    path.write_bytes(content)
    (problem,) = find_problems(path, "burgers1d")
    assert message in problem.what


@pytest.mark.parametrize("task", ["burgers1d", "reaction_diffusion2d"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.99])
def test_a_truncated_file(tmp_path: Path, task: str, kept: float) -> None:
    path = write_task(tmp_path / "some.h5", task, resolution=16)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    (problem,) = find_problems(path, task)
    assert problem.what == "is truncated"
    with pytest.raises(DataError, match="is truncated"):
        open_trajectories(path, task)


@pytest.mark.parametrize("task", ["burgers1d", "shallow_water2d"])
def test_zeroed_blocks_are_an_error_or_a_problem_but_never_a_crash(tmp_path: Path, task: str) -> None:
    """Wherever a block of the file is lost, reading either works, or says what is wrong."""
    path = write_task(tmp_path / "some.h5", task, num=3, frames=4, resolution=8)
    content = path.read_bytes()
    step = max(64, len(content) // 60 // 8 * 8)
    for start in range(0, len(content), step):
        path.write_bytes(content[:start] + bytes(min(step, len(content) - start)) + content[start + step :])
        for problem in find_problems(path, task):
            assert problem.remedy


def test_another_task_than_asked(tmp_path: Path) -> None:
    path = write_task(tmp_path / "some.h5", "advection1d")
    (problem,) = find_problems(path, "burgers1d")
    assert "holds advection1d, not burgers1d" in str(problem)
    (problem,) = find_problems(
        write_task(tmp_path / "other.h5", "shallow_water2d", resolution=8), "reaction_diffusion2d"
    )
    assert "holds shallow_water2d, not reaction_diffusion2d" in str(problem)


def test_name_and_attribute_must_agree(tmp_path: Path) -> None:
    path = write_task(tmp_path / "1D_Burgers_Sols_Nu0.1.hdf5", "burgers1d", Nu=0.01)
    (problem,) = find_problems(path, "burgers1d")
    assert "0.01 in the attributes, but 0.1 in the name" in problem.what


def settings(folder: Path, *files: str, **changes: object) -> DataSettings:
    return DataSettings(task=("burgers1d",), root=str(folder), files=files or None, **changes)  # type: ignore[arg-type]


def refused(data: DataSettings) -> str:
    """What is said, alike by the check and by loading."""
    problems = find_data_problems(data)
    assert problems
    with pytest.raises(DataError) as raised:
        load_splits(data)
    return str(raised.value) + "\n" + "\n".join(map(str, problems))


def test_an_equation_that_does_not_exist_is_named_with_the_nearest(tmp_path: Path) -> None:
    write_task(tmp_path / "a.h5", "burgers1d")
    for files in (("a.h5",), None):
        data = DataSettings(task=("burger1d",), root=str(tmp_path), files=files)
        for look in (find_data_problems, load_splits):
            with pytest.raises(UsageError, match="did you mean burgers1d"):
                look(data)


def test_files_of_one_task_must_fit_together(tmp_path: Path) -> None:
    write_task(tmp_path / "a.h5", "burgers1d")
    write_task(tmp_path / "b.h5", "burgers1d", resolution=16, seed=1)
    write_task(tmp_path / "c.h5", "burgers1d", frames=6, seed=2)
    said = refused(settings(tmp_path, "a.h5", "b.h5", "c.h5"))
    assert f"{tmp_path / 'b.h5'}: its grid (16) differs from that of {tmp_path / 'a.h5'}" in said
    assert f"{tmp_path / 'c.h5'}: its time step 0.4 differs from 0.2" in said


def test_what_cannot_be_thinned_or_cut(tmp_path: Path) -> None:
    write_task(tmp_path / "a.h5", "burgers1d")
    assert "cannot be thinned to 12 points" in refused(settings(tmp_path, "a.h5", resolution=12))
    assert "has 1 frame(s) at data.time_stride 11" in refused(settings(tmp_path, "a.h5", time_stride=11))
    assert "data.context needs 12" in refused(settings(tmp_path, "a.h5", context=11))
    too_few = refused(settings(tmp_path, "a.h5", max_samples=2))
    assert "2 distinct trajectories are too few to give each split one; make more trajectories, or name" in too_few


def test_the_same_trajectory_in_two_named_files(tmp_path: Path) -> None:
    write_task(tmp_path / "a.h5", "burgers1d")
    write_task(tmp_path / "b.h5", "burgers1d", num=4, seed=1)
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5", "r+") as b:
        b["tensor"][2] = a["tensor"][3]
    said = refused(settings(tmp_path, split=SplitSettings(train_files=("a.h5",), test_files=("b.h5",))))
    assert f"{tmp_path / 'b.h5'}: the same trajectory is in test and in " in said
    assert f"({tmp_path / 'a.h5'}, trajectory 3) (trajectory 2)" in said


def test_an_empty_folder_and_one_without_the_task(tmp_path: Path) -> None:
    assert "holds no HDF5 file" in refused(settings(tmp_path))
    write_task(tmp_path / "a.h5", "advection1d")
    assert "holds no file of burgers1d" in refused(settings(tmp_path))
    assert "no such folder" in refused(settings(tmp_path / "none"))
    assert "no file matches" in refused(settings(tmp_path, "*.hdf5"))


def test_nan_is_refused_by_loading_alone(tmp_path: Path) -> None:
    path = write_task(tmp_path / "a.h5", "burgers1d")
    with h5py.File(path, "r+") as file:
        file["tensor"][1, 10, 3] = np.nan
    assert "trajectory 1" in refused(settings(tmp_path, "a.h5"))


def test_a_name_that_repeats_the_root_folder_is_told_how_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    write_task(tmp_path / "data" / "u.h5", "burgers1d", num=12, frames=4, resolution=16)
    monkeypatch.chdir(tmp_path)
    settings = DataSettings(task="burgers1d", root="data", files="data/u.h5")
    with pytest.raises(DataError, match=r"names are relative to data\.root, data: write u\.h5"):
        load_splits(settings)


def test_predictions_in_a_folder_are_passed_over_and_those_at_points_are_named(tmp_path: Path) -> None:
    write_task(tmp_path / "u.h5", "burgers1d", num=12, frames=4, resolution=16)
    write_task(tmp_path / "grid.h5", "burgers1d", num=3, frames=4, resolution=16, seed=1)
    for name in ("grid.h5", "points.h5"):
        with h5py.File(tmp_path / name, "a") as file:
            file.attrs["ups_predicted_by"] = "run x, 3 steps from u.h5"
    with h5py.File(tmp_path / "points.h5", "a") as file:
        file["points"], file["u"] = np.zeros((50, 1)), np.zeros((3, 4, 50))
    found = load_splits(DataSettings(task="burgers1d", root=str(tmp_path), files=None))
    assert sum(sets["burgers1d"].num for sets in found.values()) == 12
    with pytest.raises(DataError, match=r"predictions at 50 points \(run x, 3 steps from u\.h5\)"):
        inspect_file(tmp_path / "points.h5")


def test_a_file_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    """In a folder that is searched, and beside a pattern that nothing matches."""
    path = write_task(tmp_path / "a.h5", "burgers1d")
    with h5py.File(path, "r+") as file:
        file["tensor"][1, 2, 3] = np.nan
    (tmp_path / "b.h5").write_bytes(path.read_bytes()[:1000])
    searched = find_data_problems(DataSettings(task=("burgers1d",), root=str(tmp_path), files=None))
    assert {Path(problem.file).name for problem in searched} == {"a.h5", "b.h5"}
    split = {"train_files": ["a.h5"], "test_files": ["none*.h5"]}
    named = find_data_problems(DataSettings(task=("burgers1d",), root=str(tmp_path), split=split))
    assert {Path(problem.file).name for problem in named} == {"a.h5", "none*.h5"}
    listed = find_data_problems(settings(tmp_path, "nil*.h5", "a.h5", "none*.h5"))
    assert [Path(problem.file).name for problem in listed] == ["nil*.h5", "none*.h5", "a.h5"]


def test_a_periodic_axis_that_repeats_its_first_point_is_named(tmp_path: Path) -> None:
    path = write_task(tmp_path / "b.hdf5", "burgers1d")
    with h5py.File(path, "r+") as file:
        file["tensor"][..., -1] = file["tensor"][..., 0]
    (problem,) = find_problems(path, "burgers1d")
    assert "the last point has the values of the first in every frame" in str(problem)
    assert "x axis" in str(problem)
    assert inspect_file(path).problems == (problem,)
    with h5py.File(path, "r+") as file:
        file["tensor"][0, 0, -1] += 0.01
    assert find_problems(path, "burgers1d") == []


def test_between_walls_the_ends_of_an_axis_may_be_alike(tmp_path: Path) -> None:
    path = write_task(tmp_path / "r.hdf5", "reaction_diffusion2d")
    with h5py.File(path, "r+") as file:
        for group in file.values():
            group["data"][:, -1] = group["data"][:, 0]
    assert find_problems(path, "reaction_diffusion2d") == []
