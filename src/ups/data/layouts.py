"""The layouts that PDEBench publishes: which one a file has, and where its trajectories stand in it.

A layout knows no equation: it says how many trajectories there are, how long each is, which coordinates they have, and
reads any of them as (time, channel, *grid). Takamoto et al. 2022, "PDEBench: An extensive benchmark for scientific
machine learning".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import h5py
import numpy as np

from ups.data.problems import DataProblem, bad

AXES = ("x", "y", "z")
REWRITE = "write the file again, or name another"
CONVERT = (
    "write it with `tensor` (N, T, X), with groups `0000`... of `data` and `grid`, with `density`, `pressure` and "
    "`Vx`, with `nu` and `tensor`, or with `velocity` and `particles`"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout(ABC):
    """Where the trajectories of one file stand, and what was found wrong with that.

    Args:
        name: tensor, groups, fields, steady or velocity.
        tasks: the tasks that are published in this layout with these shapes.
        fields: names of the channels.
        grid_shape: cells along each axis.
        lengths: frames of each trajectory.
        axes: coordinates of each axis, None where the file has none.
        times: time stamps as they stand in the file (there may be one too many); 0 and 1 of a steady problem.
        problems: what is wrong with the structure.
        given: names of the channels of the first frame, where the file is of a steady problem: its trajectories have
            two frames, of which the second holds `fields`.
    """

    name: str
    tasks: tuple[str, ...]
    fields: tuple[str, ...]
    grid_shape: tuple[int, ...]
    lengths: tuple[int, ...]
    axes: tuple[np.ndarray | None, ...]
    times: np.ndarray | None
    problems: tuple[DataProblem, ...]
    given: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[tuple[tuple[str, ...], slice], ...]:
        """Names of the channels, and the frames that hold them: all frames alike, or those of a steady problem."""
        if not self.given:
            return ((self.fields, slice(None)),)
        return ((self.given, slice(0, 1)), (self.fields, slice(1, 2)))

    @abstractmethod
    def place(self, trajectory: int) -> str:
        """How to name a trajectory to a person."""

    @abstractmethod
    def read(self, file: h5py.File, first: int, last: int, start: int, stop: int) -> np.ndarray:
        """Frames start to stop of trajectories first to last, (trajectory, time, channel, *grid) float32."""


def as_float32(values: np.ndarray) -> np.ndarray:
    """float32 values; a float64 beyond its range becomes infinite, which every check reports."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Column:
    """One dataset of a dense file: (N, T, *grid [, C])."""

    dataset: str
    has_channels: bool = False

    def shape(self, file: h5py.File) -> tuple[int, int, int, tuple[int, ...]]:
        """Trajectories, frames, channels, cells along each axis."""
        num, frames, *rest = file[self.dataset].shape
        channels = rest.pop() if self.has_channels else 1
        return num, frames, channels, tuple(rest)

    def read(self, file: h5py.File, first: int, last: int, start: int, stop: int) -> np.ndarray:
        block = as_float32(file[self.dataset][first:last, start:stop])
        return np.moveaxis(block, -1, 2) if self.has_channels else block[:, :, None]


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseLayout(Layout):
    """Whole datasets with the trajectory as their first dimension."""

    columns: tuple[Column, ...]

    def place(self, trajectory: int) -> str:
        return f"trajectory {trajectory}"

    def read(self, file: h5py.File, first: int, last: int, start: int, stop: int) -> np.ndarray:
        parts = [column.read(file, first, last, start, stop) for column in self.columns]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupLayout(Layout):
    """One group per trajectory: `0000/data` (T, *grid, C) and `0000/grid/{x,y,t}`."""

    groups: tuple[str, ...]

    def place(self, trajectory: int) -> str:
        return f"group {self.groups[trajectory]}"

    def read(self, file: h5py.File, first: int, last: int, start: int, stop: int) -> np.ndarray:
        blocks = [as_float32(file[group]["data"][start:stop]) for group in self.groups[first:last]]
        return np.stack([np.moveaxis(block, -1, 1) for block in blocks])


