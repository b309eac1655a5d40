"""The coarsest solver: it is the coarsest, it reports what it tried, and it says when nothing was accurate enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ups.errors import UpsError
from ups.physics.equations import Equation, get_equation
from ups.physics.solvers import solve
from ups.physics.solvers.cost import SolverCost, coarsest_solver

TIMES = np.linspace(0, 0.5, 6)


def burgers_truth(points: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    u0 = torch.stack([torch.sin(2 * torch.pi * x), 0.5 + torch.cos(2 * torch.pi * x)])[:, None]
    params = torch.full((2, 1), 0.1, dtype=torch.float64)
    return solve(get_equation("burgers1d"), u0, params, TIMES), params


def cost_at(target: float, points: int = 64) -> SolverCost:
    truth, params = burgers_truth(points)
    return coarsest_solver(get_equation("burgers1d"), truth[:, 0], truth, params, TIMES, (1 / points,), target)


def test_the_first_accurate_grid_is_reported_and_errors_fall_on_the_way() -> None:
    cost = cost_at(1e-3)
    assert cost.found
    assert [trial.resolution for trial in cost.tried] == [16, 24, 32, 48, 64][: len(cost.tried)]
    errors = [trial.nrmse for trial in cost.tried]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == cost.nrmse <= 1e-3 < errors[-2]
    assert cost.resolution == cost.tried[-1].resolution < 64
    assert cost.seconds_per_trajectory > 0


def test_the_truths_own_solver_on_its_own_grid_has_no_error() -> None:
    cost = cost_at(1e-12)
    assert (cost.found, cost.resolution) == (True, 64)


def test_where_nothing_is_accurate_enough_the_best_is_reported_as_not_found() -> None:
    cost = cost_at(-1.0, points=32)
    assert not cost.found
    assert [trial.resolution for trial in cost.tried] == [16, 24, 32, 48, 64]
    assert cost.resolution == 32


def test_between_walls_a_coarser_grid_is_less_accurate() -> None:
    equation = get_equation("reaction_diffusion2d")
    x = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    wave = torch.cos(torch.pi * x)[:, None] * torch.cos(2 * torch.pi * x)
    params = torch.zeros(1, 0).double()
    truth = solve(equation, torch.stack([wave, -wave])[None], params, TIMES)
    cost = coarsest_solver(equation, truth[:, 0], truth, params, TIMES, (2 / 32, 2 / 32), 1e-12)
    assert (cost.found, cost.resolution) == (True, 32)
    assert cost.tried[0].nrmse > cost.tried[-2].nrmse > 1e-4


def test_data_that_the_solver_does_not_fit_is_named() -> None:
    truth, params = burgers_truth(32)
    with pytest.raises(UpsError, match="domain"):
        coarsest_solver(get_equation("burgers1d"), truth[:, 0], truth, params, TIMES, (1 / 16,), 1e-3)
    with pytest.raises(UpsError, match="nothing to compare"):
        coarsest_solver(get_equation("burgers1d"), truth[:, 0], truth[:, :1], params, TIMES[:1], (1 / 32,), 1e-3)


def test_a_solver_that_blows_up_on_a_coarse_grid_is_infinitely_wrong_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(equation: Equation, u0: torch.Tensor, *given: Any) -> torch.Tensor:
        if u0.shape[-1] < smallest:
            raise UpsError("the solution of sample 0 is not finite")
        return solve(equation, u0, *given)

    monkeypatch.setattr("ups.physics.solvers.cost.solve", fragile)
    smallest = 32
    cost = cost_at(1e-3)
    assert [trial.nrmse for trial in cost.tried[:2]] == [np.inf, np.inf]
    assert (cost.found, cost.resolution >= 32) == (True, True)
    smallest = 1000
    with pytest.raises(UpsError, match="not finite"):
        cost_at(1e-3)
