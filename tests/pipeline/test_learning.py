"""What whole runs learn: on every equation, on several at once, with a lossy codec, and from a reference solver."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tests.layouts import write_task
from tests.pipeline.small_run import run, train, write_config

import ups
from ups.config.load import load_settings
from ups.errors import DataError, UsageError
from ups.pipeline.evaluate import evaluate_run
from ups.pipeline.rollout import rollout_file
from ups.pipeline.run import train_pipeline
from ups.runtime import SilentProgress
from ups.terminal import LineProgress


def test_a_lossy_codec_is_trained_and_gets_better(tmp_path: Path) -> None:
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, nu=0.01)
    config = write_config(tmp_path, "burgers1d", ["b.hdf5"], latent={"dim": 2, "patch": 8})
    folder = train_pipeline(load_settings(config), progress=SilentProgress(), stage="codec").run_dir
    steps = json.loads((folder / "steps.json").read_text())["codec"]
    assert steps["steps"] > 0
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    first = next(record["valid_nrmse"] for record in log if "valid_nrmse" in record)
    assert steps["best_valid"] <= first


@pytest.mark.shapes
@pytest.mark.parametrize("task", ["advection1d", "reaction_diffusion1d", "reaction_diffusion2d", "shallow_water2d"])
def test_every_equation_goes_all_the_way(task: str, tmp_path: Path) -> None:
    write_task(tmp_path / "train.h5", task, num=8, frames=6, resolution=16)
    write_task(tmp_path / "other.h5", task, num=3, frames=6, resolution=16, seed=5)
    config = write_config(tmp_path, task, ["train.h5"])
    whole = task == "reaction_diffusion2d"
    folder = (run if whole else train)(config).run_dir
    rows = evaluate_run(folder, [tmp_path / "other.h5"], "test", SilentProgress())
    assert {row["model"] for row in rows} == {"persistence", "ups", *(["linear"] if whole else [])}
    assert all(np.isfinite(float(row["nrmse"])) for row in rows)
    rollout_file(folder, tmp_path / "other.h5", 4, tmp_path / "grid.h5", None)
    with pytest.raises(DataError, match="holds predictions"):
        evaluate_run(folder, [tmp_path / "grid.h5"], "test", SilentProgress())
    with h5py.File(tmp_path / "grid.h5", "r+") as file:
        del file.attrs["ups_predicted_by"]
    again = evaluate_run(folder, [tmp_path / "grid.h5"], "test", SilentProgress())
    assert float(next(row for row in again if row["model"] == "ups")["nrmse"]) < 1e-4  # its own prediction is its truth
    axes = 2 if task.endswith("2d") else 1
    low, high = (
        ups.load(folder).spec().origin,
        ups.load(folder).spec().origin[0] + 3 * ups.load(folder).spec().spacing[0],
    )
    points = np.random.default_rng(0).uniform(low[0], high, (7, axes))
    np.save(tmp_path / "points.npy", points)
    rollout_file(folder, tmp_path / "other.h5", 4, tmp_path / "points.h5", tmp_path / "points.npy")
    with h5py.File(tmp_path / "points.h5") as file:
        assert file["points"].shape == (7, axes)
        assert file[ups.load(folder).spec().fields[0]].shape == (3, 4, 7)


@pytest.mark.slow
def test_a_real_simulator_is_learned_from_generated_data(tmp_path: Path) -> None:
    """Burgers from the reference solver, the default model: far better than standing still and the best linear step."""
    config = tmp_path / "config.yaml"
    settings = {
        "task": "burgers1d",
        "threads": 1,
        "runs_dir": str(tmp_path / "runs"),
        "data": {
            "root": str(tmp_path / "data"),
            "files": "burgers.hdf5",
            "generate": {"samples": 60, "seed": 3, "params": {"nu": 0.05}, "resolution": 64, "frames": 21},
        },
        "stages": {"operator": {"steps": 400}},
        "evaluation": {"baselines": ["linear", "fno"]},
    }
    config.write_text(json.dumps(settings))
    folder = run(config).run_dir
    scores = json.loads((folder / "evaluation" / "full.json").read_text())
    ours = scores["tasks"]["burgers1d"]
    others = {name: of_task["burgers1d"]["nrmse"] for name, of_task in scores["baselines"].items()}
    assert ours["nrmse"] < 0.05 * others["persistence"]
    assert ours["nrmse"] < 0.2 * others["linear"]
    assert ours["nrmse"] < others["fno"]
    assert ours["codec_nrmse"] <= 0.25 * ours["nrmse"]
    assert scores["modes"]["physical"]["burgers1d"]["nrmse"] == pytest.approx(ours["nrmse"], rel=0.01)
    assert ours["conservation_gap"] < 1e-5
    assert ours["solver_speedup"] is not None or scores["reasons"]["tasks"]["burgers1d"]["solver_speedup"]


def test_several_tasks_train_one_model(tmp_path: Path) -> None:
    write_task(tmp_path / "a.hdf5", "advection1d", num=8, frames=6, resolution=32, beta=0.4)
    write_task(tmp_path / "b.hdf5", "burgers1d", num=8, frames=6, resolution=32, nu=0.01)
    config = write_config(tmp_path, "burgers1d", [])
    settings = json.loads(config.read_text())
    settings["task"] = ["advection1d", "burgers1d"]
    settings["data"]["files"] = {"advection1d": ["a.hdf5"], "burgers1d": ["b.hdf5"]}
    settings["evaluation"]["baselines"] = ["fno"]
    settings["training"]["log_per_task_metrics"] = True
    config.write_text(json.dumps(settings))
    folder = run(config).run_dir
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for record in (record for record in records if record.get("valid_nrmse") is not None):  # null where one diverged
        each = [record[f"{task}/valid_nrmse"] for task in ("advection1d", "burgers1d")]
        assert record["valid_nrmse"] == pytest.approx(sum(each) / 2), record
    assert {"operator", "baselines-fno"} <= {record["stage"] for record in records if "burgers1d/valid_nrmse" in record}
    scores = json.loads((folder / "evaluation" / "full.json").read_text())
    assert set(scores["tasks"]) == set(scores["baselines"]["fno"]) == {"advection1d", "burgers1d"}
    evaluate_run(folder, [], "test", SilentProgress())
    again = json.loads((folder / "evaluation" / "split-test.json").read_text())["baselines"]
    assert set(again) == {"persistence", "fno"}
    for task in scores["tasks"]:
        assert again["fno"][task]["nrmse"] == pytest.approx(scores["baselines"]["fno"][task]["nrmse"], rel=1e-4)
    sim = ups.load(folder)
    with pytest.raises(UsageError, match="say which"):
        sim.rollout(torch.zeros(1, 1, 32), steps=1)
    assert sim.rollout(torch.randn(1, 1, 32), steps=2, params={"beta": 0.4}, task="advection1d").shape == (1, 2, 1, 32)


@pytest.mark.parametrize("dim", [2, 16])
def test_a_codec_alone_is_trained_by_latent_terms_where_it_loses_something(tmp_path: Path, dim: int) -> None:
    """Two latents stand for four values here; one that loses nothing stays as it is, and the log says so."""
    write_task(tmp_path / "b.hdf5", "burgers1d", num=8, frames=6, resolution=32, nu=0.01)
    config = write_config(tmp_path, "burgers1d", ["b.hdf5"])
    terms = "training.physics_priors={enabled: true, lambda_latent_norm: 0.1}"
    said: list[str] = []
    settings = load_settings(config, (f"latent.dim={dim}", "latent.patch=4", terms, "stages.operator.epochs=0"))
    folder = train_pipeline(settings, progress=LineProgress(said.append), stage="codec").run_dir
    log = folder / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    assert any("latent_norm" in record for record in records) is (dim == 2)
    assert any("lambda_latent_norm left out" in line for line in said) is (dim == 16)


def test_an_operator_without_a_budget_is_said_to_be_untrained(tmp_path: Path) -> None:
    write_task(tmp_path / "b.hdf5", "burgers1d", num=8, frames=6, resolution=32, nu=0.01)
    config = write_config(tmp_path, "burgers1d", ["b.hdf5"])
    said: list[str] = []
    changes = ("stages.operator.epochs=0", "operator.base=persistence")
    folder = train_pipeline(load_settings(config, changes), progress=LineProgress(said.append)).run_dir
    assert any("stages.operator.epochs is 0: a step is its base alone" in line for line in said)
    u0 = torch.sin(torch.arange(32) / 32 * 2 * torch.pi)[None, None]  # at rest on average, so that its frame is, too
    step = ups.load(folder).rollout(u0, steps=1, params={"nu": 0.01})[:, 0]
    torch.testing.assert_close(step, u0, rtol=1e-5, atol=1e-5)
