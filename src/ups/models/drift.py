"""How far fields move in a step where that depends on the equation's parameters, such as the speed of advection.

A motion by s cells turns every Fourier mode by exp(-2 pi i k s / n). Between two speeds a blend of two such turns is
none: it damps the mode, and wholly where they point in opposite directions. So the motion is told apart from the rest
of a step: its cells are read off each value's data, where the frames of a step match best (the peak of their
cross-correlation, which knows no wrap of phases), and taken as an affine function of the parameters,

    s(p) = s_0 + S p.

Where the data do not move like that - differently, each field in its own way, hardly, or not at all - s stays zero and
everything is blended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ups.models.modes import ModeTransform

VALUES = 64  # of the parameters, whose motions are measured, at most
LEAST = 0.05  # cells; a blend of turns that differ by less is as good as the turn between them
SURE = 0.1
"""Of the motions' spread over the values: what those of all fields together, and of each one alone, may miss the affine
function by, and the halves of the data differ by."""
WEAK = 1e-3  # of the energy of all fields' waves; one with less has no say in how they move
NEWTON_STEPS = 8  # from the best whole number of cells to the peak


class Drift(nn.Module):
    """Moves the Fourier modes of a periodic grid by s(p) cells along every axis; by none until `fit`.

    Args:
        transform: between the grid and its Fourier modes.
        varying: which columns of the (standardised) parameters vary.
    """

    cells: Tensor
    columns: Tensor

    def __init__(self, transform: ModeTransform, varying: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.axes = transform.shape, len(transform.shape)
        self.register_buffer("cells", torch.zeros(1 + len(varying), self.axes))  # s_0 above the rows of S
        self.register_buffer("columns", torch.tensor(tuple(varying), dtype=torch.long), persistent=False)

    def forward(
        self, modes: Shaped[Tensor, "batch channel *modes"], params: Float[Tensor, "batch parameter"]
    ) -> Shaped[Tensor, "batch channel *modes"]:
        """The modes of the fields s(p) cells further on; a Nyquist mode, which has no phase, moves by whole cells."""
        cells = with_one(params.index_select(1, self.columns)) @ self.cells.to(params.dtype)  # (batch, axis)
        angle = cells.new_zeros(len(cells), *[1] * self.axes)
        for axis, (size, waves) in enumerate(zip(self.shape, self._waves(cells), strict=True)):
            moved = torch.remainder(cells[:, axis], size).reshape(angle.shape[0], *[1] * self.axes)
            angle = angle - torch.where(2 * waves.abs() == size, moved.round(), moved) * waves * (2 * math.pi / size)
        return modes * torch.polar(torch.ones_like(angle), angle)[:, None]

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Measures the motion at every value of the parameters and keeps its affine part, if that explains it.

        Args:
            pairs: batches of fields (batch, channel, *grid), the same a step later, and (batch, parameter)
                standardised. What the first and second halves of all batches tell must agree.
        """
        dims = tuple(range(-self.axes, 0))
        found: dict[tuple[float, ...], Tensor] = {}
        for before, after, params in pairs:
            x, y = (torch.fft.rfftn(u.double(), dim=dims) for u in (before, after))
            cross, first = y * x.conj(), torch.arange(len(x), device=x.device) < len(x) // 2
            values = params.index_select(1, self.columns).double()
            for value in values.unique(dim=0):
                here, key = (values == value).all(1), tuple(value.tolist())
                if key in found or len(found) < VALUES:
                    halves = torch.stack([cross[here & half].sum(0) for half in (first, ~first)])
                    found[key] = found[key] + halves if key in found else halves
        if len(found) > len(self.columns):
            self._keep(torch.tensor(list(found), dtype=torch.float64), torch.stack(list(found.values())))

    def _keep(
        self, values: Float[Tensor, "value parameter"], spectra: Shaped[Tensor, "value half channel *modes"]
    ) -> None:
        """Fits s(p) to the motions at the values and keeps it, unless it misses them or there is hardly any.

        The motions are those of all fields together; the motion of each field by itself must not miss it either.
        """
        fields, known = spectra.sum(1), with_one(values)
        whole = self._peak(fields.sum(1))
        affine = _affine(known, whole)
        spread, missed, doubt = _rms(whole - whole.mean(0)), _rms(known @ affine - whole), self._doubt(known, spectra)
        if spread < LEAST or max(missed, doubt) > SURE * spread:
            return
        energy = fields.flatten(2)[..., 1:].abs().sum((0, 2))  # a field's mean does not move
        telling = energy > WEAK * energy.sum()
        if all(_rms(known @ affine - self._peak(field)) <= SURE * spread for field in fields[:, telling].unbind(1)):
            self.cells.copy_(affine)

    def _doubt(self, known: Float[Tensor, "value more"], spectra: Shaped[Tensor, "value half channel *modes"]) -> float:
        """By how many cells the halves of the data differ.

        They are compared value by value where most values are in both. Where each trajectory has a value of its own,
        hardly any is: then each half's own affine function is compared with the other's at all values. A half must hold
        more values than fix such a function, else nothing is certain.
        """
        halves, numbers = spectra.sum(2), known.shape[1]
        held = halves.flatten(2).abs().amax(2) > 0  # (value, half)
        both = held.all(1)
        if int(both.sum()) >= max(numbers, len(known) / 2):
            return _rms(self._peak(halves[both, 0]) - self._peak(halves[both, 1]))
        if int(held.sum(0).amin()) <= numbers:
            return math.inf
        first, second = (
            _affine(known[here], self._peak(half[here])) for here, half in zip(held.T, halves.unbind(1), strict=True)
        )
        return _rms(known @ (first - second))

    def _peak(self, cross: Shaped[Tensor, " value *modes"]) -> Float[Tensor, "value axis"]:
        """Where the cross-correlation Re sum_k C_k exp(2 pi i k s / n) of each value is largest, in cells.

        From the best whole number of cells by Newton's method.
        """
        dims = tuple(range(-self.axes, 0))
        best = torch.fft.irfftn(cross, s=self.shape, dim=dims).flatten(1).argmax(1)
        places = zip(torch.unravel_index(best, self.shape), self.shape, strict=True)
        cells = torch.stack([at - size * (2 * at >= size) for at, size in places], dim=1).double()
        waves = torch.broadcast_tensors(*self._waves(cells))
        k = torch.stack([w * (2 * math.pi / size) for w, size in zip(waves, self.shape, strict=True)]).flatten(1)
        energy = cross.flatten(1) * (k.abs() < math.pi - 1e-9).all(0)
        energy = energy / energy.abs().sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        for _ in range(NEWTON_STEPS):
            here = energy * torch.polar(torch.ones_like(energy.real), cells @ k)
            slope = -torch.einsum("vk,ak->va", here.imag, k)
            bend = torch.einsum("vk,ak,bk->vab", here.real, k, k)
            step = torch.linalg.solve(bend + 1e-12 * torch.eye(self.axes, dtype=bend.dtype), slope)
            cells = cells + step.clamp(-0.5, 0.5)
        return cells

    def _waves(self, like: Tensor) -> list[Tensor]:
        """Signed whole wavenumbers along each axis, shaped to broadcast over the modes of a real FFT."""
        found = []
        for axis, size in enumerate(self.shape):
            frequency = torch.fft.rfftfreq if axis == self.axes - 1 else torch.fft.fftfreq
            waves = frequency(size, 1 / size, dtype=like.dtype, device=like.device)
            found.append(waves.reshape([-1 if other == axis else 1 for other in range(self.axes)]))
        return found


def with_one(values: Float[Tensor, "value parameter"]) -> Float[Tensor, "value more"]:
    """The values after a column of ones."""
    return torch.cat([torch.ones_like(values[:, :1]), values], dim=1)


def _affine(known: Float[Tensor, "value more"], motions: Float[Tensor, "value axis"]) -> Float[Tensor, "more axis"]:
    """s_0 above the rows of S that come closest to the motions."""
    solution: Tensor = torch.linalg.lstsq(known, motions, driver="gelsd").solution
    return solution


def _rms(motions: Float[Tensor, "value axis"]) -> float:
    return float(motions.square().sum(1).mean().sqrt())
