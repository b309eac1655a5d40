"""How good an ensemble is, as functions of its members and the truth in physical units.

Everything is computed in float64, point by point and in pieces, so that the memory beyond the ensemble is bounded.
Each function keeps samples apart: what stands for many of them is the mean of their values, whatever the batches were,
and only then a ratio or a root is taken of it.

References:
    Gneiting & Raftery 2007, Strictly proper scoring rules, prediction, and estimation. JASA 102 (the CRPS).
    Ferro 2014, Fair scores for ensemble forecasts. Q. J. R. Meteorol. Soc. 140 (the fair estimator).
    Fortin, Abaza, Anctil & Turcotte 2014, Why should ensemble spread match the RMSE of the ensemble mean?
    J. Hydrometeorol. 15 (spread and skill). Hamill 2001, Interpretation of rank histograms, Mon. Weather Rev. 129;
    Czado, Gneiting & Held 2009, Predictive model assessment for count data, Biometrics 65 (ranks and coverage).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ups.evaluation.metrics import PerSample, Trajectories, mean_square, over_size

Ensembles = Float[Tensor, "member sample time channel *grid"]
PerFrame = Float64[Tensor, "sample time channel"]
RankHistograms = Float64[Tensor, "sample rank"]

NOMINAL = tuple(0.05 + 0.1 * place for place in range(10))
"""Coverage that the ten central intervals promise: the middles of ten equal parts, 0.05 to 0.95."""

CHUNK_VALUES = 1 << 20
"""Values that are compared at once in float64: what a processor's cache holds is quickest."""


def fair_crps(ensemble: Ensembles, truth: Trajectories) -> PerFrame:
    """Fair continuous ranked probability score, mean over the grid, in the field's unit.

    crps = mean_i |x_i - u| - sum_{i,j} |x_i - x_j| / (2 M (M - 1)) at every point. Its expected value is the CRPS of
    the distribution that the members are drawn from, int (F(x) - 1{u <= x})^2 dx, whatever their number M >= 2; and the
    absolute error where all members are the same. A single realisation can be negative.
    """

    import scoringrules  # type: ignore[import-untyped]  # as slow to import as a quarter of PyTorch

    def score(members: Tensor, u: Tensor) -> Tensor:
        found: Tensor = scoringrules.crps_ensemble(u, members, 0, estimator="fair", backend="torch")
        return found

    return _over_the_grid(_point_by_point(score, ensemble, truth, len(ensemble) ** 2), truth)


def relative_crps(ensemble: Ensembles, truth: Trajectories) -> PerSample:
    """Fair CRPS of a trajectory over the size of its fields, as `relative_absolute_error` of a single prediction."""
    return over_size(fair_crps(ensemble, truth).mean(1), mean_square(truth))


