"""Reads trajectories from HDF5 files in the published layouts, lazily.

A file is opened, understood and checked by its structure alone; values are read when they are asked for. Time stamps
beyond the last frame (the published one-dimensional files have one) are ignored.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
from jaxtyping import Float32, Float64

from ups.data.fields import Grid, uniform_spacing
from ups.data.identify import can_hold, candidate_tasks, read_parameters, settle_task
from ups.data.layouts import AXES, Layout, find_layout
from ups.data.problems import BadDataError, DataProblem, bad
from ups.errors import DataError, UpsError
from ups.physics.equations import EQUATIONS, Equation, get_equation

HDF5_LOCK = threading.RLock()
"""Held around every read: libhdf5 is not re-entrant."""

CHUNK_CACHE_BYTES = 32 << 20
"""Decompressed chunks kept per dataset: published files store 25 trajectories to a chunk."""

_DAMAGE = (OSError, KeyError, RuntimeError, TypeError, ValueError)
"""All of these are raised by h5py when metadata are damaged: missing objects, broken types, names that are no text."""

PREDICTED_BY = "ups_predicted_by"
"""Attribute that marks a file of predictions; it names the run."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def open_hdf5(path: Path) -> h5py.File:
    """Opens a file for reading.

    Raises:
        DataError: it is missing, unreadable, empty, not HDF5, or truncated.
    """
    if not path.exists():
        raise bad(path, "no such file", "check the path")
    if not path.is_file():
        raise bad(path, "not a file", "name the HDF5 file itself")
    if not os.access(path, os.R_OK):
        raise bad(path, "may not be read", "change its permissions")
    with path.open("rb") as stream:
        head = stream.read(len(_SIGNATURE))
    if not head:
        raise bad(path, "is empty", "download or generate it again")
    if head != _SIGNATURE:
        raise bad(path, "is not an HDF5 file", "name another file")
    try:
        return h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
    except OSError as error:
        damage = "is truncated" if "truncated" in str(error) else "is damaged"
        raise bad(path, damage, "download or generate it again") from error


@contextmanager
def damage_named(path: Path, what: str) -> Iterator[None]:
    """Turns what h5py raises over damaged bytes into a DataError that names the file and what was being read."""
    try:
        yield
    except _DAMAGE as error:
        damage = f"{what} cannot be read, the file is damaged"
        raise bad(path, damage, "download or generate it again") from error


class TrajectoryFile:
    """One file of trajectories of one equation; values are read on demand.

    Args:
        file: the open file; it is closed by `close`.
        task: read as this task; None infers it.
        min_frames: shorter trajectories are an error; 1 admits files of initial states.
        predictions: admit what a model predicted; it is neither to be learned from nor to be compared with.

    Attributes:
        fields: names of the channels.
        grid: cell centres.
        times: time stamps (frame,) of the longest trajectory.
        lengths: frames of each trajectory.
        params: PDE parameters (trajectory, parameter), float64.

    Raises:
        DataError: the structure is not fit for training; every reason is listed.
    """

    def __init__(
        self, file: h5py.File, task: str | None = None, *, min_frames: int = 2, predictions: bool = False
    ) -> None:
        self.path = Path(file.filename)
        self._file = file
        with damage_named(self.path, "its structure"):
            self._layout = find_layout(file)
            self.task = settle_task(file, self._layout, task)
            self.equation = _trainable(self.path, self.task, self._layout)
            self.params, problems = read_parameters(file, self._layout, self.equation)
        problems = [*self._layout.problems, *problems, *structure_problems(self.path, self._layout, min_frames)]
        if not predictions:
            problems += prediction_problems(self.path, file)
        if problems:
            raise BadDataError(problems)
        self.fields = tuple(field.name for field in self.equation.fields)
        axes = tuple(axis for axis in self._layout.axes if axis is not None)
        self.grid = Grid(axes, self.equation.periodic)
        self.lengths: np.ndarray = np.array(self._layout.lengths)
        self.times: Float64[np.ndarray, " frame"] = np.asarray(self._layout.times)[: self.num_frames]

    @property
    def num_trajectories(self) -> int:
        """How many trajectories the file holds."""
        return len(self.lengths)

    @property
    def num_frames(self) -> int:
        """Frames of the longest trajectory."""
        return int(self.lengths.max())

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(channel, *grid)."""
        return (len(self.fields), *self.grid.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of all trajectories as float32."""
        return int(self.lengths.sum()) * int(np.prod(self.frame_shape)) * 4

    def place(self, trajectory: int) -> str:
        """How to name a trajectory to a person."""
        return self._layout.place(trajectory)

    def read(
        self, indices: Sequence[int] | np.ndarray, start: int = 0, stop: int | None = None, stride: int = 1
    ) -> Float32[np.ndarray, "trajectory time channel *grid"]:
        """Frames start, start + stride, ... before stop of the trajectories of `indices`, in that order.

        Args:
            indices: trajectories; neighbours are read together.
            start: first frame.
            stop: frame to stop before; None stands for the end of the shortest of the trajectories.
            stride: read every stride-th frame.

        Raises:
            IndexError: a trajectory or frames that are not there.
            DataError: bytes that cannot be read.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if not wanted.size:
            return np.empty((0, 0, *self.frame_shape), dtype=np.float32)
        if wanted.min() < 0 or wanted.max() >= self.num_trajectories:
            raise IndexError(f"{self.path}: trajectory {int(wanted.max())} asked for, it holds {self.num_trajectories}")
        shortest = int(self.lengths[wanted].min())
        end = shortest if stop is None else stop
        if not 0 <= start < end <= shortest:
            raise IndexError(f"{self.path}: frames {start} to {end} asked for, the shortest trajectory has {shortest}")
        order = np.argsort(wanted, kind="stable")
        ordered = wanted[order]
        breaks = np.flatnonzero(np.diff(ordered) != 1) + 1
        out = np.empty((len(wanted), len(range(start, end, stride)), *self.frame_shape), dtype=np.float32)
        with HDF5_LOCK, damage_named(self.path, f"frames {start} to {end}"):
            for places in np.split(order, breaks):
                first, last = int(wanted[places[0]]), int(wanted[places[-1]]) + 1
                out[places] = self._layout.read(self._file, first, last, start, end)[:, ::stride]
        return out

    def close(self) -> None:
        """Closes the file; reading from it is an error from then on."""
        self._file.close()

    def __enter__(self) -> TrajectoryFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_trajectories(
    path: Path | str, task: str | None = None, *, min_frames: int = 2, predictions: bool = False
) -> TrajectoryFile:
    """Opens a file in one of the published layouts for training or evaluation.

    Args:
        path: the HDF5 file.
        task: name of its equation; None infers it from layout, name and attributes.
        min_frames: shorter trajectories are an error; 1 admits files of initial states.
        predictions: admit what a model predicted.

    Raises:
        DataError: missing, truncated, not HDF5, of another layout or task, a layout that training does not support
            yet, or structure that is not fit for training (coordinates, parameters, too few frames); every reason is
            listed.
    """
    file = open_hdf5(Path(path))
    try:
        return TrajectoryFile(file, task, min_frames=min_frames, predictions=predictions)
    except UpsError:
        file.close()
        raise


def possible_tasks(path: Path) -> tuple[str, ...]:
    """The tasks a file can hold by its layout, its name and its attributes.

    Raises:
        DataError: as `open_hdf5`, or a layout that is not known.
    """
    with open_hdf5(path) as file, damage_named(path, "its structure"):
        return candidate_tasks(file, find_layout(file))


def _trainable(path: Path, task: str, layout: Layout) -> Equation:
    if task not in EQUATIONS and task in layout.tasks:
        raise bad(path, f"recognised as {task}, but training on it is not supported yet", "choose another task")
    equation = get_equation(task)
    if not can_hold(layout, equation):
        shape = f"{len(layout.fields)} field(s) on a {len(layout.grid_shape)}-dimensional grid"
        raise bad(path, f"holds {shape}, which {task} has not", "name another task or another file")
    return equation


def predicted_by(file: h5py.File) -> str | None:
    """What a file's mark says of the model that predicted it; None where it has none."""
    mark = file.attrs.get(PREDICTED_BY)
    return mark.decode(errors="replace") if isinstance(mark, bytes) else None if mark is None else str(mark)


