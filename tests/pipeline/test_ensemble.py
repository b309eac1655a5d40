"""The stages that make ensembles, through the whole pipeline: what is left behind, resumed, scored and predicted."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tests.layouts import write_task
from tests.pipeline.small_run import run, train, write_config

import ups
from ups.config.load import load_settings
from ups.errors import SettingsError, UpsError, UsageError
from ups.health import Finding
from ups.models.simulator import Simulator
from ups.models.store import load_model
from ups.pipeline.effort import EnsembleSize
from ups.pipeline.ensembles import compare_student, ensemble_error, operator_error, ratio_of_means
from ups.pipeline.evaluate import evaluate_run
from ups.pipeline.rollout import rollout_file
from ups.pipeline.run import open_workspace, train_pipeline
from ups.runtime import SilentProgress
from ups.training.builders import add_corrector
from ups.training.monitor import DivergedError

STAGES = {
    "codec": {"epochs": 1},
    "operator": {"steps": 12},
    "diff_residual": {"steps": 8},
    "consistency_distill": {"steps": 4, "teacher_steps": 3, "distill_num_taus": 2},
}
SMALL = {"hidden_dim": 16, "depth": 1, "stem_width": 8, "sampler_steps": 2}


class Told(SilentProgress):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def burgers(tmp_path: Path) -> Path:
    """The settings of a run of all stages, each of a few steps, beside which the data is."""
    write_task(tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", "burgers1d", num=12, frames=6, resolution=32)
    return write_config(tmp_path, "burgers1d", ["1D_Burgers_Sols_Nu0.01.hdf5"], stages=STAGES, diffusion=SMALL)


@pytest.mark.shapes
def test_the_whole_stack_leaves_an_ensemble_behind(burgers: Path) -> None:
    overrides = ("evaluation.members=3", "evaluation.baselines=persistence")
    outcome = run(burgers, *overrides)
    folder = outcome.run_dir
    scores = json.loads((folder / "evaluation" / "full.json").read_text())
    ours = scores["tasks"]["burgers1d"]
    for metric in ("nrmse", "ensemble_nrmse", "mae", "crps", "spread_skill", "ece", "ensemble_wall_clock"):
        assert ours[metric] is not None, scores["reasons"]
    assert ours["conservation_gap"] < 1e-5
    assert scores["baselines"]["persistence"]["burgers1d"]["crps"] is None
    model = load_model(folder / "model")
    assert isinstance(model, Simulator)
    assert model.corrector is not None
    assert model.corrector.student is not None
    flows = [list(part.parameters()) for part in (model.corrector.denoiser.flow, model.corrector.student)]
    assert any(not torch.equal(a, b) for a, b in zip(*flows, strict=True))  # the student was trained, and not in place
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in records} >= {"operator", "diff_residual", "consistency_distill"}
    scored = [record for record in records if "valid_crps" in record]
    assert len(scored) == 3, "few steps are validated seldom"
    assert len({record["operator_crps"] for record in scored}) == 1
    assert "diff_residual: calibrate" in outcome.timings.parts
    assert "Uncertainty" in (folder / "report.html").read_text()

    weights, log = (folder / "model" / "weights.safetensors").read_bytes(), (folder / "log.jsonl").read_text()
    run(burgers, *overrides)
    assert (folder / "log.jsonl").read_text() == log  # nothing was trained again
    assert (folder / "model" / "weights.safetensors").read_bytes() == weights

    data = burgers.parent / "1D_Burgers_Sols_Nu0.01.hdf5"
    out = burgers.parent / "members.h5"
    rollout_file(folder, data, 3, out, None, members=4, seed=1)
    with h5py.File(out) as file:
        assert file["members"].shape == (4, 12, 3, 1, 32)
        mean = torch.from_numpy(file["members"][:]).mean(0)[:, :, 0]
        torch.testing.assert_close(torch.from_numpy(file["tensor"][:, 1:]), mean)
        made = {name: file.attrs[f"rollout_{name}"] for name in ("members", "seed", "views", "corrector_every")}
    assert made == {"members": 4, "seed": 1, "views": 1, "corrector_every": 1}
    check_scores_of_other_members_and_views(folder)
    for views, told in ((1, False), (2, True)):
        said = Told()
        rollout_file(folder, data, 1, burgers.parent / f"{views}.h5", None, members=2, progress=said, views=views)
        assert any(f"with {views} they may be too near" in line for line in said.lines) == told
    sim = ups.load(folder)
    u0 = torch.randn(2, 1, 32)
    assert sim.rollout(u0, steps=3, members=4).shape == (4, 2, 3, 1, 32)
    assert sim.rollout(u0, steps=3).shape == (2, 3, 1, 32)


def check_scores_of_other_members_and_views(folder: Path) -> None:
    """Each in a file of its own: the views change the roll-outs, the members the ensemble alone."""
    ours = {}
    for members, views in ((None, None), (2, None), (0, 2)):
        said = Told()
        evaluate_run(folder, [], "test", said, members=members, views=views)
        name = "".join(f"-{word}-{n}" for word, n in (("members", members), ("views", views)) if n is not None)
        found = json.loads((folder / "evaluation" / f"split-test{name}.json").read_text())
        ours[members] = found["tasks"]["burgers1d"]
        assert not any("may be too near" in line for line in said.lines), "no members, or those that were calibrated"
    assert ours[None]["nrmse"] == pytest.approx(ours[2]["nrmse"], rel=1e-6)
    assert ours[None]["crps"] != ours[2]["crps"]
    said = Told()
    evaluate_run(folder, [], "test", said, views=2)
    assert sum("with 2 they may be too near" in line for line in said.lines) == 1
    hashes = {
        json.loads(path.read_text())["protocol"]["hash"] for path in (folder / "evaluation").glob("split-test*.json")
    }
    assert len(hashes) == 4, "what was asked differs"
    assert ours[0]["crps"] is None
    assert ours[0]["nrmse"] != ours[None]["nrmse"]


def test_the_error_of_the_operator_is_that_of_members_without_spread(burgers: Path) -> None:
    settings = load_settings(burgers)
    workspace, size = open_workspace(settings, SilentProgress()), EnsembleSize(2, 4, 5)
    model = workspace.new_simulator().eval()
    add_corrector(settings, model)
    assert model.corrector is not None
    for scale in model.corrector.scales.values():
        scale.residual.zero_()
    alone, ensemble = (score(workspace, model, size) for score in (operator_error, ensemble_error))
    assert alone > 1e-3
    assert alone == pytest.approx(ensemble, rel=1e-4)


def test_a_run_ends_by_telling_that_its_ensembles_are_poor(burgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poor = Finding("diff_residual", "ensemble", "warning", "no better than the operator alone", "more seconds")
    usual = Finding("operator", "data", "warning", "time is spent waiting", "more workers")
    monkeypatch.setattr("ups.pipeline.run.findings_of", lambda folder: [usual, poor])
    monkeypatch.setattr("ups.pipeline.run.poor_ensembles", lambda table: (f"poor in a table of {len(table)}",))
    outcome = run(burgers, "stages.diff_residual.epochs=0", "stages.consistency_distill.epochs=0")
    assert "diff_residual: no better than the operator alone; more seconds" in outcome.messages
    assert f"poor in a table of {len(outcome.table)}" in outcome.messages
    assert not any("waiting" in message for message in outcome.messages)


def test_without_the_stage_there_is_no_ensemble(burgers: Path) -> None:
    folder = train(burgers, "stages.diff_residual.epochs=0", "stages.consistency_distill.epochs=0").run_dir
    with pytest.raises(UpsError, match="diff_residual"):
        ups.load(folder).rollout(torch.randn(1, 1, 32), steps=1, members=2)
    with pytest.raises(UsageError, match=r"members: .* deterministic; train the stage diff_residual"):
        evaluate_run(folder, [], "test", SilentProgress(), members=2)


def test_the_operator_is_the_same_with_and_without_what_is_trained_on_it(burgers: Path) -> None:
    alone = train(burgers, "stages.diff_residual.epochs=0", "stages.consistency_distill.epochs=0").run_dir
    whole = train(burgers).run_dir
    first, second = (load_model(folder / "model").state_dict() for folder in (alone, whole))
    assert set(first) < set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("overrides", "message"), [
    (("stages.diff_residual.epochs=0",), "consistency_distill needs its teacher"),
    (("stages.operator.epochs=0",), "corrects the operator"),
    (("stages.consistency_distill.distill_num_taus=9",), "too many"),
    (("diffusion.tau_distribution='beta(1)'",), "tau_distribution"),
    (("diffusion.hidden_dim=12",), "multiple of 8"),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(
    burgers: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(burgers, overrides)


def test_a_stage_by_either_name(burgers: Path) -> None:
    settings = json.loads(burgers.read_text())
    settings["stages"]["diffusion_residual"] = settings["stages"].pop("diff_residual")
    burgers.write_text(json.dumps(settings))
    assert load_settings(burgers).stages.diff_residual.steps == 8


@pytest.mark.parametrize(
    ("factors", "said"),
    [((1.0, 1.1), False), ((1.4, 1.6), True), ((1.5,), True), ((0.5, 2.5), False), ((math.inf, 1.0), None)],
)
def test_a_student_is_compared_with_its_teacher_on_validation_ensembles(
    burgers: Path, monkeypatch: pytest.MonkeyPatch, factors: tuple[float, ...], said: bool | None
) -> None:
    """What it is clearly worse by is told; the teacher's scores are without the student, which is there afterwards."""
    told = Told()
    workspace = open_workspace(load_settings(burgers), told)
    simulator = workspace.new_simulator()
    add_corrector(workspace.settings, simulator)
    assert simulator.corrector is not None
    student = simulator.corrector.add_student()
    drawn_by: list[object] = []

    def scored(_workspace: object, found: Simulator, size: EnsembleSize) -> list[list[float]]:
        assert found.corrector is not None
        assert size == EnsembleSize(2, 4, 5)
        drawn_by.append(found.corrector.student)
        return [[0.1 * (factor if found.corrector.student is not None else 1.0) for factor in factors]]

    monkeypatch.setattr("ups.pipeline.ensembles.ensemble_errors", scored)
    with pytest.raises(DivergedError) if said is None else nullcontext():
        compare_student(workspace, simulator, EnsembleSize(2, 4, 5))
    assert drawn_by == [student, None]
    assert simulator.corrector.student is student
    assert any("worse than its teacher's by 50%" in line for line in told.lines) == bool(said)


