"""Leaving out short waves: the others stay as they are, along periodic axes alone."""

from __future__ import annotations

import math

import pytest
import torch

from ups.models.lowpass import low_pass


def wave(size: int, number: int) -> torch.Tensor:
    return torch.cos(2 * math.pi * number * torch.arange(size, dtype=torch.float64) / size + 0.3)


@pytest.mark.parametrize(("size", "kept"), [(30, 10), (31, 10), (64, 21)])
def test_waves_up_to_the_share_stay_and_shorter_ones_go(size: int, kept: int) -> None:
    for number in range(size // 2 + 1):
        found = low_pass(wave(size, number)[None, None], (True,), 2 / 3)[0, 0]
        wanted = wave(size, number) if number <= kept else torch.zeros(size, dtype=torch.float64)
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_each_periodic_axis_is_cut_and_walls_are_left_alone() -> None:
    along = {axis: torch.ones(2, 3, 16, 12, dtype=torch.float64) for axis in (0, 1)}
    along[0] = along[0] + wave(16, 8)[:, None]
    along[1] = along[1] + wave(12, 6)
    for axis, field in along.items():
        for periodic in ((True, True), (True, False), (False, True)):
            found = low_pass(field, periodic, 0.5)
            torch.testing.assert_close(found, torch.ones_like(field) if periodic[axis] else field)


def test_all_waves_are_the_field_itself() -> None:
    field = torch.randn(2, 1, 16)
    assert low_pass(field, (True,), 1.0) is field


def test_gradients_pass_through_the_waves_that_stay() -> None:
    field = torch.randn(1, 1, 16, requires_grad=True)
    (low_pass(field, (True,), 0.5) * wave(16, 7)).sum().backward()
    assert field.grad is not None
    assert float(field.grad.abs().max()) < 1e-6
    (low_pass(field, (True,), 0.5) * wave(16, 3)).sum().backward()
    assert float(field.grad.abs().max()) > 0.1