def prediction_problems(path: Path, file: h5py.File) -> list[DataProblem]:
    """That a file holds what a model predicted, where it does."""
    mark = predicted_by(file)
    if mark is None:
        return []
    what = f"holds predictions ({mark}), not data: a model would learn, or be scored on, another's errors"
    remedy = "name a file of true trajectories; `ups data inspect` shows what is in this one"
    return [DataProblem(str(path), what, f"attribute {PREDICTED_BY}", remedy)]


def structure_problems(path: Path, layout: Layout, min_frames: int) -> list[DataProblem]:
    """What makes coordinates, time stamps and frame counts unfit, all of it."""
    problems = []

    def wrong(what: str, where: str, remedy: str) -> None:
        problems.append(DataProblem(str(path), what, where, remedy))

    if not layout.lengths:
        wrong("holds no trajectory", "", "generate it again, or name another file")
    for name, axis, cells in zip(AXES, layout.axes, layout.grid_shape, strict=False):
        where = f"{name} coordinate"
        if axis is None:
            wrong(f"has no coordinates of the {name} axis", where, f"add `{name}-coordinate` or `grid/{name}`")
        elif axis.shape != (cells,):
            wrong(f"has {axis.size} coordinates for {cells} cells", where, "give one coordinate per cell")
        else:
            problems += _axis_problems(path, axis, where)
    short = [trajectory for trajectory, length in enumerate(layout.lengths) if length < min_frames]
    if short:
        what = f"{len(short)} of {len(layout.lengths)} trajectories have fewer than {min_frames} frames"
        wrong(what, f"the first is {layout.place(short[0])}", "remove them, or generate them again")
    longest = max(layout.lengths, default=0)
    if layout.times is None:
        wrong("has no time stamps", "t coordinate", "add `t-coordinate` or `grid/t`")
    elif layout.times.ndim != 1 or len(layout.times) < longest:
        wrong(f"has {layout.times.size} time stamps for {longest} frames", "t coordinate", "give one for each frame")
    elif longest >= 2 and len(layout.times) > longest + 1:
        what = f"has {layout.times.size} time stamps for {longest} frames"
        hint = "; are trajectories and frames transposed?" if len(layout.times) == len(layout.lengths) else ""
        wrong(what, "t coordinate", f"give one for each frame (published files have one more){hint}")
    elif longest >= 2:
        problems += _axis_problems(path, layout.times[:longest], "t coordinate")
    return problems


def _axis_problems(path: Path, axis: np.ndarray, where: str) -> list[DataProblem]:
    try:
        uniform_spacing(axis, "the axis")
    except DataError as error:
        what, _, remedy = str(error).partition("; ")
        return [DataProblem(str(path), what, where, remedy)]
    return []
