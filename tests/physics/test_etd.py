"""Exponential time differencing: its weights to rounding, its order, and what it does exactly."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ups.physics.solvers.etd import Etdrk4, phi_functions


def test_the_phi_functions_are_right_to_rounding_near_zero_and_far_from_it() -> None:
    """Against phi_k(z) = 1F1(1, k + 1, z) / k! with sixty digits."""
    mpmath = pytest.importorskip("mpmath")
    negative = [-1e-14, -1e-6, -0.1, -0.999, -1.001, -3.0, -40.0, -1e5]
    positive = [1e-14, 1e-6, 0.1, 0.999, 1.001, 2.0, 3.999, 4.001, 9.0, 40.0, 300.0]
    z = torch.tensor([0.0, *negative, *positive], dtype=torch.float64)
    for order, found in enumerate(phi_functions(z), start=1):
        with mpmath.workdps(60):
            exact = [mpmath.hyp1f1(1, order + 1, mpmath.mpf(x)) / mpmath.factorial(order) for x in z.tolist()]
        torch.testing.assert_close(
            found, torch.tensor([float(x) for x in exact], dtype=torch.float64), rtol=2e-15, atol=0
        )


def test_a_constant_right_hand_side_is_integrated_exactly_in_one_step() -> None:
    """v' = L v + c has v(t) = exp(L t) v_0 + (exp(L t) - 1) / L c."""
    linear, constant = torch.tensor([-0.5, -300.0, 0.25, 6.0]).double(), torch.tensor([2.0, 3.0, -1.0, 2.0]).double()
    v = Etdrk4.build(linear, 0.7).step(torch.ones(4).double(), lambda v: constant.expand_as(v).clone())
    growth = torch.exp(0.7 * linear)
    torch.testing.assert_close(v, growth + (growth - 1) / linear * constant, rtol=1e-13, atol=0)


@pytest.mark.parametrize("stiffness", [1.0, 50.0, -2.0])
def test_it_is_of_fourth_order(stiffness: float) -> None:
    """The logistic equation v' = v - v² at any split v' = -s v + (v - v² + s v)."""
    linear = torch.tensor([-stiffness]).double()
    exact = 0.2 * math.e / (1 - 0.2 + 0.2 * math.e)
    errors = []
    for steps in (16, 32, 64) if stiffness == 1.0 else (64, 128, 256):
        stepper, v = Etdrk4.build(linear, 1 / steps), torch.full((1,), 0.2, dtype=torch.float64)
        for _ in range(steps):
            v = stepper.step(v, lambda v: v - v.square() - linear * v)
        errors.append(abs(float(v) - exact))
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(3.7 < order < 4.4 for order in orders), (errors, orders)
