"""Scores of ensembles against what is known of Gaussian ones, and against each other however they are cut."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.helpers import Draws, Steps, bumps, make_set, noisy_sines, shifted, spec_of, travelling_sines
from torch import Tensor

from ups.errors import UpsError
from ups.evaluation import metrics, rollout, uncertainty
from ups.evaluation.ensembles import SCORES, EnsembleAccumulator
from ups.evaluation.evaluate import DETERMINISTIC, NO_MEMBERS, OTHER_MODE, Evaluation, Protocol, evaluate
from ups.evaluation.rollout import EnsembleBatch, rollout_ensembles
from ups.models.baselines import Persistence

CPU = torch.device("cpu")
SIGMA = 0.3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exchangeable(members: int, samples: int = 3, points: int = 4000) -> tuple[Tensor, Tensor]:
    """Members and truth of one distribution, with a mean and a spread that differ from point to point."""
    drawn = normal(members + 1, samples, 2, 2, points, seed=members)
    places = normal(2, samples, 2, 2, points, seed=1)
    drawn = places[0] + (0.5 * places[1]).exp() * drawn
    return drawn[1:], drawn[0]


def ratio(ensemble: Tensor, truth: Tensor) -> float:
    spread = uncertainty.corrected_spread(uncertainty.member_variance(ensemble).mean(), len(ensemble))
    return float(spread / uncertainty.mean_squared_error_of_mean(ensemble, truth).mean().sqrt())


def error_of(ensemble: Tensor, truth: Tensor) -> float:
    return uncertainty.calibration_error(uncertainty.rank_histograms(ensemble, truth).mean(dim=0).tolist())


# --- the functions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [2, 3, 8, 32])
def test_crps_is_that_of_the_distribution_for_any_number_of_members(members: int) -> None:
    """Gneiting & Raftery 2007: for N(0, sigma^2), sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = u / sigma."""
    num = 200_000 // members
    for u in (0.0, 0.5, 2.0):
        z = u / SIGMA
        inside, density = math.erf(z / math.sqrt(2)), math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        closed = SIGMA * (z * inside + 2 * density - 1 / math.sqrt(math.pi))
        ensemble = SIGMA * normal(members, num, 1, 1, 1, seed=members)
        each = uncertainty.fair_crps(ensemble, torch.full((num, 1, 1, 1), u))
        assert abs(float(each.mean()) - closed) < 4 * float(each.std()) / math.sqrt(num)
        assert float(each.std()) / math.sqrt(num) < 0.01 * SIGMA  # or nothing would be shown


def test_crps_of_equal_members_is_the_absolute_error() -> None:
    truth, prediction = normal(3, 4, 2, 5), normal(3, 4, 2, 5, seed=1)
    crps = uncertainty.fair_crps(prediction.expand(6, -1, -1, -1, -1), truth)
    torch.testing.assert_close(crps, (prediction - truth).abs().mean(dim=3))
    torch.testing.assert_close(crps.mean(dim=(1, 2)), metrics.mean_absolute_error(prediction, truth))


def test_crps_of_members_that_are_moved_towards_their_mean_is_that_of_the_moved() -> None:
    """The fair one, and half of the mean distance between members that it has too much of."""
    members = 5
    ensemble, truth = normal(members, 3, 4, 2, 6), normal(3, 4, 2, 6, seed=1)
    mean, factors = ensemble.mean(0), (0.3, 1.0, 1.4)
    found = uncertainty.contracted_crps(ensemble, truth, factors)
    assert found.shape == (3, 3)
    distances = (ensemble[:, None] - ensemble[None]).abs().sum((0, 1)).mean((1, 3))
    more = metrics.over_size(distances * (1 / (members - 1) - 1 / members) / (2 * members), metrics.mean_square(truth))
    for place, factor in enumerate(factors):
        moved = uncertainty.relative_crps(mean + factor * (ensemble - mean), truth)
        torch.testing.assert_close(found[:, place], moved + factor * more)
    single = uncertainty.relative_crps(mean.expand(5, -1, -1, -1, -1), truth)
    torch.testing.assert_close(single, metrics.relative_absolute_error(mean, truth))


@pytest.mark.parametrize("members", [4, 32])
def test_exchangeable_members_have_as_much_spread_as_error(members: int) -> None:
    ensemble, truth = exchangeable(members)
    assert ratio(ensemble, truth) == pytest.approx(1, abs=0.03)
    centre = ensemble.mean(dim=0, keepdim=True)
    assert ratio(centre + 0.5 * (ensemble - centre), truth) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("members", [2, 4, 8, 32])
def test_exchangeable_members_cover_what_they_promise(members: int) -> None:
    ensemble, truth = exchangeable(members)
    assert error_of(ensemble, truth) < 0.005
    ranks = uncertainty.rank_histograms(ensemble, truth)
    assert ranks.shape == (3, members + 1)
    torch.testing.assert_close(ranks.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert float((ranks.mean(dim=0) * (members + 1) - 1).abs().max()) < 0.15


def test_a_flat_histogram_covers_exactly_and_a_wrong_one_does_not() -> None:
    for size in (3, 9, 33):
        assert uncertainty.coverage([1 / size] * size) == pytest.approx(uncertainty.NOMINAL, abs=1e-12)
    assert uncertainty.calibration_error([1 / 9] * 9) == pytest.approx(0, abs=1e-12)
    assert uncertainty.calibration_error([0.5] + [0.0] * 999 + [0.5]) == pytest.approx(0.5, abs=0.01)
    assert uncertainty.calibration_error([0.0] * 500 + [1.0] + [0.0] * 500) == pytest.approx(0.5, abs=0.01)
    assert uncertainty.coverage([0.0, 1.0, 0.0], [1 / 3, 1 / 6, 0.9]) == pytest.approx([1, 0.5, 1])


def test_overconfident_and_shy_ensembles_are_not_calibrated() -> None:
    ensemble, truth = exchangeable(16)
    centre = ensemble.mean(dim=0, keepdim=True)
    narrow, wide = (error_of(centre + scale * (ensemble - centre), truth) for scale in (0.1, 5.0))
    assert narrow > 0.3
    assert wide > 0.2
    assert error_of(ensemble + 3 * ensemble.std(), truth) > 0.2


def test_ties_share_their_ranks() -> None:
    """What is the same in every member and in the truth fills every rank alike: no ensemble is blamed for it."""
    ensemble = torch.tensor([0.0, 0.0, 1.0, 2.0]).reshape(4, 1, 1, 1, 1)
    found = [uncertainty.rank_histograms(ensemble, torch.full((1, 1, 1, 1), u))[0].tolist() for u in (0.0, 1.0, 1.5)]
    assert found[0] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert found[1] == pytest.approx([0, 0, 0.5, 0.5, 0])
    assert found[2] == [0, 0, 0, 1, 0]
    same = torch.ones(5, 1, 2, 1, 3)
    assert error_of(same, same[0]) == pytest.approx(0, abs=1e-12)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble, truth = (values.reshape(*values.shape[:-1], 20, 5) for values in exchangeable(5, samples=2, points=100))

    def found() -> list[Tensor]:
        return [
            uncertainty.fair_crps(ensemble, truth),
            uncertainty.member_variance(ensemble),
            uncertainty.mean_squared_error_of_mean(ensemble, truth),
            uncertainty.rank_histograms(ensemble, truth),
            uncertainty.contracted_crps(ensemble, truth, (0.5, 1.0)),
        ]

    whole = found()
    torch.testing.assert_close(whole[1], ensemble.var(dim=0).flatten(3).mean(dim=3))
    torch.testing.assert_close(whole[2], (ensemble.mean(dim=0) - truth).square().flatten(3).mean(dim=3))
    monkeypatch.setattr(uncertainty, "CHUNK_VALUES", 70)
    torch.testing.assert_close(found(), whole, rtol=1e-12, atol=0)


def test_samples_are_gathered_as_sums_whatever_the_batches() -> None:
    """Spread and skill are roots of means over all samples, not means of the roots of batches."""
    ensemble, truth = exchangeable(6, samples=5, points=50)
    truth[3:] *= 4
    results = []
    for size in (1, 2, 5):
        gathered = EnsembleAccumulator(["u", "v"], 6)
        for first in range(0, 5, size):
            part = slice(first, first + size)
            numbers = tuple(range(5))[part]
            gathered.add(EnsembleBatch(numbers, truth[part, 0], ensemble[:, part], truth[part], seconds=0.5))
        results.append(gathered.finish())
    (scores, summary), *others = results
    assert summary is not None
    for other, other_summary in others:
        for name in set(SCORES) - {"ensemble_wall_clock"}:
            assert other[name].value == pytest.approx(scores[name].value, rel=1e-12), name
        assert other_summary is not None
        assert other_summary.ranks == pytest.approx(summary.ranks)
        for one, two in zip(summary.curves, other_summary.curves, strict=True):
            assert (one.spread, one.skill) == (pytest.approx(two.spread), pytest.approx(two.skill))
    ranks = uncertainty.rank_histograms(ensemble, truth).mean(dim=0).tolist()
    assert summary.ranks == pytest.approx(ranks)
    assert scores["ece"].value == pytest.approx(uncertainty.calibration_error(ranks))
    error = (ensemble.mean(dim=0) - truth).square().mean(dim=(0, 1, 3)).sqrt()
    spread = (7 / 6 * ensemble.var(dim=0).mean(dim=(0, 1, 3))).sqrt()
    assert scores["spread_skill"].value == pytest.approx(float((spread / error).mean()))


def test_trajectories_of_different_length_count_for_the_frames_they_have() -> None:
    ensemble, truth = exchangeable(4, samples=2, points=6)
    gathered = EnsembleAccumulator(["u", "v"], 4)
    gathered.add(EnsembleBatch((0,), truth[:1, 0], ensemble[:, :1, :1], truth[:1, :1], seconds=None))
    gathered.add(EnsembleBatch((1,), truth[1:, 0], ensemble[:, 1:], truth[1:], seconds=None))
    scores, summary = gathered.finish()
    assert summary is not None
    crps = uncertainty.fair_crps(ensemble, truth)
    assert summary.curves[0].crps == pytest.approx([float(crps[:, 0, 0].mean()), float(crps[1, 1, 0])])
    assert scores["crps"].value == pytest.approx(float((crps[0, 0].mean() + crps[1].mean()) / 2))
    assert scores["ensemble_wall_clock"].reason == "it was not timed"


# --- the evaluation --------------------------------------------------------------------------------------------------


def calibrated(
    sigma: float = SIGMA, drawn: float = SIGMA, size: int = 256, **protocol: int
) -> tuple[Evaluation, Draws]:
    """Truth and members are one clean trajectory, each with its own noise."""
    sets = {"advection1d": make_set("advection1d", noisy_sines(sigma, size=size))}
    ours = Draws(sets, shifted, sigma=drawn)
    emulators = {"ups": ours, "persistence": Persistence({"advection1d": spec_of(sets["advection1d"])})}
    return evaluate(emulators, sets, protocol=Protocol(**protocol), showcases=False), ours  # type: ignore[arg-type]


@pytest.mark.parametrize("members", [4, 16])
def test_scores_of_a_calibrated_emulator(members: int) -> None:
    """Gaussian truth and members: crps = sigma / sqrt(pi), and of the centre alone mae = sigma sqrt(2 / pi)."""
    found, _ = calibrated(members=members)
    scores = {name: score.value for name, score in found.scores("advection1d").items()}
    assert scores["crps"] == pytest.approx(SIGMA / math.sqrt(math.pi), rel=0.02)
    assert scores["mae"] == pytest.approx(SIGMA * math.sqrt(2 / math.pi), rel=0.02)
    assert scores["spread_skill"] == pytest.approx(1, abs=0.02)
    assert scores["ece"] == pytest.approx(0, abs=0.01)
    rms = [math.sqrt((1 + n) ** 2 / 2 + SIGMA**2) for n in range(4)]
    assert scores["crps_relative"] == pytest.approx(SIGMA / math.sqrt(math.pi) * np.mean(1 / np.array(rms)), rel=0.03)
    assert scores["mae_relative"] == pytest.approx(
        SIGMA * math.sqrt(2 / math.pi) * np.mean(1 / np.array(rms)), rel=0.03
    )
    mean = SIGMA * math.sqrt(1 + 1 / members) * np.mean(1 / np.array(rms))
    assert scores["ensemble_nrmse"] == pytest.approx(mean, rel=0.03)
    assert scores["ensemble_wall_clock"] is not None
    summary = found.tasks["advection1d"].emulators["ups"].ensemble
    assert summary is not None
    assert summary.curves[0].skill == pytest.approx([SIGMA * math.sqrt(1 + 1 / members)] * 8, rel=0.1)
    assert summary.curves[0].spread == pytest.approx(summary.curves[0].skill, rel=0.1)


def test_overconfidence_is_found() -> None:
    found, _ = calibrated(drawn=0.1 * SIGMA)
    scores = found.scores("advection1d")
    assert scores["spread_skill"].value == pytest.approx(0.106, abs=0.005)  # 0.1 sqrt(9/8) / sqrt(1 + 0.01/8)
    assert scores["ece"].value is not None
    assert scores["ece"].value > 0.2
    empirical = found.to_json()["details"]["advection1d"]["emulators"]["ups"]["ensemble"]["empirical"]
    assert all(found < promised for found, promised in zip(empirical, uncertainty.NOMINAL, strict=True))


def test_members_without_noise_score_as_the_single_prediction() -> None:
    found, _ = calibrated(drawn=0.0)
    scores = found.scores("advection1d")
    assert scores["crps"].value == pytest.approx(scores["mae"].value, rel=1e-6)
    assert scores["crps_relative"].value == pytest.approx(scores["mae_relative"].value, rel=1e-6)
    assert scores["ensemble_nrmse"].value == pytest.approx(scores["nrmse"].value, rel=1e-6)
    assert scores["spread_skill"].value == pytest.approx(0, abs=1e-6)


def test_no_ensemble_is_null_with_its_reason() -> None:
    found, ours = calibrated(size=16)
    for scores, reason in (
        (found.scores("advection1d", "persistence"), DETERMINISTIC),
        (found.tasks["advection1d"].modes["physical"].scores, OTHER_MODE),
    ):
        assert {(scores[name].value, scores[name].reason) for name in SCORES} == {(None, reason)}
        assert scores["mae"].value is not None
        assert scores["mae_relative"].value is not None
    for members in (0, 1):
        found, ours = calibrated(size=16, members=members)
        assert {found.scores("advection1d")[name].reason for name in SCORES} == {NO_MEMBERS}
        assert ours.rolled == []
        assert found.to_json()["details"]["advection1d"]["emulators"]["ups"]["ensemble"] is None


def test_members_that_diverge_leave_no_number() -> None:
    sets = {"advection1d": make_set("advection1d", noisy_sines(SIGMA))}

    class Explodes(Draws):
        def rollout_members(self, *args: object, **options: object) -> Tensor:
            members = super().rollout_members(*args, **options)  # type: ignore[arg-type]
            members[1, 0, -1, 0, 3] = torch.inf
            return members

    emulators = {"ups": Explodes(sets, shifted, sigma=SIGMA)}
    found = evaluate(emulators, sets, protocol=Protocol(batch_size=16))
    score = found.scores("advection1d")["crps"]
    assert (score.value, score.reason) == (None, "2 of 4 ensembles have members that diverged")  # one of either batch
    assert found.tasks["advection1d"].emulators["ups"].ensemble is None
    assert found.scores("advection1d")["nrmse"].value is not None
    json.dumps(found.to_json(), allow_nan=False)


def test_draws_follow_the_seed_alone() -> None:
    same = [calibrated(size=16, seed=3)[0].scores("advection1d")["crps"].value for _ in range(2)]
    other = calibrated(size=16, seed=4)[0].scores("advection1d")["crps"].value
    assert same[0] == same[1]
    assert same[0] != other


def test_ensembles_are_rolled_out_in_bounded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"advection1d": make_set("advection1d", travelling_sines(num=5))}

    def sizes(batch_size: int) -> list[int]:
        ours = Draws(sets, shifted, sigma=SIGMA)
        options = {"members": 4, "seed": 0, "context": 1, "steps": None, "mode": "latent", "batch_size": batch_size}
        batches = list(rollout_ensembles(ours, sets["advection1d"], range(5), device=CPU, **options))  # type: ignore[arg-type]
        assert [index for batch in batches for index in batch.indices] == list(range(5))
        assert all(batch.members.shape[:3] == (4, len(batch.indices), 8) for batch in batches)
        return [samples for samples, _ in ours.rolled]

    assert sizes(32) == [5]
    assert sizes(8) == [2, 2, 1]
    assert sizes(1) == [1] * 5
    monkeypatch.setattr(rollout, "ENSEMBLE_VALUES", 3 * 4 * 8 * 32)
    assert sizes(32) == [3, 2]
    monkeypatch.setattr(rollout, "ENSEMBLE_VALUES", 1)
    assert sizes(32) == [1] * 5


def test_what_does_not_draw_is_not_asked_for_members() -> None:
    sets = {"reaction_diffusion2d": make_set("reaction_diffusion2d", bumps())}
    options = {"members": 2, "seed": 0, "context": 1, "steps": None, "mode": "latent", "batch_size": 4}
    with pytest.raises(UpsError, match="draws no members"):
        next(rollout_ensembles(Steps(sets, shifted), *sets.values(), [0], device=CPU, **options))  # type: ignore[arg-type]


def test_files_hold_members_and_reliability(tmp_path: Path) -> None:
    sets = {"reaction_diffusion2d": make_set("reaction_diffusion2d", bumps())}
    found = evaluate({"ups": Draws(sets, lambda u: 0.8 * u, sigma=0.1)}, sets, protocol=Protocol(members=3, seed=9))
    found.save(tmp_path, "full")
    content = json.loads((tmp_path / "full.json").read_text())
    assert (content["protocol"]["members"], content["protocol"]["members_seed"]) == (3, 9)
    summary = content["details"]["reaction_diffusion2d"]["emulators"]["ups"]["ensemble"]
    assert summary["members"] == 3
    assert len(summary["ranks"]) == 4
    assert len(summary["nominal"]) == len(summary["empirical"]) == 10
    fields = content["details"]["reaction_diffusion2d"]["fields"]
    assert [curve["field"] for curve in summary["curves"]] == fields
    assert all(len(curve[name]) == 5 for curve in summary["curves"] for name in ("crps", "spread", "skill"))
