"""Augmentation maps solutions to solutions, sample by sample, and draws nothing the equation does not have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ups.data.augment import Augment, boost, reflect, repeat, translate
from ups.data.fields import Batch, Grid
from ups.physics.equations import EQUATIONS, Equation, get_equation
from ups.physics.solvers import solve


def make_batch(task: str, size: int = 16, samples: int = 6) -> Batch:
    equation = get_equation(task)
    axes = tuple((np.arange(size) + 0.5) / size for _ in range(equation.dim))
    shape = (samples, 3, len(equation.fields), *[size] * equation.dim)
    frames = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    params = torch.full((samples, len(equation.parameters)), 0.1)
    return Batch(
        task=task,
        frames=frames,
        dt=torch.ones(samples),
        params=params,
        grid=Grid(axes=axes, periodic=equation.periodic),
        context=1,
    )


def without_boosts(equation: Equation) -> Equation:
    """The equation with the symmetries that do not depend on time; boosts have their own test below."""
    return replace(equation, symmetries=equation.symmetries - {"galilean"})


@pytest.mark.parametrize(
    "task", [name for name, equation in EQUATIONS.items() if equation.has_solver and not equation.steady]
)
def test_the_right_hand_side_commutes_with_every_symmetry_drawn(task: str) -> None:
    """rhs(S u) = S rhs(u): what is drawn are symmetries of the equation, on the grid."""
    equation, batch = get_equation(task), make_batch(task)
    augment = Augment(without_boosts(equation))
    spacing = tuple((high - low) / 16 for low, high in equation.domain)
    u = batch.frames.double()
    rates = torch.stack([equation.rhs(u[:, t], batch.params.double(), spacing) for t in range(u.shape[1])], 1)
    both = Batch(
        task=task, frames=torch.cat([u, rates], 1), dt=batch.dt, params=batch.params, grid=batch.grid, context=1
    )
    moved = augment(both, torch.Generator().manual_seed(3)).frames
    fields, wanted = moved[:, :3], moved[:, 3:]
    assert not torch.equal(fields, u)
    found = torch.stack([equation.rhs(fields[:, t], batch.params.double(), spacing) for t in range(3)], 1)
    torch.testing.assert_close(found, wanted, atol=1e-8 * float(rates.abs().max()), rtol=1e-8)


@pytest.mark.parametrize(
    "task", [name for name, equation in EQUATIONS.items() if equation.has_solver and not equation.steady]
)
def test_the_solution_of_a_transformed_state_is_the_transformed_solution(task: str) -> None:
    equation, batch = get_equation(task), make_batch(task, size=24, samples=24)
    params = batch.params.double()

    def solved(u0: torch.Tensor) -> torch.Tensor:
        return solve(equation, u0, params, np.array([0.0, 0.02, 0.1]))

    frames = solved(batch.frames[:, 0].double())
    moved = Augment(without_boosts(equation))(replace(batch, frames=frames), torch.Generator().manual_seed(3)).frames
    torch.testing.assert_close(solved(moved[:, 0]), moved, atol=1e-9, rtol=1e-9)


KOLMOGOROV = get_equation("kolmogorov2d")
SHIFT_AND_MIRROR, HALF_TURN = KOLMOGOROV.motions


def kolmogorov_gap(transform: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """How far the solution of a transformed state is from the transformed solution, over the size of the solution."""
    u0, params = make_batch("kolmogorov2d", 24).frames[:1, :1, :1].double(), torch.tensor([[0.1, 0.1]]).double()
    times = np.array([0.0, 0.5])
    solution, moved = solve(KOLMOGOROV, u0[0], params, times), solve(KOLMOGOROV, transform(u0)[0], params, times)
    return float((moved - transform(solution)).abs().max() / solution[:, -1].abs().max())


def test_kolmogorov_flow_has_its_symmetries_and_not_their_parts() -> None:
    parity, once = torch.tensor([-1.0]), torch.ones(1, dtype=torch.long)
    assert kolmogorov_gap(lambda u: translate(u, 3, 5 * once)) < 1e-12
    assert kolmogorov_gap(lambda u: translate(u, 4, 6 * once)) < 1e-12  # a wave of the forcing
    assert kolmogorov_gap(lambda u: repeat(u, SHIFT_AND_MIRROR, parity, once)) < 1e-12
    assert kolmogorov_gap(lambda u: repeat(u, HALF_TURN, parity, once)) < 1e-12
    assert kolmogorov_gap(lambda u: translate(u, 4, 3 * once)) > 1e-2  # half a wave alone
    assert kolmogorov_gap(lambda u: translate(u, 4, once)) > 1e-2
    assert kolmogorov_gap(lambda u: reflect(u, 3, parity, once == 1)) > 1e-2
    assert kolmogorov_gap(lambda u: reflect(u, 4, -parity, once == 1)) > 1e-2


def test_motions_leave_the_forcing_as_it_is() -> None:
    assert KOLMOGOROV.forcing is not None
    force = KOLMOGOROV.forcing(KOLMOGOROV.centres(16)).expand(8, 1, 1, 16, 16)
    batch = Batch("kolmogorov2d", force, torch.ones(8), torch.ones(8, 2), make_batch("kolmogorov2d").grid, context=1)
    moved = Augment(KOLMOGOROV)(batch, torch.Generator().manual_seed(0)).frames
    torch.testing.assert_close(moved, force)


def test_a_motion_repeated_as_often_as_its_order_is_none() -> None:
    frames, parity = torch.randn(9, 2, 1, 16, 8), torch.tensor([-1.0])
    moved = repeat(frames, SHIFT_AND_MIRROR, parity, torch.arange(9))
    torch.testing.assert_close(moved[8], frames[8], rtol=0, atol=0)
    torch.testing.assert_close(moved[2], frames[2].roll(-2, -1), rtol=0, atol=0)
    torch.testing.assert_close(moved[3], -frames[3].flip(-2).roll(-3, -1), rtol=0, atol=0)


def test_motions_are_drawn_only_as_often_as_they_move_by_whole_cells() -> None:
    """Of 12 cells an eighth is none: every second repetition is left, four in all, each mirrored as it is not alone."""
    equation = replace(KOLMOGOROV, symmetries=frozenset(), motions=(SHIFT_AND_MIRROR,))
    frames = torch.randn(1, 1, 1, 12, 12).expand(200, 1, 1, 12, 12)
    batch = Batch(
        "kolmogorov2d", frames, torch.ones(200), torch.ones(200, 2), make_batch("kolmogorov2d").grid, context=1
    )
    moved = Augment(equation)(batch, torch.Generator().manual_seed(0)).frames
    found = {shift: bool((moved == frames.roll(-shift, -1)).flatten(1).all(dim=1).any()) for shift in range(12)}
    assert [shift for shift, there in found.items() if there] == [0, 3, 6, 9]
    assert len(moved.unique(dim=0)) == 4


def test_each_sample_moves_by_its_own_shift_and_all_its_frames_alike() -> None:
    frames, shift = torch.randn(3, 2, 1, 8), torch.tensor([0, 1, 5])
    moved = translate(frames, 3, shift)
    for sample, by in enumerate(shift.tolist()):
        torch.testing.assert_close(moved[sample], frames[sample].roll(-by, -1), rtol=0, atol=0)


def test_reflection_uses_the_parity_of_each_field() -> None:
    frames = torch.randn(2, 1, 2, 8)
    moved = reflect(frames, 3, torch.tensor([1.0, -1.0]), torch.tensor([True, False]))
    torch.testing.assert_close(moved[0, :, 0], frames[0, :, 0].flip(-1))
    torch.testing.assert_close(moved[0, :, 1], -frames[0, :, 1].flip(-1))
    torch.testing.assert_close(moved[1], frames[1])


def test_it_is_deterministic_given_the_generator_and_off_when_disabled() -> None:
    batch = make_batch("burgers1d")
    augment = Augment(get_equation("burgers1d"))
    first, second = (augment(batch, torch.Generator().manual_seed(7)).frames for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    off = Augment(get_equation("burgers1d"), enabled=False)(batch, torch.Generator())
    torch.testing.assert_close(off.frames, batch.frames, rtol=0, atol=0)


def test_a_boosted_trajectory_is_a_solution_with_its_donors_velocity() -> None:
    """Burgers solved from the boosted state is the boosted solution."""
    burgers, size, dt = get_equation("burgers1d"), 128, 0.02
    x = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    u0 = torch.stack([torch.sin(2 * math.pi * x) + 0.9, torch.cos(4 * math.pi * x) - 0.4])[:, None]
    params = torch.full((2, 1), 0.1, dtype=torch.float64)
    frames = solve(burgers, u0, params, dt * np.arange(4))
    moved = boost(frames, torch.tensor([1, 0]), torch.full((2,), dt, dtype=torch.float64), 1 / size)
    cell = 1 / size / dt
    wanted = torch.tensor([-0.4, 0.9], dtype=torch.float64)
    assert ((moved[:, 0, 0].mean(-1) - wanted).abs() <= cell / 2 + 1e-9).all()
    again = solve(burgers, moved[:, 0], params, dt * np.arange(4))
    torch.testing.assert_close(again, moved, atol=1e-6, rtol=0)