@dataclass(frozen=True, eq=False, kw_only=True)
class SteadyLayout(Layout):
    """`nu` (N, *grid), what is given, and `tensor` (N, 1, *grid), what is sought; without it, one frame each."""

    def place(self, trajectory: int) -> str:
        return f"sample {trajectory}"

    def read(self, file: h5py.File, first: int, last: int, start: int, stop: int) -> np.ndarray:
        parts = [as_float32(file["nu"][first:last])[:, None]]
        if stop > 1:
            parts.append(as_float32(file["tensor"][first:last]))
        return np.stack(parts, axis=1)[:, start:stop]


def find_layout(file: h5py.File) -> Layout:
    """The layout of an open file.

    Raises:
        BadDataError: none of the published layouts, or one that cannot be read yet.
    """
    groups = tuple(sorted(name for name in file if name.isdigit() and isinstance(file[name], h5py.Group)))
    if groups:
        return _group_layout(file, groups)
    names = {name for name in file if isinstance(file[name], h5py.Dataset)}
    if {"density", "pressure", "Vx"} <= names:
        fields = tuple(name for name in ("density", "pressure", "Vx", "Vy", "Vz") if name in names)
        dim = file["density"].ndim - 2
        return _dense_layout(file, "fields", (f"cfd{dim}d",), fields, tuple(Column(name) for name in fields))
    if {"velocity", "particles"} <= names and file["velocity"].ndim == 5:
        columns = (Column("velocity", has_channels=True), Column("particles", has_channels=True))
        return _dense_layout(file, "velocity", ("navier_stokes2d",), ("Vx", "Vy", "particles"), columns)
    if "nu" in names:
        return _steady_layout(file)
    if "tensor" in names and file["tensor"].ndim == 3:
        tasks = ("advection1d", "burgers1d", "reaction_diffusion1d")
        return _dense_layout(file, "tensor", tasks, ("u",), (Column("tensor"),))
    if "t0_fields" in file:
        raise bad(file.filename, "The Well's layout is recognised, but reading it is not supported yet", CONVERT)
    found = ", ".join(sorted(file)[:8]) or "nothing"
    shape = f" with {file['tensor'].ndim} dimensions" if "tensor" in names else ""
    raise bad(file.filename, f"none of the published layouts: found {found}{shape}", CONVERT)


def _coordinates(file: h5py.File | h5py.Group, name: str) -> np.ndarray | None:
    found = file.get(name)
    return np.asarray(found[...], dtype=np.float64) if isinstance(found, h5py.Dataset) else None


def _not_numbers(dataset: h5py.Dataset) -> bool:
    return bool(dataset.dtype.kind != "f")


def _dense_layout(
    file: h5py.File, name: str, tasks: tuple[str, ...], fields: tuple[str, ...], columns: tuple[Column, ...]
) -> DenseLayout:
    problems: list[DataProblem] = []
    for column in columns:
        dataset = file[column.dataset]
        if dataset.ndim < 3 + column.has_channels:
            raise bad(file.filename, f"its shape {dataset.shape} has too few dimensions", REWRITE, column.dataset)
    num, frames, _, grid_shape = columns[0].shape(file)
    for column in columns:
        dataset, where = file[column.dataset], f"dataset {column.dataset}"
        column_num, frames, _, column_grid = column.shape(file)
        if _not_numbers(dataset):
            problems.append(DataProblem(file.filename, f"holds {dataset.dtype}, not floats", where, REWRITE))
        if (column_num, column_grid) != (num, grid_shape):
            what = f"its shape {dataset.shape} does not fit {num} trajectories on a grid of {grid_shape}"
            problems.append(DataProblem(file.filename, what, where, REWRITE))
    axes = tuple(_coordinates(file, f"{axis}-coordinate") for axis in AXES[: len(grid_shape)])
    times = _coordinates(file, "t-coordinate")
    return DenseLayout(
        name=name,
        tasks=tasks,
        fields=fields,
        columns=columns,
        grid_shape=grid_shape,
        lengths=(frames,) * num,
        axes=axes,
        times=times,
        problems=tuple(problems),
    )


