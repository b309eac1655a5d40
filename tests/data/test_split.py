"""Each trajectory is in one split, whatever the files; and the splits are those that were asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.layouts import travelling_waves, write_task

from ups.config.data import DataSettings, SplitSettings
from ups.data.fields import centred_axes
from ups.data.normalize import FieldStatistics, compute_statistics
from ups.data.split import SPLITS, assign, load_files, load_splits
from ups.errors import DataError
from ups.physics.equations import get_equation

FRACTIONS = {"train": 0.8, "valid": 0.1, "test": 0.1}


def settings(folder: Path, *files: str, task: str = "burgers1d", **changes: object) -> DataSettings:
    return DataSettings(task=(task,), root=str(folder), files=files or None, **changes)  # type: ignore[arg-type]


def distinct(*counts: int) -> list[list[str]]:
    return [[f"{file}/{number}" for number in range(count)] for file, count in enumerate(counts)]


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    copies=st.integers(1, 5),
    seed=st.integers(0, 99),
    order=st.sampled_from(["random", "file"]),
)
def test_every_trajectory_is_in_one_split_and_its_copies_with_it(
    counts: list[int], copies: int, seed: int, order: str
) -> None:
    contents = [[f"{file}/{number // copies}" for number in range(count)] for file, count in enumerate(counts)]
    parts = assign(contents, FRACTIONS, order=order, seed=seed)  # type: ignore[arg-type]
    if len({content for of_file in contents for content in of_file}) < 3:
        assert parts is None
        return
    assert parts is not None
    for file, of_file in enumerate(contents):
        assert Counter(i for split in SPLITS for i in parts[split][file].tolist()) == Counter(range(len(of_file)))
    homes = [{contents[file][i] for file, part in enumerate(parts[split]) for i in part} for split in SPLITS]
    assert all(homes)
    assert sum(len(home) for home in homes) == len(set.union(*homes))


def test_fractions_are_kept_and_the_seed_decides() -> None:
    parts = assign(distinct(200), FRACTIONS, order="random", seed=0)
    assert parts is not None
    assert [len(parts[split][0]) for split in SPLITS] == [160, 20, 20]
    again, other = (assign(distinct(200), FRACTIONS, order="random", seed=seed) for seed in (0, 1))
    assert again is not None
    assert other is not None
    assert np.array_equal(parts["test"][0], again["test"][0])
    assert not np.array_equal(parts["test"][0], other["test"][0])
    assert parts["test"][0].tolist() != list(range(20))


def test_the_random_order_is_the_same_on_every_machine() -> None:
    """Pinned: a change of it would silently exchange the test sets of existing runs."""
    parts = assign(distinct(20), FRACTIONS, order="random", seed=0)
    assert parts is not None
    assert (parts["test"][0].tolist(), parts["valid"][0].tolist()) == PINNED


PINNED = ([14, 15], [0, 17])


def test_file_order_takes_test_from_the_front() -> None:
    parts = assign(distinct(200), FRACTIONS, order="file", seed=3)
    assert parts is not None
    assert parts["test"][0].tolist() == list(range(20))
    assert parts["valid"][0].tolist() == list(range(20, 40))
    assert parts["train"][0].tolist() == list(range(40, 200))


def test_files_of_equal_size_are_cut_at_the_same_positions() -> None:
    """Published files of one equation share their initial states by position: none may be in two splits."""
    parts = assign(distinct(50, 50), FRACTIONS, order="random", seed=0)
    assert parts is not None
    assert all(np.array_equal(parts[split][0], parts[split][1]) for split in SPLITS)


def test_small_files_are_cut_together() -> None:
    parts = assign(distinct(*[1] * 10), FRACTIONS, order="random", seed=0)
    assert parts is not None
    assert [sum(map(len, parts[split])) for split in SPLITS] == [8, 1, 1]


def test_fractions_may_leave_a_rest_or_a_split_out() -> None:
    parts = assign(distinct(100), {"train": 0.3, "valid": 0.0, "test": 0.2}, order="random", seed=0)
    assert parts is not None
    assert {split: len(part[0]) for split, part in parts.items()} == {"train": 30, "test": 20}


def test_splits_hold_what_the_file_holds(tmp_path: Path) -> None:
    write_task(tmp_path / "a.h5", "burgers1d", num=20, frames=9, resolution=32)
    waves = travelling_waves(20, 9, 32, 1)
    splits = load_splits(settings(tmp_path, "a.h5", time_stride=2, resolution=8))
    loaded = [splits[split]["burgers1d"] for split in SPLITS]
    assert [part.num for part in loaded] == [16, 2, 2]
    values = torch.cat([part.trajectory(number)[None] for part in loaded for number in range(part.num)])
    kept = torch.from_numpy(waves[:, ::2, None, ::4])
    assert sorted(map(hash, map(bytes, values.numpy()))) == sorted(map(hash, map(bytes, kept.contiguous().numpy())))
    train = splits["train"]["burgers1d"]
    assert train.dt == pytest.approx(0.5)
    assert train.grid.shape == (8,)
    assert train.grid.lengths[0] == pytest.approx(1, rel=1e-5)
    assert train.params.unique().tolist() == pytest.approx([0.01])
    assert train.lengths.unique().tolist() == [5]


@pytest.mark.parametrize("task", ["reaction_diffusion2d", "shallow_water2d"])
def test_between_walls_a_thinned_grid_keeps_its_middle(tmp_path: Path, task: str) -> None:
    """So that a reflection of its values is one about the middle of the domain."""
    write_task(tmp_path / "a.h5", task, num=5, frames=3, resolution=16)
    whole, half = (
        load_splits(settings(tmp_path, "a.h5", task=task, resolution=cells))["train"][task] for cells in (None, 8)
    )
    for fine, coarse, (low, high) in zip(whole.grid.axes, half.grid.axes, whole.equation.domain, strict=True):
        assert fine.mean() == pytest.approx((low + high) / 2, abs=1e-5)
        assert coarse.mean() == pytest.approx((low + high) / 2, abs=1e-5)
    blocks = whole.trajectory(0).unflatten(-1, (8, 2)).unflatten(-3, (8, 2))
    torch.testing.assert_close(half.trajectory(0), blocks.mean((-1, -3)))


def test_the_axis_of_a_forcing_keeps_its_middle_and_one_along_which_all_moves_its_first_points() -> None:
    assert centred_axes(get_equation("kolmogorov2d")) == (False, True)
    assert centred_axes(get_equation("burgers1d")) == (False,)
    assert centred_axes(get_equation("darcy2d")) == (False, False), "where its walls are is measured"


def test_several_files_make_one_task_with_their_parameters(tmp_path: Path) -> None:
    for seed, viscosity in enumerate((0.01, 0.1)):
        write_task(tmp_path / f"nu{viscosity}.h5", "burgers1d", num=10, seed=seed, Nu=viscosity)
    splits = load_splits(settings(tmp_path, "nu*.h5"))
    for split in SPLITS:
        assert splits[split]["burgers1d"].params.unique().tolist() == pytest.approx([0.01, 0.1])
    found = load_splits(settings(tmp_path))
    assert found["test"]["burgers1d"].hashes == splits["test"]["burgers1d"].hashes


def test_several_tasks_are_loaded_side_by_side(tmp_path: Path) -> None:
    write_task(tmp_path / "a.h5", "burgers1d", num=10)
    write_task(tmp_path / "b.h5", "shallow_water2d", num=10, resolution=8)
    splits = load_splits(DataSettings(task=("burgers1d", "shallow_water2d"), root=str(tmp_path)))
    assert set(splits["train"]) == {"burgers1d", "shallow_water2d"}
    assert splits["valid"]["shallow_water2d"].trajectory(0).shape == (11, 1, 8, 8)


@pytest.mark.parametrize("with_valid", [True, False])
def test_named_files_are_the_splits(tmp_path: Path, with_valid: bool) -> None:
    for seed, name in enumerate(("train.h5", "valid.h5", "test.h5")):
        write_task(tmp_path / name, "burgers1d", num=10, seed=seed)
    named = {"valid_files": ("valid.h5",)} if with_valid else {}
    split = SplitSettings(train_files=("train.h5",), test_files=("test.h5",), **named)  # type: ignore[arg-type]
    splits = load_splits(settings(tmp_path, split=split))
    counts = [splits[name]["burgers1d"].num for name in SPLITS]
    assert counts == ([10, 10, 10] if with_valid else [9, 1, 10])
    everything = load_files([tmp_path / "test.h5"], "burgers1d", settings(tmp_path))
    assert everything.hashes == splits["test"]["burgers1d"].hashes
    assert everything.content_hash == splits["test"]["burgers1d"].content_hash


def test_copies_of_a_trajectory_go_to_one_split(tmp_path: Path) -> None:
    """Initial states of a discretised family coincide in published files: a copy in test would be known from train."""
    path = write_task(tmp_path / "a.h5", "shallow_water2d", num=30, resolution=8)
    with h5py.File(path, "r+") as file:
        for number in range(0, 30, 2):
            file[f"{number + 1:04d}/data"][:] = file[f"{number:04d}/data"][:]
    splits = load_splits(settings(tmp_path, "a.h5", task="shallow_water2d"))
    homes = [set(splits[split]["shallow_water2d"].hashes) for split in SPLITS]
    assert [len(home) for home in homes] == [11, 2, 2]
    assert len(set.union(*homes)) == 15


def test_max_samples_is_shared_by_the_files(tmp_path: Path) -> None:
    for seed, num in enumerate((3, 20, 20)):
        write_task(tmp_path / f"{seed}.h5", "burgers1d", num=num, seed=seed, Nu=0.01 * (seed + 1))
    splits = load_splits(settings(tmp_path, "*.h5", max_samples=23))
    used = torch.cat([splits[split]["burgers1d"].params[:, 0] for split in SPLITS])
    assert sorted(Counter(used.tolist()).values()) == [3, 10, 10]


@pytest.mark.parametrize("task", ["burgers1d", "reaction_diffusion2d"])
def test_lazy_sets_equal_those_in_memory(tmp_path: Path, task: str) -> None:
    write_task(tmp_path / "a.h5", task, num=12, frames=9, resolution=16)
    held = load_splits(settings(tmp_path, "a.h5", task=task, time_stride=2, resolution=8))["train"][task]
    lazy = load_splits(settings(tmp_path, "a.h5", task=task, time_stride=2, resolution=8, memory_budget_gb=1e-6))[
        "train"
    ][task]
    assert (held.in_memory, lazy.in_memory) == (True, False)
    for number in range(held.num):
        assert torch.equal(held.trajectory(number), lazy.trajectory(number))
    trajectory, start = torch.tensor([5, 0, 5, 2]), torch.tensor([0, 3, 1, 2])
    assert torch.equal(held.gather(trajectory, start, 2), lazy.gather(trajectory, start, 2))
    assert lazy.params.equal(held.params)


def test_no_window_reaches_into_another_trajectory(tmp_path: Path) -> None:
    write_task(tmp_path / "a.h5", "burgers1d", frames=5)
    everything = load_files([tmp_path / "a.h5"], "burgers1d", settings(tmp_path))
    assert everything.gather(torch.tensor([0]), torch.tensor([0]), 5).shape == (1, 5, 1, 32)
    for start, length in ((0, 6), (2, 4), (-1, 2)):
        with pytest.raises(IndexError, match=f"a window of {length} frames reaches over"):
            everything.gather(torch.tensor([0]), torch.tensor([start]), length)


def test_lazy_splits_still_find_the_same_trajectory_in_two_files(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        write_task(tmp_path / name, "burgers1d")
    split = SplitSettings(train_files=("a.h5",), test_files=("b.h5",))
    with pytest.raises(DataError, match="the same trajectory"):
        load_splits(settings(tmp_path, split=split, memory_budget_gb=1e-6))


def test_splits_of_a_task_share_their_memory(tmp_path: Path) -> None:
    write_task(tmp_path / "a.h5", "burgers1d", num=12)
    splits = load_splits(settings(tmp_path, "a.h5"))
    stores = {id(splits[split]["burgers1d"]._frames.frames) for split in SPLITS}  # type: ignore[attr-defined]
    assert len(stores) == 1
    train = splits["train"]["burgers1d"]
    moved = train.to("cpu")
    assert all(torch.equal(moved.trajectory(i), train.trajectory(i)) for i in range(train.num))


def test_statistics_equal_numpy_in_float64(tmp_path: Path) -> None:
    path = write_task(tmp_path / "a.h5", "reaction_diffusion2d", num=9, resolution=8)
    with h5py.File(path, "r+") as file:
        for name in file:
            file[name]["data"][...] += np.array([0, 1000], dtype=np.float32)
    train = load_splits(settings(tmp_path, "a.h5", task="reaction_diffusion2d"))["train"]["reaction_diffusion2d"]
    values = np.stack([train.trajectory(number).numpy() for number in range(train.num)]).astype(np.float64)
    found = compute_statistics(train)
    np.testing.assert_allclose(found.mean, values.mean(axis=(0, 1, 3, 4)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.std, values.std(axis=(0, 1, 3, 4)), rtol=1e-10)
    again = FieldStatistics.from_json(found.to_json())
    assert torch.equal(again.mean, found.mean)
    assert torch.equal(again.std, found.std)


def test_a_constant_field_has_no_statistics(tmp_path: Path) -> None:
    path = write_task(tmp_path / "a.h5", "burgers1d")
    with h5py.File(path, "r+") as file:
        file["tensor"][:] = 1
        file["tensor"][:, 0, 0] = np.arange(6)
    data = settings(tmp_path, "a.h5", time_stride=2)
    compute_statistics(load_splits(data)["train"]["burgers1d"])
    with h5py.File(path, "r+") as file:
        file["tensor"][:, 0, 0] = 1
        file["tensor"][:, 1, 0] = np.arange(6)
    with pytest.raises(DataError, match="field u is constant"):
        compute_statistics(load_splits(data)["train"]["burgers1d"])