def test_the_ratio_of_two_means_and_its_deviation() -> None:
    """As far as the ratios of many samples are from each other."""
    rng = np.random.default_rng(0)
    others = rng.uniform(1.0, 3.0, (4000, 2, 30))
    scores = 0.9 * others + rng.normal(0, 0.3, others.shape)
    found = [ratio_of_means(one.tolist(), other.tolist()) for one, other in zip(scores, others, strict=True)]
    ratios, deviations = np.array(found).T
    assert ratios.mean() == pytest.approx(0.9, rel=1e-3)
    assert deviations.mean() == pytest.approx(ratios.std(), rel=0.05)


def test_a_stage_alone_trains_those_before_it(burgers: Path) -> None:
    outcome = train_pipeline(load_settings(burgers), progress=SilentProgress(), stage="diff_residual")
    assert (outcome.run_dir / "checkpoints" / "diff_residual" / "model" / "weights.safetensors").is_file()
    assert not (outcome.run_dir / "checkpoints" / "consistency_distill").exists()
    assert not (outcome.run_dir / "model").exists()  # a stage with a budget is still to come


def test_the_last_stage_with_a_budget_leaves_the_model(burgers: Path) -> None:
    alone = ("stages.diff_residual.epochs=0", "stages.consistency_distill.epochs=0")
    outcome = train_pipeline(load_settings(burgers, alone), progress=SilentProgress(), stage="operator")
    assert ups.load(outcome.run_dir).rollout(torch.randn(1, 1, 32), steps=2).shape == (1, 2, 1, 32)


def test_distillation_stops_at_its_target(burgers: Path) -> None:
    folder = train(burgers, "stages.consistency_distill.target_loss=1e9").run_dir
    records = json.loads((folder / "metadata.json").read_text())["steps"]
    assert records["consistency_distill"]["stopped"] == "target"
    assert records["consistency_distill"]["steps"] < 4


@pytest.mark.parametrize("stage", ["diff_residual", "consistency_distill"])
def test_killed_in_a_stage_a_run_goes_on_to_the_same_bits(burgers: Path, stage: str) -> None:
    settings = [f"stages.{stage}.steps=30", "training.log_every=1", "training.checkpoint_interval=2"]
    whole = train(burgers, *settings, f"runs_dir={burgers.parent / 'whole'}")
    command = [sys.executable, "-m", "ups", "train", str(burgers), *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if any(f'"{stage}"' in log.read_text() for log in (burgers.parent / "runs").glob("*/log.jsonl")):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    resumed = train(burgers, *settings)
    weights = [outcome.run_dir / "model" / "weights.safetensors" for outcome in (whole, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
