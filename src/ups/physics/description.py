"""What is said of an equation: the types that the descriptions are written in.

The descriptions themselves stand in one module per family of equations and are gathered in
:mod:`ups.physics.equations`. Everything else (generation, losses, metrics, augmentation, plots) asks them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Boundary = Literal["periodic", "neumann", "dirichlet"]
Form = Literal["flux", "flux_open", "flux_source", "increment"]
RightHandSide = Callable[[Tensor, Tensor, tuple[float, ...]], Tensor]
InitialCondition = Callable[[int, tuple[Tensor, ...], Tensor, torch.Generator], Tensor]
ExactSolution = Callable[[int, tuple[Tensor, ...], Tensor, Tensor, torch.Generator], Tensor]
Forcing = Callable[[tuple[Tensor, ...]], Tensor]
Derive = Callable[[Tensor, tuple[float, ...]], Tensor]
Report = Callable[[float], None]


@dataclass(frozen=True)
class Field:
    """One unknown of an equation.

    Args:
        name: as in the data's layout.
        unit: of its values; "1" is dimensionless.
        conserved: whether its integral over the domain never changes.
        lower: bound that the exact solution keeps, if any.
        upper: bound that the exact solution keeps, if any.
        parity: sign it takes under a reflection x -> -x, +1 or -1.
        coefficient: whether it is positive, multiplies derivatives, and may jump from cell to cell.
    """

    name: str
    unit: str = "1"
    conserved: bool = False
    lower: float | None = None
    upper: float | None = None
    parity: int = 1
    coefficient: bool = False


@dataclass(frozen=True)
class Parameter:
    """One coefficient of an equation.

    Args:
        name: what settings and `params` call it.
        keys: what attributes and file names call it; the first is written.
        default: value where none is given.
        scale: whether models had better see its logarithm.
        lower: least value that is accepted.
        upper: greatest value that is accepted.
        optional: whether a data file may leave it out.
    """

    name: str
    keys: tuple[str, ...]
    default: float
    scale: Literal["log", "linear"] = "log"
    lower: float = 0.0
    upper: float = math.inf
    optional: bool = False


@dataclass(frozen=True)
class Motion:
    """A transformation of a periodic domain that can be repeated: u(x) -> ± u(where x comes from).

    Args:
        mirrored: whether each axis is mirrored, x -> -x; the fields take their parity for every axis that is.
        shift: how far each axis is moved, in shares of its period. An axis is mirrored or moved, not both.
        order: repetitions after which everything is where it was.
    """

    mirrored: tuple[bool, ...]
    shift: tuple[Fraction, ...]
    order: int

    def __post_init__(self) -> None:
        if any(flipped and share for flipped, share in zip(self.mirrored, self.shift, strict=True)):
            raise ValueError(f"an axis is mirrored or moved, not both: {self}")
        if any((self.order * share).denominator > 1 for share in self.shift) or (self.order % 2 and any(self.mirrored)):
            raise ValueError(f"{self.order} repetitions do not lead back: {self}")

    def every(self, grid: tuple[int, ...]) -> int:
        """Fewest repetitions that move a grid of so many cells along each axis by whole cells; divides the order."""
        return math.lcm(*((share * cells).denominator for share, cells in zip(self.shift, grid, strict=True)))


@runtime_checkable
class Solver(Protocol):
    """A reference solver: batched, float64, on any device."""

    def solve(
        self,
        u0: Float[Tensor, "batch channel *grid"],
        params: Float[Tensor, "batch parameter"],
        times: Float[Tensor, " time"],
        lengths: tuple[float, ...],
        report: Report,
    ) -> Float[Tensor, "batch time channel *grid"]:
        """Trajectories at `times`, the first of which is the time of `u0`.

        Args:
            u0: values at the cell centres.
            params: of each sample.
            times: increasing, in the equation's unit of time.
            lengths: extent of the domain along each axis.
            report: called with the share of the work done, from 0 to 1.
        """

    def refinement(self, resolution: int, params: tuple[float, ...]) -> int:
        """How many times finer than `resolution` to compute random states."""


@dataclass(frozen=True, kw_only=True)
class Equation:
    """One partial differential equation on one domain.

    Args:
        name: of the equation, and of the task of learning it.
        dim: axes of the domain.
        fields: the unknowns, in the order of the channels.
        given: of a steady problem the fields that it is posed by, as many as are sought; empty where there is time. Its
            trajectories have two frames: what is given, and what is sought.
        parameters: the coefficients, in the order of the columns of `params`.
        domain: bounds of each axis.
        boundary: condition at the bounds of every axis; "neumann" is no flow (zero slope).
        form: how a step changes the fields: by fluxes between cells ("flux"), by these and through open walls
            ("flux_open"), by these and a source everywhere ("flux_source"), or by any "increment".
        symmetries: transformations that map solutions to solutions: "translation", "reflection" (of any axis, with
            each field's parity), "rotation" (by a quarter turn, in two dimensions), "galilean" (u + c, moving at c:
            the one field is a velocity along the one axis). Where only one axis has the first or the second it is
            named: "translation x".
        motions: further symmetries, each of which may be repeated, and combined with all others.
        time: last time of the published data.
        frames: frames of the published data, the first included.
        resolution: cells along each axis of the published data.
        make_frames: frames made unless others are asked for, over `time`.
        make_resolution: cells along each axis made unless others are asked for.
        spin_up: time that a random state is solved for before the first frame, so that trajectories begin where the
            equation has forgotten it (on the attractor).
        solenoidal: names of the fields that are, axis by axis, the components of a vector without divergence; empty
            where there is none.
        boundary_value: of every field at Dirichlet walls, in the field's unit.
        forcing: (coordinates of each axis) -> (channel, *grid): source of each field per unit of time, which changes
            from place to place but not with time, and which the fields alone do not show; None where there is none.
        derived: names of fields that follow from the unknowns at the same time, as the velocity does from the
            vorticity: by what the unknowns are, not by how they change.
        derive: (u (batch, channel, *grid), spacing) -> (batch, derived, *grid); None where nothing is derived.
        rhs: (u (batch, channel, *grid), params (batch, parameter), spacing) -> du/dt of the shape of u, by central
            differences; None where the fields alone do not determine it.
        initial_condition: (num, coordinates of each axis, params (parameter), generator) -> (num, channel, *grid)
            float64, drawn as the published data was. The same generator gives the same states on any grid. This holds
            before the spin-up: a chaotic equation amplifies the difference of two grids until nothing is shared.
        exact: (num, coordinates, params, times, generator) -> (num, time, channel, *grid): solutions from these
            initial states in closed form, where there is one.
        solver: the reference solver; None where there is none yet.
    """

    name: str
    dim: int
    fields: tuple[Field, ...]
    parameters: tuple[Parameter, ...]
    domain: tuple[tuple[float, float], ...]
    boundary: Boundary
    form: Form
    symmetries: frozenset[str]
    time: float
    frames: int
    resolution: int
    make_frames: int
    make_resolution: int
    given: tuple[Field, ...] = ()
    motions: tuple[Motion, ...] = ()
    spin_up: float = 0.0
    solenoidal: tuple[str, ...] = ()
    boundary_value: float = 0.0
    forcing: Forcing | None = None
    derived: tuple[str, ...] = ()
    derive: Derive | None = None
    rhs: RightHandSide | None = None
    initial_condition: InitialCondition | None = None
    exact: ExactSolution | None = None
    solver: Solver | None = None

    def __post_init__(self) -> None:
        if self.given and len(self.given) != len(self.fields):
            raise ValueError(f"{self.name}: {len(self.given)} fields are given and {len(self.fields)} sought")
        if bool(self.derived) != (self.derive is not None):
            raise ValueError(f"{self.name}: derived fields need both their names and how they are derived")

    @property
    def steady(self) -> bool:
        """Whether there is no time: `fields` are sought from `given`."""
        return bool(self.given)

    @property
    def roles(self) -> tuple[tuple[Field, ...], ...]:
        """The channels of each kind of frame: of a steady problem's two, else of all frames alike."""
        return (self.given, self.fields) if self.given else (self.fields,)

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Whether each axis wraps around."""
        return (self.boundary == "periodic",) * self.dim

    @property
    def solenoidal_channels(self) -> tuple[int, ...]:
        """Channels of the vector without divergence, one per axis; empty where there is none."""
        names = [field.name for field in self.fields]
        return tuple(names.index(name) for name in self.solenoidal)

    @property
    def lengths(self) -> tuple[float, ...]:
        """Extent of the domain along each axis."""
        return tuple(high - low for low, high in self.domain)

    @property
    def has_solver(self) -> bool:
        """Whether there is a reference solver."""
        return self.solver is not None

    def axes_with(self, symmetry: str) -> tuple[int, ...]:
        """The axes that have a symmetry: "translation" or "reflection"."""
        everywhere = symmetry in self.symmetries
        return tuple(axis for axis in range(self.dim) if everywhere or f"{symmetry} {'xyz'[axis]}" in self.symmetries)

    def centres(self, resolution: int) -> tuple[Float[Tensor, " points"], ...]:
        """Coordinates of the centres of `resolution` cells along each axis, float64."""
        share = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
        return tuple(low + (high - low) * share for low, high in self.domain)

    def invariants(
        self,
        u: Float[Tensor, "batch channel *grid"],
        params: Float[Tensor, "batch parameter"],
        spacing: tuple[float, ...],
    ) -> dict[str, Float[Tensor, " batch"]]:
        """Integrals over the domain that the exact solution keeps, by name; empty where there is none.

        Args:
            u: fields in their units.
            params: coefficients of each sample.
            spacing: distance of the cell centres along each axis.
        """
        volume = math.prod(spacing)
        return {
            f"integral of {field.name}": u[:, channel].flatten(1).sum(dim=1) * volume
            for channel, field in enumerate(self.fields)
            if field.conserved
        }
