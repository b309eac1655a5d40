"""The evaluation as a whole: known scores, divergence said rather than hidden, and the promised layout of the files."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.helpers import Steps, bumps, make_set, shifted, spec_of, travelling_sines
from torch import Tensor

from ups.data.trajectories import TrajectorySet
from ups.errors import DataError, UpsError
from ups.evaluation import showcase
from ups.evaluation.evaluate import Evaluation, Protocol, evaluate
from ups.models.baselines import Persistence
from ups.models.emulator import Emulator
from ups.physics.solvers.cost import SolverCost

PROMISED = {
    *("nrmse", "pdebench_nrmse", "rel_l2", "rmse", "max_error", "vrmse", "one_step_nrmse", "codec_nrmse"),
    *("spectral_low", "spectral_mid", "spectral_high", "conservation_gap", "bc_violation"),
    *("crps", "spread_skill", "ece", "wall_clock", "solver_speedup"),
    *("mae", "mae_relative", "crps_relative", "ensemble_nrmse", "ensemble_wall_clock"),
}


def advection(context: int = 1) -> tuple[dict[str, TrajectorySet], dict[str, Emulator]]:
    """An emulator that grows by 1 % per step, beside persistence."""
    sets = {"advection1d": make_set("advection1d", travelling_sines())}
    grows = Steps(sets, lambda u: 1.01 * shifted(u), context=context)
    return sets, {"ups": grows, "persistence": Persistence({"advection1d": spec_of(sets["advection1d"], context)})}


def test_scores_of_a_known_error() -> None:
    """u grows by 1.01 per step: the relative error after t steps is 1.01^t - 1, whatever the field."""
    sets, emulators = advection()
    found = evaluate(emulators, sets, protocol=Protocol())
    growth = [1.01**t - 1 for t in range(1, 9)]
    scores = {name: score.value for name, score in found.scores("advection1d").items()}
    assert scores["nrmse"] == pytest.approx(math.sqrt(np.mean(np.square(growth))), rel=1e-4)
    assert scores["pdebench_nrmse"] == pytest.approx(np.mean(growth), rel=1e-4)
    assert scores["one_step_nrmse"] == pytest.approx(0.01, rel=1e-4)
    assert scores["max_error"] == pytest.approx(4 * growth[-1], rel=1e-3)
    ours = found.tasks["advection1d"].emulators["ups"]
    assert ours.curve.mean == pytest.approx(growth, rel=1e-4)
    assert ours.curve.low == pytest.approx(growth, rel=1e-4)
    assert list(ours.per_sample) == [0, 1, 2, 3]
    spectrum = ours.spectrum
    assert spectrum is not None
    assert np.sum(spectrum.error) == pytest.approx(growth[-1] ** 2 * np.sum(spectrum.truth), rel=1e-3)


def test_rmse_is_the_root_of_the_mean_over_all_samples() -> None:
    sets, emulators = advection()
    emulators["persistence"] = Persistence({"advection1d": spec_of(sets["advection1d"])})
    found = evaluate(emulators, sets, protocol=Protocol()).scores("advection1d", "persistence")["rmse"].value
    truth = torch.stack(travelling_sines()).double().numpy()
    assert found == pytest.approx(math.sqrt(np.mean((truth[:, 1:] - truth[:, :1]) ** 2)))


def test_scores_do_not_depend_on_batches() -> None:
    results = []
    for batch_size in (1, 3, 32):
        sets, emulators = advection()
        found = evaluate(emulators, sets, protocol=Protocol(batch_size=batch_size)).scores("advection1d")
        results.append(
            {name: score.value for name, score in found.items() if score.value is not None and name != "wall_clock"}
        )
    assert len(results[0]) >= 10
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    assert results[0] == pytest.approx(results[2], rel=1e-6)


def test_divergence_leaves_no_number_and_says_where() -> None:
    def explode(u: Tensor) -> Tensor:
        return torch.where(u.abs().amax((1, 2), keepdim=True) > 3.9, torch.nan, 1.0) * shifted(
            u
        )  # the fourth sample alone

    sets = {"advection1d": make_set("advection1d", travelling_sines())}
    emulators = {"ups": Steps(sets, explode), "persistence": Persistence({"advection1d": spec_of(sets["advection1d"])})}
    found = evaluate(emulators, sets, protocol=Protocol())
    score = found.scores("advection1d")["nrmse"]
    assert score.value is None
    assert score.reason == "1 of 4 roll-outs diverged, the first at frame 1 after the initial one"
    assert found.scores("advection1d")["diverged"].value == 1
    ours = found.tasks["advection1d"].emulators["ups"]
    assert ours.curve.mean == (None,) * 8
    assert ours.per_sample[3] is None
    assert ours.per_sample[0] == pytest.approx(0, abs=1e-5)
    assert found.tasks["advection1d"].showcases[0].index == 3  # what diverged is shown as the worst
    assert found.scores("advection1d", "persistence")["nrmse"].value is not None


def test_what_cannot_be_measured_is_null_with_a_reason() -> None:
    sets, emulators = advection()
    periodic = evaluate(emulators, sets, protocol=Protocol()).scores("advection1d")
    assert periodic["bc_violation"].value is None
    assert periodic["bc_violation"].reason == "the domain is periodic: there is no boundary"
    assert periodic["codec_nrmse"].reason == "ups has no codec"
    walls = {"reaction_diffusion2d": make_set("reaction_diffusion2d", bumps())}
    found = evaluate({"ups": Steps(walls, lambda u: 0.8 * u)}, walls, protocol=Protocol()).scores(
        "reaction_diffusion2d"
    )
    assert found["conservation_gap"].reason == "reaction_diffusion2d conserves no integral"
    assert found["bc_violation"].value is not None
    assert found["spectral_high"].reason == "the grid resolves no wave number from 12 on"
    assert found["crps"].value is None
    assert all((score.value is None) == (score.reason is not None) for score in found.values())


def test_conservation_is_told_frame_by_frame() -> None:
    truth = torch.ones(2, 4, 1, 32)
    truth[:, 1:, ..., 0] += 0.32  # the data itself loses a hundredth of the field's integral
    sets = {"advection1d": make_set("advection1d", truth)}
    found = evaluate({"ups": Steps(sets, lambda u: 1.1 * u)}, sets, protocol=Protocol())
    drift = found.tasks["advection1d"].emulators["ups"].conservation
    assert drift is not None
    assert drift.prediction == pytest.approx((0.1, 0.21, 0.331))
    assert drift.truth == pytest.approx((0.01, 0.01, 0.01))
    kept = found.to_json()["details"]["advection1d"]["emulators"]["ups"]["conservation"]
    assert kept["prediction"] == drift.prediction
    walls = {"reaction_diffusion2d": make_set("reaction_diffusion2d", bumps())}
    other = evaluate({"ups": Steps(walls, lambda u: u)}, walls, protocol=Protocol())
    assert other.tasks["reaction_diffusion2d"].emulators["ups"].conservation is None


def test_solver_speedup_compares_equal_accuracy() -> None:
    sets, emulators = advection()
    found = evaluate(emulators, sets, protocol=Protocol())
    seconds = {"advection1d": 0.5}
    cost = SolverCost(
        resolution=16, nrmse=0.01, seconds_per_trajectory=5.0, found=True, tried=(), samples=4, target=0.02
    )
    timed = found.with_solver_costs({"advection1d": cost}, seconds)
    assert timed.scores("advection1d")["solver_speedup"].value == pytest.approx(10)
    assert timed.tasks["advection1d"].facts["solver"]["model_seconds"] == 0.5
    missed = SolverCost(
        resolution=64, nrmse=0.5, seconds_per_trajectory=1.0, found=False, tried=(), samples=4, target=0.02
    )
    score = found.with_solver_costs({"advection1d": missed}, seconds).scores("advection1d")["solver_speedup"]
    assert score.value is None
    assert "did not reach" in str(score.reason)
    other = found.with_solver_costs({}, {}, {"advection1d": "the data's domain is 2, the reference solver's is 1"})
    assert other.scores("advection1d")["solver_speedup"].reason == "the data's domain is 2, the reference solver's is 1"
    assert other.scores("advection1d")["nrmse"] == found.scores("advection1d")["nrmse"]
    assert found.scores("advection1d", "persistence")["solver_speedup"].reason == "only computed for ups"


def test_files_have_the_promised_layout(tmp_path: Path) -> None:
    sets, emulators = advection()
    found = evaluate(emulators, sets, protocol=Protocol(split="test"))
    found.save(tmp_path, "full")
    content = json.loads((tmp_path / "full.json").read_text())
    assert set(content["tasks"]["advection1d"]) >= PROMISED
    assert set(content["baselines"]["persistence"]["advection1d"]) >= PROMISED
    assert content["modes"]["physical"]["advection1d"]["nrmse"] == pytest.approx(
        content["tasks"]["advection1d"]["nrmse"]
    )
    for metric, value in content["tasks"]["advection1d"].items():
        assert (value is None) == (metric in content["reasons"]["tasks"]["advection1d"])
    assert content["details"]["advection1d"]["timed_batch"] == 4
    assert content["protocol"]["tasks"]["advection1d"]["data_hash"] == sets["advection1d"].content_hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fields.npz", "full.json"]


def test_protocol_hash_is_of_what_was_asked_alone() -> None:
    def protocol(**changes: object) -> Evaluation:
        sets, emulators = advection()
        return evaluate(emulators, sets, protocol=Protocol(**changes), showcases=False)  # type: ignore[arg-type]

    base = protocol().protocol["hash"]
    assert protocol(batch_size=1).protocol["hash"] == base
    asked = ({"steps": 3}, {"max_samples": 2}, {"mode": "physical"}, {"split": "valid"}, {"members": 4}, {"seed": 1})
    for changes in asked:
        assert protocol(**changes).protocol["hash"] != base, changes


def test_showcases_are_the_worst_the_median_and_the_best_and_survive_the_disk(tmp_path: Path) -> None:
    sets = {"advection1d": make_set("advection1d", travelling_sines(num=5, frames=80, size=256))}
    emulators = {"ups": Steps(sets, lambda u: shifted(u) * (1 + 0.01 / u.abs().amax((1, 2), keepdim=True)))}
    found = evaluate(emulators, sets, protocol=Protocol())
    kept = found.tasks["advection1d"].showcases
    assert [(one.role, one.index) for one in kept] == [("worst", 0), ("median", 2), ("best", 4)]
    assert kept[0].truth.shape == (64, 1, 128)
    assert kept[0].times[0] == 0
    assert kept[0].times[-1] == pytest.approx(7.9)
    showcase.save(tmp_path / "fields.npz", kept)
    for before, after in zip(kept, showcase.load(tmp_path / "fields.npz"), strict=True):
        assert np.array_equal(before.truth, after.truth)
        error, kept_error = (one.predictions["ups"] - one.truth for one in (before, after))
        np.testing.assert_allclose(kept_error, error, rtol=2e-3, atol=1e-6)
        assert (after.params, after.times, after.extent) == (before.params, before.times, before.extent)


def test_damaged_fields_are_named(tmp_path: Path) -> None:
    sets, emulators = advection()
    path = tmp_path / "fields.npz"
    showcase.save(path, evaluate(emulators, sets, protocol=Protocol()).tasks["advection1d"].showcases)
    whole = path.read_bytes()
    middle = len(whole) // 2
    torn = whole[:middle] + bytes(64) + whole[middle + 64 :]
    pickled = io.BytesIO()
    np.savez(pickled, index=np.array([{}], dtype=object))
    for content in (b"not an archive", b"", whole[:middle], torn, pickled.getvalue()):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"fields\.npz is damaged; evaluate the run again$") as raised:
            showcase.load(path)
        assert "pickle" not in str(raised.value)


def test_nothing_to_evaluate_is_an_error() -> None:
    sets, emulators = advection()
    with pytest.raises(UpsError, match="holds no trajectories"):
        evaluate(emulators, {}, protocol=Protocol())
    with pytest.raises(UpsError, match="rollout_mode"):
        evaluate(emulators, sets, protocol=Protocol(mode="both"))
