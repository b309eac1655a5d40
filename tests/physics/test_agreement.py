"""Data are told from what they are not by the reference solver: of other parameters, another equation, another unit."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from ups.errors import UpsError
from ups.physics.equations import get_equation
from ups.physics.solvers import solve
from ups.physics.solvers.agreement import Agreement, agreement
from ups.physics.solvers.comparison import resample

TIMES = np.linspace(0.0, 0.5, 11)


def waves(points: int) -> torch.Tensor:
    """Two smooth states on the unit interval, of which a shock forms within the times above."""
    x = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return torch.stack([torch.sin(2 * torch.pi * x), 0.5 + torch.cos(4 * torch.pi * x)])[:, None]


def burgers(named: float, *, unit: float = 1.0, points: int = 64) -> Agreement:
    """Data of nu = 0.01, said to be of another, in another unit."""
    equation, nu = get_equation("burgers1d"), torch.full((2, 1), 0.01, dtype=torch.float64)
    truth = unit * solve(equation, waves(points), nu, TIMES)
    return agreement(equation, truth, torch.full_like(nu, named), TIMES, (1 / points,))


def test_data_of_the_solver_agree_with_it_and_those_of_another_parameter_or_unit_do_not() -> None:
    right = burgers(0.01)
    assert right.holds
    assert right.nrmse < 1e-4, "but for the first step, which is cut in more"
    assert (right.frames, right.samples, right.resolution) == (10, 2, 64)
    assert right.persistence > 0.5
    for wrong in (burgers(0.1), burgers(0.02), burgers(0.01, unit=4.0), burgers(0.01, unit=0.5)):
        assert not wrong.holds
        assert wrong.nrmse > 0.04 * wrong.persistence


def test_the_error_is_that_of_an_exact_solution() -> None:
    """A wave that travels at 0.4 and is said to travel at 0.5 is off by |1 - exp(2 pi i 0.1 t)| of its size."""
    equation, x = get_equation("advection1d"), (torch.arange(64, dtype=torch.float64) + 0.5) / 64
    times = np.array([0.0, 1.0])
    truth = torch.sin(2 * torch.pi * (x - 0.4 * torch.tensor(times)[:, None]))[None, :, None]
    for named, gap in ((0.4, 0.0), (0.5, float(abs(1 - np.exp(0.2j * math.pi))))):
        found = agreement(equation, truth, torch.tensor([[named]], dtype=torch.float64), times, (1 / 64,))
        assert found.nrmse == pytest.approx(gap, abs=1e-9)
        assert found.holds is (gap == 0)


def test_data_on_a_grid_that_does_not_resolve_them_are_followed_on_a_finer_one() -> None:
    equation, nu = get_equation("burgers1d"), torch.full((2, 1), 0.01, dtype=torch.float64)
    fine = solve(equation, waves(128), nu, TIMES)
    coarse = resample(equation, equation.fields, fine, (16,))
    found = agreement(equation, coarse, nu, TIMES, (1 / 16,))
    alone = solve(equation, coarse[:, 0], nu, TIMES)
    assert found.resolution == 32
    assert found.nrmse < float((alone - coarse).norm() / coarse.norm())


def test_fields_at_rest_agree_however_small_the_change_that_a_share_is_taken_of() -> None:
    equation = get_equation("advection1d")
    truth = torch.full((1, 11, 1, 32), 3.0, dtype=torch.float64)
    truth += 1e-6 * torch.rand(truth.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert agreement(equation, truth, torch.full((1, 1), 0.4, dtype=torch.float64), TIMES, (1 / 32,)).holds


def test_a_solution_that_blows_up_does_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(*given: object, progress: object) -> None:
        raise UpsError("the solution of sample 0 is not finite")

    truth = solve(get_equation("burgers1d"), waves(32), torch.full((2, 1), 0.01, dtype=torch.float64), TIMES)
    monkeypatch.setattr("ups.physics.solvers.agreement.solve", fragile)
    found = agreement(get_equation("burgers1d"), truth, torch.ones(2, 1, dtype=torch.float64), TIMES, (1 / 32,))
    assert (found.nrmse, found.holds) == (math.inf, False)


def test_fields_in_a_unit_that_makes_them_fast_are_given_up_before_they_take_long() -> None:
    equation, nu = get_equation("burgers1d"), torch.full((2, 1), 0.01, dtype=torch.float64)
    truth = 1e5 * waves(64)[:, None].expand(-1, 11, -1, -1)
    began = time.perf_counter()
    with pytest.raises(UpsError, match="would take"):
        agreement(equation, truth, nu, TIMES, (1 / 64,))
    assert time.perf_counter() - began < 30


def test_what_cannot_be_followed_says_why() -> None:
    nothing = torch.zeros(1, 0, dtype=torch.float64)
    for name, shape, spacing, why in (
        ("shallow_water2d", (1, 2, 1, 16, 16), (5 / 16, 5 / 16), "no reference solver"),
        ("darcy2d", (1, 2, 1, 16, 16), (1 / 16, 1 / 16), "no time"),
        ("burgers1d", (1, 2, 1, 16), (1 / 8,), "domain"),
        ("burgers1d", (1, 1, 1, 16), (1 / 16,), "nothing to compare"),
        ("reaction_diffusion2d", (1, 2, 2, 256, 256), (2 / 256, 2 / 256), "more than"),
    ):
        truth = torch.ones(shape, dtype=torch.float64)
        with pytest.raises(UpsError, match=why):
            agreement(get_equation(name), truth, nothing, TIMES[: shape[1]], spacing)
