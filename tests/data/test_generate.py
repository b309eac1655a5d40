"""Generated files: the published layout, reproducible trajectories, no partial file, and clear refusals."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from ups.data.generate import generate
from ups.data.pdebench import open_trajectories
from ups.errors import UpsError, UsageError
from ups.physics.equations import EQUATIONS, get_equation
from ups.physics.solvers.reaction_diffusion import FitzHughNagumoSolver
from ups.physics.solvers.transforms import resample_periodic
from ups.runtime import SilentProgress

SMALL = {"resolution": 16, "frames": 3, "time": 0.1}
VISCOUS = {"kolmogorov2d": {"nu": 1.0}}
"""Parameters for which a coarse grid is fine enough to solve on."""


class Interrupted(SilentProgress):
    """A user who presses Ctrl-C once the work has begun."""

    def update(self, done: float, note: str = "") -> None:
        raise KeyboardInterrupt


def make(folder: Path, name: str, samples: int = 3, seed: int = 1, **params: float) -> Path:
    path = folder / f"{name}_{samples}_{seed}.hdf5"
    generate(name, path, samples, seed, params, resolution=16, frames=3, time=0.1)
    return path


@pytest.mark.parametrize(
    "name", [name for name, equation in EQUATIONS.items() if equation.has_solver and not equation.steady]
)
def test_what_is_written_is_read_back_as_that_task(tmp_path: Path, name: str) -> None:
    equation, given = get_equation(name), VISCOUS.get(name, {})
    with open_trajectories(make(tmp_path, name, **given)) as file:
        assert file.task == name
        assert file.read([0, 1, 2]).shape == (3, 3, len(equation.fields), *[16] * equation.dim)
        np.testing.assert_allclose(file.times, [0, 0.05, 0.1], atol=1e-7)
        np.testing.assert_allclose(file.params, [[given.get(p.name, p.default) for p in equation.parameters]] * 3)
        for axis, expected in zip(file.grid.axes, equation.centres(16), strict=True):
            np.testing.assert_allclose(axis, expected.numpy(), atol=1e-6)


def test_one_dimensional_files_are_one_array_with_coordinates_and_attributes(tmp_path: Path) -> None:
    with h5py.File(make(tmp_path, "reaction_diffusion1d", nu=2.0)) as file:
        assert file["tensor"].shape == (3, 3, 16)
        assert file["tensor"].dtype == np.float32
        assert {"x-coordinate", "t-coordinate"} < set(file)
        assert (file.attrs["Nu"], file.attrs["Rho"]) == (2.0, 1.0)


def test_two_dimensional_files_have_a_group_per_trajectory(tmp_path: Path) -> None:
    with h5py.File(make(tmp_path, "reaction_diffusion2d")) as file:
        assert list(file) == ["0000", "0001", "0002"]
        assert file["0002/data"].shape == (3, 16, 16, 2)
        assert set(file["0000/grid"]) == {"x", "y", "t"}


@pytest.mark.parametrize("name", ["burgers1d", "reaction_diffusion2d"])
def test_a_trajectory_depends_on_seed_and_number_alone(tmp_path: Path, name: str) -> None:
    torch.set_num_threads(1)
    with (
        open_trajectories(make(tmp_path, name, samples=2)) as few,
        open_trajectories(make(tmp_path, name, samples=4)) as many,
        open_trajectories(make(tmp_path, name, samples=2, seed=2)) as other,
    ):
        np.testing.assert_allclose(few.read([0, 1]), many.read([0, 1]), atol=1e-6)
        assert np.abs(few.read([0]) - few.read([1])).max() > 0.1
        assert np.abs(few.read([0]) - other.read([0])).max() > 0.1


def test_advection_is_its_initial_function_moved(tmp_path: Path) -> None:
    """At beta = 1.25 a time of 0.05 moves by one cell of sixteen."""
    with open_trajectories(make(tmp_path, "advection1d", beta=1.25)) as file:
        u = file.read([0, 1, 2])[:, :, 0]
    np.testing.assert_allclose(u[:, 1], np.roll(u[:, 0], 1, axis=-1), atol=1e-6)
    np.testing.assert_allclose(u[:, 2], np.roll(u[:, 0], 2, axis=-1), atol=1e-6)


def test_burgers_is_solved_finer_than_it_is_written(tmp_path: Path) -> None:
    """Files of 32 and of 96 cells agree at the centres they share: the error is that of the solver's finer grid."""
    found = []
    for resolution in (32, 96):
        path = tmp_path / f"{resolution}.hdf5"
        generate("burgers1d", path, 4, 1, {"nu": 0.1}, resolution=resolution, frames=3, time=0.3)
        with open_trajectories(path) as file:
            found.append(file.read([0, 1, 2, 3])[:, :, 0])
    coarse, fine = found[0], found[1].reshape(4, 3, 32, 3)
    assert np.linalg.norm(coarse - fine[..., 1]) < 0.01 * np.linalg.norm(coarse)


def test_a_grid_finer_by_an_even_factor_is_brought_back_by_interpolation(tmp_path: Path) -> None:
    """A file of 128 cells is solved on 256: it is the trigonometric interpolant of the file of 256."""
    found = []
    for resolution in (128, 256):
        path = tmp_path / f"{resolution}.hdf5"
        generate("kuramoto_sivashinsky1d", path, 2, 1, {}, resolution=resolution, frames=2, time=1.0)
        with open_trajectories(path) as file:
            found.append(torch.from_numpy(file.read([0, 1])))
    torch.testing.assert_close(found[0], resample_periodic(found[1].double(), 128).float(), rtol=0, atol=2e-6)