def contracted_crps(
    ensemble: Ensembles, truth: Trajectories, factors: Sequence[float]
) -> Float64[Tensor, "sample factor"]:
    """CRPS over the size of the fields, for each factor c, of the M values m + c (x_i - m), m the members' mean.

    crps = mean_i |x_i - u| - sum_{i,j} |x_i - x_j| / (2 M^2): of the distribution that has no other values than these.
    Fair it would not be: members that are moved by their own mean are no draws of one distribution. For Gaussian
    members and truth this is least where the spread-skill ratio is 1; the fair one is at members further apart.
    """
    import scoringrules  # as above

    def score(members: Tensor, u: Tensor) -> Tensor:
        mean = members.mean(0)
        deviation, missed = members - mean, mean - u
        crps = scoringrules.crps_ensemble(u, members, 0, estimator="nrg", backend="torch")
        apart = (members - u).abs().mean(0) - crps
        each = [(missed + c * deviation).abs().mean(0) - c * apart for c in factors]
        return torch.stack([one.flatten(2).mean(2) for one in each], dim=-1)

    frames, points = truth.flatten(0, 1), truth[0, 0].numel()
    size = max(1, CHUNK_VALUES // (points * len(ensemble) ** 2))
    pieces = zip(ensemble.flatten(1, 2).split(size, dim=1), frames.split(size), strict=True)
    found = torch.cat([score(members.double(), u.double()) for members, u in pieces]).unflatten(0, truth.shape[:2])
    power = mean_square(truth)
    return torch.stack([over_size(one.mean(1), power) for one in found.unbind(-1)], dim=1)


def member_variance(ensemble: Ensembles) -> PerFrame:
    """Unbiased variance of the members (divided by M - 1) at every point, mean over the grid."""
    first = ensemble[0]
    return _over_the_grid(_point_by_point(lambda members, _: members.var(dim=0), ensemble, first), first)


def mean_squared_error_of_mean(ensemble: Ensembles, truth: Trajectories) -> PerFrame:
    """Squared error of the ensemble's mean, mean over the grid."""

    def score(members: Tensor, u: Tensor) -> Tensor:
        return (members.mean(dim=0) - u).square()

    return _over_the_grid(_point_by_point(score, ensemble, truth), truth)


def corrected_spread(variance: Tensor, members: int) -> Tensor:
    """sqrt((M + 1) / M s^2): the error that the mean of M members has where the truth could be one of them.

    Truth and members are exchangeable where the ensemble is perfect: all have one mean and one variance sigma^2, given
    the initial frame. Then E (mean_i x_i - u)^2 = sigma^2 / M + sigma^2 = (M + 1) / M E s^2, with s^2 the unbiased
    variance of the members (Fortin et al. 2014). Over the root of the mean squared error it is the spread-skill ratio:
    1 for a perfect ensemble of any size, less where it is overconfident.

    Args:
        variance: s^2, already averaged over everything that is to be averaged.
    """
    return (variance * ((members + 1) / members)).sqrt()


def rank_histograms(ensemble: Ensembles, truth: Trajectories) -> RankHistograms:
    """How often the truth is larger than exactly r = 0 ... M members, as parts of one, of every sample.

    All M + 1 ranks are equally frequent where truth and members are exchangeable. Where members equal the truth it
    counts in equal parts for all the ranks that it could have.
    """
    members = len(ensemble)
    size = members + 1

    def score(values: Tensor, u: Tensor) -> Tensor:
        return (values < u).sum(dim=0) * size + (values == u).sum(dim=0)

    codes = _point_by_point(score, ensemble, truth).reshape(len(truth), -1)
    apart = torch.arange(len(truth), device=codes.device)[:, None] * size**2
    counts = torch.bincount((codes + apart).flatten(), minlength=len(truth) * size**2)
    counts = counts.reshape(len(truth), size, size).double() / codes.shape[1]
    ranks = counts.new_zeros(len(truth), size)
    for below in range(size):
        for equal in range(size - below):
            ranks[:, below : below + equal + 1] += counts[:, below, equal, None] / (equal + 1)
    return ranks


def coverage(ranks: Sequence[float], levels: Sequence[float] = NOMINAL) -> list[float]:
    """How often the truth lies within the central interval of each level, read from a rank histogram.

    M members cut the line into M + 1 parts, of equal probability 1 / (M + 1) if the truth is exchangeable with them. A
    truth of rank r lies somewhere between the quantiles r / (M + 1) and (r + 1) / (M + 1), and is counted evenly over
    them: the distribution function of the truth's quantile is linear from one to the next (the non-randomised
    probability integral transform of Czado et al. 2009). So a flat histogram gives every level exactly, for any M; what
    lies within a part, as beyond the outermost members, an ensemble of that size cannot tell.

    Args:
        ranks: parts of one for the ranks 0 ... M.
        levels: nominal coverage a: the interval from quantile (1 - a) / 2 to (1 + a) / 2.
    """
    ends = np.linspace(0.0, 1.0, len(ranks) + 1)
    below = np.concatenate([[0.0], np.cumsum(ranks)])
    low, high = ((1 + sign * np.asarray(levels)) / 2 for sign in (-1, 1))
    found: list[float] = (np.interp(high, ends, below) - np.interp(low, ends, below)).tolist()
    return found


def calibration_error(ranks: Sequence[float]) -> float:
    """Mean |empirical - nominal| coverage over the ten central intervals.

    Zero for a calibrated ensemble, up to the sampling of the truth; 0.5 where no truth lies inside any interval.
    """
    return float(np.mean(np.abs(np.subtract(coverage(ranks), NOMINAL))))


def _point_by_point(
    score: Callable[[Tensor, Tensor], Tensor], ensemble: Tensor, truth: Tensor, cost: int | None = None
) -> Tensor:
    """`score(members, truth)` of (member, point) and (point) at every point, in pieces of bounded memory.

    Args:
        cost: values that a point takes while it is scored; by default one per member.
    """
    size = max(1, CHUNK_VALUES // (cost or len(ensemble)))
    pieces = zip(ensemble.flatten(1).split(size, dim=1), truth.flatten().split(size), strict=True)
    return torch.cat([score(members.double(), u.double()) for members, u in pieces])


def _over_the_grid(values: Tensor, truth: Trajectories) -> PerFrame:
    return values.reshape(truth.shape).flatten(3).mean(dim=3)
