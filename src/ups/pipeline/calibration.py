"""How far the members of ensembles are apart, calibrated by the scores of validation ensembles."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pvariance

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ups.evaluation.metrics import mean_square, over_size
from ups.evaluation.uncertainty import contracted_crps, member_variance, relative_crps
from ups.models.corrector import limit_of
from ups.models.simulator import Simulator
from ups.pipeline.effort import EnsembleSize
from ups.pipeline.ensembles import measure_memory, operator_error, score_ensembles
from ups.pipeline.workspace import Workspace
from ups.training.diffusion import ResidualSteps
from ups.training.monitor import DivergedError

WIDENINGS = (0.0, 1.0, 2.0)  # of the samples' spread, at which validation ensembles are scored
NARROWER = 0.5  # of it, where ensembles that spread as far as trained diverge
NARROWEST, WIDEST = 0.1, 3.3  # that a calibration may choose: members differ, and little beyond those scored
AS_ROLLED_OUT = 24  # the place, in what follows, of members that are not moved
CONTRACTIONS = tuple(1.05 ** (place - AS_ROLLED_OUT) for place in range(33))  # of members towards their mean
CRPS, VARIANCE, CONTRACTED = 0, 1, 2  # columns of the scores, the last the first of many

Scores = Float[Tensor, "trajectory score"]
"""What `ensemble_scores` says of some trajectories of a task."""


def calibrate(workspace: Workspace, stage: str, simulator: Simulator, steps: ResidualSteps, size: EnsembleSize) -> None:
    """Sets how long errors last, and how far members are apart to what makes validation ensembles best, by their CRPS.

    Errors on train data are smaller than on others; and what a place is like later than a few steps is not told.
    Members that are too far apart whatever is drawn, by their views or as trained, are moved towards their mean.

    Raises:
        DivergedError: no drawn ensembles of some task are finite.
    """
    corrector, progress = simulator.corrector, workspace.progress
    assert corrector is not None
    simulator.eval()
    corrector.contract(1.0)
    measure_memory(workspace, steps)
    tasks, found = list(workspace.splits["valid"]), dict[float, dict[str, Tensor]]()

    def scored() -> dict[str, Tensor]:
        return dict(zip(tasks, score_ensembles(ensemble_scores, workspace, simulator, size), strict=True))

    progress.start(f"calibrate {stage}", unit="ensembles")
    progress.say(f"calibrating how far samples of {stage} spread, by validation ensembles: {size}")
    for widen in (*WIDENINGS, NARROWER):
        if widen == NARROWER and not diverging(found, tasks):
            break
        corrector.widen(widen)
        found[widen] = scored()
        progress.update(len(found))
    if bad := diverging(found, tasks):
        raise DivergedError(
            f"validation ensembles of {', '.join(bad)} diverged, however little they spread; train the residual "
            "diffusion longer, or lower its rate"
        )
    spread = {task: trusted_widening({widen: scores[task] for widen, scores in found.items()}) for task in tasks}
    for task, factor in spread.items():
        corrector.widen(factor, task)
    last = scored()
    apart = {task: trusted_contraction(scores[:, CONTRACTED:]) for task, scores in last.items()}
    means = {task: float(scores[:, CRPS].mean()) for task, scores in last.items()}
    for task in [task for task, mean in means.items() if not math.isfinite(mean)]:  # between or beyond those tried
        whole = {widen: float(scores[task][:, CRPS].mean()) for widen, scores in found.items() if widen}
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


def ensemble_scores(members: Tensor, truth: Tensor) -> Scores:
    """What a calibration asks of ensembles, in these columns.

    The fair CRPS; the members' variance over the mean square of the fields; and the CRPS of each of the ensembles that
    `CONTRACTIONS` make of them.
    """
    variance = over_size(member_variance(members).mean(1).sqrt(), mean_square(truth)).square()
    parts = [relative_crps(members, truth)[:, None], variance[:, None], contracted_crps(members, truth, CONTRACTIONS)]
    return torch.cat(parts, dim=1)


def diverging(found: Mapping[float, Mapping[str, Scores]], tasks: Sequence[str]) -> list[str]:
    """The tasks whose drawn ensembles all have a score that is not finite, of some trajectory, at any spread."""
    drawn = [scores for widen, scores in found.items() if widen]
    return [task for task in tasks if not any(bool(scores[task][:, CRPS].isfinite().all()) for scores in drawn)]


def trusted_widening(scores: Mapping[float, Scores]) -> float:
    """The best widening, drawn back to as far as trained by as much as trajectories do not agree on it (`drawn_back`).

    As far as trained is where members are as far apart as samples were trained to be, with what their views alone set
    them apart (`apart_alone`). Trajectories count alike, however large their errors: of CRPS over the trajectory's mean
    CRPS the least is taken.

    Args:
        scores: by widening; those of one widening are finite.
    """
    alone = apart_alone({widen: each[:, VARIANCE].tolist() for widen, each in scores.items()})
    finite = {w: each[:, CRPS].tolist() for w, each in scores.items() if bool(each[:, CRPS].isfinite().all())}
    sizes = [max(fmean(of_one), 0.0) or 1.0 for of_one in zip(*finite.values(), strict=True)]
    finite = {w: [score / size for score, size in zip(each, sizes, strict=True)] for w, each in finite.items()}
    trained = math.log1p(max(NARROWEST, math.sqrt(max(0.0, 1 - alone**2))))

    def best(taken: Sequence[int]) -> float:
        means = {widen: fmean(each[number] for number in taken) for widen, each in finite.items()}
        return math.log1p(best_widening(means, alone)) - trained

    found = drawn_back(best, len(sizes)) if 1.0 in finite else best(range(len(sizes)))
    return math.expm1(found + trained)


def apart_alone(variances: Mapping[float, Sequence[float]]) -> float:
    """How far members are apart when nothing is drawn, in units of how far samples were trained to spread.

    Their variance is a^2 + w^2 in these units: so a^2 / (a^2 + w^2) is the part of it, mean over trajectories, that is
    there without draws. Measured at the widening nearest to 1; 0 where none, or not both, are finite.

    Args:
        variances: of each trajectory's members, by widening.
    """
    finite = {w: each for w, each in variances.items() if all(map(math.isfinite, each)) and (w == 0 or min(each) > 0)}
    drawn = sorted(filter(None, finite), key=lambda widen: abs(widen - 1))
    if 0.0 not in finite or not drawn:
        return 0.0
    part = fmean(none / some for none, some in zip(finite[0.0], finite[drawn[0]], strict=True))
    return drawn[0] * math.sqrt(part / (1 - part)) if part < 1 else math.inf


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


def best_widening(scores: Mapping[float, float], alone: float = 0.0) -> float:
    """Where the CRPS of ensembles is least, by a curve through the scores of some widenings, each of which is noisy.

    Members deviate by s^2 = alone^2 + w^2. Of a Gaussian of deviation s, where the truth deviates by t, the expected
    CRPS is (sqrt(2 (s^2 + t^2)) - s) / sqrt(pi) (from its form as E|X - Y| - E|X - X'| / 2, Gneiting and Raftery 2007),
    which is least at s = t. Scale and t of the curve whose relative errors are least square; what is not finite does
    not count.

    Args:
        scores: CRPS by widening; one of them is finite.
        alone: how far members are apart at 0.
    """
    finite = {widen: score for widen, score in scores.items() if math.isfinite(score)}
    if len(finite) < 3 or min(finite.values()) <= 0 or math.isinf(alone):
        return max(NARROWEST, min(finite, key=lambda widen: finite[widen]))
    widen, score = (np.array(values) for values in (list(finite), list(finite.values())))
    t, deviation = np.geomspace(NARROWEST, 3 * WIDEST, 400)[:, None], np.hypot(widen, alone)
    curve = (np.sqrt(2 * (deviation**2 + t**2)) - deviation) / score
    scale = curve.sum(-1, keepdims=True) / np.square(curve).sum(-1, keepdims=True)
    nearest = float(t[np.square(scale * curve - 1).sum(-1).argmin(), 0])
    return min(max(math.sqrt(max(0.0, nearest**2 - alone**2)), NARROWEST), WIDEST)
