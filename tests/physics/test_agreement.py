"""Data are told from what they are not by the reference solver: of other parameters, another equation, another unit."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ups.data.generate import generate
from ups.data.pdebench import open_trajectories
from ups.data.trajectories import time_step
from ups.errors import UpsError
from ups.physics.equations import get_equation
from ups.physics.solvers import solve
from ups.physics.solvers.agreement import Agreement, agreement

TIMES = np.linspace(0.0, 0.5, 11)


def waves(points: int) -> torch.Tensor:
    """Two smooth states on the unit interval, of which a shock forms within the times above."""
    x = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return torch.stack([torch.sin(2 * torch.pi * x), 0.5 + torch.cos(4 * torch.pi * x)])[:, None]


def column(*values: float) -> torch.Tensor:
    """One parameter of so many samples."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def burgers(named: float, *, unit: float = 1.0, points: int = 128) -> Agreement:
    """Data of nu = 0.01, said to be of another, in another unit."""
    equation = get_equation("burgers1d")
    truth = unit * solve(equation, waves(points), column(0.01, 0.01), TIMES)
    return agreement(equation, truth, column(named, named), TIMES, (0.5 / points,), (1 / points,))


def of_file(path: Path, *, frames: int = 10, every: int = 1) -> Agreement:
    """A file's first trajectories, thinned in space, its parameters as single numbers."""
    with open_trajectories(path) as file:
        numbers = np.arange(min(4, file.num_trajectories))
        length = min(frames + 1, len(file.times))
        truth = torch.from_numpy(file.read(numbers, 0, length, 1)).double()[..., ::every]
        params = torch.from_numpy(file.params[numbers].astype(np.float32)).double()
        origin = tuple(float(axis[0]) for axis in file.grid.axes)
        spacing = tuple(every * step for step in file.grid.spacing)
        return agreement(file.equation, truth, params, time_step(file) * np.arange(length), origin, spacing)


def test_data_of_the_solver_agree_with_it_and_those_of_another_parameter_or_unit_do_not() -> None:
    right = burgers(0.01)
    assert right.holds
    assert right.nrmse < 1e-4, "but for the first step, which is cut in more"
    assert (right.frames, right.samples) == (10, 2)
    assert right.persistence > 0.5
    for wrong in (burgers(0.1), burgers(0.03), burgers(0.01, unit=4.0), burgers(0.01, unit=0.5)):
        assert not wrong.holds
        assert wrong.nrmse > 0.04 * wrong.persistence