def test_the_first_frame_is_the_state_after_the_spin_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spin-up of 10 leaves out the first 10 units of time; it is not in the time stamps."""
    found = []
    for spin_up, frames in ((0.0, 3), (10.0, 2)):
        equation = replace(get_equation("kuramoto_sivashinsky1d"), spin_up=spin_up)
        monkeypatch.setattr("ups.data.generate.get_equation", lambda _, equation=equation: equation)
        path = tmp_path / f"{spin_up}.hdf5"
        generate(equation.name, path, 2, 1, {"nu": 10.0}, resolution=64, frames=frames, time=10.0 * (frames - 1))
        with open_trajectories(path) as file:
            found.append(file.read([0, 1]))
            np.testing.assert_allclose(file.times, 10 * np.arange(frames))
    np.testing.assert_allclose(found[1], found[0][:, 1:], atol=1e-5)
    assert np.abs(found[0][:, 0] - found[1][:, 0]).max() > 0.1


def test_walls_need_an_odd_factor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FitzHughNagumoSolver, "refinement", lambda *_: 2)
    with pytest.raises(UpsError, match="odd factor"):
        make(tmp_path, "reaction_diffusion2d")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_work_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate("burgers1d", tmp_path / "some.hdf5", 2, 0, {}, **SMALL, progress=Interrupted())
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_alive_is_kept(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from ups.data.generate import generate\n"
        "from ups.runtime import SilentProgress\n"
        "class Killed(SilentProgress):\n"
        "    def update(self, done, note=''): os.kill(os.getpid(), signal.SIGKILL)\n"
        "generate('burgers1d', Path(sys.argv[1]), 2, 0, {}, resolution=16, frames=3, time=0.1, progress=Killed())"
    )
    path = tmp_path / "some.hdf5"
    subprocess.run([sys.executable, "-c", script, path], check=False, timeout=120)
    assert [left.name.startswith(".some-") for left in tmp_path.iterdir()] == [True]
    for name, content in ((".some-of_mine1", "notes.txt"), (".some-abcd1234", "some.hdf5")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).touch()
    handle = os.open(tmp_path / ".some-abcd1234", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    generate("burgers1d", path, 2, 0, {}, **SMALL)
    os.close(handle)
    assert {left.name for left in tmp_path.iterdir()} == {"some.hdf5", ".some-of_mine1", ".some-abcd1234"}


def test_a_file_that_does_not_fit_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ups.data.generate.shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(UpsError, match=r"it needs [\d,.]+ MiB and 1\.0 MiB are free"):
        generate("burgers1d", tmp_path / "some.hdf5", 1000, 0, {}, **SMALL, progress=Interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["burgers1d", "reaction_diffusion2d"])
def test_a_disk_that_becomes_full_is_one_message(tmp_path: Path, name: str) -> None:
    """The open file is put on /dev/full; the process must still end in order, which HDF5 does not by itself."""
    script = (
        "import os, sys; from pathlib import Path; import h5py; from ups.data.generate import generate\n"
        "from ups.errors import UpsError; from ups.runtime import SilentProgress\n"
        "class Full(SilentProgress):\n"
        "    def start(self, *about):\n"
        "        (file,) = h5py.h5f.get_obj_ids(types=h5py.h5f.OBJ_FILE)\n"
        "        os.dup2(os.open('/dev/full', os.O_RDWR), file.get_vfd_handle())\n"
        "try:\n"
        f"    generate('{name}', Path(sys.argv[1]), 3, 0, {{}}, resolution=32, frames=9, time=0.1, progress=Full())\n"
        "except UpsError as error:\n"
        "    sys.exit(str(error))"
    )
    path = tmp_path / "some.hdf5"
    done = subprocess.run(
        [sys.executable, "-c", script, path], check=False, timeout=120, capture_output=True, text=True
    )
    said = f"{path} cannot be written (No space left on device); make space, or choose another place\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "some.hdf5"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        generate("burgers1d", path, 2, 0, {}, **SMALL)
    assert path.read_text() == "precious"
    generate("burgers1d", path, 2, 0, {}, **SMALL, overwrite=True)
    assert h5py.is_hdf5(path)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("burger1d", {}, "did you mean burgers1d"),
        ("burgers1d", {"params": {"mu": 0.1}}, "did you mean nu"),
        ("burgers1d", {"params": {"nu": -0.1}}, "nu is -0.1"),
        ("burgers1d", {"samples": 0}, "samples is 0"),
        ("burgers1d", {"resolution": 2}, "resolution is 2"),
        ("burgers1d", {"resolution": 0}, "resolution is 0"),
        ("burgers1d", {"frames": 1}, "frames is 1"),
        ("burgers1d", {"frames": 0}, "frames is 0"),
        ("burgers1d", {"seed": 2**63}, "seed is 9223372036854775808"),
        ("burgers1d", {"time": -1.0}, "time is -1"),
        ("shallow_water2d", {}, "no reference solver yet"),
    ],
)
def test_refusals_say_what_is_wrong(tmp_path: Path, name: str, arguments: dict[str, object], message: str) -> None:
    given = {"samples": 2, "seed": 0, "params": {}, **SMALL, **arguments}
    with pytest.raises(UsageError, match=message):
        generate(name, tmp_path / "some.hdf5", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        generate("burgers1d", tmp_path, 2, 0, {}, **SMALL, overwrite=True, progress=Interrupted())


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UpsError, match="cannot be written"):
        generate("burgers1d", tmp_path / "file" / "some.hdf5", 2, 0, {}, **SMALL)
