"""Solvers of the chaotic equations: exact solutions, orders, other people's solvers, and the state that they reach."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ups.physics.equations import Equation, get_equation
from ups.physics.solvers import solve
from ups.physics.solvers.kuramoto_sivashinsky import KuramotoSivashinskySolver
from ups.physics.solvers.navier_stokes import Flow, VorticitySolver
from ups.physics.solvers.transforms import resample_periodic

KS, KOLMOGOROV = get_equation("kuramoto_sivashinsky1d"), get_equation("kolmogorov2d")
CPU = torch.device("cpu")


def column(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def rel_l2(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def state(equation: Equation, points: int, seed: int = 0, num: int = 1) -> torch.Tensor:
    """Smooth states that are the same functions on any grid."""
    assert equation.initial_condition is not None
    params = torch.tensor([parameter.default for parameter in equation.parameters], dtype=torch.float64)
    return equation.initial_condition(num, equation.centres(points), params, torch.Generator().manual_seed(seed))


def final(equation: Equation, u0: torch.Tensor, params: torch.Tensor, time: float) -> torch.Tensor:
    return solve(equation, u0, params.expand(len(u0), -1), np.array([0.0, time]))[:, -1]


def resample(u: torch.Tensor, points: int) -> torch.Tensor:
    for dim in range(2, u.ndim):
        u = resample_periodic(u, points, dim)
    return u


def no_forcing(axes: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.zeros(1, *map(len, axes), dtype=torch.float64)


# --- Kuramoto-Sivashinsky --------------------------------------------------------------------------------------------


def test_small_waves_grow_and_decay_at_the_rates_of_the_linear_equation() -> None:
    """exp((k² - nu k⁴) t) at amplitudes at which the nonlinear term is rounding."""
    x, (cycles, nu, time) = KS.centres(64)[0], (torch.tensor([3.0, 9.0, 15.0]).double(), 1.2, 2.0)
    k = 2 * math.pi / 64 * cycles[:, None, None]
    u0 = 1e-13 * torch.cos(k * x + 0.3)
    grown = torch.exp((k**2 - nu * k**4) * time) * u0
    assert bool((grown[0] / u0[0] > 1).all() & (grown[2] / u0[2] < 1).all())
    torch.testing.assert_close(final(KS, u0, column(nu), time), grown, rtol=1e-9, atol=1e-24)


def test_kuramoto_sivashinsky_is_of_fourth_order_in_time() -> None:
    found = []
    for steps in (4, 8, 16, 128):
        solver = KuramotoSivashinskySolver(64.0, step=0.25 / steps * 1.0000001, courant=math.inf)
        found.append(final(replace(KS, solver=solver), state(KS, 64), column(1.0), 0.25))
    errors = [rel_l2(u, found[-1]) for u in found[:-1]]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(3.6 < order < 4.5 for order in orders), (errors, orders)


def test_a_long_interval_is_stepped_as_its_parts_are() -> None:
    """The number of steps is chosen anew in each part: whoever asks for one frame gets the same as for many."""
    for equation, params, points in ((KS, column(1.0), 64), (KOLMOGOROV, column(0.1, 0.1), 24)):
        once = final(equation, state(equation, points), params, 3.0)
        often = solve(equation, state(equation, points), params, np.linspace(0, 3, 4 if equation is KS else 7))[:, -1]
        torch.testing.assert_close(once, often, rtol=0, atol=1e-12)


def test_kuramoto_sivashinsky_converges_faster_than_any_order_in_space() -> None:
    start = final(KS, state(KS, 256), column(1.0), 30.0)  # on the attractor
    exact = final(KS, start, column(1.0), 1.0)
    errors = [
        rel_l2(resample(final(KS, resample(start, points), column(1.0), 1.0), 64), resample(exact, 64))
        for points in (64, 96, 144)
    ]
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 50
    assert errors[2] < 1e-5, errors


def test_kuramoto_sivashinsky_keeps_the_mean_and_moves_with_it() -> None:
    """u(x, t) + c at x + c t solves the equation where u does; here c moves by two cells in a unit of time."""
    u0, speed = state(KS, 128, num=2), 2 * 64 / 128
    at_rest, moving = final(KS, u0, column(1.0), 1.0), final(KS, u0 + speed, column(1.0), 1.0)
    torch.testing.assert_close(moving, at_rest.roll(2, -1) + speed, rtol=0, atol=3e-5)
    torch.testing.assert_close(moving.mean(dim=-1), torch.full((2, 1), speed).double(), rtol=0, atol=1e-13)


def test_the_spin_up_of_kuramoto_sivashinsky_reaches_its_attractor() -> None:
    """After it the mean square is that of long times (1.74), whatever the size of the initial state."""
    for factor in (0.3, 3.0):
        u = solve(KS, factor * state(KS, 128, num=12), column(1.0).expand(12, 1), np.array([0, KS.spin_up, 120.0]))
        powers = u.square().mean(dim=(0, 2, 3))
        assert float(powers[1]) == pytest.approx(1.74, rel=0.25)
        assert float(powers[2]) == pytest.approx(1.74, rel=0.25)


# --- Kolmogorov flow -------------------------------------------------------------------------------------------------


def test_the_flow_has_the_vorticity_that_it_was_made_from_and_no_divergence() -> None:
    flow, w = Flow((24, 24), (2 * math.pi, 2 * math.pi), CPU), state(KOLMOGOROV, 24)
    u, v = (torch.fft.fft2(part) for part in flow.velocity(flow.fourier.forward(w))[:, 0].unbind(1))
    k = torch.fft.fftfreq(24, 1 / 24, dtype=torch.float64)
    curl, divergence = 1j * (k[:, None] * v - k * u), 1j * (k[:, None] * u + k * v)
    torch.testing.assert_close(torch.fft.ifft2(curl).real, w[:, 0])
    torch.testing.assert_close(divergence, torch.zeros_like(divergence), rtol=0, atol=1e-11)


def test_transport_is_the_advection_of_vorticity() -> None:
    """-u . grad w by derivatives of w, where every product is resolved, and none of the mean or the squares."""
    flow, w = Flow((32, 32), (2 * math.pi, 2 * math.pi), CPU), state(KOLMOGOROV, 32)
    modes = flow.fourier.forward(w)
    u, v = flow.velocity(modes).unbind(2)
    k = torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
    spectrum = torch.fft.fft2(w)
    w_x, w_y = (torch.fft.ifft2(1j * wave * spectrum).real for wave in (k[:, None], k))
    carried = flow.fourier.inverse(flow.transport(modes))
    torch.testing.assert_close(carried, -(u * w_x + v * w_y))
    assert abs(float(carried.mean())) < 1e-14
    assert abs(float((carried * w).mean())) < 1e-13


def test_without_forcing_taylor_green_vortices_only_decay() -> None:
    """w = cos(2 x) cos(y) is carried along its own contours: it decays at the rate 5 nu + drag."""
    x, y = KOLMOGOROV.centres(16)
    w = (torch.cos(2 * x)[:, None] * torch.cos(y))[None, None]
    flow = replace(KOLMOGOROV, solver=VorticitySolver(no_forcing))
    torch.testing.assert_close(final(flow, w, column(0.3, 0.2), 1.7), math.exp(-(5 * 0.3 + 0.2) * 1.7) * w)


def test_from_rest_the_forcing_drives_the_laminar_flow() -> None:
    """w = -4 cos(4 y) (1 - exp(-r t)) / r with r = 16 nu + drag: u = sin(4 y) and v = 0 but for the factor."""
    _, y = KOLMOGOROV.centres(20)
    rate = 16 * 0.1 + 0.1
    w = final(KOLMOGOROV, torch.zeros(1, 1, 20, 20).double(), column(0.1, 0.1), 1.3)
    driven = (1 - math.exp(-1.3 * rate)) / rate
    torch.testing.assert_close(w, (-4 * driven * torch.cos(4 * y)).expand(1, 1, 20, 20))
    flow = Flow((20, 20), (2 * math.pi, 2 * math.pi), CPU)
    u, v = flow.velocity(flow.fourier.forward(w)).unbind(2)
    torch.testing.assert_close(u, (driven * torch.sin(4 * y)).expand(1, 1, 20, 20))
    torch.testing.assert_close(v, torch.zeros_like(v), rtol=0, atol=1e-14)


def test_the_right_hand_side_of_a_state_of_rest_is_the_forcing() -> None:
    assert KOLMOGOROV.rhs is not None
    assert KOLMOGOROV.forcing is not None
    rate = KOLMOGOROV.rhs(torch.zeros(1, 1, 24, 24), column(0.01, 0.1).float(), (2 * math.pi / 24,) * 2)
    torch.testing.assert_close(rate[0].double(), KOLMOGOROV.forcing(KOLMOGOROV.centres(24)), rtol=1e-6, atol=1e-6)


def test_kolmogorov_flow_is_of_fourth_order_in_time() -> None:
    w, flow, found = state(KOLMOGOROV, 32), Flow((32, 32), (2 * math.pi, 2 * math.pi), CPU), []
    rate = float(flow.velocity(flow.fourier.forward(w)).abs().sum(dim=2).max()) * 32 / (2 * math.pi)
    for steps in (8, 16, 32, 256):
        solver = VorticitySolver(no_forcing, courant=rate * 0.5 / steps * 1.0000001)
        found.append(final(replace(KOLMOGOROV, solver=solver), w, column(0.02, 0.1), 0.5))
    errors = [rel_l2(u, found[-1]) for u in found[:-1]]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(3.6 < order < 4.6 for order in orders), (errors, orders)


def test_kolmogorov_flow_converges_faster_than_any_order_in_space() -> None:
    params = column(0.05, 0.1)
    exact = resample(final(KOLMOGOROV, state(KOLMOGOROV, 80), params, 0.5), 16)
    errors = [
        rel_l2(resample(final(KOLMOGOROV, state(KOLMOGOROV, points), params, 0.5), 16), exact)
        for points in (16, 28, 48)
    ]
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 50
    assert errors[2] < 1e-5, errors


def test_the_mean_of_the_vorticity_stays_whatever_it_is() -> None:
    w = state(KOLMOGOROV, 24) + 0.7
    later = final(KOLMOGOROV, w, column(0.05, 0.1), 1.0)
    torch.testing.assert_close(later.mean(), w.mean(), rtol=1e-13, atol=0)
    torch.testing.assert_close(later - 0.7, final(KOLMOGOROV, w - 0.7, column(0.05, 0.1), 1.0))


def test_the_cells_that_random_flows_are_solved_on_resolve_them() -> None:
    """On twice as many cells half a unit of time gives the same, at a quarter of the default Reynolds number."""
    params = (0.04, 0.1)
    solver = KOLMOGOROV.solver
    assert solver is not None
    assert (solver.refinement(64, (0.01, 0.1)), solver.refinement(128, (0.01, 0.1))) == (2, 1)
    points = 32 * solver.refinement(32, params)
    w = final(KOLMOGOROV, state(KOLMOGOROV, points), column(*params), 5.0)
    finer = resample(final(KOLMOGOROV, resample(w, 2 * points), column(*params), 0.5), points)
    assert rel_l2(final(KOLMOGOROV, w, column(*params), 0.5), finer) < 1e-3


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


def test_kuramoto_sivashinsky_agrees_with_exponax(exponax: Any) -> None:
    u0 = state(KS, 192)
    stepper = exponax.stepper.KuramotoSivashinskyConservative(1, 64.0, 192, 0.01, fourth_order_scale=0.9, order=4)
    u = solve(KS, u0, column(0.9), np.array([0.0, 5.0]))
    assert rel_l2(u[0, -1], repeated(stepper, u0[0], 500)) < 2e-6


def test_kolmogorov_flow_agrees_with_exponax(exponax: Any) -> None:
    """exponax has its points at the ends of the cells, half a cell from the centres, and its w is u_y - v_x."""
    params, (x, y) = torch.zeros(2).double(), KOLMOGOROV.centres(48)
    assert KOLMOGOROV.initial_condition is not None
    at_centres, at_ends = (
        KOLMOGOROV.initial_condition(1, (x, axis), params, torch.Generator().manual_seed(0))
        for axis in (y, y - math.pi / 48)
    )
    stepper = exponax.stepper.KolmogorovFlowVorticity(
        2, 2 * math.pi, 48, 0.01, diffusivity=0.05, drag=-0.3, injection_mode=4, convection_scale=-1.0, order=4
    )
    theirs = repeated(stepper, at_ends[0], 100)
    half_a_cell = torch.exp(-1j * math.pi / 48 * torch.arange(25, dtype=torch.float64))
    for courant, tolerance in ((VorticitySolver.courant, 1e-5), (0.2, 1e-7)):
        assert KOLMOGOROV.forcing is not None
        finer = replace(KOLMOGOROV, solver=VorticitySolver(KOLMOGOROV.forcing, courant=courant))
        ours = torch.fft.rfft(final(finer, at_centres, column(0.05, 0.3), 1.0)[0])
        assert rel_l2(torch.fft.irfft(ours * half_a_cell, n=48), theirs) < tolerance