def test_the_error_is_that_of_an_exact_solution_and_of_the_worst_trajectory() -> None:
    """A wave that travels at 0.4 and is said to travel at 0.5 is off by |1 - exp(2 pi i 0.1 t)| of its size."""
    equation, x = get_equation("advection1d"), (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    times = np.array([0.0, 1.0])
    wave = torch.sin(2 * torch.pi * (x - 0.4 * torch.tensor(times)[:, None]))[None, :, None]
    for named, gap in ((0.4, 0.0), (0.5, float(abs(1 - np.exp(0.2j * math.pi))))):
        truth = wave.expand(3, -1, -1, -1)
        found = agreement(equation, truth, column(0.4, named, 0.4), times, (0.0,), (1 / 64,))
        assert found.nrmse == pytest.approx(gap, abs=1e-9)
        assert found.holds is (gap == 0)


@pytest.mark.parametrize(
    ("name", "params", "resolution", "every"),
    [
        ("burgers1d", {"nu": 0.001}, 128, 1),
        ("burgers1d", {"nu": 0.001}, 128, 4),
        ("reaction_diffusion1d", {"nu": 0.001, "rho": 10.0}, 32, 1),
        ("reaction_diffusion1d", {"nu": 1e-4, "rho": 1.0}, 64, 1),  # at its bound, and beyond it as a single number
        ("advection1d", {"beta": 1.0}, 16, 1),
        ("reaction_diffusion2d", {}, 16, 1),
    ],
)
def test_made_data_are_not_doubted_where_their_grid_does_not_resolve_them(
    tmp_path: Path, name: str, params: dict[str, float], resolution: int, every: int
) -> None:
    path = tmp_path / "made.h5"
    generate(name, path, 4, 1, params, resolution=resolution, frames=8)
    assert of_file(path, every=every).holds


def test_what_no_solver_follows_in_the_end_is_not_doubted_where_it_is_chaos(tmp_path: Path) -> None:
    path = tmp_path / "chaos.h5"
    generate("kuramoto_sivashinsky1d", path, 2, 1, {}, frames=11, time=200.0)  # frames 20 apart
    found = of_file(path)
    assert found.holds
    assert 1 <= found.frames < 10
    with open_trajectories(path) as file:
        truth = torch.from_numpy(file.read(np.arange(2), 0, 11, 1)).double()
        spacing = tuple(file.grid.spacing)
    times = 20.0 * np.arange(11)
    wrong = agreement(get_equation("kuramoto_sivashinsky1d"), truth, column(1.5, 1.5), times, (0.0,), spacing)
    assert (wrong.holds, wrong.frames) == (False, 1)


def test_fields_at_rest_agree_however_small_the_change_that_a_share_is_taken_of() -> None:
    equation = get_equation("advection1d")
    truth = torch.full((1, 11, 1, 32), 3.0, dtype=torch.float64)
    truth += 1e-6 * torch.rand(truth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert agreement(equation, truth, column(0.4), TIMES, (0.0,), (1 / 32,)).holds


def test_a_solution_that_blows_up_does_not_agree() -> None:
    """Fisher's equation has no bound below zero."""
    equation, params = get_equation("reaction_diffusion1d"), torch.tensor([[0.5, 1.0]] * 2, dtype=torch.float64)
    truth = 10 * waves(32)[:, None].expand(-1, 11, -1, -1)
    found = agreement(equation, truth, params, TIMES * 2, (0.0,), (1 / 32,))
    assert (found.nrmse, found.holds) == (math.inf, False)


def test_where_all_frames_would_take_too_long_the_first_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ups.physics.solvers.agreement.PATIENCE", 1.0)
    monkeypatch.setattr("ups.physics.solvers.agreement._TELLING", 0.2)
    equation, times = get_equation("burgers1d"), np.array([0.0, *np.linspace(0.01, 100.0, 10)])
    truth = waves(64)[:, None].expand(-1, 11, -1, -1)
    found = agreement(equation, truth, column(0.01, 0.01), times, (0.0,), (1 / 64,))
    assert found.frames == 1


@pytest.mark.parametrize(
    ("name", "unit", "dt"), [("burgers1d", 1e5, 0.05), ("kuramoto_sivashinsky1d", 1.0, 3e6)], ids=["fields", "time"]
)
def test_units_that_would_take_hours_are_given_up(
    name: str, unit: float, dt: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ups.physics.solvers.agreement.PATIENCE", 2.0)
    monkeypatch.setattr("ups.physics.solvers.agreement._TELLING", 0.2)
    equation = get_equation(name)
    truth = unit * waves(64)[:, None].expand(-1, 11, -1, -1)
    began = time.perf_counter()
    with pytest.raises(UpsError, match=r"would take .* check the units"):
        agreement(equation, truth, column(1.0, 1.0), dt * np.arange(11), (0.0,), (equation.lengths[0] / 64,))
    assert time.perf_counter() - began < 60


def test_nodes_that_are_not_cell_centres_are_refused_where_the_place_matters() -> None:
    equation, step = get_equation("kolmogorov2d"), 2 * math.pi / 16
    truth = torch.ones(1, 2, 1, 16, 16, dtype=torch.float64)
    params = torch.tensor([[0.01, 0.1]], dtype=torch.float64)
    with pytest.raises(UpsError, match="axis 1 are not the cell centres"):
        agreement(equation, truth, params, TIMES[:2], (0.0, 0.0), (step, step))
    assert agreement(equation, 0 * truth, params, TIMES[:2], (0.0, step / 2), (step, step)).frames == 1


def test_what_cannot_be_followed_says_why() -> None:
    nothing = torch.zeros(1, 0, dtype=torch.float64)
    for name, params, shape, length, why in (
        ("shallow_water2d", nothing, (1, 2, 1, 16, 16), 5.0, "no reference solver"),
        ("darcy2d", nothing, (1, 2, 1, 16, 16), 1.0, "no time"),
        ("burgers1d", nothing, (1, 2, 1, 16), 2.0, "domain"),
        ("burgers1d", nothing, (1, 1, 1, 16), 1.0, "nothing to compare"),
        ("burgers1d", column(-1.0), (1, 2, 1, 16), 1.0, "nu is -1; the solver takes"),
        ("reaction_diffusion2d", nothing, (1, 2, 2, 256, 256), 2.0, "more than"),
    ):
        truth = torch.ones(shape, dtype=torch.float64)
        equation, step = get_equation(name), length / shape[-1]
        origin = tuple(low + 0.5 * step for low, _ in equation.domain)
        with pytest.raises(UpsError, match=why):
            agreement(equation, truth, params, TIMES[: shape[1]], origin, (step,) * equation.dim)


def test_a_grid_of_half_the_cells_says_what_is_not_resolved() -> None:
    """Of waves that half the cells hold, nothing; of a shock, more on coarser grids."""
    truth = waves(64)[:, None].expand(-1, 2, -1, -1)
    smooth = agreement(get_equation("advection1d"), truth, column(0.0, 0.0), TIMES[:2], (0.0,), (1 / 64,))
    assert smooth.unresolved < 1e-12 < burgers(0.01, points=128).unresolved < burgers(0.01, points=32).unresolved
