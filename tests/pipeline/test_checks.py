"""What `ups check` finds, and the figures it gives."""

from __future__ import annotations

import json
import math
from collections import namedtuple
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tests.layouts import write_task
from tests.pipeline.small_run import run, train, write_config
from torch import nn

from ups.config.load import load_settings
from ups.errors import UpsError
from ups.physics.solvers.agreement import Agreement
from ups.pipeline.check_report import CheckReport
from ups.pipeline.checks import ChecksFailed
from ups.pipeline.dry_run import Held
from ups.pipeline.run import check_pipeline
from ups.runtime import SilentProgress

Usage = namedtuple("Usage", "total used free")


def check(config: Path, *overrides: str) -> CheckReport:
    return check_pipeline(load_settings(config, overrides), progress=SilentProgress())


@pytest.fixture
def burgers(tmp_path: Path) -> Path:
    """As of every run, with a viscosity that varies."""
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, Nu=np.linspace(0.01, 0.02, 12))
    return write_config(tmp_path, "burgers1d", ["b.hdf5"])


def test_baselines_keep_the_batches_that_their_rates_were_chosen_with(burgers: Path) -> None:
    for wanted, sizes in (("auto", (16, 32)), (8, (8, 8))):
        report = check(burgers, f"training.batch_size={wanted}", "evaluation.baselines=[fno]")
        found = {one.name: one.batch_size for one in report.trainings}
        assert (found["operator"], found["baseline fno"]) == sizes


def test_the_report_holds_the_figures_of_data_dry_run_memory_and_disk(burgers: Path) -> None:
    overrides = ["stages.diff_residual.seconds=7", "stages.consistency_distill.steps=3", "evaluation.baselines=[fno]"]
    found: dict[str, Any] = json.loads(json.dumps(check(burgers, *overrides).to_json(), allow_nan=False))
    assert (found["passed"], found["problems"]) == (True, [])
    with h5py.File(burgers.parent / "b.hdf5") as file:
        values, nu = file["tensor"][:], file.attrs["Nu"]
    data = found["data"]["burgers1d"]
    (of_file,) = data["files"]
    assert of_file["trajectories"] == 12
    assert of_file["size"] == (burgers.parent / "b.hdf5").stat().st_size
    (field,) = of_file["ranges"]
    assert (field["low"], field["high"]) == (float(values.min()), float(values.max()))
    assert of_file["params"]["nu"] == pytest.approx([nu.min(), nu.max()])
    assert sum(data["splits"].values()) == 12
    assert data["in_two_splits"] == 0
    assert data["statistics"]["u"]["std"] == pytest.approx(values.std(), rel=0.2)
    trainings = {one["name"]: one for one in found["dry_run"]}
    assert list(trainings) == ["codec", "operator", "diff_residual", "consistency_distill", "baseline fno"]
    operator = trainings["operator"]
    assert operator["steps"] == 12
    assert operator["seconds"] == pytest.approx(12 * operator["step_seconds"])
    assert trainings["codec"]["steps"] == 0, "a codec that loses nothing is not trained"
    assert (trainings["diff_residual"]["steps"], trainings["diff_residual"]["seconds"]) == (None, 7)
    assert trainings["baseline fno"]["seconds"] == pytest.approx(operator["seconds"]), "as long as what it is beside"
    assert found["training_seconds"] == pytest.approx(sum(one["seconds"] for one in found["dry_run"]))
    beside = {name: one["validation_seconds"] for name, one in trainings.items()}
    assert [name for name, seconds in beside.items() if seconds is not None] == ["diff_residual", "consistency_distill"]
    assert beside["diff_residual"] > 0
    assert found["validation_seconds"] == pytest.approx(beside["diff_residual"] + beside["consistency_distill"])
    assert found["memory"]["needed_bytes"] == max(one["memory_bytes"] for one in found["dry_run"])
    assert found["memory"]["available_bytes"] > found["memory"]["needed_bytes"]
    assert found["folder"]["writable"] is True
    assert found["folder"]["disk_needed_bytes"] > sum(one["checkpoint_bytes"] for one in found["dry_run"])
    assert not (burgers.parent / "runs").exists()


def test_the_size_of_a_checkpoint_is_foreseen(burgers: Path) -> None:
    (foreseen,) = (one.checkpoint_bytes for one in check(burgers).trainings if one.name == "operator")
    folder = train(burgers, "training.keep_checkpoints=1").run_dir / "checkpoints" / "operator"
    (last,) = [one for one in folder.iterdir() if one.is_dir() and one.name != "model"]
    written = sum(path.stat().st_size for path in last.rglob("*") if path.is_file())
    assert 0.5 * written < foreseen < 2 * written


