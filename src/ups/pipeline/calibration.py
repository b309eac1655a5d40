"""How far the members of ensembles are apart, calibrated by the scores of validation ensembles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pvariance

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ups.evaluation.uncertainty import contracted_crps, relative_crps
from ups.models.corrector import limit_of
from ups.models.simulator import Simulator
from ups.pipeline.effort import EnsembleSize
from ups.pipeline.ensembles import ensemble_errors, measure_memory, operator_error, score_ensembles
from ups.pipeline.workspace import Workspace
from ups.training.diffusion import ResidualSteps
from ups.training.monitor import DivergedError

WIDENINGS = (0.0, 1.0, 2.0)  # of the samples' spread, at which validation ensembles are scored
NARROWER = 0.5  # of it, where ensembles that spread as far as trained diverge
NARROWEST, WIDEST = 0.1, 3.3  # that a calibration may choose: members differ, and little beyond those scored
AS_ROLLED_OUT = 24  # the place, in what follows, of members that are not moved
CONTRACTIONS = tuple(
    1.05 ** (place - AS_ROLLED_OUT) for place in range(33)
)  # of members towards their mean: all scored


def calibrate(workspace: Workspace, stage: str, simulator: Simulator, steps: ResidualSteps, size: EnsembleSize) -> None:
    """Sets how long errors last, and how far members are apart to what makes validation ensembles best, by their CRPS.

    Errors on train data are smaller than on others; and what a place is like later than a few steps is not told.
    Members that are too far apart whatever is drawn, by their views or as trained, are moved towards their mean.

    Raises:
        DivergedError: no ensemble is finite.
    """
    corrector, progress = simulator.corrector, workspace.progress
    assert corrector is not None
    simulator.eval()
    corrector.contract(1.0)
    measure_memory(workspace, steps)
    found: dict[float, dict[str, list[float]]] = {}
    tasks = list(workspace.splits["valid"])
    progress.start(f"calibrate {stage}", unit="ensembles")
    progress.say(f"calibrating how far samples of {stage} spread, by validation ensembles: {size}")
    for widen in (*WIDENINGS, NARROWER):
        if widen == NARROWER and not diverging(found, tasks):
            break
        corrector.widen(widen)
        found[widen] = dict(zip(tasks, ensemble_errors(workspace, simulator, size), strict=True))
        progress.update(len(found))
    if bad := diverging(found, tasks):
        raise DivergedError(
            f"validation ensembles of {', '.join(bad)} diverged, however little they spread; train the residual "
            "diffusion longer, or lower its rate"
        )
    spread = {task: trusted_widening({widen: scores[task] for widen, scores in found.items()}) for task in tasks}
    for task, factor in spread.items():
        corrector.widen(factor, task)
    last = dict(zip(tasks, score_ensembles(_crps_and_contracted, workspace, simulator, size), strict=True))
    apart = {task: trusted_contraction(scores[:, 1:]) for task, scores in last.items()}
    means = {task: float(scores[:, 0].mean()) for task, scores in last.items()}
    for task in [task for task, mean in means.items() if not math.isfinite(mean)]:  # between or beyond those tried
        whole = {widen: fmean(scores[task]) for widen, scores in found.items() if widen}
        spread[task] = min(filter(lambda widen: math.isfinite(whole[widen]), whole), key=lambda widen: whole[widen])
        means[task] = whole[spread[task]]
        corrector.widen(spread[task], task)
    for task, factor in apart.items():
        corrector.contract(limit_of(factor, size.members), task)
    alone = operator_error(workspace, simulator, size)
    spread_by, apart_by = (", ".join(f"{factor:.3g}" for factor in each.values()) for each in (spread, apart))
    progress.finish(
        f"samples spread {spread_by} times as far as trained: CRPS {fmean(means.values()):.3g} of the field's size, "
        f"the operator's absolute error {alone:.3g}; {size.members} members end {apart_by} times as far from their mean"
    )


def diverging(found: Mapping[float, Mapping[str, Sequence[float]]], tasks: Sequence[str]) -> list[str]:
    """The tasks whose drawn ensembles all have a score that is not finite, of some trajectory, at any spread."""
    drawn = [scores for widen, scores in found.items() if widen]
    return [task for task in tasks if not any(all(map(math.isfinite, scores[task])) for scores in drawn)]


def trusted_widening(scores: Mapping[float, Sequence[float]]) -> float:
    """The best widening, drawn back to 1, as trained, by as much as trajectories do not agree on it (`drawn_back`).

    Trajectories count alike, however large their errors: of scores over the trajectory's mean score the least is taken.

    Args:
        scores: CRPS of each trajectory, by widening; those of one widening are finite.
    """
    finite = {widen: each for widen, each in scores.items() if all(map(math.isfinite, each))}
    sizes = [max(fmean(of_one), 0.0) or 1.0 for of_one in zip(*finite.values(), strict=True)]
    finite = {w: [score / size for score, size in zip(each, sizes, strict=True)] for w, each in finite.items()}
    trained = math.log(2.0)

    def best(taken: Sequence[int]) -> float:
        means = {widen: fmean(each[number] for number in taken) for widen, each in finite.items()}
        return math.log1p(best_widening(means)) - trained

    found = drawn_back(best, len(sizes)) if 1.0 in finite else best(range(len(sizes)))
    return math.expm1(found + trained)


def trusted_contraction(scores: Float[Tensor, "trajectory contraction"]) -> float:
    """How far members are moved towards their mean: the best of `CONTRACTIONS`, 1 where that would move them apart.

    As of widenings, trajectories count alike and what they do not agree on is drawn back, here to no contraction.
    Members that are moved towards each other stay within what they were, and keep what every mean of fields keeps.

    Args:
        scores: CRPS over the truth's size, by contraction.
    """
    values = scores.numpy(force=True)
    if not np.isfinite(values).all():
        return 1.0
    sizes = values[:, AS_ROLLED_OUT]
    shares = values / np.where(sizes > 0, sizes, 1.0)[:, None]

    def best(taken: Sequence[int]) -> float:
        return math.log(CONTRACTIONS[shares[list(taken)].mean(0).argmin()])

    return math.exp(min(0.0, drawn_back(best, len(shares))))


def drawn_back(best: Callable[[Sequence[int]], float], num: int) -> float:
    """What some trajectories say, times 1 - var / what^2 where that is positive, else 0; of one alone it is 0.

    So an estimate is trusted as far as its samples agree on it (James and Stein 1961, for one number); the variance is
    that of the jackknife, by estimates without each of the trajectories in turn.

    Args:
        best: trajectories, by their numbers, to an estimate.
        num: of them.
    """
    whole = best(range(num))
    if whole == 0 or num == 1:
        return 0.0
    others = [best([number for number in range(num) if number != left]) for left in range(num)]
    return whole * max(0.0, 1 - (num - 1) * pvariance(others) / whole**2)


def best_widening(scores: Mapping[float, float]) -> float:
    """Where the CRPS of ensembles is least, by a curve through the scores of some widenings, each of which is noisy.

    Members deviate by s^2 = a^2 + w^2, where a is what their views alone set them apart. Of a Gaussian of deviation s,
    where the truth deviates by t, the expected CRPS is (sqrt(2 (s^2 + t^2)) - s) / sqrt(pi) (from its form as
    E|X - Y| - E|X - X'| / 2, Gneiting and Raftery 2007), which is least at s = t. Scale, t and a of the curve whose
    relative errors are least square; what is not finite does not count.

    Args:
        scores: CRPS by widening; one of them is finite.
    """
    finite = {widen: score for widen, score in scores.items() if math.isfinite(score)}
    if len(finite) < 3 or min(finite.values()) <= 0:
        return max(NARROWEST, min(finite, key=lambda widen: finite[widen]))
    widen, score = (np.array(values) for values in (list(finite), list(finite.values())))
    t, a = np.meshgrid(np.geomspace(NARROWEST, 2 * WIDEST, 200), [0.0, *np.geomspace(NARROWEST, WIDEST, 60)])
    deviation = np.hypot(widen, a[..., None])
    curve = (np.sqrt(2 * (deviation**2 + t[..., None] ** 2)) - deviation) / score
    scale = curve.sum(-1, keepdims=True) / np.square(curve).sum(-1, keepdims=True)
    nearest = np.square(scale * curve - 1).sum(-1).argmin()
    best = math.sqrt(max(0.0, t.flat[nearest] ** 2 - a.flat[nearest] ** 2))
    return min(max(best, NARROWEST), WIDEST)


def _crps_and_contracted(members: Tensor, truth: Tensor) -> Float[Tensor, "sample score"]:
    """The fair CRPS of the members, and that of each of the ensembles that `CONTRACTIONS` make of them."""
    return torch.cat([relative_crps(members, truth)[:, None], contracted_crps(members, truth, CONTRACTIONS)], dim=1)
