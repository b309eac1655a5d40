"""A problem without time through the whole pipeline: one stage, scores, another resolution, prediction."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tests.pipeline.small_run import run, train

import ups
from ups.config.load import dump_settings, load_settings
from ups.data.generate import generate
from ups.data.inspect import inspect_file
from ups.errors import UpsError, UsageError
from ups.pipeline.evaluate import evaluate_run
from ups.pipeline.rollout import rollout_file
from ups.pipeline.run import check_pipeline, train_pipeline
from ups.pipeline.workspace import Workspace
from ups.runtime import SilentProgress


@pytest.fixture
def darcy(tmp_path: Path) -> Path:
    generate("darcy2d", tmp_path / "coarse.hdf5", 60, 1, {"beta": 1.0}, resolution=16)
    generate("darcy2d", tmp_path / "fine.hdf5", 4, 2, {"beta": 1.0}, resolution=32)
    settings = {
        "task": "darcy2d",
        "threads": 1,
        "runs_dir": str(tmp_path / "runs"),
        "data": {"root": str(tmp_path), "files": "coarse.hdf5"},
        "prior": {"hidden_dim": 16, "depth": 1, "stem_width": 8},
        "stages": {"steady_prior": {"steps": 60}},
        "evaluation": {"members": 4, "baselines": ["persistence", "fno"]},
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    return path


def test_so_does_one_whose_solutions_do_not_vanish_at_the_walls(tmp_path: Path) -> None:
    for name, samples, resolution in (("coarse", 60, 16), ("fine", 4, 32)):
        generate("relaxation2d", tmp_path / f"{name}.hdf5", samples, 1, {}, resolution=resolution)
    summary = inspect_file(tmp_path / "coarse.hdf5")
    assert (summary.task, summary.trainable, summary.fields, summary.problems) == ("relaxation2d", True, ("f", "u"), ())
    settings = {
        "task": "relaxation2d",
        "threads": 1,
        "runs_dir": str(tmp_path / "runs"),
        "data": {"root": str(tmp_path), "files": "coarse.hdf5"},
        "prior": {"hidden_dim": 16, "depth": 1, "stem_width": 8},
        "stages": {"steady_prior": {"steps": 60}},
        "evaluation": {"members": 4},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    folder = run(tmp_path / "config.yaml").run_dir
    scores = json.loads((folder / "evaluation" / "full.json").read_text())
    ours, mean = scores["tasks"]["relaxation2d"], scores["baselines"]["persistence"]["relaxation2d"]
    assert ours["nrmse"] < 0.5 * mean["nrmse"]
    assert ours["crps"] < ours["mae"]
    assert ours["bc_violation"] is not None, "its walls let nothing through"
    rows = {row["model"]: row for row in evaluate_run(folder, [tmp_path / "fine.hdf5"], "test", SilentProgress())}
    assert float(rows["ups"]["nrmse"]) < 2 * ours["nrmse"]
    rollout_file(folder, tmp_path / "fine.hdf5", 1, tmp_path / "solved.hdf5", None, members=3)
    with h5py.File(tmp_path / "solved.hdf5") as file, h5py.File(tmp_path / "fine.hdf5") as fine:
        assert file["members"].shape == (3, 4, 1, 1, 32, 32)
        np.testing.assert_array_equal(file["nu"][:], fine["nu"][:])


@pytest.mark.shapes
def test_a_steady_problem_goes_all_the_way(darcy: Path) -> None:
    folder, root = run(darcy).run_dir, darcy.parent
    scores = json.loads((folder / "evaluation" / "full.json").read_text())
    ours, mean, fno = (
        part["darcy2d"] for part in (scores["tasks"], *(scores["baselines"][name] for name in ("persistence", "fno")))
    )
    assert ours["nrmse"] < 0.7 * mean["nrmse"]
    assert fno["nrmse"] < 0.7 * mean["nrmse"]
    assert ours["crps"] < mean["mae"]
    assert 0 < ours["bc_violation"] < ours["nrmse"], "its solutions vanish at the walls by construction"
    assert ours["bc_violation"] < mean["bc_violation"]
    assert ours["codec_nrmse"] < 1e-5
    assert scores["reasons"]["tasks"]["darcy2d"]["conservation_gap"]
    assert json.loads((folder / "metadata.json").read_text())["trained"]
    assert (folder / "report.html").is_file()
    log = (folder / "log.jsonl").read_text()
    run(darcy)
    assert (folder / "log.jsonl").read_text() == log

    rows = evaluate_run(folder, [root / "fine.hdf5"], "test", SilentProgress())  # another resolution, no retraining
    scored = {row["model"]: float(row["nrmse"]) for row in rows}
    assert set(scored) == {"ups", "persistence", "fno"}
    assert max(scored["ups"], scored["fno"]) < scored["persistence"]

    with h5py.File(root / "given.hdf5", "w") as file, h5py.File(root / "fine.hdf5") as fine:
        for name in ("nu", "x-coordinate", "y-coordinate"):
            file[name] = fine[name][:]
        file.attrs["beta"] = 1.0
    rollout_file(folder, root / "given.hdf5", 1, root / "solved.hdf5", None, members=3)
    with h5py.File(root / "solved.hdf5") as file, h5py.File(root / "fine.hdf5") as fine:
        assert file["tensor"].shape == fine["tensor"].shape
        assert file["members"].shape == (3, 4, 1, 1, 32, 32)
        np.testing.assert_array_equal(file["nu"][:], fine["nu"][:])
    sim = ups.load(folder)
    assert sim.rollout(torch.rand(2, 1, 16, 16), steps=1, params={"beta": 1.0}).shape == (2, 1, 1, 16, 16)
    with pytest.raises(UpsError, match="steps must be 1"):
        sim.rollout(torch.rand(2, 1, 16, 16), steps=2, params={"beta": 1.0})
    for switch in ({"guards": ("boundary",)}, {"mode": "latent"}):
        with pytest.raises(UsageError, match=f"{next(iter(switch))}: darcy2d has no time"):
            rollout_file(folder, root / "given.hdf5", 1, root / "again.hdf5", None, **switch)
    with pytest.raises(UpsError, match="points"):
        sim.rollout(torch.rand(2, 1, 16, 16), steps=1, points=[[0.5, 0.5]])


@pytest.mark.parametrize(("override", "message"), [
    ("stages.operator.steps=5", "stages.operator: darcy2d has no time"),
    ("evaluation.baselines=linear", "linear predicts a step in time, and darcy2d has none"),
])  # fmt: skip
def test_what_does_not_exist_without_time_is_refused(darcy: Path, override: str, message: str) -> None:
    with pytest.raises(UpsError, match=message):
        run(darcy, override)


UNREAD = {
    "guards.positivity": "true",
    "latent.dim": "32",
    "operator.pdet.heads": "2",
    "diffusion.depth": "2",
    "training.lambda_spectral": "0.1",
    "training.physics_priors": "{enabled: true, lambda_boundary: 1.0}",
    "training.query_sampling.num_queries": "64",
    "training.focus": "1.0",
    "evaluation.corrector_every": "2",
}


def test_settings_that_nothing_reads_without_time_are_listed_at_once(darcy: Path) -> None:
    with pytest.raises(UsageError) as refused:
        run(darcy, *(f"{name}={value}" for name, value in UNREAD.items()))
    names = str(refused.value).partition(": darcy2d has no time")[0].split(", ")
    priors = ["training.physics_priors.enabled", "training.physics_priors.lambda_boundary"]
    assert sorted(names) == sorted([*(UNREAD.keys() - {"training.physics_priors"}), *priors])
    assert not (darcy.parent / "runs").exists()


@pytest.mark.parametrize("name", ["darcy2d", "relaxation2d"])
def test_settings_of_problems_without_time_are_all_read_as_they_are_and_written_out(name: str, tmp_path: Path) -> None:
    settings = load_settings(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    (tmp_path / "config.yaml").write_text(dump_settings(settings))
    for one in (settings, load_settings(tmp_path / "config.yaml")):
        assert Workspace(one, SilentProgress()).steady


def test_a_stage_of_other_problems_is_refused(darcy: Path) -> None:
    with pytest.raises(UsageError, match="operator is no stage of darcy2d"):
        train_pipeline(load_settings(darcy), progress=SilentProgress(), stage="operator")


def test_the_same_settings_give_the_same_bits(darcy: Path) -> None:
    weights = [
        train(darcy, f"runs_dir={darcy.parent / name}").run_dir / "model" / "weights.safetensors" for name in "ab"
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_its_dry_run_is_checked(darcy: Path) -> None:
    report = check_pipeline(load_settings(darcy), progress=SilentProgress())
    assert report.problems == ()
    assert [trial.name for trial in report.trainings] == ["steady_prior", "baseline fno"]