def test_what_a_graph_holds_is_counted_once() -> None:
    layer, x, held = nn.Linear(8, 4, bias=False), torch.ones(16, 8, requires_grad=True), Held()
    with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda tensor: tensor):
        y = layer(x)
        (y * y).sum().backward()
    assert held.bytes == 4 * (16 * 8 + 16 * 4), "the layer's input and the square's, not the weight"


def test_more_windows_take_more_memory(burgers: Path) -> None:
    few, many = (check(burgers, f"training.batch_size={size}").trainings[1] for size in (1, 32))
    assert many.memory_bytes > few.memory_bytes + 2**18


def test_memory_and_disk_that_are_short_are_problems(burgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ups.pipeline.checks.memory_there", lambda device: 2**20)
    (problem,) = check(burgers).problems
    assert (problem.kind, problem.where) == ("memory", "operator")
    assert "training.batch_size=2" in problem.remedy
    monkeypatch.undo()
    enough = check(burgers).folder.needed
    for free, kinds in ((enough, []), (enough - 1, ["folder"])):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: Usage(2**40, 0, free))
        assert [problem.kind for problem in check(burgers).problems] == kinds


def test_what_is_wrong_in_different_places_is_listed_at_once(burgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(burgers.parent / "b.hdf5", "r+") as file:
        file["tensor"][3, 2, 5] = math.inf
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**40, 0, 2**10))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report = check(burgers, "logging.tensorboard=true")
    assert [problem.kind for problem in report.problems] == ["settings", "folder", "data"]
    found = report.to_json()
    assert (found["passed"], found["dry_run"]) == (False, [])
    assert found["data"]["burgers1d"]["files"][0]["ranges"][0]["num_inf"] == 1
    assert found["data"]["burgers1d"]["in_two_splits"] is None


def test_places_that_would_be_written_to_much_later_are_looked_at_first(burgers: Path) -> None:
    board = burgers.parent / "board.sqlite"
    board.write_bytes(b"no leaderboard, whatever its name says" * 100)
    places = (f"gates.leaderboard={board}", f"training.latent_cache_dir={board}/cache", "training.augment=false")
    problems = check(burgers, *places).problems
    assert [problem.where for problem in problems] == [f"training.latent_cache_dir: {board}/cache", str(board)]
    assert all(problem.kind == "folder" for problem in problems)
    assert check(burgers, f"gates.leaderboard={burgers.parent / 'made' / 'board.sqlite'}").problems == ()
    assert not (burgers.parent / "made").exists()


def test_a_trajectory_in_two_splits_is_a_problem(burgers: Path) -> None:
    with h5py.File(burgers.parent / "b.hdf5") as file:
        tensor = file["tensor"][:]
    for name, part in (("train", slice(0, 8)), ("test", slice(7, 12))):  # number 7 is in both
        path = write_task(burgers.parent / f"{name}.hdf5", "burgers1d", num=1, frames=8, resolution=32, Nu=0.01)
        with h5py.File(path, "r+") as file:
            del file["tensor"]
            file["tensor"] = tensor[part]
    settings = json.loads(burgers.read_text())
    settings["data"] = {
        "root": str(burgers.parent),
        "split": {"train_files": ["train.hdf5"], "test_files": ["test.hdf5"], "valid": 0.25},
    }
    burgers.write_text(json.dumps(settings))
    (problem,) = check(burgers).problems
    assert problem.kind == "data"
    assert "the same trajectory is in" in problem.what


def test_checks_list_every_problem_and_write_nothing(tmp_path: Path) -> None:
    write_task(tmp_path / "a.hdf5", "burgers1d", num=6, frames=6, resolution=32, nu=0.01)
    write_task(tmp_path / "b.hdf5", "burgers1d", num=6, frames=6, resolution=32, nu=0.02, seed=1)
    for name in ("a.hdf5", "b.hdf5"):
        with h5py.File(tmp_path / name, "r+") as file:
            file["tensor"][2, 3, 5] = np.nan
    config = write_config(tmp_path, "burgers1d", ["a.hdf5", "b.hdf5"])
    problems = check(config).problems
    assert {Path(problem.where).name for problem in problems} == {"a.hdf5", "b.hdf5"}
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ChecksFailed, match=r"2 problems(.|\n)*a.hdf5(.|\n)*b.hdf5"):
        run(config)


def test_a_model_that_does_not_fit_the_grid_is_found_before_training(tmp_path: Path) -> None:
    write_task(tmp_path / "a.hdf5", "burgers1d", num=8, frames=6, resolution=32, nu=0.01)
    config = write_config(tmp_path, "burgers1d", ["a.hdf5"], latent={"dim": 64, "patch": 12})
    problems = check(config).problems
    assert [problem.kind for problem in problems] == ["model"]
    assert "multiple of 12" in problems[0].what


