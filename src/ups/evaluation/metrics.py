"""The scores, as functions of predicted and true trajectories in physical units.

Every function gives one value per sample, in float64, so that a data set is scored in pieces of any size: a score over
many samples is the mean of theirs (of `mean_squared_error` its root, of `max_error` its largest).

References:
    Takamoto et al. 2022, PDEBench (nRMSE, fRMSE). Ohana et al. 2024, The Well (VRMSE).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ups.physics.equations import Equation
from ups.physics.operators import WALL_SLOPE

Trajectories = Float[Tensor, "sample time channel *grid"]
PerSample = Float64[Tensor, " sample"]

BANDS = ((0, 4), (4, 12), (12, None))
"""Wave numbers of PDEBench's low, middle and high band; each starts at the first and ends before the second."""

VRMSE_EPS = 1e-7
"""Added to the variance in VRMSE, as The Well does, so that a constant frame divides by something."""


def mean_square(u: Trajectories) -> Float64[Tensor, "sample time channel"]:
    """Mean over the grid of u^2."""
    return u.double().square().flatten(3).mean(dim=3)


def mean_square_error(prediction: Trajectories, truth: Trajectories) -> Float64[Tensor, "sample time channel"]:
    """Mean over the grid of (p - u)^2."""
    return mean_square(prediction.double() - truth.double())


def nrmse(prediction: Trajectories, truth: Trajectories) -> PerSample:
    """Mean over channels of sqrt(sum_{x,t} (p - u)^2) / sqrt(sum_{x,t} u^2)."""
    error, power = mean_square_error(prediction, truth), mean_square(truth)
    return (error.mean(dim=1) / power.mean(dim=1)).sqrt().mean(dim=1)


def error_by_frame(prediction: Trajectories, truth: Trajectories) -> Float64[Tensor, "sample time"]:
    """Mean over channels of sqrt(sum_x (p - u)^2) / sqrt(sum_x u^2), frame by frame."""
    return (mean_square_error(prediction, truth) / mean_square(truth)).sqrt().mean(dim=2)


def pdebench_nrmse(prediction: Trajectories, truth: Trajectories) -> PerSample:
    """PDEBench's nRMSE: `error_by_frame`, averaged over the frames."""
    return error_by_frame(prediction, truth).mean(dim=1)


def rel_l2(prediction: Trajectories, truth: Trajectories) -> PerSample:
    """sqrt(sum_{x,t,c} (p - u)^2) / sqrt(sum_{x,t,c} u^2): all channels together."""
    error, power = mean_square_error(prediction, truth), mean_square(truth)
    return (error.mean(dim=(1, 2)) / power.mean(dim=(1, 2))).sqrt()


def mean_squared_error(prediction: Trajectories, truth: Trajectories) -> PerSample:
    """Mean over space, time and channels of (p - u)^2; the root of its mean over samples is the RMSE."""
    return mean_square_error(prediction, truth).mean(dim=(1, 2))


def mean_absolute_error(prediction: Trajectories, truth: Trajectories) -> PerSample:
    """Mean over space, time and channels of |p - u|, in the field's unit: the CRPS of a forecast without spread."""
    return (prediction.double() - truth.double()).abs().flatten(1).mean(dim=1)


def relative_absolute_error(prediction: Trajectories, truth: Trajectories) -> PerSample:
    """Mean over channels of mean_{x,t} |p - u| / sqrt(mean_{x,t} u^2): no channel's unit outweighs another's."""
    error = (prediction.double() - truth.double()).abs().flatten(3).mean(dim=(1, 3))
    return over_size(error, mean_square(truth))


def over_size(values: Float64[Tensor, "sample channel"], power: Float64[Tensor, "sample time channel"]) -> PerSample:
    """Mean over channels of values in their fields' units over the rms of each field.

    Args:
        power: `mean_square` of the truth.
    """
    return (values / power.mean(dim=1).sqrt()).mean(dim=1)


def max_error(prediction: Trajectories, truth: Trajectories) -> PerSample:
    """Largest |p - u| over space, time and channels."""
    return (prediction.double() - truth.double()).abs().flatten(1).amax(dim=1)


def vrmse(prediction: Trajectories, truth: Trajectories) -> PerSample:
    """The Well's VRMSE: mean over frames and channels of sqrt(<(p - u)^2> / (<(u - <u>)^2> + 1e-7)), <> over space."""
    variance = truth.double().flatten(3).var(dim=3, correction=0)
    return (mean_square_error(prediction, truth) / (variance + VRMSE_EPS)).sqrt().mean(dim=(1, 2))


