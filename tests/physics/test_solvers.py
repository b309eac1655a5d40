"""Reference solvers: exact solutions, orders of convergence, what is conserved, and other people's solvers."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from ups.errors import UpsError
from ups.physics.equations import EQUATIONS, get_equation
from ups.physics.solvers import BlownUp, solve
from ups.physics.solvers.burgers import BurgersSolver
from ups.physics.solvers.reaction_diffusion import FisherSolver, FitzHughNagumoSolver

NO_SLOPE = math.pi  # of a cosine over the width of the domain


def column(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def centres(points: int) -> torch.Tensor:
    return (torch.arange(points, dtype=torch.float64) + 0.5) / points


def rel_l2(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def observed_orders(errors: list[float], ratio: float = 2.0) -> list[float]:
    return [math.log(coarse / fine, ratio) for coarse, fine in itertools.pairwise(errors)]


# --- advection -------------------------------------------------------------------------------------------------------


def test_advection_is_exact_for_any_time_and_each_samples_own_speed() -> None:
    x, times = centres(32), np.array([0.0, 0.37, 2.9])
    speeds = torch.tensor([[0.4], [-1.7]], dtype=torch.float64)

    def exact(t: float) -> torch.Tensor:
        y = x - speeds * t
        return (torch.sin(2 * math.pi * y) + 0.3 * torch.cos(8 * math.pi * y + 1))[:, None]

    u = solve(get_equation("advection1d"), exact(0.0), speeds, times)
    torch.testing.assert_close(u, torch.stack([exact(t) for t in times], dim=1))


# --- Burgers ---------------------------------------------------------------------------------------------------------


def cole_hopf(x: torch.Tensor, t: float, nu: float, amplitude: float = 0.9) -> torch.Tensor:
    """Burgers' equation solved by u = -2 kappa phi_x / phi, where phi solves the heat equation; kappa = nu / pi."""
    kappa, k = nu / math.pi, 2 * math.pi
    decayed = amplitude * math.exp(-kappa * k**2 * t)
    return 2 * kappa * k * decayed * torch.sin(k * x) / (1 + decayed * torch.cos(k * x))


def burgers_error(solver: BurgersSolver, points: int, speed: float = 0.0) -> float:
    """Error at t = 0.05 for nu = 0.5, on a wind of constant `speed`: u(x, t) = speed + v(x - speed t, t)."""
    equation, times = replace(get_equation("burgers1d"), solver=solver), np.array([0.0, 0.05])
    x = centres(points)
    u = solve(equation, (speed + cole_hopf(x, 0.0, 0.5))[None, None], column(0.5), times)
    return rel_l2(u[0, -1, 0], speed + cole_hopf(x - speed * 0.05, 0.05, 0.5))


def test_burgers_with_spectral_derivatives_converges_faster_than_any_order() -> None:
    solver = BurgersSolver(peclet_limit=math.inf, courant=0.05)
    errors = [burgers_error(solver, points, speed=0.3) for points in (16, 32, 64)]
    assert errors[1] < errors[0] / 50
    assert errors[2] < 1e-8


def test_burgers_with_weno_is_of_fifth_order() -> None:
    solver = BurgersSolver(peclet_limit=0.0, courant=0.2)
    orders = observed_orders([burgers_error(solver, points) for points in (40, 80, 160)])
    assert min(orders) > 4.3, orders


def test_burgers_is_of_fourth_order_in_time() -> None:
    """On a grid that resolves the solution to rounding, where the time step alone makes the error."""
    errors = []
    for steps in (8, 16, 32):
        speed = float(cole_hopf(centres(256), 0.0, 0.5).abs().max())
        courant = speed * 256 * 0.05 / steps * 1.0000001  # exactly so many steps
        errors.append(burgers_error(BurgersSolver(peclet_limit=math.inf, courant=courant), 256))
    orders = observed_orders(errors)
    assert all(3.6 < order < 4.6 for order in orders), (errors, orders)


@pytest.mark.parametrize("peclet_limit", [0.0, math.inf])
def test_burgers_conserves_the_sum_to_rounding_and_keeps_the_range(peclet_limit: float) -> None:
    """Through the forming of shocks; spectral derivatives overshoot where the viscous layer is not resolved."""
    equation = replace(get_equation("burgers1d"), solver=BurgersSolver(peclet_limit=peclet_limit))
    assert equation.initial_condition is not None
    u0 = equation.initial_condition(6, equation.centres(128), column(0.1)[0], torch.Generator().manual_seed(0))
    u = solve(equation, u0, column(0.1).expand(6, 1), np.linspace(0, 1, 6))
    torch.testing.assert_close(u.mean(dim=-1), u0.mean(dim=-1)[:, None].expand(6, 6, 1), atol=1e-14, rtol=0)
    slack = 1e-3 * (u0.amax() - u0.amin())
    assert bool((u <= u0.amax(dim=-1)[:, None, :, None] + slack).all())
    assert bool((u >= u0.amin(dim=-1)[:, None, :, None] - slack).all())


