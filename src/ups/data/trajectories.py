"""The trajectories of one task and one split: in memory when they fit, else read as they are needed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from ups.data.fields import Grid, centred_axes, thin
from ups.data.pdebench import TrajectoryFile
from ups.data.problems import BadDataError, DataProblem
from ups.physics.equations import Equation

BLOCK_BYTES = 64 << 20
"""How much is read from a file at once."""

Cut = Callable[[slice], Tensor]
"""Windows (window, time, channel, *grid) by their places among those that were cut."""


@dataclass(frozen=True, eq=False)
class Source:
    """Some trajectories of one file, and how they are thinned out.

    Args:
        file: where they stand.
        indices: which of its trajectories.
        time_stride: every how many frames one is kept.
        space_strides: for each axis, of how many cells one is kept; see `ups.data.fields.thin`.
    """

    file: TrajectoryFile
    indices: np.ndarray
    time_stride: int
    space_strides: tuple[int, ...]

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each trajectory that are kept."""
        lengths: np.ndarray = -(-self.file.lengths[self.indices] // self.time_stride)
        return lengths

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(channel, *grid) of a frame that is kept."""
        cells = zip(self.file.grid.shape, self.space_strides, strict=True)
        return (len(self.file.fields), *(size // stride for size, stride in cells))

    @property
    def num_bytes(self) -> int:
        """Bytes of what is kept, as float32."""
        return int(self.lengths.sum()) * int(np.prod(self.frame_shape)) * 4

    def thin(self, frames: np.ndarray) -> np.ndarray:
        """What is kept of (..., channel, *grid)."""
        return thin(frames, self.space_strides, centred_axes(self.file.equation))

    def blocks(self) -> Iterator[tuple[np.ndarray, Float32[np.ndarray, "trajectory time channel *grid"]]]:
        """All trajectories in order, whole and as they stand in the file: neighbours of equal length come together."""
        frame_bytes = int(np.prod(self.file.frame_shape)) * 4
        lengths = self.file.lengths[self.indices]
        first = 0
        while first < len(self.indices):
            most = max(1, BLOCK_BYTES // (int(lengths[first]) * frame_bytes))
            last = first + 1
            while last < min(len(lengths), first + most) and lengths[last] == lengths[first]:
                last += 1
            yield self.indices[first:last], self.file.read(self.indices[first:last])
            first = last


class Frames(ABC):
    """Where the frames of a set are.

    Attributes:
        in_memory: whether they are held in memory rather than read as they are needed.
        device: where windows of them come to be.
    """

    in_memory: bool
    device: torch.device

    @abstractmethod
    def cut(self, trajectory: Tensor, start: Tensor, length: int) -> Cut:
        """Windows of `length` frames of each trajectory from its start on; none is copied before it is asked for."""

    @abstractmethod
    def subset(self, trajectories: Tensor) -> Frames:
        """Those of some trajectories, in that order, without a copy."""


class MemoryFrames(Frames):
    """All frames in one tensor, which the splits of a task share.

    Args:
        frames: (frame, channel, *grid).
        first: where in it each trajectory begins.
        in_memory: False where the tensor is a memory-mapped file.
    """

    def __init__(self, frames: Tensor, first: Tensor, *, in_memory: bool = True) -> None:
        self.frames, self.first = frames, first
        self.in_memory, self.device = in_memory, frames.device

    def cut(self, trajectory: Tensor, start: Tensor, length: int) -> Cut:
        windows = self.frames.unfold(0, length, 1).movedim(-1, 1)  # a view: they overlap
        place = (self.first[trajectory] + start).to(self.device, non_blocking=True)
        return lambda part: windows.index_select(0, place[part])

    def subset(self, trajectories: Tensor) -> MemoryFrames:
        return MemoryFrames(self.frames, self.first[trajectories], in_memory=self.in_memory)


class DiskFrames(Frames):
    """Frames that stay in their files.

    Args:
        home: source and number in its file of each trajectory.
    """

    in_memory, device = False, torch.device("cpu")

    def __init__(self, home: Sequence[tuple[Source, int]]) -> None:
        self._home = tuple(home)

    def cut(self, trajectory: Tensor, start: Tensor, length: int) -> Cut:
        return lambda part: self._read(trajectory[part], start[part], length)

    def _read(self, trajectory: Tensor, start: Tensor, length: int) -> Tensor:
        windows = []
        for number, first in zip(trajectory.tolist(), start.tolist(), strict=True):
            source, index = self._home[number]
            stride = source.time_stride
            window = source.file.read([index], first * stride, (first + length - 1) * stride + 1, stride)
            windows.append(source.thin(window[0]))
        return torch.from_numpy(np.stack(windows))

    def subset(self, trajectories: Tensor) -> DiskFrames:
        return DiskFrames([self._home[number] for number in trajectories.tolist()])


class TrajectorySet:
    """The trajectories of one task and one split.

    Args:
        task: name of the equation.
        equation: its description.
        grid: where the values live, after thinning.
        dt: time between kept frames.
        params: PDE parameters of each trajectory, physical values in the order of the equation's description.
        lengths: kept frames of each trajectory.
        hashes: content hash of each trajectory as it stands in its file.
        frames: where the frames are.
    """

    def __init__(
        self,
        task: str,
        equation: Equation,
        grid: Grid,
        dt: float,
        params: Float[Tensor, "trajectory parameter"],
        lengths: Int64[Tensor, " trajectory"],
        hashes: Sequence[str],
        frames: Frames,
    ) -> None:
        self.task, self.equation, self.grid, self.dt = task, equation, grid, dt
        self.params, self.lengths, self.hashes = params, lengths, tuple(hashes)
        self._frames = frames

    @property
    def num(self) -> int:
        """How many trajectories."""
        return len(self.lengths)

    def __len__(self) -> int:
        return self.num

    @property
    def in_memory(self) -> bool:
        """Whether the frames are held in memory rather than read as they are needed."""
        return self._frames.in_memory

    @property
    def device(self) -> torch.device:
        """Where windows come to be."""
        return self._frames.device

    @property
    def content_hash(self) -> str:
        """Hash of the task and of all trajectories in order."""
        return hashlib.blake2b("\n".join((self.task, *self.hashes)).encode(), digest_size=16).hexdigest()

    def gather(
        self, trajectory: Int64[Tensor, " window"], start: Int64[Tensor, " window"], length: int
    ) -> Float32[Tensor, "window time channel *grid"]:
        """`length` frames of each named trajectory, from its start on; arguments and errors are those of `cut`."""
        return self.cut(trajectory, start, length)(slice(None))

    def cut(self, trajectory: Int64[Tensor, " window"], start: Int64[Tensor, " window"], length: int) -> Cut:
        """Windows to be gathered some at a time: all that can be done once for all of them is.

        Args:
            trajectory: number of the trajectory of each window.
            start: first frame of each window.
            length: frames per window.

        Returns:
            What gathers those of a slice, each (time, channel, *grid).

        Raises:
            IndexError: a window that reaches over an end of its trajectory.
        """
        if ((start < 0) | (start + length > self.lengths[trajectory])).any():
            raise IndexError(f"{self.task}: a window of {length} frames reaches over an end of its trajectory")
        return self._frames.cut(trajectory, start, length)

    def trajectory(self, number: int) -> Float32[Tensor, "time channel *grid"]:
        """All frames of one trajectory."""
        length = int(self.lengths[number])
        return self.gather(torch.tensor([number]), torch.tensor([0]), length)[0]

    def num_windows(self, length: int) -> int:
        """How many windows of `length` frames there are."""
        return int((self.lengths - length + 1).clamp(min=0).sum())

    def subset(self, trajectories: Sequence[int] | np.ndarray) -> TrajectorySet:
        """Some of the trajectories, in the order given; frames in memory are shared with this set."""
        chosen = torch.as_tensor(np.asarray(trajectories, dtype=np.int64))
        return self._with(
            params=self.params[chosen],
            lengths=self.lengths[chosen],
            hashes=[self.hashes[number] for number in chosen.tolist()],
            frames=self._frames.subset(chosen),
        )

    def to(self, device: torch.device | str) -> TrajectorySet:
        """The set with its frames copied to another device, if they are in memory; windows are then cut there."""
        if not isinstance(self._frames, MemoryFrames):
            return self
        frames = torch.cat([self.trajectory(number).to(device) for number in range(self.num)])
        return self._with(frames=MemoryFrames(frames, self.lengths.cumsum(0) - self.lengths))

    def _with(self, **changes: Any) -> TrajectorySet:
        kept = {name: getattr(self, name) for name in ("task", "equation", "grid", "dt", "params", "lengths", "hashes")}
        return TrajectorySet(**({"frames": self._frames} | kept | changes))


def build_set(sources: Sequence[Source], *, in_memory: bool) -> TrajectorySet:
    """The trajectories of all sources as one set.

    In memory, every value is read, hashed and checked. Otherwise only the first, middle and last frame of each
    trajectory are, and its hash is theirs. The two kinds of hash differ: sets that are to be compared must be built
    alike.

    Args:
        sources: of one task, on one grid, with one time step.
        in_memory: hold all frames, or read them as they are needed.

    Raises:
        DataError: a value that is not finite, or bytes that cannot be read; every bad trajectory is listed.
    """
    first = sources[0]
    lengths = torch.from_numpy(np.concatenate([source.lengths for source in sources]))
    params = np.concatenate([source.file.params[source.indices] for source in sources])
    read = _read_whole if in_memory else _probe
    frames, hashes, problems = read(sources, lengths)
    if problems:
        raise BadDataError(problems)
    return TrajectorySet(
        task=first.file.task,
        equation=first.file.equation,
        grid=first.file.grid.subsample(first.space_strides, centred_axes(first.file.equation)),
        dt=time_step(first.file) * first.time_stride,
        params=torch.from_numpy(params).float(),
        lengths=lengths,
        hashes=hashes,
        frames=frames,
    )


def _read_whole(sources: Sequence[Source], lengths: Tensor) -> tuple[Frames, list[str], list[DataProblem]]:
    shape = sources[0].frame_shape
    frames = torch.empty((int(lengths.sum()), *shape))
    hashes: list[str] = []
    problems: list[DataProblem] = []
    place = 0
    for source in sources:
        for numbers, block in source.blocks():
            problems += not_finite(source.file, numbers, block)
            hashes += [hash_frames(trajectory) for trajectory in block]
            kept = source.thin(block[:, :: source.time_stride]).reshape(-1, *shape)
            frames[place : place + len(kept)] = torch.from_numpy(kept)
            place += len(kept)
    return MemoryFrames(frames, lengths.cumsum(0) - lengths), hashes, problems


def _probe(sources: Sequence[Source], lengths: Tensor) -> tuple[Frames, list[str], list[DataProblem]]:
    hashes: list[str] = []
    problems: list[DataProblem] = []
    home = [(source, int(number)) for source in sources for number in source.indices]
    for source, number in home:
        probe = probe_frames(source.file, number)
        problems += not_finite(source.file, np.array([number]), probe[None])
        hashes.append(hash_frames(probe))
    return DiskFrames(home), hashes, problems


def time_step(file: TrajectoryFile) -> float:
    """Mean time between the frames of a file."""
    return float(file.times[-1] - file.times[0]) / (len(file.times) - 1)


def probe_frames(file: TrajectoryFile, number: int) -> Float32[np.ndarray, "frame channel *grid"]:
    """First, middle and last frame of a trajectory, which stand for it where reading all would be too much."""
    length = int(file.lengths[number])
    return np.concatenate([file.read([number], at, at + 1)[0] for at in (0, length // 2, length - 1)])


def hash_frames(frames: Float32[np.ndarray, "time channel *grid"]) -> str:
    """Content hash of a trajectory: BLAKE2b over its shape and its float32 bytes."""
    digest = hashlib.blake2b(repr(frames.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(frames).data)
    return digest.hexdigest()


def not_finite(
    file: TrajectoryFile,
    numbers: np.ndarray,
    block: Float32[np.ndarray, "trajectory time channel *grid"],
    time_stride: int = 1,
) -> list[DataProblem]:
    """For each trajectory with NaN or Inf, a problem that names its first such frame; `block` holds every k-th."""
    bad = ~np.isfinite(block).all(axis=tuple(range(3, block.ndim)))
    problems = []
    for number, frames in zip(numbers, bad, strict=True):
        if frames.any():
            frame, channel = (int(place[0]) for place in np.nonzero(frames))
            names = file.equation.roles[min(frame, len(file.equation.roles) - 1)]
            where = f"{file.place(int(number))}, frame {frame * time_stride}, field {names[channel].name}"
            problems.append(DataProblem(str(file.path), "NaN or Inf", where, "remove or regenerate the trajectory"))
    return problems
