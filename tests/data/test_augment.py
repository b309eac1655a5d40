"""Augmentation maps solutions to solutions, sample by sample, and draws nothing the equation does not have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ups.data.augment import Augment, reflect, translate
from ups.data.fields import Batch, Grid
from ups.physics.equations import get_equation


def make_batch(task: str, size: int = 16) -> Batch:
    equation = get_equation(task)
    axes = tuple((np.arange(size) + 0.5) / size for _ in range(equation.dim))
    frames = torch.randn(6, 3, len(equation.fields), *[size] * equation.dim, generator=torch.Generator().manual_seed(0))
    params = torch.full((6, len(equation.parameters)), 0.1)
    return Batch(
        task=task,
        frames=frames,
        dt=torch.ones(6),
        params=params,
        grid=Grid(axes=axes, periodic=equation.periodic),
        context=1,
    )


@pytest.mark.parametrize("task", ["burgers1d", "advection1d", "reaction_diffusion1d", "reaction_diffusion2d"])
def test_the_right_hand_side_commutes_with_every_symmetry_drawn(task: str) -> None:
    """rhs(S u) = S rhs(u): what is drawn are symmetries of the equation, on the grid."""
    equation, batch = get_equation(task), make_batch(task)
    augment = Augment(equation)
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
