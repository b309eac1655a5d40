"""Guards: projections of a predicted frame onto what the physics keeps exactly.

Each is the identity on a frame that keeps it already, and differentiable. They run in this order, in float64:

* divergence: the Leray projection u - grad lap^-1 div u of the vector that has no divergence, in Fourier space on
  periodic grids. (Canuto et al. 2007, Spectral Methods, section 3.3.)
* boundary: the least change of the three cells next to a wall that meets the condition there. At Neumann walls it
  leaves the integral as it is. On a grid that hardly resolves a field the exact solution's own discrete slope is not
  zero: there this guard is a change for the worse.
* positivity: fields are clamped to their bounds, and what the clamp added or took is taken from or given to all cells
  in proportion to their distance from the bound, so that no cell leaves it and the integral stays.
* conservation: the integral of every conserved field is brought back to that of the frame before, by a constant, or
  in proportion to the distance from the bounds where there are any.

Bounds and integrals have the last word: a clamped cell beside a wall may miss the boundary condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ups.errors import UpsError, UsageError
from ups.physics.description import Boundary, Equation, Field
from ups.physics.equations import get_equation
from ups.physics.operators import WALL_CELLS, WALL_SLOPE, WALL_VALUE, wall_stencil, wave_numbers

Projection = Callable[[Tensor, Tensor], Tensor]
"""(frame, frame before it) -> frame, both (batch, channel, *grid) float64 in physical units."""
GUARDS = ("conservation", "positivity", "divergence", "boundary")
"""Their names, as settings and roll-outs give them."""

ONE = 2**32  # a unit in the last place, as rounding counts it


class Guards:
    """The guards of one task, applied one after the other; `Guards.none` leaves frames as they are.

    Args:
        projections: in the order in which they are applied.
    """

    none: ClassVar[Guards]

    def __init__(self, projections: Sequence[Projection] = ()) -> None:
        self.projections = tuple(projections)

    @classmethod
    def of(
        cls,
        task: str | Equation,
        *,
        conservation: bool = False,
        positivity: bool = False,
        divergence: bool = False,
        boundary: bool = False,
        lengths: tuple[float, ...] | None = None,
    ) -> Guards:
        """The guards of a task by its name, or of an equation by its description.

        Args:
            lengths: extent of the domain along each axis; None takes the equation's.

        Raises:
            UpsError: a guard is asked for that the equation has nothing for.
        """
        equation = get_equation(task) if isinstance(task, str) else task
        projections: list[Projection] = []
        if divergence:
            if not equation.solenoidal:
                raise _nothing(equation, "divergence", "its description names no fields that form a solenoidal vector")
            if not all(equation.periodic):
                raise _nothing(equation, "divergence", "the projection needs a periodic domain, and this one has walls")
            projections.append(Leray(equation.solenoidal_channels, lengths or equation.lengths))
        if boundary:
            if equation.boundary == "periodic":
                raise _nothing(equation, "boundary", "its domain is periodic and has no walls")
            if equation.boundary == "dirichlet" and conservation:
                raise UsageError(
                    f"guards.conservation and guards.boundary contradict each other for {equation.name}: what restores "
                    "the integral would move the values at its walls; ask for one of them"
                )
            projections.append(Walls(equation.boundary, equation.boundary_value))
        if positivity and not any(_bounded(field) for field in equation.fields):
            raise _nothing(equation, "positivity", "its description gives no field a bound")
        if conservation and not any(field.conserved for field in equation.fields):
            raise _nothing(equation, "conservation", "it conserves the integral of no field")
        if positivity or conservation:
            projections.append(Integrals(equation.fields, positivity, conservation))
        return cls(projections)

    @property
    def active(self) -> bool:
        """Whether they may change a frame at all."""
        return bool(self.projections)

    def __call__(
        self, u_next: Float[Tensor, "batch channel *grid"], u_before: Float[Tensor, "batch channel *grid"]
    ) -> Float[Tensor, "batch channel *grid"]:
        """`u_next`, projected; in its own precision.

        Args:
            u_next: predicted fields, in physical units.
            u_before: the frame before it, or any other whose integrals are to be kept.
        """
        if not self.active:
            return u_next
        u, before = u_next.double(), u_before.double()
        for projection in self.projections:
            u = projection(u, before)
        return round_evenly(u, u_next.dtype)


Guards.none = Guards()


def _nothing(equation: Equation, guard: str, reason: str) -> UsageError:
    return UsageError(f"guards.{guard}: there is nothing for it in {equation.name}: {reason}; leave it out")


def _bounded(field: Field) -> bool:
    return field.lower is not None or field.upper is not None


def round_evenly(u: Float[Tensor, "batch channel *grid"], dtype: torch.dtype) -> Float[Tensor, "batch channel *grid"]:
    """Rounds float64 values to `dtype` such that the mean over the grid does not drift.

    A constant added to values of one binade is rounded alike in every cell: the error does not average out, and a
    roll-out adds it up. Here what a cell loses is handed on to the next, and each rounds up or down by what is due
    (error diffusion): the sum of values of one binade is off by at most half a unit in the last place. Values that
    need no rounding stay. The sums are of whole numbers, hence the same on every device.
    """
    if dtype == torch.float64:
        return u
    exact = u.detach()
    nearest = exact.to(dtype)
    above = torch.full_like(nearest, torch.inf)
    floor = torch.where(nearest.double() > exact, torch.nextafter(nearest, -above), nearest)
    ceiling = torch.nextafter(floor, above)
    share = ((exact - floor.double()) / (ceiling.double() - floor.double()) * ONE).long()
    due = share.flatten(2).cumsum(2).reshape(share.shape) + ONE // 2
    rounded = torch.where(due // ONE > (due - share) // ONE, ceiling, floor)
    return u.to(dtype) + (rounded - nearest)


@dataclass(frozen=True)
class Leray:
    """Takes the divergence out of a vector on a periodic grid: u_k - k (k . u_k) / |k|² for every mode k.

    Nyquist modes count as constant along their axis, as they do in `operators.divergence`.

    Args:
        channels: of its components, one per axis.
        lengths: period of each axis.
    """

    channels: tuple[int, ...]
    lengths: tuple[float, ...]

    def __call__(self, u: Tensor, before: Tensor) -> Tensor:
        shape = u.shape[2:]
        dims = tuple(range(2, u.ndim))
        waves = torch.stack(
            torch.meshgrid(
                *(
                    wave_numbers(cells, length, half=axis == len(shape) - 1, like=u)
                    for axis, (cells, length) in enumerate(zip(shape, self.lengths, strict=True))
                ),
                indexing="ij",
            )
        )
        square = waves.square().sum(0)
        direction = waves / torch.where(square > 0, square, torch.ones_like(square)).sqrt()
        modes = torch.fft.rfftn(u[:, list(self.channels)], dim=dims)
        along = (direction * modes).sum(1, keepdim=True)
        vector = torch.fft.irfftn(modes - direction * along, s=shape, dim=dims)
        place = torch.tensor(self.channels, device=u.device)
        return u.index_copy(1, place, vector)


@dataclass(frozen=True)
class Walls:
    """Meets a boundary condition at both ends of every axis by the least change of the cells beside them.

    With a the stencil of the condition a . u = g, u + a (g - a . u) / |a|²; the axes do not disturb one another.

    Args:
        condition: `neumann` or `dirichlet`.
        value: g at Dirichlet walls.
    """

    condition: Boundary
    value: float

    def __call__(self, u: Tensor, before: Tensor) -> Tensor:
        weights, wanted = (WALL_SLOPE, 0.0) if self.condition == "neumann" else (WALL_VALUE, self.value)
        square = sum(weight**2 for weight in weights)
        for dim in range(2, u.ndim):
            cells = u.shape[dim]
            if cells < 2 * WALL_CELLS:
                raise UpsError(f"guards.boundary needs {2 * WALL_CELLS} cells along every axis, not {cells}")
            shape = [-1 if other == dim else 1 for other in range(u.ndim)]
            for high in (False, True):
                miss = (wanted - wall_stencil(u, dim, weights, high)) / square
                stencil = u.new_zeros(cells)
                stencil[:WALL_CELLS] = u.new_tensor(weights)
                u = u + (stencil.flip(0) if high else stencil).reshape(shape) * miss.unsqueeze(dim)
        return u


@dataclass(frozen=True)
class Integrals:
    """Keeps fields within their bounds, and their integrals as they were.

    Args:
        fields: in the order of the channels.
        positivity: clamp to the bounds; the mean stays that of the frame, or the nearest that the bounds allow.
        conservation: the mean of conserved fields becomes that of the frame before.
    """

    fields: tuple[Field, ...]
    positivity: bool
    conservation: bool

    def __call__(self, u: Tensor, before: Tensor) -> Tensor:
        channels = (self._channel(u[:, i], before[:, i], field) for i, field in enumerate(self.fields))
        return torch.stack(list(channels), dim=1)

    def _channel(self, u: Tensor, before: Tensor, field: Field) -> Tensor:
        conserves, clamps = self.conservation and field.conserved, self.positivity and _bounded(field)
        if not (conserves or clamps):
            return u
        wanted = _mean(before if conserves else u)
        if clamps:
            wanted = wanted.clamp(field.lower, field.upper)
            u = torch.where(u.isfinite(), u.clamp(field.lower, field.upper), u)  # what has blown up is not hidden
        return bring_mean(u, wanted, field.lower, field.upper)


def bring_mean(
    u: Float[Tensor, " batch *grid"], wanted: Float[Tensor, " batch *ones"], lower: float | None, upper: float | None
) -> Float[Tensor, " batch *grid"]:
    """`u` with the mean `wanted`, all cells within the bounds if they were.

    Where there is a bound ahead (or no other than the one behind), every cell's distance from it changes by the same
    factor. A constant is added to fields without bounds, to samples that are beyond theirs, and to those that lie on
    the bound everywhere.

    Args:
        wanted: mean of each sample, of shape (batch, 1, ...).
    """
    mean = _mean(u)
    change = wanted - mean
    if lower is None and upper is None:
        return u + change
    low, high = (u.new_tensor(bound) for bound in (lower or 0.0, upper or 0.0))
    ahead = torch.full_like(mean, lower is None, dtype=torch.bool) if lower is None or upper is None else change > 0
    anchor = torch.where(ahead, high, low)
    inside = (u == u.clamp(lower, upper)).flatten(1).all(dim=1).reshape(mean.shape)
    scales = inside & (mean != anchor) & ((mean - anchor) * (wanted - anchor) >= 0)
    gap = torch.where(scales, mean - anchor, torch.ones_like(mean))
    return u + torch.where(scales, (u - anchor) / gap, torch.ones_like(u)) * change


def _mean(u: Tensor) -> Tensor:
    """Mean over the grid of (batch, *grid), kept as axes of one cell."""
    return u.mean(dim=tuple(range(1, u.ndim)), keepdim=True)