def wave_numbers(shape: Sequence[int], device: torch.device | None = None) -> Float64[Tensor, "*grid"]:
    """|k| of every mode of the discrete Fourier transform, in waves per length of each axis."""
    axes = [torch.fft.fftfreq(size, d=1 / size, dtype=torch.float64, device=device) for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(dim=0).sqrt()


def fourier_rmse(prediction: Trajectories, truth: Trajectories) -> Float64[Tensor, "sample band"]:
    """PDEBench's fRMSE in its low, middle and high band, averaged over frames and channels.

    sqrt(sum_{k in band} |F(p) - F(u)|^2) / (number of wave numbers in the band), with F the discrete Fourier transform
    divided by the number of points, which makes it an amplitude whatever the resolution. Bands are shells of |k| in two
    dimensions; of the pair k and -k of a real field one is counted. A band that the grid does not resolve is NaN.
    """
    dims = tuple(range(3, truth.ndim))
    shape = truth.shape[3:]
    power = torch.fft.fftn(prediction.double() - truth.double(), dim=dims, norm="forward").abs().square()
    shell = wave_numbers(shape, power.device).floor()
    weight = torch.full_like(shell, 0.5)
    weight[tuple(torch.meshgrid(*[_own_mirror(size) for size in shape], indexing="ij"))] = 1.0
    values = []
    for low, high in BANDS:
        inside = (shell >= low) & (shell < (math.inf if high is None else high))
        numbers = len(shell[inside].unique())
        total = (power * (weight * inside)).flatten(3).sum(dim=3)
        values.append((total.sqrt() / (numbers or math.nan)).mean(dim=(1, 2)))
    return torch.stack(values, dim=1)


def _own_mirror(size: int) -> Tensor:
    """Indices of the modes of an axis for which -k is k: zero, and the highest where the size is even."""
    return torch.tensor([0, size // 2] if size % 2 == 0 else [0])


def energy_spectrum(
    u: Float[Tensor, "sample channel *grid"], periodic: Sequence[bool]
) -> Float64[Tensor, "sample channel shell"]:
    """Energy in each shell s <= |k| < s + 1 of wave numbers (waves per length of the domain).

    It sums to the mean of u^2. An axis that is not periodic is continued evenly (the cosine transform), so that its
    ends make no spurious waves.
    """
    values = u.double()
    for axis, wraps in enumerate(periodic, start=2):
        if not wraps:
            values = torch.cat([values, values.flip(axis)], dim=axis)
    power = torch.fft.fftn(values, dim=tuple(range(2, values.ndim)), norm="forward").abs().square()
    waves = [size if wraps else size / 2 for size, wraps in zip(values.shape[2:], periodic, strict=True)]
    axes = [
        torch.fft.fftfreq(size, d=1 / wave, dtype=torch.float64, device=u.device)
        for size, wave in zip(values.shape[2:], waves, strict=True)
    ]
    shell = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(dim=0).sqrt().floor().long().flatten()
    energy: Tensor = power.new_zeros(*u.shape[:2], int(shell.max()) + 1)
    energy.index_add_(2, shell, power.flatten(2))
    return energy


def conservation_drift(
    u: Trajectories,
    initial: Float[Tensor, "sample channel *grid"],
    params: Float[Tensor, "sample parameter"],
    equation: Equation,
    spacing: tuple[float, ...],
) -> Float[Tensor, "sample time invariant"]:
    """How far each invariant I of an equation is from where it started: |I(u_t) - I(u_0)| / (int |u_0| + eps).

    Args:
        initial: the last given frame, u_0.
        spacing: distance between grid points along each axis.
    """
    scale = initial.double().abs().flatten(1).sum(dim=1) * math.prod(spacing) + 1e-12
    start = equation.invariants(initial.double(), params.double(), spacing)
    repeated = params.double().repeat_interleave(u.shape[1], dim=0)
    integrals = equation.invariants(u.double().flatten(0, 1), repeated, spacing)
    drift = [(integrals[name].unflatten(0, (len(u), -1)) - start[name][:, None]).abs() for name in start]
    return torch.stack(drift, dim=2) / scale[:, None, None]


def conservation_gap(
    prediction: Trajectories,
    truth: Trajectories,
    initial: Float[Tensor, "sample channel *grid"],
    params: Float[Tensor, "sample parameter"],
    equation: Equation,
    spacing: tuple[float, ...],
) -> PerSample:
    """How much more of an invariant the prediction loses than the data does; the worst of the equation's invariants.

    The largest `conservation_drift` of all frames, less the same of the truth; zero where the prediction loses less.
    """
    ours, data = (conservation_drift(u, initial, params, equation, spacing).amax(dim=1) for u in (prediction, truth))
    return (ours - data).clamp(min=0).amax(dim=1)


def bc_violation(
    prediction: Trajectories,
    truth: Trajectories,
    periodic: Sequence[bool],
    to_wall: Sequence[tuple[float, float]] | None = None,
) -> PerSample:
    """Error at the walls, of the slope through them or of the value there: 0 for a perfect prediction.

    rms over the walls of dx d(p - u)/dn at no-flow walls, of p - u at walls of fixed values, over the rms of the true
    field u. No-flow walls lie half a cell outside the outermost centres; the slope there is the second-order one-sided
    difference dx du/dn = -2 u_0 + 3 u_1 - u_2, which multiplied by dx has the field's unit. The value at a wall is that
    of the parabola through the three values next to it. Of the truth, on a grid that barely resolves it, both are far
    from what the condition says; the prediction's alone would make a blurred field look better than the truth. Mean
    over channels.

    Args:
        to_wall: for walls of fixed values, cells from the first value of each axis to the lower wall and from the last
            to the upper one; None for no-flow walls.
    """
    error = prediction.double() - truth.double()
    found = []
    for axis, wraps in enumerate(periodic):
        if wraps:
            continue
        ends = (WALL_SLOPE, WALL_SLOPE) if to_wall is None else map(value_at, to_wall[axis])
        for u, weights in zip((error, error.flip(axis + 3)), ends, strict=True):
            near = [weight * u.select(axis + 3, index) for index, weight in enumerate(weights)]
            found.append(torch.stack(near).sum(0).unsqueeze(-1).flatten(3).transpose(1, 2).flatten(2))
    squares = torch.cat(found, dim=2).square().mean(dim=2)
    return (squares / mean_square(truth).mean(dim=1)).sqrt().mean(dim=1)


def value_at(cells: float) -> tuple[float, float, float]:
    """Weights of three values, nearest first, that give the value of their parabola so many cells before the first."""
    return (cells + 1) * (cells + 2) / 2, -cells * (cells + 2), cells * (cells + 1) / 2


def first_bad_frame(prediction: Trajectories) -> list[int | None]:
    """The first frame of each sample that holds NaN or infinity; None where there is none."""
    finite = torch.isfinite(prediction).flatten(2).all(dim=2).tolist()
    return [frames.index(False) if False in frames else None for frames in finite]
