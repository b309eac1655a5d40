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


def test_between_walls_the_error_falls_as_that_of_the_solver_which_is_of_second_order() -> None:
    """Against the solution on 32 cells: as 1 / 16² - 1 / 32² to 1 / 24² - 1 / 32²."""
    equation = get_equation("reaction_diffusion2d")
    x = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    wave = 0.3 * torch.cos(torch.pi * x)[:, None] * torch.cos(2 * torch.pi * x)
    params = torch.zeros(1, 0).double()
    truth = solve(equation, torch.stack([wave, -wave])[None], params, TIMES)
    cost = coarsest_solver(equation, truth[:, 0], truth, params, TIMES, (2 / 32, 2 / 32), 1e-12)
    assert (cost.found, cost.resolution) == (True, 32)
    errors = [trial.nrmse for trial in cost.tried]
    assert errors[0] / errors[1] == pytest.approx((16**-2 - 32**-2) / (24**-2 - 32**-2), rel=0.05)


@pytest.mark.parametrize("name", ["relaxation2d", "reaction_diffusion2d", "darcy2d"])
def test_between_walls_the_error_is_the_solvers_and_not_that_of_interpolation(name: str) -> None:
    """On a grid three times coarser it is the error at the centres that both grids share, where nothing is between."""
    equation, times, few, many = get_equation(name), np.array([0.0, 1.0]), 16, 48
    params = torch.full((1, len(equation.parameters)), 0.1, dtype=torch.float64)

    def state(points: int) -> torch.Tensor:
        if equation.boundary == "dirichlet":
            return torch.ones(1, 1, points, points, dtype=torch.float64)
        x = torch.pi * (torch.arange(points, dtype=torch.float64) + 0.5) / points
        wave = torch.cos(x)[:, None] * torch.cos(2 * x)
        return torch.stack([0.2 + 0.2 * wave, 0.1 - 0.1 * wave][: len(equation.fields)])[None]

    truth = solve(equation, state(many), params, times)
    spacing = tuple(length / many for length in equation.lengths)
    judged = coarsest_solver(equation, truth[:, 0], truth, params, times, spacing, np.inf)
    shared = truth[:, 1, :, 1::3, 1::3]
    error = (solve(equation, state(few), params, times)[:, 1] - shared).flatten(2).norm(dim=2)
    assert judged.resolution == few
    assert judged.nrmse == pytest.approx(float((error / shared.flatten(2).norm(dim=2)).mean()), rel=0.1)


def test_a_coefficient_is_brought_to_coarse_cells_as_chessboards_conduct(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 0.1 and 1 conducts as their geometric mean; one value stays as it is, and so does all on a finer grid."""
    given: dict[int, torch.Tensor] = {}

    def remembered(equation: Equation, u0: torch.Tensor, *rest: Any) -> torch.Tensor:
        given[u0.shape[-1]] = u0
        return solve(equation, u0, *rest)

    monkeypatch.setattr("ups.physics.solvers.cost.solve", remembered)
    equation, times, cell = get_equation("darcy2d"), np.array([0.0, 1.0]), torch.arange(32)
    board = torch.where((cell[:, None] + cell) % 2 == 0, 0.1, 1.0).double()
    medium = torch.stack([board, torch.full_like(board, 0.7)])[:, None]
    params = torch.ones(2, 1, dtype=torch.float64)
    coarsest_solver(equation, medium, solve(equation, medium, params, times), params, times, (1 / 32, 1 / 32), -1.0)
    coarse = torch.stack([torch.full((1, 16, 16), value, dtype=torch.float64) for value in (0.1**0.5, 0.7)])
    torch.testing.assert_close(given[16], coarse)
    torch.testing.assert_close(given[64], medium.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


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
