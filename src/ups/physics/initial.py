"""Random initial states as the published data has them (M. Takamoto et al., PDEBench, NeurIPS 2022, appendix D).

States are functions of the coordinates, drawn before any grid is chosen: the same draw can be evaluated on any grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_WAVE_NUMBERS = 4  # of the waves that are drawn from
_WAVES = 2  # that are drawn
_FOLDED = _WINDOWED = 0.1  # probabilities of taking the absolute value, and of a window
_EDGE = 0.01  # width of the edges of a window, in periods
_PEAK_POINTS = 4096  # that the maximum of a state is sought on


@dataclass(frozen=True)
class RandomWaves:
    """Sums of sines on the unit period, some of them folded (absolute value), some of them windowed; signs at random.

    u(x) = s w(x) f(sum_k A_k sin(2 pi n_k x + phi_k)), with A in [0, 1] and phi in [0, 2 pi). Two of the wave numbers
    1 to 4 are drawn with replacement; one that is drawn twice counts double. Those not drawn keep their term with
    n = 0: an offset, so that the mean of a state is not zero.

    Args:
        amplitude, wavenumber, phase: (num, wave).
        sign: s, +1 or -1, (num, 1).
        folded: whether f is the absolute value, (num, 1).
        windowed: whether there is a window w, (num, 1).
        window: bounds of the window, (num, 2).
    """

    amplitude: Float[Tensor, "num wave"]
    wavenumber: Float[Tensor, "num wave"]
    phase: Float[Tensor, "num wave"]
    sign: Float[Tensor, "num 1"]
    folded: Tensor
    windowed: Tensor
    window: Float[Tensor, "num 2"]

    @classmethod
    def draw(cls, num: int, generator: torch.Generator) -> RandomWaves:
        """Draw `num` states."""

        def uniform(columns: int) -> Tensor:
            return torch.rand(num, columns, dtype=torch.float64, generator=generator)

        drawn = torch.nn.functional.one_hot((uniform(_WAVES) * _WAVE_NUMBERS).long(), _WAVE_NUMBERS).sum(dim=1)
        return cls(
            amplitude=uniform(_WAVE_NUMBERS),
            wavenumber=drawn * torch.arange(1, _WAVE_NUMBERS + 1, dtype=torch.float64),
            phase=2 * math.pi * uniform(_WAVE_NUMBERS),
            sign=torch.where(uniform(1) < 0.5, -1.0, 1.0).double(),
            folded=uniform(1) < _FOLDED,
            windowed=uniform(1) < _WINDOWED,
            window=torch.tensor([0.1, 0.55], dtype=torch.float64) + 0.35 * uniform(2),
        )

    def __call__(self, x: Float[Tensor, " points"]) -> Float[Tensor, "num points"]:
        """Values at coordinates `x`, in periods; any real number."""
        angle = 2 * math.pi * self.wavenumber[..., None] * x + self.phase[..., None]
        u = (self.amplitude[..., None] * torch.sin(angle)).sum(dim=1)
        u = torch.where(self.folded, u.abs(), u) * self.sign
        share = x - x.floor()
        left, right = (torch.tanh((share - edge) / _EDGE) for edge in self.window.split(1, dim=1))
        return torch.where(self.windowed, u * (left - right) / 2, u)


def random_waves(num: int, x: Float[Tensor, " points"], generator: torch.Generator) -> Float[Tensor, "num 1 points"]:
    """States of one field on the unit period: sums of sines, some folded, some windowed."""
    return RandomWaves.draw(num, generator)(x)[:, None]


def random_waves_in_unit_range(
    num: int, x: Float[Tensor, " points"], generator: torch.Generator
) -> Float[Tensor, "num 1 points"]:
    """Absolute values of such states over their maximum: they lie between 0 and 1."""
    waves = RandomWaves.draw(num, generator)
    everywhere = torch.arange(_PEAK_POINTS, dtype=torch.float64) / _PEAK_POINTS
    peak = waves(everywhere).abs().amax(dim=1, keepdim=True)
    return (waves(x).abs() / peak).clamp(max=1)[:, None]  # a peak between those points exceeds 1 by less than 1e-5


def random_modes(
    num: int, axes: tuple[Float[Tensor, " _"], ...], cycles: int, generator: torch.Generator
) -> Float[Tensor, "num 1 *grid"]:
    """Smooth states without a mean: all waves of up to so many cycles along each axis, of equal variance.

    u(x) = sum_k a_k cos(2 pi k x) + b_k sin(2 pi k x) with independent normal a_k and b_k; the variance of u is one at
    every place.

    Args:
        num: states to draw.
        axes: coordinates along each axis (one or two), in periods.
        cycles: of the finest wave along each axis.
        generator: of the random numbers, which do not depend on the coordinates.
    """
    count = 2 * cycles + 1  # of the modes along an axis, from -cycles to cycles
    shape = (num, *[count] * len(axes))
    parts = torch.randn(2, *shape, dtype=torch.float64, generator=generator)
    parts.flatten(2)[..., count ** len(axes) // 2] = 0  # the mean
    modes = torch.complex(parts[0], parts[1])
    wavenumber = 2j * math.pi * torch.arange(-cycles, cycles + 1, dtype=torch.float64)
    for x in axes:  # sums over the first axis that is left, and puts the coordinate last
        modes = torch.tensordot(modes, torch.exp(wavenumber[:, None] * x), dims=([1], [0]))
    return modes.real[:, None] / math.sqrt(count ** len(axes) - 1)


def random_noise(
    num: int, channels: int, shape: tuple[int, ...], generator: torch.Generator
) -> Float[Tensor, "num channel *grid"]:
    """Standard normal values, independent in every cell and field."""
    return torch.randn(num, channels, *shape, dtype=torch.float64, generator=generator)
