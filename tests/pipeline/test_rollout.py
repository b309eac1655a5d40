"""What users do with a finished run: scores and predictions of files, and which files do not fit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from tests.layouts import write_task
from tests.pipeline.small_run import run, train, write_config

from ups.data.inspect import inspect_file
from ups.errors import DataError, SettingsError, UpsError, UsageError
from ups.pipeline.checks import ChecksFailed
from ups.pipeline.evaluate import evaluate_run
from ups.pipeline.rollout import rollout_file
from ups.runtime import SilentProgress

TRAINED_ON = "the model was trained on 0.0136364 to 0.05, and extrapolates beyond"


class Told(SilentProgress):
    """Keeps how far the work was, and what was said."""

    def __init__(self) -> None:
        self.updates: list[float] = []
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

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
        assert file.attrs["task"] == "burgers1d"
    assert told.lines == ["warning: nu reaches from 0.01 to 0.05; " + TRAINED_ON], "the least is in another split"
    write_task(tmp_path / "far.hdf5", "burgers1d", num=3, frames=8, resolution=32, Nu=0.2)
    rollout_file(folder, tmp_path / "far.hdf5", 2, tmp_path / "far-out.hdf5", None, progress=told)
    evaluate_run(folder, [tmp_path / "far.hdf5"], "test", told)
    assert told.lines.count("warning: nu reaches from 0.2 to 0.2; " + TRAINED_ON) == 2


def test_what_no_score_speaks_for_is_said(tmp_path: Path) -> None:
    path = write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, Nu=0.01)
    folder, said = run(write_config(tmp_path, "burgers1d", ["b.hdf5"])).run_dir, Told()
    rollout_file(folder, path, 7, tmp_path / "0.h5", None, progress=said)
    assert said.lines == []
    rollout_file(folder, path, 9, tmp_path / "1.h5", None, progress=said)
    assert said.lines == ["warning: the run was scored over 7 steps; of the other 2 nothing is known"]
    with h5py.File(path, "r+") as file:
        file["tensor"][3] *= 20
    rollout_file(folder, path, 7, tmp_path / "2.h5", None, progress=said)
    assert "1 of 12 trajectories begin far from the training data (u of trajectory 3 by" in said.lines[1]
    evaluate_run(folder, [path], "test", said)
    assert any("burgers1d with nu = 0.01: the data go elsewhere" in line for line in said.lines)


def test_a_file_says_how_its_predictions_were_made(tmp_path: Path) -> None:
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, Nu=0.01)
    folder = train(write_config(tmp_path, "burgers1d", ["b.hdf5"])).run_dir
    trained = {"mode": "latent", "guards": "", "views": 1}
    chosen = {"mode": "physical", "guards": ("conservation",), "views": 2}
    for number, asked in enumerate(({}, chosen)):
        out = tmp_path / f"{number}.h5"
        rollout_file(folder, tmp_path / "b.hdf5", 2, out, None, **asked)
        with h5py.File(out) as file:
            made = {name.removeprefix("rollout_"): file.attrs[name] for name in file.attrs if name[:7] == "rollout"}
        assert made == {**trained, **asked, "guards": ", ".join(asked.get("guards", ()))}
    with pytest.raises(UsageError, match=r"out\.npy would hold HDF5.*/out\.npy\.h5"):
        rollout_file(folder, tmp_path / "b.hdf5", 2, tmp_path / "out.npy", None)


def test_predictions_are_no_data_but_a_place_to_go_on_from_in_a_folder_that_is_made(tmp_path: Path) -> None:
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
    further = tmp_path / "made" / "for it" / "further.hdf5"
    rollout_file(folder, predicted, 2, further, None)
    with h5py.File(further) as file:
        assert file["tensor"].shape == (12, 3, 32)


def test_a_file_is_thinned_as_the_data_of_the_run_were(tmp_path: Path) -> None:
    """With a time stride, a resolution and two given frames: whole files fit, and what was predicted of them."""
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, Nu=0.01)
    config = write_config(tmp_path, "burgers1d", ["b.hdf5"])
    folder = train(config, "data.time_stride=2", "data.resolution=16", "data.context=2").run_dir
    rollout_file(folder, tmp_path / "b.hdf5", 3, tmp_path / "out.hdf5", None)
    rollout_file(folder, tmp_path / "out.hdf5", 1, tmp_path / "further.hdf5", None)
    with h5py.File(tmp_path / "b.hdf5") as file, h5py.File(tmp_path / "out.hdf5") as out:
        np.testing.assert_array_equal(out["tensor"][:, :2], file["tensor"][:, 0:3:2, ::2])
        assert out["tensor"].shape == (12, 5, 16)
        np.testing.assert_allclose(out["x-coordinate"], file["x-coordinate"][::2])
        np.testing.assert_allclose(np.diff(out["t-coordinate"]), 2 * np.diff(file["t-coordinate"])[0], rtol=1e-5)
    with h5py.File(tmp_path / "b.hdf5", "r+") as file:
        file["tensor"][5, 2, 7] = np.nan
    with pytest.raises(DataError, match=r"b.hdf5.*trajectory 5, frame 2, field u"):
        rollout_file(folder, tmp_path / "b.hdf5", 3, tmp_path / "no.hdf5", None)
    with h5py.File(tmp_path / "b.hdf5", "r+") as file:
        short, times = file["tensor"][:3, :2], file["t-coordinate"][:2]
        del file["tensor"], file["t-coordinate"]
        file["tensor"], file["t-coordinate"] = short, times
    with pytest.raises(UpsError, match=r"b.hdf5: trajectory 0 has 1 frame.s. of those 2 apart.*is given 2"):
        rollout_file(folder, tmp_path / "b.hdf5", 3, tmp_path / "no.hdf5", None)


def test_a_roll_out_keeps_the_integral_when_asked(tmp_path: Path) -> None:
    """Of a model trained without guards, from the frame before the first predicted one."""
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, Nu=0.01)
    config = write_config(tmp_path, "burgers1d", ["b.hdf5"])
    folder = train(config, "operator.form=increment", "operator.base=persistence", "training.ema_decay=0").run_dir
    gaps = {}
    for guards in (None, ("conservation",)):
        out = tmp_path / f"{len(gaps)}.hdf5"
        rollout_file(folder, tmp_path / "b.hdf5", 6, out, None, guards=guards)
        with h5py.File(out) as file:
            u = file["tensor"][:].astype(np.float64)
        gaps[guards] = np.abs(u.mean(-1) - u[:, :1].mean(-1)).max() / np.abs(u[:, 0]).mean()
    assert gaps[("conservation",)] < 1e-6 < 1e-5 < gaps[None]
    with pytest.raises(UpsError, match=r"guards\.boundary: .* its domain is periodic"):
        rollout_file(folder, tmp_path / "b.hdf5", 6, tmp_path / "out.hdf5", None, guards=("boundary",))
    assert not (tmp_path / "out.hdf5").exists()


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
    for content in (b"nothing", b""):
        (tmp_path / "bad.npy").write_bytes(content)
        with pytest.raises(UsageError, match="no array of points"):
            rollout_file(folder, tmp_path / "fine.hdf5", 2, tmp_path / "out.h5", tmp_path / "bad.npy")
    assert not (tmp_path / "out.h5").exists()
    (folder / "metadata.json").write_text("{")
    with pytest.raises(UpsError, match=r"metadata.json is damaged"):
        evaluate_run(folder, [], "test", SilentProgress())
    (folder / "metadata.json").unlink()
    with pytest.raises(UpsError, match="is not finished, so that it is not known which data"):
        evaluate_run(folder, [], "test", SilentProgress())


def test_a_run_of_another_machine_is_used_on_the_device_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, Nu=0.01)
    folder = train(write_config(tmp_path, "burgers1d", ["b.hdf5"])).run_dir
    settings = folder / "config.yaml"
    settings.write_text(settings.read_text().replace("device: auto", "device: cuda"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for use in (
        partial(rollout_file, folder, tmp_path / "b.hdf5", 2, tmp_path / "out.hdf5", None),
        partial(evaluate_run, folder, [tmp_path / "b.hdf5"], "test", SilentProgress()),
    ):
        with pytest.raises(SettingsError, match=r"finds no GPU here.*--device cpu"):
            use()
        use(device="cpu")
