"""Where values live (a grid, a set of points) and what a model is trained on (a batch of windows)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ups.errors import DataError
from ups.physics.description import Equation

UNIFORM_TOLERANCE = 1e-3
"""Largest deviation from the mean spacing, relative to it, that still counts as uniform."""


def uniform_spacing(coordinates: Float64[np.ndarray, " point"], name: str = "the axis") -> float:
    """The spacing of one axis, in the axis's unit.

    Published coordinates are float32, whose rounding (some 1e-7 of the largest coordinate) is allowed for.

    Raises:
        DataError: fewer than two coordinates, one that is not finite, or not increasing in equal steps.
    """
    if len(coordinates) < 2:
        raise DataError(f"{name} has {len(coordinates)} coordinates; at least two are needed")
    if not np.isfinite(coordinates).all():
        where = int(np.flatnonzero(~np.isfinite(coordinates))[0])
        raise DataError(f"{name} has a coordinate that is not finite, at index {where}; write real coordinates")
    steps = np.diff(coordinates)
    if (steps <= 0).any():
        where = int(np.flatnonzero(steps <= 0)[0])
        raise DataError(f"{name} does not increase after index {where} ({coordinates[where]:g}); sort its coordinates")
    mean = (coordinates[-1] - coordinates[0]) / len(steps)
    allowed = UNIFORM_TOLERANCE * mean + 4 * np.finfo(np.float32).eps * np.abs(coordinates).max()
    deviation = np.abs(steps - mean)
    if deviation.max() > allowed:
        where = int(deviation.argmax())
        raise DataError(
            f"{name} is not uniform: its step at index {where} is {steps[where]:g}, the mean step {mean:g}; "
            "interpolate the data to a uniform axis"
        )
    return float(mean)


def thin(values: np.ndarray, every: Sequence[int], centred: Sequence[bool]) -> np.ndarray:
    """One of every k values along each of the last axes, which k divides.

    It is the first of the k, or, where centred, what stands in the middle of them: of an even k the mean of two
    neighbours. So the middle of the axis stays where it is, and the ends stay as far from walls as cell centres do.
    """
    for axis, (k, middle) in enumerate(zip(every, centred, strict=True), start=values.ndim - len(every)):
        cells = np.moveaxis(values, axis, -1)
        low, high = ((k - 1) // 2, k // 2) if middle else (0, 0)
        kept = cells[..., low::k] if low == high else (cells[..., low::k] + cells[..., high::k]) / 2
        values = np.moveaxis(kept, -1, axis)
    return values


def centred_axes(equation: Equation) -> tuple[bool, ...]:
    """For each axis, whether its middle must stay where it is: there are walls, or a forcing that depends on the place.

    Walls of fixed values are an exception: where they are is measured (`ups.data.walls`).
    """
    if equation.boundary == "dirichlet":
        return (False,) * equation.dim
    moved = equation.axes_with("translation")
    return tuple(not (periodic and axis in moved) for axis, periodic in enumerate(equation.periodic))


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of cell centres, one increasing and uniform coordinate array per axis.

    Two grids are equal when their coordinates and periodicities are, bit for bit; `matches` allows for rounding.

    Args:
        axes: coordinates of each axis, float64.
        periodic: for each axis whether the last cell neighbours the first.

    Raises:
        DataError: an axis that is not increasing and uniform.
    """

    axes: tuple[np.ndarray, ...]
    periodic: tuple[bool, ...]
    spacing: tuple[float, ...] = field(init=False)
    """Distance between neighbouring cell centres along each axis."""

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.periodic):
            raise DataError(f"a grid of {len(self.axes)} axes needs as many periodicities, not {len(self.periodic)}")
        frozen = tuple(np.array(axis, dtype=np.float64) for axis in self.axes)
        for axis in frozen:
            axis.setflags(write=False)
        object.__setattr__(self, "axes", frozen)
        spacing = tuple(uniform_spacing(axis, f"axis {name}") for axis, name in zip(frozen, "xyz", strict=False))
        object.__setattr__(self, "spacing", spacing)

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def dim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def lengths(self) -> tuple[float, ...]:
        """Extent of each axis between its outermost cell faces: the period where periodic."""
        return tuple(len(axis) * step for axis, step in zip(self.axes, self.spacing, strict=True))

    @property
    def cell_volume(self) -> float:
        """Volume (length, area) of one cell."""
        return math.prod(self.spacing)

    def points(self) -> Float64[np.ndarray, "point dim"]:
        """Coordinates of every cell centre, the last axis varying fastest."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1).reshape(-1, self.dim)

    def subsample(self, every: Sequence[int], centred: Sequence[bool]) -> Grid:
        """The grid of what `thin` leaves of fields."""
        axes = (thin(axis, [k], [middle]) for axis, k, middle in zip(self.axes, every, centred, strict=True))
        return Grid(tuple(axes), self.periodic)

    def matches(self, other: Grid) -> bool:
        """Whether the other grid is this one up to the rounding of float32 coordinates."""
        return (
            self.shape == other.shape
            and self.periodic == other.periodic
            and all(
                np.allclose(mine, theirs, rtol=1e-5, atol=UNIFORM_TOLERANCE * step)
                for mine, theirs, step in zip(self.axes, other.axes, self.spacing, strict=True)
            )
        )

    @cached_property
    def _digest(self) -> bytes:
        digest = hashlib.blake2b(repr((self.shape, self.periodic)).encode(), digest_size=16)
        for axis in self.axes:
            digest.update(axis.tobytes())
        return digest.digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


@dataclass(frozen=True, eq=False)
class Points:
    """A set of points without order, such as the queries of a decoder.

    Args:
        coordinates: one row per point, in the grid's unit.
    """

    coordinates: Float64[np.ndarray, "point dim"]

    @property
    def num(self) -> int:
        """How many points."""
        return len(self.coordinates)


@dataclass
class Batch:
    """Windows of one task, in physical units: `context` true frames followed by the frames to predict.

    Args:
        task: name of the equation.
        frames: context and targets in order. Where `latents` stand for them they have a shape and no values: they are
            on PyTorch's `meta` device, so that whoever computes with them fails.
        dt: time between frames of each sample.
        params: PDE parameters in the order of the equation's description; it may have no columns.
        grid: where the values live.
        context: how many of the frames are given.
        latents: of the frames by a frozen codec, as a cache keeps them (in half precision, maybe); None where there are
            frames.
    """

    task: str
    frames: Float[Tensor, "batch time channel *grid"]
    dt: Float[Tensor, " batch"]
    params: Float[Tensor, "batch parameter"]
    grid: Grid
    context: int
    latents: Float[Tensor, "batch time latent *tokens"] | None = None

    @property
    def inputs(self) -> Float[Tensor, "batch context channel *grid"]:
        """The frames a prediction starts from."""
        return self.frames[:, : self.context]

    @property
    def targets(self) -> Float[Tensor, "batch horizon channel *grid"]:
        """The frames to predict."""
        return self.frames[:, self.context :]

    @property
    def horizon(self) -> int:
        """How many frames there are to predict."""
        return self.frames.shape[1] - self.context

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device (asynchronously from pinned memory); itself when it is there already."""
        values = "frames" if self.latents is None else "latents"
        if getattr(self, values).device == torch.device(device):
            return self
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in (values, "dt", "params")}
        return replace(self, **moved)
