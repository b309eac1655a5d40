"""One pass over the values of a file, whatever its layout: ranges, NaN and Inf, constant fields, content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ups.data.layouts import Layout
from ups.data.pdebench import HDF5_LOCK, damage_named
from ups.data.problems import DataProblem
from ups.data.trajectories import BLOCK_BYTES, hash_frames
from ups.physics.equations import Equation

MOST_LISTED = 20
"""Bad trajectories of a file that are named one by one."""

ROUNDING = 1e-6
"""Of a trajectory's largest value: differences up to this are none."""

END_REPEATED = "the last point has the values of the first in every frame; a periodic axis counts its end once"

REMEDY = "remove the trajectory or generate it again"


@dataclass(frozen=True)
class FieldRange:
    """What one field's values are like over a whole file; extremes and mean are None where no value is finite.

    Args:
        name: of the field.
        low: smallest value.
        high: largest value.
        mean: mean value.
        num_nan: how many are NaN.
        num_inf: how many are infinite.
    """

    name: str
    low: float | None
    high: float | None
    mean: float | None
    num_nan: int
    num_inf: int


@dataclass(frozen=True)
class Scan:
    """What a pass over a file's values found.

    Args:
        ranges: of each field.
        content: hash over the content of all trajectories in order.
        problems: values that are not finite and constant fields, trajectory by trajectory.
        repeats: of each axis, whether its last point has the values of its first in every frame.
    """

    ranges: tuple[FieldRange, ...]
    content: str
    problems: tuple[DataProblem, ...]
    repeats: tuple[bool, ...]


class _Tally:
    """Running range of one field."""

    def __init__(self, name: str) -> None:
        self.name, self.low, self.high, self.total = name, np.inf, -np.inf, 0.0
        self.num, self.num_nan, self.num_inf = 0, 0, 0

    def add(self, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            self.num_nan += int(np.isnan(values).sum())
            self.num_inf += int(np.isinf(values).sum())
            values = values[finite]
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            self.total += float(values.sum(dtype=np.float64))
            self.num += values.size

    def range(self) -> FieldRange:
        if not self.num:
            return FieldRange(self.name, None, None, None, self.num_nan, self.num_inf)
        return FieldRange(self.name, self.low, self.high, self.total / self.num, self.num_nan, self.num_inf)


def scan(file: h5py.File, layout: Layout) -> Scan:
    """Reads every value of an open file once, block by block.

    A field is called constant in a trajectory when it has one value over all of its space and time. What a steady
    problem is given may be uniform in a sample (one medium), but not over the whole file.

    Raises:
        DataError: bytes that cannot be read.
    """
    tallies = [[_Tally(name) for name in names] for names, _ in layout.roles]
    content = hashlib.blake2b(digest_size=16)
    problems: list[DataProblem] = []
    repeats = [size > 1 and bool(layout.lengths) for size in layout.grid_shape]
    for trajectory, frames in _trajectories(file, layout):
        repeats = [so_far and _ends_alike(frames, axis) for axis, so_far in enumerate(repeats)]
        content.update(hash_frames(frames).encode())
        for (names, part), of_role in zip(layout.roles, tallies, strict=True):
            for channel, tally in enumerate(of_role):
                values = frames[part, channel]
                tally.add(values)
                place = f"{layout.place(trajectory)}, field {tally.name}"
                uniform = bool(layout.given) and names is layout.given
                problems += _faults(file.filename, place, values, part.start or 0, uniform_is_fine=uniform)
    if len(problems) > MOST_LISTED:
        more = f"{len(problems) - MOST_LISTED} more such faults in other trajectories"
        problems[MOST_LISTED:] = [DataProblem(file.filename, more, "", REMEDY)]
    for tally in tallies[0] if layout.given else ():
        if tally.num and tally.low == tally.high:
            what = f"is constant ({tally.low:g}) over all samples"
            problems.append(DataProblem(file.filename, what, f"field {tally.name}", "give what the solutions are of"))
    ranges = tuple(tally.range() for of_role in tallies for tally in of_role)
    return Scan(ranges, content.hexdigest(), tuple(problems), tuple(repeats))


def repeated_ends(path: Path, equation: Equation, scanned: Scan) -> list[DataProblem]:
    """Periodic axes of a file that count their end twice."""
    return [
        DataProblem(str(path), END_REPEATED, f"{name} axis", f"leave out the last point along {name}")
        for name, periodic, repeats in zip("xyz", equation.periodic, scanned.repeats, strict=False)
        if periodic and repeats
    ]


def _trajectories(file: h5py.File, layout: Layout) -> Iterator[tuple[int, np.ndarray]]:
    """Every trajectory in order, (time, channel, *grid); neighbours of equal length are read together."""
    frame_bytes = max(1, int(np.prod((len(layout.fields), *layout.grid_shape))) * 4)
    lengths = layout.lengths
    first = 0
    while first < len(lengths):
        last = first + 1
        most = first + max(1, BLOCK_BYTES // (max(1, lengths[first]) * frame_bytes))
        while last < min(len(lengths), most) and lengths[last] == lengths[first]:
            last += 1
        with HDF5_LOCK, damage_named(Path(file.filename), f"{layout.place(first)} to {layout.place(last - 1)}"):
            block = layout.read(file, first, last, 0, lengths[first])
        yield from enumerate(block, start=first)
        first = last


def _ends_alike(frames: np.ndarray, axis: int) -> bool:
    """Whether (time, channel, *grid) ends along an axis of the grid as it begins, to rounding."""
    first, last = (frames.take(end, axis=2 + axis) for end in (0, -1))
    with np.errstate(invalid="ignore"):  # of infinite values, which are a fault of their own
        return bool((np.abs(last - first) <= ROUNDING * np.abs(frames).max(initial=0.0)).all())


def _faults(file: str, place: str, values: np.ndarray, first: int, *, uniform_is_fine: bool) -> Iterator[DataProblem]:
    """What is wrong with the values of one field, of the frames from `first` on."""
    finite = np.isfinite(values)
    if not finite.all():
        frames = np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1))
        num = int((~finite).sum())
        what = f"{num} value{' is' if num == 1 else 's are'} NaN or Inf"
        yield DataProblem(file, what, f"{place}, first in frame {first + int(frames[0])}", REMEDY)
    elif not uniform_is_fine and values.size and values.min() == values.max():
        yield DataProblem(file, f"is constant ({values.flat[0]:g})", place, REMEDY)