def test_a_shock_that_no_grid_resolves_travels_at_its_own_speed() -> None:
    """A jump from 1 to 0 moves at 1/2 (Rankine-Hugoniot), whatever the scheme spreads it over."""
    x = centres(200)
    u0 = ((x > 0.1) & (x < 0.4)).double()[None, None]
    u = solve(get_equation("burgers1d"), u0, column(1e-5), np.array([0.0, 0.4]))[0, -1, 0]
    right = x > 0.35  # the fan from the left end has not caught up
    place = float(x[right][u[right] > 0.5].max()) + 0.5 / 200
    assert place == pytest.approx(0.4 + 0.4 / 2, abs=1 / 200)
    assert float(u.max()) < 1.001
    assert float(u.min()) > -0.001


# --- Fisher's equation -----------------------------------------------------------------------------------------------


def test_a_uniform_state_follows_the_logistic_curve() -> None:
    times = np.linspace(0, 1, 5)
    u = solve(get_equation("reaction_diffusion1d"), torch.full((1, 1, 16), 0.2).double(), column(0.5, 5.0), times)
    exact = 0.2 * np.exp(5 * times) / (0.8 + 0.2 * np.exp(5 * times))
    torch.testing.assert_close(u[0, :, 0], torch.from_numpy(exact)[:, None].expand(5, 16), atol=1e-7, rtol=0)


def test_fisher_is_of_fourth_order_in_time() -> None:
    u0 = (0.5 + 0.4 * torch.sin(2 * math.pi * centres(32)))[None, None]
    found = []
    for steps in (16, 32, 64, 1024):
        solver = FisherSolver(reaction_step=10.0 / steps * 1.0000001, change=math.inf)
        equation = replace(get_equation("reaction_diffusion1d"), solver=solver)
        found.append(solve(equation, u0, column(0.1, 10.0), np.array([0.0, 1.0]))[:, -1])
    orders = observed_orders([rel_l2(u, found[-1]) for u in found[:-1]])
    assert all(3.5 < order < 5 for order in orders), orders


def test_fisher_is_accurate_while_sharp_states_smooth_out() -> None:
    """Kinks decay a thousand times faster than the reaction acts: the first output interval needs its short steps."""
    params, states = column(5.0, 5.0), []
    for change in (FisherSolver.change, FisherSolver.change / 16):
        equation = replace(get_equation("reaction_diffusion1d"), solver=FisherSolver(change=change))
        assert equation.initial_condition is not None
        u0 = equation.initial_condition(10, equation.centres(192), params[0], torch.Generator().manual_seed(1))
        states.append(solve(equation, u0, params.expand(10, 2), np.array([0.0, 0.02]))[:, -1])
    assert rel_l2(states[0], states[1]) < 1e-6


def test_fisher_keeps_between_zero_and_one() -> None:
    equation = get_equation("reaction_diffusion1d")
    assert equation.initial_condition is not None
    params = column(0.5, 5.0)
    u0 = equation.initial_condition(20, equation.centres(192), params[0], torch.Generator().manual_seed(1))
    u = solve(equation, u0, params.expand(20, 2), np.linspace(0, 1, 11))
    assert float(u.min()) > -1e-6
    assert float(u.max()) < 1 + 1e-6


# --- FitzHugh-Nagumo -------------------------------------------------------------------------------------------------


