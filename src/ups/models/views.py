"""The ways to see a field that its equation's symmetries leave open, one after another over a roll-out.

A network that learned from moved and mirrored frames treats no two of them quite alike: its error depends on how a
field lies. Steps that each see the field in another way err in other directions, and errors that would add up average
out, at no cost; the mean over several views of a step comes closer to the part of the network that does have the
symmetry (frame averaging: Puny et al. 2022, arXiv:2110.03336).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ups.models.emulator import TaskSpec
from ups.physics.description import Motion
from ups.physics.equations import EQUATIONS

STRIDES = (0.618, 0.755, 0.819)
"""Shares of a period, per axis, that successive views are moved by; their multiples fill a period evenly."""


@dataclass(frozen=True)
class View:
    """One way to see a field: its two axes swapped or not, then axes mirrored, then moved.

    Args:
        swapped: whether the axes change places.
        mirrored: axes that are.
        shift: cells that each axis is moved by, towards higher indices.
        odd: whether fields of odd parity change their sign.
    """

    swapped: bool
    mirrored: tuple[int, ...]
    shift: tuple[int, ...]
    odd: bool


Seen = View | tuple[View, ...]
"""One view of all fields, or one for each member of an ensemble, whose samples follow each other in a batch."""

PLAIN = View(False, (), (), False)
"""The field as it is."""


class Views(nn.Module):
    """The views of a task's normalised fields, in an order in which each differs from the one before as it can.

    The mirrored, swapped and otherwise repeated ones (`Equation.symmetries`, `Equation.motions`) come in pairs of
    opposites, all of them before any comes again; each is moved along the periodic axes by other numbers of cells.
    The first is the field as it is; a task of no known equation has that alone.

    Args:
        static: the fields of the task that do not change. Motions that change them, as they do on a grid whose cells
            they do not map to cells, are left out.

    Attributes:
        number: of views that do not differ by a translation alone.
        distinct: of all before the first comes again, moved as it was.
        unit: cells that views are moved by a multiple of (`keep_tokens`).
    """

    odd: Tensor
    middle: Tensor

    def __init__(self, spec: TaskSpec, static: Float[Tensor, " static *grid"]) -> None:
        super().__init__()
        self.lattice, known = spec.lattice, EQUATIONS.get(spec.name)
        shape = (-1, *[1] * spec.axes)
        parity = torch.tensor([field.parity for field in known.fields] if known else [1] * len(spec.fields))
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.has_odd = bool((parity < 0).any())
        self.register_buffer("odd", (parity < 0).reshape(shape), persistent=False)
        self.register_buffer("middle", (mean / std).reshape(shape), persistent=False)
        self.moved = tuple(axis for axis in known.axes_with("translation") if spec.periodic[axis]) if known else ()
        self.mirrors = known.axes_with("reflection") if known else ()
        square = len(set(spec.lattice)) == 1 and math.isclose(min(spec.spacing), max(spec.spacing), rel_tol=1e-3)
        self.swaps = known is not None and "rotation" in known.symmetries and spec.axes == 2 and square
        motions = [(motion, motion.every(spec.lattice)) for motion in known.motions] if known else []
        self.motions = [(motion, every) for motion, every in motions if self._keeps(static, motion, every)]
        self.keep_tokens(1)

    def keep_tokens(self, unit: int) -> None:
        """Moves fields by whole tokens of so many cells alone, motions included; each axis holds some of them.

        A lossy codec leaves traces of its tokens in the fields, which its operator was never shown elsewhere.
        """
        self.unit, tokens = unit, tuple(size // unit for size in self.lattice)
        self.strides = [_stride(tokens[axis], share) for axis, share in zip(self.moved, STRIDES, strict=False)]
        self.motions = [(motion, math.lcm(every, motion.every(tokens))) for motion, every in self.motions]
        orders = [motion.order // every for motion, every in self.motions]
        self.orders = [2] * (len(self.mirrors) + self.swaps) + orders
        self.number = math.prod(self.orders)
        places = math.lcm(*(tokens[axis] for axis in self.moved))
        self.distinct = self.number * places
        self.more = next(more for more in range(places) if math.gcd(self.number + more, places) == 1)
        # Moves between two of a kind, so that each kind visits every place.

    def _keeps(self, static: Tensor, motion: Motion, every: int) -> bool:
        """Whether the fields that do not change look the same after a motion."""
        flips, shift = self._moved_by(motion, every)
        view = View(False, tuple(axis for axis, times in enumerate(flips) if times % 2), shift, sum(flips) % 2 == 1)
        return not len(static) or torch.allclose(self.see(static, view, change=True), static, atol=1e-3)

    def _moved_by(self, motion: Motion, times: int) -> tuple[list[int], tuple[int, ...]]:
        """How often a motion so many times mirrors each axis, and by how many cells it moves it."""
        shift = tuple(int(times * share * size) for share, size in zip(motion.shift, self.lattice, strict=True))
        return [mirrored * times for mirrored in motion.mirrored], shift

    def at(self, index: int) -> View:
        """The view of a place in the order, which never ends."""
        turn, place = divmod(index, self.number)
        left = self.number - 1 - place // 2 if place % 2 else place // 2  # first and last are opposites, and so on
        times = []
        for order in self.orders:
            left, digit = divmod(left, order)
            times.append(digit)
        flips, shift = [0] * len(self.lattice), [0] * len(self.lattice)
        for axis, digit in zip(self.mirrors, times, strict=False):
            flips[axis] += digit
        step = index + turn * self.more
        for axis, stride in zip(self.moved, self.strides, strict=False):
            shift[axis] += step * stride * self.unit
        for (motion, every), digit in zip(self.motions, times[len(times) - len(self.motions) :], strict=True):
            mirrored, cells = self._moved_by(motion, every * digit)
            flips = [sum(pair) for pair in zip(flips, mirrored, strict=True)]
            shift = [sum(pair) for pair in zip(shift, cells, strict=True)]
        return View(
            swapped=self.swaps and times[len(self.mirrors)] == 1,
            mirrored=tuple(axis for axis, number in enumerate(flips) if number % 2),
            shift=tuple(cells % size for cells, size in zip(shift, self.lattice, strict=True)),
            odd=sum(flips) % 2 == 1,
        )

    def of_step(self, number: int, count: int) -> tuple[View, int]:
        """How a roll-out's step after `number` others sees the fields, and of how many views of that it is the mean.

        These are at most as many as there are.
        """
        count = min(count, self.distinct)
        return self.at(number * count), count

    def see(
        self, u_hat: Float[Tensor, "*batch channel *grid"], view: Seen, *, change: bool = False
    ) -> Float[Tensor, "*batch channel *grid"]:
        """Normalised fields as a view shows them; or, with `change`, differences of such fields."""
        if isinstance(view, tuple):
            parts = zip(u_hat.chunk(len(view)), view, strict=True)
            return torch.cat([self.see(part, one, change=change) for part, one in parts])
        first = u_hat.ndim - len(self.lattice)
        if view.swapped:
            u_hat = u_hat.mT
        u_hat = self._mirror(u_hat, view, first, change)
        return u_hat.roll(view.shift, tuple(range(first, u_hat.ndim))) if any(view.shift) else u_hat

    def back(
        self, u_hat: Float[Tensor, "*batch channel *grid"], view: Seen, *, change: bool = False
    ) -> Float[Tensor, "*batch channel *grid"]:
        """What `see` shows so."""
        if isinstance(view, tuple):
            parts = zip(u_hat.chunk(len(view)), view, strict=True)
            return torch.cat([self.back(part, one, change=change) for part, one in parts])
        first = u_hat.ndim - len(self.lattice)
        if any(view.shift):
            u_hat = u_hat.roll([-cells for cells in view.shift], tuple(range(first, u_hat.ndim)))
        u_hat = self._mirror(u_hat, view, first, change)
        return u_hat.mT if view.swapped else u_hat

    def _mirror(self, u_hat: Tensor, view: View, first: int, change: bool) -> Tensor:
        if view.mirrored:
            u_hat = u_hat.flip([first + axis for axis in view.mirrored])
        if view.odd and self.has_odd:  # u -> -u, of u in the field's units
            turned = -u_hat if change else -u_hat - 2 * self.middle
            u_hat = torch.where(self.odd, turned, u_hat)
        return u_hat


def _stride(size: int, share: float) -> int:
    """A share of a period in cells, such that its multiples visit every cell."""
    stride = max(1, int(size * share))
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride
