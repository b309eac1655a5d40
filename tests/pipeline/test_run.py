"""Whole runs on tiny data: what is left behind, what is done again, and what users do with a finished run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tests.layouts import write_task

import ups
from ups.config.load import load_settings
from ups.data.inspect import inspect_file
from ups.errors import DataError, UpsError, UsageError
from ups.evaluation.board import Board
from ups.evaluation.leaderboard import Leaderboard
from ups.pipeline.checks import ChecksFailed
from ups.pipeline.evaluate import evaluate_run
from ups.pipeline.plan import TimedStore
from ups.pipeline.rollout import rollout_file
from ups.pipeline.run import RunOutcome, check_pipeline, run_pipeline, train_pipeline
from ups.runtime import SilentProgress
from ups.timing import Timings

SIZES = {
    1: {"latent": {"dim": 16, "patch": 4}, "pdet": {"hidden_dim": 16, "depths": 1, "heads": 2, "stem_width": 8}},
    2: {"latent": {"dim": 32, "patch": 4}, "pdet": {"hidden_dim": 16, "depths": 1, "heads": 2, "stem_width": 8}},
}


def write_config(folder: Path, task: str, files: list[str], **more: Any) -> Path:
    """Settings of a run of twelve steps."""
    sizes = SIZES[2 if task.endswith("2d") else 1]
    settings: dict[str, Any] = {
        "task": task,
        "threads": 1,
        "runs_dir": str(folder / "runs"),
        "data": {"root": str(folder), "files": files},
        "latent": sizes["latent"],
        "operator": {"pdet": sizes["pdet"]},
        "training": {"batch_size": 4, "checkpoint_interval": 5},
        "stages": {"codec": {"epochs": 1}, "operator": {"steps": 12}},
        "evaluation": {"baselines": ["persistence", "linear"], "solver_reference": False},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps({**settings, **more}))  # JSON is YAML
    return path


def run(config: Path, *overrides: str, **choices: Any) -> RunOutcome:
    return run_pipeline(load_settings(config, overrides), progress=SilentProgress(), **choices)


def train(config: Path, *overrides: str) -> RunOutcome:
    return train_pipeline(load_settings(config, overrides), progress=SilentProgress())


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def burgers(tmp_path: Path) -> Path:
    write_task(tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", "burgers1d", num=12, frames=8, resolution=32)
    return write_config(tmp_path, "burgers1d", ["1D_Burgers_Sols_Nu0.01.hdf5"])


def test_a_run_leaves_what_is_promised_and_running_again_does_nothing(burgers: Path) -> None:
    outcome = run(burgers)
    folder = outcome.run_dir
    for name in (
        *("config.yaml", "metadata.json", "log.jsonl", "report.html", "evaluation/small.json", "evaluation/full.json"),
        *("model/config.json", "model/weights.safetensors", "checkpoints/operator", "gates.json"),
    ):
        assert (folder / name).exists(), name
    scores = json.loads((folder / "evaluation" / "full.json").read_text())
    assert set(scores["baselines"]) == {"persistence", "linear"}
    ours = scores["tasks"]["burgers1d"]
    assert ours["nrmse"] > 0
    assert ours["codec_nrmse"] < 1e-5
    assert ours["conservation_gap"] < 1e-5
    assert ours["crps"] is None
    assert scores["reasons"]["tasks"]["burgers1d"]["crps"]
    assert [row["model"] for row in outcome.table][-1] == "ups"
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["trained"] is True
    assert metadata["data_hash"]

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = run(burgers)
    assert again == outcome
    changed = {path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    written_again = {"config.yaml", "metadata.json", "data.json", "config.json", "weights.safetensors"}
    assert changed <= {*written_again, "finished.json"}
    settings = load_settings(folder / "config.yaml")
    assert run_pipeline(settings, progress=SilentProgress()).run_dir == folder


def test_the_timings_of_a_run_tell_computing_from_what_comes_with_it(burgers: Path) -> None:
    began = time.perf_counter()
    timings = run(burgers, timings=Timings("rest")).timings
    took = time.perf_counter() - began
    compute = {name for name, part in timings.parts.items() if part.compute}
    assert compute == {
        *("closed form", "codec: validate", "operator: train", "operator: validate"),
        *("evaluate: small", "evaluate: full"),
    }
    rest = {"check: folder", "check: data", "open data", "check: dry run", "operator: rest", "operator: checkpoints"}
    assert {*rest, "evaluate: rest", "gates and promotion", "report"} <= set(timings.parts) - compute
    assert timings.total().seconds == pytest.approx(took, abs=0.5)
    assert timings.parts["operator: checkpoints"].seconds > 0


def test_a_first_run_is_not_promoted_until_it_may_be_and_a_second_must_be_better(burgers: Path) -> None:
    lossy = ["latent.dim=2", "gates.ratios.wall_clock=null"]
    outcome = run(burgers, *lossy)
    assert not outcome.passed
    assert "there is no champion yet; gates.first_champion: true makes this run the first" in outcome.messages[0]
    folder = outcome.run_dir
    trained = (folder / "log.jsonl").stat().st_mtime_ns
    first = run(burgers, *lossy, "gates.first_champion=true")
    assert (first.passed, first.run_dir) == (True, folder)
    assert (folder / "log.jsonl").stat().st_mtime_ns == trained, "judged again, not trained again"
    assert first.messages[0] == f"promoted: {folder.name} became the champion"
    page = (folder / "report.html").read_text()
    assert '<section id="gates">' in page
    assert "Promoted: when it was judged" in page
    assert "not judged</b> the domain is periodic: there is no boundary" in page
    second = run(burgers, *lossy, "stages.operator.steps=13", "gates.min_delta=0.9")
    assert not second.passed
    assert (
        f"Not promoted: one gate failed.</span> It was judged against {folder.name}"
        in (second.run_dir / "report.html").read_text()
    )
    third = run(burgers, lossy[1])
    assert third.messages[0] == f"promoted: {third.run_dir.name} became the champion after {folder.name}"
    metadata = json.loads((third.run_dir / "metadata.json").read_text())
    assert metadata["last_small_eval"] <= metadata["last_full_eval"]
    rows = Board.read(burgers.parent / "runs" / "leaderboard.sqlite").rows()
    assert {row["run"]: row["standing"] for row in rows} == {
        third.run_dir.name: "champion",
        folder.name: "was champion",
        second.run_dir.name: "not promoted",
    }
    assert run(burgers, *lossy, "gates.first_champion=true").messages == first.messages, "what was decided is repeated"


def test_what_is_no_better_than_standing_still_is_not_evaluated_in_full(burgers: Path) -> None:
    gates = "gates.first_champion=true"
    before = run(burgers, gates)
    assert before.passed
    with h5py.File(burgers.parent / "1D_Burgers_Sols_Nu0.01.hdf5", "r+") as file:
        file["tensor"][:] = file["tensor"][:, :1]  # nothing moves: persistence has no error at all
    outcome = run(burgers, gates)
    assert not outcome.passed
    assert "does not beat persistence" in outcome.messages[0]
    scores = outcome.run_dir / "evaluation"
    assert (scores / "small.json").exists()
    assert not (scores / "full.json").exists(), "scores of the model before"
    assert [row["model"] for row in outcome.table] == ["persistence", "linear", "ups"]
    assert "Only the small evaluation exists" in (outcome.run_dir / "report.html").read_text()
    again = run(burgers, gates)
    assert again == outcome
    assert len(Leaderboard(burgers.parent / "runs" / "leaderboard.sqlite").entries()) == 1


def test_a_forced_step_is_done_again_with_all_that_comes_after(burgers: Path) -> None:
    folder = run(burgers).run_dir
    log, report, scores = folder / "log.jsonl", folder / "report.html", folder / "evaluation" / "full.json"

    def stamps() -> list[int]:
        return [path.stat().st_mtime_ns for path in (log, scores, report)]

    first = stamps()
    run(burgers, force=("report",))
    second = stamps()
    assert second[:2] == first[:2]
    assert second[2] > first[2]
    run(burgers, force=("operator",))
    assert all(after > before for after, before in zip(stamps(), second, strict=True))
    with pytest.raises(UsageError, match="the steps are data, check"):
        run(burgers, force=("trainn",))


def test_what_was_deleted_is_made_again(burgers: Path) -> None:
    folder = run(burgers).run_dir
    for name in ("evaluation/full.json", "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints")
    run(burgers)
    assert (folder / "evaluation" / "full.json").exists()
    assert (folder / "report.html").exists()


def test_changed_data_is_trained_on_again_and_not_scored_by_the_old_model(burgers: Path) -> None:
    folder = run(burgers).run_dir
    path = burgers.parent / "1D_Burgers_Sols_Nu0.01.hdf5"
    with h5py.File(path, "r+") as file:
        file["t-coordinate"][:] = 2 * file["t-coordinate"][:]  # the same fields, twice as far apart in time
    with pytest.raises(DataError, match="have changed since"):
        evaluate_run(folder, [], "test", SilentProgress())
    assert run(burgers).run_dir == folder
    assert ups.load(folder).spec().dt == pytest.approx(4 / 7)
    assert len(evaluate_run(folder, [], "test", SilentProgress())) == 2


def test_generated_data_of_other_settings_is_refused(tmp_path: Path) -> None:
    generate = {"samples": 10, "seed": 1, "params": {"nu": 0.05}, "resolution": 32, "frames": 5}
    config = write_config(tmp_path, "burgers1d", ["made.hdf5"])
    settings = json.loads(config.read_text())
    settings["data"]["generate"] = generate
    config.write_text(json.dumps(settings))
    train(config)
    with pytest.raises(UsageError, match="generated by other settings"):
        train(config, "data.generate.seed=2")


class Told(SilentProgress):
    """Keeps how far the work was."""

    def __init__(self) -> None:
        self.updates: list[float] = []

    def update(self, done: float, note: str = "") -> None:
        self.updates.append(done)


def test_parameters_that_vary_are_written_with_a_roll_out_which_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nus = np.linspace(0.01, 0.05, 12)
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, Nu=nus)
    folder = train(write_config(tmp_path, "burgers1d", ["b.hdf5"])).run_dir
    monkeypatch.setattr("ups.pipeline.rollout.BATCH", 5)
    told = Told()
    rollout_file(folder, tmp_path / "b.hdf5", 2, tmp_path / "out.hdf5", None, progress=told)
    assert told.updates == [5, 10, 12]
    with h5py.File(tmp_path / "out.hdf5") as file:
        np.testing.assert_allclose(file.attrs["Nu"], nus, rtol=1e-6)


def test_predictions_are_no_data_but_a_place_to_go_on_from(tmp_path: Path) -> None:
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, Nu=0.01)
    folder = train(write_config(tmp_path, "burgers1d", ["b.hdf5"])).run_dir
    predicted = tmp_path / "predicted.hdf5"
    rollout_file(folder, tmp_path / "b.hdf5", 3, predicted, None)
    with pytest.raises(ChecksFailed, match=f"holds predictions .run {folder.name}, 3 steps from b.hdf5"):
        train(write_config(tmp_path, "burgers1d", ["b.hdf5", "predicted.hdf5"]))
    summary = inspect_file(predicted)
    assert summary.predicted_by == f"run {folder.name}, 3 steps from b.hdf5"
    assert summary.ranges[0].high is not None
    assert [problem.where for problem in summary.problems] == ["attribute ups_predicted_by"]
    rollout_file(folder, predicted, 2, tmp_path / "further.hdf5", None)
    with h5py.File(tmp_path / "further.hdf5") as file:
        assert file["tensor"].shape == (12, 3, 32)


def test_a_stage_keeps_checkpoints_at_its_own_interval(burgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = TimedStore.save

    def note(self: TimedStore, step: int, state: Any) -> Path:
        saved.append(step)
        return save(self, step, state)

    monkeypatch.setattr(TimedStore, "save", note)
    train(burgers, "stages.operator.checkpoint_interval=3")
    assert saved == [0, 3, 6, 9, 12]


def test_the_same_settings_give_the_same_bits_and_others_another_run(burgers: Path) -> None:
    first, second, other = (
        train(burgers, *overrides).run_dir
        for overrides in ([], [f"runs_dir={burgers.parent / 'elsewhere'}"], ["seed=18"])
    )
    weights = [(folder / "model" / "weights.safetensors").read_bytes() for folder in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]
    assert first != other


def test_one_stage_alone(burgers: Path) -> None:
    settings = load_settings(burgers)
    codec = train_pipeline(settings, progress=SilentProgress(), stage="codec")
    assert not (codec.run_dir / "model").exists()
    both = train_pipeline(settings, progress=SilentProgress())
    assert (both.run_dir / "model" / "weights.safetensors").exists()
    assert not (both.run_dir / "evaluation").exists()
    with pytest.raises(UsageError, match=r"nothing to train; .* such as stages\.codec\.seconds=60"):
        train_pipeline(load_settings(burgers, ["stages.codec.epochs=0"]), progress=SilentProgress(), stage="codec")
    with pytest.raises(UsageError, match="steady_prior is no stage of burgers1d: those are codec, operator"):
        train_pipeline(load_settings(burgers), progress=SilentProgress(), stage="steady_prior")


def test_a_lossy_codec_is_trained_and_gets_better(tmp_path: Path) -> None:
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, nu=0.01)
    config = write_config(tmp_path, "burgers1d", ["b.hdf5"], latent={"dim": 2, "patch": 8})
    folder = train_pipeline(load_settings(config), progress=SilentProgress(), stage="codec").run_dir
    steps = json.loads((folder / "steps.json").read_text())["codec"]
    assert steps["steps"] > 0
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    first = next(record["valid_nrmse"] for record in log if "valid_nrmse" in record)
    assert steps["best_valid"] <= first


@pytest.mark.parametrize("task", ["advection1d", "reaction_diffusion1d", "reaction_diffusion2d", "shallow_water2d"])
def test_every_equation_goes_all_the_way(task: str, tmp_path: Path) -> None:
    write_task(tmp_path / "train.h5", task, num=8, frames=6, resolution=16)
    write_task(tmp_path / "other.h5", task, num=3, frames=6, resolution=16, seed=5)
    config = write_config(tmp_path, task, ["train.h5"])
    folder = (run(config) if task == "reaction_diffusion2d" else train(config)).run_dir
    rows = evaluate_run(folder, [tmp_path / "other.h5"], "test", SilentProgress())
    assert {row["model"] for row in rows} == {"persistence", "ups"}
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
    config.write_text(json.dumps(settings))
    folder = run(config).run_dir
    scores = json.loads((folder / "evaluation" / "full.json").read_text())
    assert set(scores["tasks"]) == set(scores["baselines"]["fno"]) == {"advection1d", "burgers1d"}
    sim = ups.load(folder)
    with pytest.raises(UsageError, match="say which"):
        sim.rollout(torch.zeros(1, 1, 32), steps=1)
    assert sim.rollout(torch.randn(1, 1, 32), steps=2, params={"beta": 0.4}, task="advection1d").shape == (1, 2, 1, 32)


def test_checks_list_every_problem_and_write_nothing(tmp_path: Path) -> None:
    write_task(tmp_path / "a.hdf5", "burgers1d", num=6, frames=6, resolution=32, nu=0.01)
    write_task(tmp_path / "b.hdf5", "burgers1d", num=6, frames=6, resolution=32, nu=0.02, seed=1)
    for name in ("a.hdf5", "b.hdf5"):
        with h5py.File(tmp_path / name, "r+") as file:
            file["tensor"][2, 3, 5] = np.nan
    config = write_config(tmp_path, "burgers1d", ["a.hdf5", "b.hdf5"])
    problems = check_pipeline(load_settings(config), progress=SilentProgress()).problems
    assert {Path(problem.where).name for problem in problems} == {"a.hdf5", "b.hdf5"}
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ChecksFailed, match=r"2 problems(.|\n)*a.hdf5(.|\n)*b.hdf5"):
        run(config)


def test_a_model_that_does_not_fit_the_grid_is_found_before_training(tmp_path: Path) -> None:
    write_task(tmp_path / "a.hdf5", "burgers1d", num=8, frames=6, resolution=32, nu=0.01)
    config = write_config(tmp_path, "burgers1d", ["a.hdf5"], latent={"dim": 64, "patch": 12})
    problems = check_pipeline(load_settings(config), progress=SilentProgress()).problems
    assert [problem.kind for problem in problems] == ["model"]
    assert "multiple of 12" in problems[0].what


def test_a_run_whose_checks_fail_leaves_no_folder(burgers: Path, tmp_path: Path) -> None:
    (burgers.parent / "1D_Burgers_Sols_Nu0.01.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(UpsError):
        run(burgers)
    assert [path for path in (tmp_path / "runs").glob("*") if path.is_dir()] == []


def test_what_does_not_fit_a_finished_run_is_refused(burgers: Path, tmp_path: Path) -> None:
    folder = train(burgers).run_dir
    write_task(tmp_path / "fine.hdf5", "burgers1d", num=3, frames=8, resolution=64, nu=0.01)
    with pytest.raises(DataError, match="grid is 64"):
        evaluate_run(folder, [tmp_path / "fine.hdf5"], "test", SilentProgress())
    with pytest.raises(UpsError, match=r"fine\.hdf5: its grid is 64, but the model was trained on 32; interpolate"):
        rollout_file(folder, tmp_path / "fine.hdf5", 2, tmp_path / "out.h5", None)
    write_task(tmp_path / "adv.hdf5", "advection1d", num=3, frames=8, resolution=32, beta=0.4)
    with pytest.raises(UpsError, match=r"adv\.hdf5"):
        evaluate_run(folder, [tmp_path / "adv.hdf5"], "test", SilentProgress())
    with pytest.raises(UsageError, match="no run's folder"):
        evaluate_run(tmp_path / "nothing", [], "test", SilentProgress())
    with pytest.raises(UsageError, match="exists"):
        rollout_file(folder, tmp_path / "fine.hdf5", 2, tmp_path / "fine.hdf5", None)
    write_task(tmp_path / "slow.hdf5", "burgers1d", num=3, frames=3, resolution=32, nu=0.01)
    with pytest.raises(UpsError, match=r"frames are \S+ apart, but the model steps"):
        rollout_file(folder, tmp_path / "slow.hdf5", 2, tmp_path / "out.h5", None)
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no array of points"):
        rollout_file(folder, tmp_path / "fine.hdf5", 2, tmp_path / "out.h5", tmp_path / "bad.npy")
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_run_goes_on_to_the_same_bits(burgers: Path, stop: signal.Signals, code: int) -> None:
    settings = ["stages.operator.steps=60", "training.log_every=5"]
    whole = train(burgers, *settings, f"runs_dir={burgers.parent / 'whole'}")
    command = [sys.executable, "-m", "ups", "train", str(burgers), *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = burgers.parent / "runs" / whole.run_dir.name.rsplit("-", 1)[0]
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(path.stat().st_size > 0 for path in log.parent.glob("*/log.jsonl")):
            process.send_signal(stop)
            break
        time.sleep(0.01)
    _, message = process.communicate(timeout=120)
    assert process.returncode == code, message
    assert "Traceback" not in message
    resumed = train(burgers, *settings)
    weights = [outcome.run_dir / "model" / "weights.safetensors" for outcome in (whole, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
