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


PLAIN = View(False, (), (), False)
"""The field as it is."""


class Views(nn.Module):
    """The views of a task's normalised fields, in an order in which each differs from the one before as it can.

    The mirrored, swapped and otherwise repeated ones (`Equation.symmetries`, `Equation.motions`) come in pairs of
    opposites, all of them before any comes again; each is moved along the periodic axes by other numbers of cells.
    The first is the field as it is; a task of no known equation has that alone.
    """

    odd: Tensor
    middle: Tensor

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__()
        self.lattice, known = spec.lattice, EQUATIONS.get(spec.name)
        symmetries = known.symmetries if known else ()
        self.moved = tuple(axis for axis in known.axes_with("translation") if spec.periodic[axis]) if known else ()
        self.mirrors, self.motions = (known.axes_with("reflection"), known.motions) if known else ((), ())
        self.swaps = "rotation" in symmetries and spec.axes == 2 and len(set(spec.lattice)) == 1
        self.every = [motion.every(spec.lattice) for motion in self.motions]
        orders = [motion.order // every for motion, every in zip(self.motions, self.every, strict=True)]
        self.orders = [2] * (len(self.mirrors) + self.swaps) + orders
        self.number = math.prod(self.orders)
        """Of views that do not differ by a translation alone."""
        shape = (-1, *[1] * spec.axes)
        parity = torch.tensor([field.parity for field in known.fields] if known else [1] * len(spec.fields))
        mean, std = torch.tensor(spec.mean), torch.tensor(spec.std)
        self.has_odd = bool((parity < 0).any())
        self.register_buffer("odd", (parity < 0).reshape(shape), persistent=False)
        self.register_buffer("middle", (mean / std).reshape(shape), persistent=False)

    def __getitem__(self, index: int) -> View:
        """The view of a place in the order, which never ends."""
        turn, place = divmod(index, self.number)
        left = self.number - 1 - place // 2 if place % 2 else place // 2  # first and last are opposites, and so on
        times = []
        for order in self.orders:
            left, digit = divmod(left, order)
            times.append(digit)
        flips, shift = [0] * len(self.lattice), self._moves(index + turn)
        for axis, digit in zip(self.mirrors, times, strict=False):
            flips[axis] += digit
        for motion, every, digit in zip(self.motions, self.every, times[len(times) - len(self.every) :], strict=True):
            for axis, (mirrored, share) in enumerate(zip(motion.mirrored, motion.shift, strict=True)):
                flips[axis] += mirrored * every * digit
                shift[axis] += int(every * digit * share * self.lattice[axis])
        return View(
            swapped=self.swaps and times[len(self.mirrors)] == 1,
            mirrored=tuple(axis for axis, number in enumerate(flips) if number % 2),
            shift=tuple(cells % size for cells, size in zip(shift, self.lattice, strict=True)),
            odd=sum(flips) % 2 == 1,
        )

    def _moves(self, index: int) -> list[int]:
        """Cells that each axis is moved by; odd strides visit every remainder of a token's width."""
        cells = [0] * len(self.lattice)
        for axis, stride in zip(self.moved, STRIDES, strict=False):
            cells[axis] = index * (int(self.lattice[axis] * stride) | 1)
        return cells

    def see(
        self, u_hat: Float[Tensor, "*batch channel *grid"], view: View, *, change: bool = False
    ) -> Float[Tensor, "*batch channel *grid"]:
        """Normalised fields as a view shows them; or, with `change`, differences of such fields."""
        first = u_hat.ndim - len(self.lattice)
        if view.swapped:
            u_hat = u_hat.mT
        u_hat = self._mirror(u_hat, view, first, change)
        return u_hat.roll(view.shift, tuple(range(first, u_hat.ndim))) if any(view.shift) else u_hat

    def back(
        self, u_hat: Float[Tensor, "*batch channel *grid"], view: View, *, change: bool = False
    ) -> Float[Tensor, "*batch channel *grid"]:
        """What `see` shows so."""
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
