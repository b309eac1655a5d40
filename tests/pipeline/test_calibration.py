"""How far members are apart: what scores of ensembles say of it, and what a calibration makes of that."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ups.config.load import load_settings
from ups.evaluation.uncertainty import contracted_crps, fair_crps, relative_crps
from ups.models.corrector import Corrector, limit_of
from ups.pipeline.calibration import (
    AS_ROLLED_OUT,
    CONTRACTED,
    CONTRACTIONS,
    CRPS,
    NARROWEST,
    VARIANCE,
    WIDENINGS,
    apart_alone,
    best_widening,
    calibrate,
    diverging,
    ensemble_scores,
    trusted_contraction,
    trusted_widening,
)
from ups.pipeline.effort import TRIALS, EnsembleSize
from ups.pipeline.run import open_workspace
from ups.runtime import SilentProgress
from ups.training.builders import add_corrector
from ups.training.diffusion import ResidualSteps
from ups.training.monitor import DivergedError

Calibration = tuple[Corrector, Callable[[int], None]]


@pytest.fixture
def calibration(burgers: Path, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """An untrained corrector, and what calibrates it by ensembles of so many members, whose scores a test gives."""
    workspace = open_workspace(load_settings(burgers), SilentProgress())
    simulator = workspace.new_simulator()
    add_corrector(workspace.settings, simulator)
    assert simulator.corrector is not None
    monkeypatch.setattr("ups.pipeline.calibration.measure_memory", lambda *_: None)
    monkeypatch.setattr("ups.pipeline.calibration.operator_error", lambda *_: 1.0)
    steps = ResidualSteps(simulator, {})

    def run(members: int) -> None:
        calibrate(workspace, "diff_residual", simulator, steps, EnsembleSize(members, 4, 5))

    return simulator.corrector, run


@pytest.mark.parametrize("apart", [0.0, 0.5])
@pytest.mark.parametrize("error", [0.7, 1.0, 1.7, 2.6])
def test_samples_spread_as_far_as_the_errors_do_whatever_the_noise_of_the_scores(error: float, apart: float) -> None:
    """Beside what sets members apart without them."""
    rng, shape = torch.Generator().manual_seed(0), (4, 1, 1, 1, 200000)
    truth, views, draws = (torch.randn(shape, generator=rng) for _ in range(3))
    scores = {w: float(fair_crps(apart * views + w * draws, error * truth[0]).mean()) for w in WIDENINGS}
    wanted = math.sqrt(error**2 - apart**2)
    assert best_widening(scores, apart) == pytest.approx(wanted, rel=0.05)
    noisy = {widen: score * (1.01 if number % 2 else 0.99) for number, (widen, score) in enumerate(scores.items())}
    assert best_widening(noisy, apart) == pytest.approx(wanted, rel=0.4)


def test_members_that_other_things_set_apart_far_enough_are_hardly_drawn_for() -> None:
    """But never for nothing: on another task, nothing else may set them apart."""
    assert trusted_widening(scores_of([math.sqrt(2.0)] * 6, alone=math.sqrt(1.2))) == pytest.approx(0.89, rel=0.1)
    assert trusted_widening(scores_of([0.77, 0.9, 1.05], alone=math.sqrt(1.2))) == pytest.approx(NARROWEST)


@pytest.mark.parametrize(("alone", "wanted"), [(0.0, 1.0), (0.6, 0.8), (2.0, NARROWEST)])
def test_as_far_as_trained_is_with_what_views_set_apart(alone: float, wanted: float) -> None:
    """That is what a single trajectory, of which nobody knows how far others would differ, is drawn back to."""
    assert trusted_widening(scores_of([3.0], alone=alone)) == pytest.approx(wanted)
    variances = {w: [alone**2 + w**2, 4 * (alone**2 + w**2)] for w in (*WIDENINGS, 0.5)}
    assert apart_alone(variances) == pytest.approx(alone)
    assert apart_alone({**variances, 1.0: [math.nan, 1.0]}) == pytest.approx(alone), "another widening says it, too"
    assert apart_alone({w: each for w, each in variances.items() if w}) == 0.0


def test_scores_of_ensembles_are_those_of_their_columns() -> None:
    members, truth = ensembles(2.0, 1.0)
    found = ensemble_scores(members, truth)
    assert found.shape == (4, CONTRACTED + len(CONTRACTIONS))
    torch.testing.assert_close(found[:, CRPS], relative_crps(members, truth))
    torch.testing.assert_close(found[:, VARIANCE], torch.full((4,), 4.0, dtype=torch.float64), rtol=0.03, atol=0)
    torch.testing.assert_close(found[:, CONTRACTED:], contracted_crps(members, truth, CONTRACTIONS))


def test_ensembles_that_diverge_do_not_count_in_how_far_samples_spread() -> None:
    scores = {widen: math.sqrt(2 * (widen**2 + 1)) - widen for widen in WIDENINGS}
    assert best_widening({**scores, 2.8: math.inf}) == pytest.approx(1.0, rel=0.02)
    assert best_widening({**scores, 2.0: math.inf}) == pytest.approx(1.0, rel=0.05)
    assert best_widening(dict.fromkeys(WIDENINGS, math.inf) | {1.4: 1.0}) == 1.4
    apart = {0.5: [2.0, 2.0], 1.0: [math.inf, 3.0], 2.0: [math.inf, math.inf]}
    assert trusted_widening({w: as_scores(each, [w**2] * 2) for w, each in apart.items()}) == 0.5, "as trained, no"


def as_scores(crps: list[float], variance: list[float]) -> Tensor:
    """Of trajectories, for each of which no contraction is better than another."""
    flat = torch.ones(len(crps), len(CONTRACTIONS), dtype=torch.float64)
    return torch.cat([torch.tensor([crps, variance], dtype=torch.float64).T, flat], dim=1)


def scores_of(deviations: list[float], alone: float = 0.0) -> dict[float, Tensor]:
    """What trajectories whose errors deviate so far score at every widening."""
    found = {}
    for widen in WIDENINGS:
        s = math.hypot(widen, alone)
        found[widen] = as_scores([math.sqrt(2 * (s**2 + t**2)) - s for t in deviations], [s**2] * len(deviations))
    return found


def test_a_widening_is_trusted_as_far_as_trajectories_agree_on_it() -> None:
    assert trusted_widening(scores_of([2.0] * 8)) == pytest.approx(2.0, rel=0.02)
    assert trusted_widening(scores_of([0.6] * 8)) == pytest.approx(0.6, rel=0.02)
    assert trusted_widening(scores_of([2.0])) == 1.0, "one says nothing of how far others would differ"
    one_far = scores_of([0.5, 0.6, 0.6, 0.6, 0.7, 0.5, 0.6, 0.6])
    one_far = {w: torch.cat([each[:-1], 100 * each[-1:]]) for w, each in one_far.items()}
    assert trusted_widening(one_far) == pytest.approx(0.6, rel=0.05), "one of large errors does not decide"
    assert trusted_widening(scores_of([0.4, 0.4, 0.4, 0.4])) == pytest.approx(0.4, rel=0.02)
    assert 0.8 < trusted_widening(scores_of([0.4, 1.4, 0.5, 1.2])) <= 1.0, "the best of these alone is about 0.75"
    some = scores_of([1.1, 1.6, 2.2, 1.5, 1.7, 0.9, 2.5, 1.6])
    best = best_widening({widen: float(each[:, CRPS].mean()) for widen, each in some.items()})
    assert 1.0 < trusted_widening(some) < best


def ensembles(apart: float, error: float, *, trajectories: int = 4) -> tuple[Tensor, Tensor]:
    """Eight members that differ so much, and a truth that differs so much from their common centre."""
    rng = torch.Generator().manual_seed(0)
    members = apart * torch.randn(8, trajectories, 1, 1, 20000, generator=rng)
    return members, error * torch.randn(trajectories, 1, 1, 20000, generator=rng)


@pytest.mark.parametrize(("apart", "wanted"), [(2.0, 0.577), (1.25, 0.825), (1.0, 1.0), (0.5, 1.0)])
def test_members_that_are_too_far_apart_are_moved_as_far_as_their_errors_say(apart: float, wanted: float) -> None:
    """To where their variance, times (M + 1) / M, is the square of what their mean is off; never further apart."""
    scores = contracted_crps(*ensembles(apart, 1.0), CONTRACTIONS)
    assert trusted_contraction(scores) == pytest.approx(wanted, abs=0.04)
    scores[:, ::2] = math.nan
    assert trusted_contraction(scores) == 1.0, "what diverges says nothing"


def test_a_contraction_is_trusted_as_far_as_trajectories_agree_on_it() -> None:
    agree, other = (contracted_crps(*ensembles(apart, 1.0), CONTRACTIONS) for apart in (2.0, 1.0))
    assert trusted_contraction(agree[:1]) == 1.0, "one says nothing of how far others would differ"
    split = torch.cat([agree[:2], other[:2]])
    assert CONTRACTIONS[int((split / split[:, AS_ROLLED_OUT, None]).mean(0).argmin())] < 0.75
    assert 0.75 < trusted_contraction(split) < 1.0
    large = torch.cat([agree, 1000 * other[:1]])
    assert trusted_contraction(large) < 0.65, "one of large errors does not decide"


@pytest.mark.parametrize(("most", "wanted"), [(1.0, [0, 1, 2]), (0.5, [0, 1, 2, 0.5]), (0.0, None)])
def test_samples_that_diverge_as_trained_spread_less(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch, most: float, wanted: list[float] | None
) -> None:
    """Ensembles are finite up to a spread; where none that is drawn is, the stage has failed."""
    (corrector, run), tried = calibration, []
    widen = corrector.scales["burgers1d"].widen

    def scored(*_: object) -> list[Tensor]:
        tried.append(float(widen))
        return [as_scores([2.0 - float(widen) if widen <= most else math.inf] * 3, [float(widen) ** 2] * 3)]

    monkeypatch.setattr("ups.pipeline.calibration.score_ensembles", scored)
    with pytest.raises(DivergedError, match="diverged") if wanted is None else nullcontext():
        run(2)
    if wanted is not None:
        assert tried[:-1] == wanted
        assert tried[-1] == pytest.approx(most)
        assert float(widen) == pytest.approx(most)


@pytest.mark.parametrize(("apart", "wanted"), [(2.0, 0.577), (0.7, 1.0)])
def test_a_calibration_sets_what_its_last_ensembles_say(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch, apart: float, wanted: float
) -> None:
    """They are as far apart as the widening that was chosen makes them, and are scored as they were rolled out."""
    corrector, run = calibration
    corrector.contract(0.3)
    scale, seen = corrector.scales["burgers1d"], []

    def scored(metric: Callable[[Tensor, Tensor], Tensor], *_: object) -> list[Tensor]:
        seen.append((float(scale.widen), float(scale.contract)))
        found = metric(*ensembles(apart, 1.0))
        found[:, CRPS] = 1.0 + float(scale.widen)
        return [found]

    monkeypatch.setattr("ups.pipeline.calibration.score_ensembles", scored)
    run(8)
    assert seen == [*((widen, 1.0) for widen in WIDENINGS), (pytest.approx(NARROWEST), 1.0)]
    assert float(scale.contract) == pytest.approx(limit_of(wanted, 8), abs=0.04)
    assert (len(seen) - 1, seen.count((0.0, 1.0))) == (TRIALS, 1), "what the effort counts"


def test_what_diverges_at_the_spread_that_was_chosen_goes_back_to_one_that_was_tried(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best of those: the curve's best is between one and two."""
    corrector, run = calibration
    scale, chosen = corrector.scales["burgers1d"], []

    def scored(metric: Callable[[Tensor, Tensor], Tensor], *_: object) -> list[Tensor]:
        if float(scale.widen) in WIDENINGS:
            return [scores_of([1.6] * 3)[float(scale.widen)]]
        chosen.append(float(scale.widen))
        return [metric(math.nan * torch.ones(2, 3, 1, 1, 4), torch.ones(3, 1, 1, 4))]

    monkeypatch.setattr("ups.pipeline.calibration.score_ensembles", scored)
    run(2)
    assert chosen == [pytest.approx(1.6, rel=0.03)]
    assert float(scale.widen) == 2.0
    assert float(scale.contract) == 1.0


def test_a_task_may_diverge_where_another_does_not() -> None:
    fine, one, other = (as_scores(each, [1.0, 1.0]) for each in ([1.0, 2.0], [1.0, math.inf], [math.nan, 1.0]))
    found = {0.0: {"a": fine, "b": fine}, 1.0: {"a": fine, "b": one}}
    assert diverging(found, ["a", "b"]) == ["b"]
    assert diverging({**found, 0.5: {"a": other, "b": fine}}, ["a", "b"]) == []