def test_every_training_that_cannot_be_run_is_a_problem(tmp_path: Path) -> None:
    """And what could be tried is reported all the same; how long a baseline would take is then not known."""
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=36, Nu=0.01)
    config = write_config(tmp_path, "burgers1d", ["b.hdf5"])
    terms = ("latent.codec.train_with_operator=true", "training.lambda_inv_enc=0.1")
    report = check(config, *terms, "evaluation.baselines=[unet, fno]")
    assert [problem.kind for problem in report.problems] == ["model", "model"]
    assert "would never count" in report.problems[0].what
    assert "the U-Net halves the grid" in report.problems[1].what
    assert [one.name for one in report.trainings] == ["codec", "baseline fno"]
    assert report.trainings[1].seconds is None


@pytest.mark.parametrize(("steps", "warmup", "refused"), [(9, 3, True), (13, 3, False), (1, 0, False)])
def test_inverse_terms_that_would_never_count_are_a_problem(
    burgers: Path, steps: int, warmup: int, refused: bool
) -> None:
    """Of three steps an epoch, the fifth epoch is the first in which they count after a warm-up of three."""
    changes = [
        "latent.codec.train_with_operator=true",
        "training.lambda_inv_enc=0.1",
        f"training.inverse_loss_warmup_epochs={warmup}",
        "training.batch_size=24",
        f"stages.operator.steps={steps}",
    ]
    found = [problem.what for problem in check(burgers, *changes).problems]
    assert [what for what in found if "training.lambda_inv_enc would never count" in what] == found
    assert bool(found) == refused


def test_a_run_whose_checks_fail_leaves_no_folder(burgers: Path, tmp_path: Path) -> None:
    (burgers.parent / "b.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(UpsError):
        run(burgers)
    assert [path for path in (tmp_path / "runs").glob("*") if path.is_dir()] == []


def test_data_that_the_reference_solver_does_not_follow_are_doubted_but_not_refused(tmp_path: Path) -> None:
    """Travelling waves are advection's own solution, and nothing of Burgers'."""
    for task, named, holds in (("advection1d", 0.4, True), ("advection1d", 0.5, False), ("burgers1d", 0.01, False)):
        path = write_task(tmp_path / f"{task}.hdf5", "advection1d", num=12, frames=8, resolution=32)
        with h5py.File(path, "r+") as file:
            del file.attrs["beta"]
            file.attrs["task"], file.attrs["Nu" if task == "burgers1d" else "beta"] = task, named
        report = check(write_config(tmp_path, task, [path.name]))
        assert report.problems == ()
        found = json.loads(json.dumps(report.to_json(), allow_nan=False))
        agreement = found["data"][task]["agreement"]
        assert (agreement["holds"], agreement["frames"], agreement["samples"]) == (holds, 7, 4)
        assert (found["passed"], len(found["doubts"]), len(report.doubts)) == (True, not holds, not holds)
        if not holds:
            assert all(word in report.doubts[0] for word in (task, f"= {named}", "units"))
        path.unlink()


def test_a_run_ends_by_telling_what_its_checks_doubted(burgers: Path) -> None:
    """Also where the checks are not done again."""
    (doubt,) = check(burgers).doubts
    for _ in range(2):
        assert train(burgers).messages == (f"warning: {doubt}",)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ("so it is", "not compared with a solver: so it is"),
        (Agreement(math.inf, 1.0, 0.0, 3, 4), "the reference solver blows up within 3 frames"),
        (Agreement(0.5, 1.0, 0.0, 1, 4), "the reference solver is 0.5 off after 1 frame"),
    ],
)
def test_why_nothing_was_compared_and_that_a_solver_blew_up_are_said(
    burgers: Path, monkeypatch: pytest.MonkeyPatch, found: Agreement | str, text: str
) -> None:
    monkeypatch.setattr("ups.pipeline.checks.beside_solver", lambda train: found)
    of = check(burgers).data["burgers1d"]
    assert text in str(of)
    as_json = json.loads(json.dumps(of.to_json(), allow_nan=False))
    if isinstance(found, str):
        assert (of.doubt, as_json["agreement"], as_json["no_agreement"]) == (None, None, found)
    else:
        assert of.doubt is not None
        assert all(word in of.doubt for word in (text, "nu from 0.01"))
        assert (as_json["agreement"]["holds"], as_json["no_agreement"]) == (False, None)


def test_trajectories_of_several_lengths_are_followed_as_far_as_the_shortest(tmp_path: Path) -> None:
    lengths = [9, 9, 5] * 4
    write_task(tmp_path / "r.h5", "reaction_diffusion2d", num=12, resolution=16, lengths=lengths)
    config = write_config(tmp_path, "reaction_diffusion2d", ["r.h5"])
    found = check(config, "data.split.order=file", "data.time_stride=2").data["reaction_diffusion2d"].agreement
    assert isinstance(found, Agreement)
    assert found.frames == 2, "of every other frame"
