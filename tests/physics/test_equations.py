"""Descriptions of equations agree with themselves: right-hand side, invariants, initial states, solver."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from ups.errors import UsageError
from ups.physics.description import Motion
from ups.physics.equations import EQUATIONS, Equation, get_equation
from ups.physics.initial import RandomWaves, random_modes
from ups.physics.names import NAMES, STEADY
from ups.physics.solvers import solve

SOLVED = [name for name, equation in EQUATIONS.items() if equation.has_solver and not equation.steady]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def defaults(equation: Equation, batch: int) -> torch.Tensor:
    return torch.tensor([[p.default for p in equation.parameters]] * batch, dtype=torch.float64).reshape(batch, -1)


def smooth_state(equation: Equation, points: int) -> torch.Tensor:
    """A smooth state that fits the boundary condition, in (0, 1)."""
    axes = equation.centres(points)
    shares = [(x - low) / (high - low) for x, (low, high) in zip(axes, equation.domain, strict=True)]
    turns = 2 if equation.boundary == "periodic" else 1  # a half wave has no slope at the walls
    wave = torch.cos(math.pi * turns * shares[0])
    if equation.dim == 2:
        wave = wave[:, None] * torch.cos(2 * math.pi * shares[1])
    return torch.stack([0.5 + 0.3 * wave * (-1) ** channel for channel in range(len(equation.fields))])[None]


def test_an_unknown_equation_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean burgers1d"):
        get_equation("burger1d")


@pytest.mark.parametrize("name", EQUATIONS)
def test_descriptions_are_complete(name: str) -> None:
    equation = get_equation(name)
    assert equation.name == name
    assert len(equation.domain) == len(equation.periodic) == equation.dim
    for parameter in equation.parameters:
        assert parameter.lower <= parameter.default <= parameter.upper
        assert parameter.scale == "linear" or parameter.lower > 0
    for symmetry in equation.symmetries:
        assert symmetry.split()[0] in ("translation", "reflection", "rotation", "galilean")
        assert symmetry.split()[1:] in ([], *(["xyz"[axis]] for axis in range(equation.dim)))
    for motion in equation.motions:
        assert len(motion.mirrored) == len(motion.shift) == equation.dim
        assert equation.boundary == "periodic"
    (low, high), axis = equation.domain[0], equation.centres(8)[0]
    assert float(axis[0]) == pytest.approx(low + (high - low) / 16)
    assert float(axis[-1]) == pytest.approx(high - (high - low) / 16)


@pytest.mark.parametrize("name", SOLVED)
def test_the_solver_solves_the_right_hand_side_that_is_described(name: str) -> None:
    """(u(t) - u(-t)) / 2t tends to du/dt; forward steps alone: 2 (u(t) - u(0)) / t - (u(2t) - u(0)) / 2t."""
    equation, points, step = get_equation(name), 128 if EQUATIONS[name].dim == 1 else 48, 1e-4
    u, params = smooth_state(equation, points), defaults(equation, 1)
    frames = solve(equation, u, params, torch.tensor([0.0, step, 2 * step]).double().numpy())
    rate = (4 * (frames[:, 1] - u) - (frames[:, 2] - u)) / (2 * step)
    assert equation.rhs is not None
    expected = equation.rhs(u, params, tuple(length / points for length in equation.lengths))
    torch.testing.assert_close(rate, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", SOLVED)
def test_the_right_hand_side_changes_no_invariant(name: str) -> None:
    equation = get_equation(name)
    assert equation.rhs is not None
    u, params = (
        torch.rand(3, len(equation.fields), *[16] * equation.dim, generator=generator()).double(),
        defaults(equation, 3),
    )
    spacing = tuple(length / 16 for length in equation.lengths)
    rates = equation.invariants(equation.rhs(u, params, spacing), params, spacing)
    assert bool(rates) == (equation.form == "flux")
    for rate in rates.values():
        torch.testing.assert_close(rate, torch.zeros(3).double(), atol=1e-11, rtol=0)


@pytest.mark.parametrize("name", ["advection1d", "burgers1d", "kuramoto_sivashinsky1d", "reaction_diffusion1d"])
def test_differences_are_of_fourth_order(name: str) -> None:
    """Richardson: the right-hand sides at 32, 96 and 288 cells share every centre of the coarsest."""
    equation, found = get_equation(name), []
    assert equation.rhs is not None
    for factor in (1, 3, 9):
        points = 32 * factor
        rate = equation.rhs(smooth_state(equation, points), defaults(equation, 1), (equation.lengths[0] / points,))
        found.append(rate[..., factor // 2 :: factor])
    order = math.log(float((found[0] - found[2]).norm() / (found[1] - found[2]).norm()), 3)
    assert 3.8 < order < 4.2


def test_initial_states_are_functions_of_the_coordinates() -> None:
    """The same draw on a grid three times finer has the same values at the shared centres."""
    for name in ("advection1d", "burgers1d", "kuramoto_sivashinsky1d", "reaction_diffusion1d", "kolmogorov2d"):
        equation = get_equation(name)
        assert equation.initial_condition is not None
        params = defaults(equation, 1)[0]
        coarse = equation.initial_condition(5, equation.centres(32), params, generator())
        fine = equation.initial_condition(5, equation.centres(96), params, generator())
        shared = (..., *[slice(1, None, 3)] * equation.dim)
        torch.testing.assert_close(fine[shared], coarse)


@pytest.mark.parametrize("dim", [1, 2])
def test_random_modes_are_smooth_of_unit_variance_and_without_a_mean(dim: int) -> None:
    axes = tuple((torch.arange(12, dtype=torch.float64) + 0.5) / 12 for _ in range(dim))
    u = random_modes(3000, axes, 3, generator())
    torch.testing.assert_close(u.flatten(1).mean(dim=1), torch.zeros(3000).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(u.square().mean(dim=0), torch.ones_like(u[0]), rtol=0, atol=0.12)
    for axis in range(2, 2 + dim):
        spectrum = torch.fft.rfft(u, dim=axis).abs().square().mean(dim=[d for d in range(2 + dim) if d != axis])
        assert float(spectrum[1:4].min()) > 0.1 * float(spectrum[1:4].max())
        assert float(spectrum[4:].max()) < 1e-20 * float(spectrum[1:4].max())


def test_a_motion_leads_back_and_moves_by_whole_cells() -> None:
    third = Motion(mirrored=(True, False), shift=(Fraction(0), Fraction(1, 6)), order=6)
    assert [third.every((16, cells)) for cells in (6, 12, 9, 8, 7)] == [1, 1, 2, 3, 6]
    with pytest.raises(ValueError, match="do not lead back"):
        Motion(mirrored=(True, False), shift=(Fraction(0), Fraction(1, 3)), order=3)
    with pytest.raises(ValueError, match="do not lead back"):
        Motion(mirrored=(False,), shift=(Fraction(1, 4),), order=2)
    with pytest.raises(ValueError, match="not both"):
        Motion(mirrored=(True,), shift=(Fraction(1, 2),), order=2)


@pytest.mark.parametrize("name", [name for name, equation in EQUATIONS.items() if equation.forcing is not None])
def test_a_forcing_has_no_integral_where_the_field_is_conserved(name: str) -> None:
    equation = get_equation(name)
    assert equation.forcing is not None
    force = equation.forcing(equation.centres(24))
    assert force.shape == (len(equation.fields), *[24] * equation.dim)
    for field, source in zip(equation.fields, force, strict=True):
        assert not field.conserved or abs(float(source.mean())) < 1e-13


def test_random_waves_are_periodic_and_as_often_folded_and_windowed_as_published() -> None:
    waves = RandomWaves.draw(4000, generator())
    x = torch.linspace(0, 1, 33, dtype=torch.float64)
    torch.testing.assert_close(waves(x), waves(x - 3), atol=1e-10, rtol=0)
    assert float(waves.folded.double().mean()) == pytest.approx(0.1, abs=0.02)
    assert float(waves.windowed.double().mean()) == pytest.approx(0.1, abs=0.02)
    assert sorted(waves.wavenumber.unique().tolist()) == [0, 1, 2, 3, 4, 6, 8]
    outside = waves(torch.tensor([0.02, 0.98]).double())[waves.windowed[:, 0]]
    assert float(outside.abs().max()) < 1e-5


def test_states_of_fishers_equation_fill_the_unit_range() -> None:
    equation = get_equation("reaction_diffusion1d")
    assert equation.initial_condition is not None
    u = equation.initial_condition(200, equation.centres(1024), defaults(equation, 1)[0], generator())
    assert float(u.min()) >= 0
    assert float(u.max()) <= 1
    assert float(u.amax(dim=-1).min()) > 0.999


def test_the_exact_advection_is_the_initial_state_moved() -> None:
    """After a time of 1 / beta every state is back where it was; a sixteenth of that moves it by two cells of 32."""
    equation = get_equation("advection1d")
    assert equation.exact is not None
    times = torch.tensor([0.0, 1 / 16, 1.0], dtype=torch.float64) / 0.4
    u = equation.exact(6, equation.centres(32), torch.tensor([0.4], dtype=torch.float64), times, generator())
    torch.testing.assert_close(u[:, 2], u[:, 0], atol=1e-11, rtol=0)
    torch.testing.assert_close(u[:, 1], u[:, 0].roll(2, -1), atol=1e-11, rtol=0)


def test_names_are_those_of_the_equations() -> None:
    assert set(EQUATIONS) == set(NAMES)
    assert {name for name, equation in EQUATIONS.items() if equation.steady} == STEADY