def test_fitzhugh_nagumo_agrees_with_an_adaptive_integrator_of_the_same_cells() -> None:
    """From noise: scipy's DOP853 on u' = rhs(u), the finite-volume equations, to 1e-10."""
    equation, times = get_equation("reaction_diffusion2d"), np.array([0.0, 0.3, 1.0])
    u0 = torch.randn(1, 2, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    params, spacing = torch.zeros(1, 0).double(), (0.2, 0.2)
    rhs = equation.rhs
    assert rhs is not None

    def rate(_: float, y: np.ndarray) -> np.ndarray:
        return rhs(torch.from_numpy(y).reshape(u0.shape), params, spacing).flatten().numpy()

    exact = solve_ivp(rate, (0, 1), u0.flatten().numpy(), "DOP853", times, rtol=1e-10, atol=1e-12).y.T
    u = solve(equation, u0, params, times)
    np.testing.assert_allclose(u.flatten(2).reshape(3, -1).numpy(), exact, atol=2e-4)
    finer = replace(equation, solver=FitzHughNagumoSolver((1e-3, 5e-3), 5e-3, reaction_step=0.02))
    np.testing.assert_allclose(solve(finer, u0, params, times).reshape(3, -1).numpy(), exact, atol=1e-8)


def test_fitzhugh_nagumo_is_of_second_order_in_space() -> None:
    equation, found = get_equation("reaction_diffusion2d"), []
    for factor in (1, 3, 9):
        x = (equation.centres(8 * factor)[0] + 1) / 2
        wave = torch.cos(NO_SLOPE * x)[:, None] * torch.cos(2 * NO_SLOPE * x)
        u = solve(equation, torch.stack([wave, -wave])[None], torch.zeros(1, 0).double(), np.array([0.0, 1.0]))
        found.append(u[0, -1, :, factor // 2 :: factor, factor // 2 :: factor])
    order = math.log(rel_l2(found[0], found[2]) / rel_l2(found[1], found[2]), 3)
    assert 1.9 < order < 2.3


def test_nothing_flows_through_the_walls() -> None:
    """The mean of v changes by its reaction alone: d/dt int v = int (u - v)."""
    equation = get_equation("reaction_diffusion2d")
    u0 = torch.randn(1, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    times = np.linspace(0, 0.4, 81)
    mean_u, mean_v = solve(equation, u0, torch.zeros(1, 0).double(), times)[0].mean(dim=(2, 3)).unbind(1)
    gained = torch.trapezoid(mean_u - mean_v, torch.from_numpy(times))
    torch.testing.assert_close(mean_v[-1] - mean_v[0], gained, atol=1e-5, rtol=0)


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name, equation in EQUATIONS.items() if equation.has_solver and not equation.steady]
)
def test_a_sample_does_not_depend_on_its_neighbours(name: str) -> None:
    torch.set_num_threads(1)
    equation = get_equation(name)
    assert equation.initial_condition is not None
    defaults = torch.tensor([p.default for p in equation.parameters], dtype=torch.float64)
    u0 = equation.initial_condition(5, equation.centres(32), defaults, torch.Generator().manual_seed(3))
    u0[1] *= 3  # needs more steps than the others
    params = defaults.expand(5, -1) * torch.linspace(1, 2, 5, dtype=torch.float64)[:, None]
    times = np.linspace(0, 0.2, 3)
    together = solve(equation, u0, params, times)
    alone = torch.cat([solve(equation, u0[i : i + 1], params[i : i + 1], times) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-12)


def test_what_cannot_be_solved_is_named() -> None:
    burgers, u0 = get_equation("burgers1d"), torch.zeros(1, 1, 16).double()
    with pytest.raises(UpsError, match="no reference solver yet"):
        solve(get_equation("shallow_water2d"), torch.ones(1, 1, 8, 8).double(), torch.zeros(1, 0), np.array([0.0, 1.0]))
    with pytest.raises(UpsError, match="nu is -1"):
        solve(burgers, u0, column(-1.0), np.array([0.0, 1.0]))
    with pytest.raises(UpsError, match="times"):
        solve(burgers, u0, column(0.1), np.array([0.0, 0.0]))
    with pytest.raises(BlownUp, match="not finite"):
        solve(burgers, u0 + math.nan, column(0.1), np.array([0.0, 1.0]))


# --- exponax ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exponax() -> Any:
    jax = pytest.importorskip("jax")
    jax.config.update("jax_enable_x64", True)
    return pytest.importorskip("exponax")


def repeated(stepper: Any, u: torch.Tensor, steps: int) -> torch.Tensor:
    import jax

    field = jax.jit(lambda v: jax.lax.fori_loop(0, steps, lambda _, w: stepper(w), v))(u.numpy())
    return torch.from_numpy(np.array(field))


def test_advection_agrees_with_exponax(exponax: Any) -> None:
    u0 = (torch.sin(2 * math.pi * centres(64)) + 0.4 * torch.cos(6 * math.pi * centres(64)))[None]
    other = repeated(exponax.stepper.Advection(1, 1.0, 64, 0.05, velocity=0.4), u0, 20)
    u = solve(get_equation("advection1d"), u0[None], column(0.4), np.array([0.0, 1.0]))
    torch.testing.assert_close(u[0, -1], other, atol=1e-12, rtol=0)


def test_burgers_agrees_with_exponax(exponax: Any) -> None:
    """Up to t = 0.4, past the time at which the inviscid solution breaks."""
    u0 = (torch.sin(2 * math.pi * centres(512)) + 0.4 * torch.cos(4 * math.pi * centres(512)))[None]
    stepper = exponax.stepper.Burgers(1, 1.0, 512, 2.5e-4, diffusivity=0.05 / math.pi, conservative=True, order=4)
    u = solve(get_equation("burgers1d"), u0[None], column(0.05), np.array([0.0, 0.4]))
    assert rel_l2(u[0, -1], repeated(stepper, u0, 1600)) < 1e-6


def test_fisher_agrees_with_exponax(exponax: Any) -> None:
    u0 = (0.5 + 0.4 * torch.sin(2 * math.pi * centres(64)))[None]
    stepper = exponax.stepper.reaction.FisherKPP(1, 1.0, 64, 0.01, diffusivity=0.05, reactivity=5.0, order=4)
    u = solve(get_equation("reaction_diffusion1d"), u0[None], column(0.05, 5.0), np.array([0.0, 1.0]))
    assert rel_l2(u[0, -1], repeated(stepper, u0, 100)) < 1e-6