def _steady_layout(file: h5py.File) -> SteadyLayout:
    """Samples of one coefficient and one solution each; a file of coefficients alone has none of the latter."""
    given, sought = file["nu"], file.get("tensor")
    if given.ndim < 2:
        raise bad(file.filename, f"its shape {given.shape} has too few dimensions", REWRITE, "nu")
    num, *grid_shape = given.shape
    problems = [
        DataProblem(file.filename, f"holds {dataset.dtype}, not floats", f"dataset {name}", REWRITE)
        for name, dataset in (("nu", given), ("tensor", sought))
        if dataset is not None and _not_numbers(dataset)
    ]
    if sought is not None and sought.shape != (num, 1, *grid_shape):
        what = f"its shape {sought.shape} does not fit {num} solutions on a grid of {tuple(grid_shape)}"
        problems.append(DataProblem(file.filename, what, "dataset tensor", REWRITE))
    return SteadyLayout(
        name="steady",
        tasks=(f"darcy{len(grid_shape)}d",),
        fields=("u",),
        given=("a",),
        grid_shape=tuple(grid_shape),
        lengths=(1 if sought is None else 2,) * num,
        axes=tuple(_coordinates(file, f"{axis}-coordinate") for axis in AXES[: len(grid_shape)]),
        times=np.array([0.0, 1.0]),
        problems=tuple(problems),
    )


_GROUP_TASKS = {
    (1, 1): (("diffusion_sorption1d",), ("u",)),
    (2, 2): (("reaction_diffusion2d",), ("u", "v")),
    (2, 1): (("shallow_water2d",), ("h",)),
}


def _group_layout(file: h5py.File, groups: tuple[str, ...]) -> GroupLayout:
    """Every group must have the grid, the channels and the time steps of the first; its length may differ."""
    first = file[groups[0]]
    if "data" not in first or not isinstance(first["data"], h5py.Dataset) or first["data"].ndim < 3:
        raise bad(file.filename, "no dataset `data` of shape (T, *grid, C)", REWRITE, f"group {groups[0]}")
    *grid_shape, channels = first["data"].shape[1:]
    names = AXES[: len(grid_shape)]
    axes = tuple(_coordinates(first, f"grid/{name}") for name in names)
    longest: np.ndarray | None = None
    lengths: list[int] = []
    problems: list[DataProblem] = []

    def wrong(group: str, what: str) -> None:
        problems.append(DataProblem(file.filename, what, f"group {group}", "make it as the others are, or remove it"))

    for group in groups:
        data = file[group].get("data")
        lengths.append(len(data) if isinstance(data, h5py.Dataset) and data.ndim else 0)
        if not isinstance(data, h5py.Dataset):
            wrong(group, "no dataset `data`")
            continue
        if _not_numbers(data):
            wrong(group, f"`data` holds {data.dtype}, not floats")
        if data.shape[1:] != (*grid_shape, channels):
            wrong(group, f"`data` has shape {data.shape}, the first group's is {first['data'].shape}")
        for name, axis in zip(names, axes, strict=True):
            if not _same(axis, _coordinates(file[group], f"grid/{name}")):
                wrong(group, f"`grid/{name}` differs from the first group's")
        times = _coordinates(file[group], "grid/t")
        shared = slice(None if longest is None or times is None else min(len(times), len(longest)))
        if longest is not None and (times is None or not _same(longest[shared], times[shared])):
            wrong(group, "`grid/t` differs from the other groups'")
        elif times is not None and (longest is None or len(times) > len(longest)):
            longest = times
    tasks, fields = _GROUP_TASKS.get((len(grid_shape), channels), ((), tuple(f"channel{i}" for i in range(channels))))
    return GroupLayout(
        name="groups",
        tasks=tasks,
        fields=fields,
        groups=groups,
        grid_shape=tuple(grid_shape),
        lengths=tuple(lengths),
        axes=axes,
        times=longest,
        problems=tuple(problems),
    )


def _same(mine: np.ndarray | None, theirs: np.ndarray | None) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)
