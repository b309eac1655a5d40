"""Guards keep what they claim to keep, exactly, and leave alone what keeps it already."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ups.config import Settings
from ups.errors import UpsError
from ups.physics.description import Equation, Field
from ups.physics.equations import EQUATIONS, get_equation
from ups.physics.guards import Guards, Leray, bring_mean, round_evenly
from ups.physics.operators import divergence, slope, wall_mismatch

SQUARE = replace(
    get_equation("kolmogorov2d"),
    name="flow2d",
    fields=(Field("w"), Field("u", conserved=True), Field("v", conserved=True)),
    solenoidal=("u", "v"),
    domain=((0.0, 2.0), (0.0, 3.0)),
)
"""A flow on a periodic rectangle, with one field more."""
BOX = replace(
    get_equation("reaction_diffusion2d"),
    name="box2d",
    fields=(Field("h", conserved=True, lower=0.0), Field("c", conserved=True, lower=0.0, upper=1.0), Field("v")),
)
"""Fields between walls: bounded below, on both sides, and not at all."""
ROD = replace(get_equation("reaction_diffusion1d"), boundary="dirichlet", boundary_value=0.4)
TASKS: dict[str, tuple[Equation, dict[str, bool], tuple[int, ...]]] = {
    "conservation": (get_equation("burgers1d"), {"conservation": True}, (24,)),
    "conservation within bounds": (BOX, {"conservation": True}, (8, 6)),
    "positivity": (get_equation("reaction_diffusion1d"), {"positivity": True}, (24,)),
    "both": (BOX, {"conservation": True, "positivity": True}, (8, 6)),
    "divergence": (SQUARE, {"divergence": True}, (8, 6)),
    "divergence on odd cells": (SQUARE, {"divergence": True}, (7, 9)),
    "no-flow walls": (BOX, {"boundary": True}, (8, 6)),
    "Dirichlet walls": (ROD, {"boundary": True}, (12,)),
}


def frames(equation: Equation, grid: tuple[int, ...], batch: int = 3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """A prediction that breaks everything, and a frame before it that breaks no bound; float64."""
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, len(equation.fields), *grid)
    return (
        torch.randn(shape, generator=rng, dtype=torch.float64) + 0.5,
        torch.rand(shape, generator=rng, dtype=torch.float64),
    )


def mean(u: torch.Tensor) -> torch.Tensor:
    return u.double().flatten(2).mean(2)


def curl(grid: tuple[int, ...]) -> torch.Tensor:
    """A velocity without divergence on the rectangle of `SQUARE`: the turned gradient of a smooth stream function."""
    x, y = (
        (torch.arange(n, dtype=torch.float64) + 0.5) * 2 * math.pi / n for n in grid
    )  # fmt: skip
    (a, b) = (2 * math.pi / length for length in SQUARE.lengths)
    psi_x = a * torch.cos(x)[:, None] * torch.cos(2 * y)
    psi_y = -2 * b * torch.sin(x)[:, None] * torch.sin(2 * y)
    return torch.stack([psi_y, -psi_x])


def test_no_guards_hand_frames_through() -> None:
    u = torch.randn(2, 1, 8)
    assert Guards.none(u, u + 1) is u
    assert not Guards.none.active
    assert not Guards.of("burgers1d").active
    assert Guards.of("burgers1d", conservation=True).active


@pytest.mark.parametrize("name", TASKS)
def test_guards_are_projections(name: str) -> None:
    """Twice is once; a frame that was projected is left as it is."""
    equation, switches, grid = TASKS[name]
    guards = Guards.of(equation, **switches)
    u, before = frames(equation, grid)
    once = guards(u, before)
    assert (once - u).abs().max() > 0.1
    torch.testing.assert_close(guards(once, before), once, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", TASKS)
def test_gradients_flow_through_guards(name: str) -> None:
    equation, switches, grid = TASKS[name]
    guards = Guards.of(equation, **switches)
    u, before = frames(equation, grid, batch=1)
    u.requires_grad_()
    assert torch.autograd.gradcheck(lambda values: guards(values, before), (u,))
    (gradient,) = torch.autograd.grad(guards(u, before).square().sum(), u)
    assert gradient.norm() > 1
    single = u.detach().float().requires_grad_()
    (rounded,) = torch.autograd.grad(guards(single, before.float()).square().sum(), single)
    torch.testing.assert_close(rounded, gradient.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_samples_do_not_see_each_other(name: str) -> None:
    equation, switches, grid = TASKS[name]
    guards = Guards.of(equation, **switches)
    u, before = frames(equation, grid)
    alone = torch.cat([guards(u[i : i + 1], before[i : i + 1]) for i in range(len(u))])
    torch.testing.assert_close(guards(u, before), alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("positivity", [False, True])
def test_integrals_are_those_of_the_frame_before_and_bounds_hold(positivity: bool) -> None:
    guards = Guards.of(BOX, conservation=True, positivity=positivity)
    u, before = frames(BOX, (8, 6))
    kept = guards(u, before)
    torch.testing.assert_close(mean(kept)[:, :2], mean(before)[:, :2], rtol=0, atol=1e-15)
    torch.testing.assert_close(kept[:, 2], u[:, 2], rtol=0, atol=0)  # neither bounded nor conserved
    inside = u.clone()
    inside[:, :2] = inside[:, :2].clamp(0, 1)
    for frame in (guards(inside, before), *((kept,) if positivity else ())):
        assert frame[:, :2].min() >= 0
        assert frame[:, 1].max() <= 1


def test_positivity_keeps_the_integral_of_the_prediction() -> None:
    """The water of puddles below the ground is taken from the rest: nothing is made."""
    guards = Guards.of("shallow_water2d", positivity=True)
    u, before = frames(get_equation("shallow_water2d"), (8, 6))
    kept = guards(u, before)
    assert u.min() < 0
    assert kept.min() >= 0
    torch.testing.assert_close(mean(kept), mean(u), rtol=0, atol=1e-15)
    dry = guards(-u.abs(), before)  # less water than none: the nearest there can be
    torch.testing.assert_close(dry, torch.zeros_like(u), rtol=0, atol=0)


def test_a_mean_can_be_brought_to_the_bounds_and_away_from_them() -> None:
    low, high = 0.1, 0.7  # no floats hit them exactly
    some = torch.tensor([[low, 0.25, 0.5, high]], dtype=torch.float64)
    empty, full = torch.full_like(some, low), torch.full_like(some, high)
    for wanted in (low, 0.3, 0.61, high):
        target = torch.full((1, 1), wanted, dtype=torch.float64)
        for u in (full, empty, some):
            for lower, upper in ((low, high), (low, None), (None, high)):
                found = bring_mean(u, target, lower, upper)
                torch.testing.assert_close(found.mean(), target[0, 0], rtol=0, atol=1e-15)
                assert lower is None or found.min() >= lower - 1e-16
                assert upper is None or found.max() <= upper + 2e-16
    double = bring_mean(some, torch.full((1, 1), low + 2 * float(some.mean() - low), dtype=torch.float64), low, None)
    torch.testing.assert_close(double - low, 2 * (some - low))  # dry stays dry
    mixed = torch.tensor([[-1.0, 1.1]], dtype=torch.float64)  # beyond the bound: shifted, not blown up
    torch.testing.assert_close(bring_mean(mixed, torch.ones(1, 1).double(), 0.0, None), mixed + 0.95)


@pytest.mark.parametrize(("low", "spread"), [(1.4, 0.1), (0.0, 3.0)])
@pytest.mark.parametrize(
    ("name", "fields", "switches"),
    [
        ("burgers1d", None, {"conservation": True}),
        ("burgers1d", (Field("u", conserved=True, lower=0.0),), {"conservation": True, "positivity": True}),
        ("kolmogorov2d", (Field("w", conserved=True, lower=-9.0, upper=9.0),), {"conservation": True}),
    ],
)
def test_integrals_hold_over_two_hundred_steps_in_float32(
    name: str, fields: tuple[Field, ...] | None, switches: dict[str, bool], low: float, spread: float
) -> None:
    """A step that loses, gains and stirs; values of one binade, which all round alike, and of many."""
    equation = get_equation(name)
    guards = Guards.of(equation if fields is None else replace(equation, fields=fields), **switches)
    rng = torch.Generator().manual_seed(0)
    start = low + spread * torch.rand(2, 1, *[32] * equation.dim, generator=rng)
    u = start
    for step in range(200):
        lossy = u.roll(1, -1) * (1 + 0.03 * math.sin(step)) - 0.001
        u = guards(lossy, u)
    assert u.dtype == torch.float32
    gap = ((mean(u) - mean(start)).abs() / mean(start.abs())).max()
    assert gap <= 1e-7
    assert (u - start).abs().max() > 0.01


def test_rounding_keeps_the_mean_and_what_is_round_already() -> None:
    u = (1.5 + torch.arange(4096).double() * 2**-23)[None, None]
    assert round_evenly(u, torch.float32).double().equal(u)
    for share in (0.4, 0.6, 1e-9, 1 - 1e-9):  # plain rounding is off by as much in every cell
        offset = u + share * 2**-23
        rounded = round_evenly(offset, torch.float32).double()
        assert (rounded - offset).abs().max() <= 2**-23
        assert abs(float((rounded - offset).sum())) <= 0.51 * 2**-23
    noise = torch.randn(2, 3, 999, generator=torch.Generator().manual_seed(0)).double() * torch.pi
    rounded = round_evenly(noise, torch.float32).double()
    assert ((rounded - noise).abs() <= 2**-23 * noise.abs()).all()
    assert (rounded - noise).mean(2).abs().max() < 1e-8  # values of many binades
    edge = torch.tensor([[[0.0, 1.0, 1 - 1e-9, 1e-30, -0.0]]], dtype=torch.float64)
    assert (round_evenly(edge, torch.float32) >= 0).all()
    assert (round_evenly(edge, torch.float32) <= 1).all()


def test_a_frame_that_is_not_finite_stays_so() -> None:
    u, before = (values.float() for values in frames(BOX, (8, 6)))
    u[0, 0, 0, 0], u[1, 1, 0, 0] = torch.nan, torch.inf
    kept = Guards.of(BOX, conservation=True, positivity=True)(u, before)
    assert [bool(frame.isfinite().all()) for frame in kept] == [False, False, True]


@pytest.mark.parametrize("grid", [(8, 6), (7, 9), (16, 16)])
def test_no_divergence_is_left_and_what_has_none_is_kept(grid: tuple[int, int]) -> None:
    guards, spacing = (
        Guards.of(SQUARE, divergence=True),
        tuple(length / n for length, n in zip(SQUARE.lengths, grid, strict=True)),
    )
    u, before = frames(SQUARE, grid)
    kept = guards(u, before)
    assert divergence(u[:, 1:], spacing, (True, True)).abs().max() > 1
    assert divergence(kept[:, 1:], spacing, (True, True)).abs().max() < 1e-12
    torch.testing.assert_close(mean(kept), mean(u), rtol=0, atol=1e-14)
    assert kept[:, 0].equal(u[:, 0])  # not a velocity
    free = torch.cat([u[:1, :1], curl(grid)[None]], dim=1)
    torch.testing.assert_close(guards(free, before[:1]), free, rtol=0, atol=1e-13)
    # What is taken away is a gradient, orthogonal to every field without divergence.
    taken = (u - kept)[:, 1:]
    assert (taken * kept[:, 1:]).sum(dim=(1, 2, 3)).abs().max() < 1e-11
    turning = slope(taken[:, 1], 1, spacing[0], True) - slope(taken[:, 0], 2, spacing[1], True)
    assert turning.abs().max() < 1e-11


def test_the_period_decides_what_is_divergence() -> None:
    """A vector without divergence on one rectangle has some on another."""
    u = torch.cat([torch.zeros(1, 1, 8, 6).double(), curl((8, 6))[None]], dim=1)
    other = Leray((1, 2), (3.0, 2.0))(u, u)
    assert (other - u).abs().max() > 0.1
    torch.testing.assert_close(Guards.of(SQUARE, divergence=True, lengths=(3.0, 2.0))(u, u), other)


def test_walls_meet_their_condition() -> None:
    u, before = frames(BOX, (8, 6))
    kept = Guards.of(BOX, boundary=True)(u, before)
    for axis in range(2):
        assert wall_mismatch(u, axis, "neumann").abs().max() > 1
        assert wall_mismatch(kept, axis, "neumann").abs().max() < 1e-13
    torch.testing.assert_close(mean(kept), mean(u), rtol=0, atol=1e-15)
    changes = []
    for cells in (16, 32):  # flat at the walls: kept up to the order of the stencil
        flat = torch.cos(math.pi * BOX.centres(cells)[0])[None, None, :, None].expand(1, 3, cells, cells)
        changes.append(float((Guards.of(BOX, boundary=True)(flat, flat) - flat).abs().max()))
    assert 3.7 < math.log2(changes[0] / changes[1]) < 4.3

    u, before = frames(ROD, (12,))
    kept = Guards.of(ROD, boundary=True)(u, before)
    assert wall_mismatch(kept, 0, "dirichlet", 0.4).abs().max() < 1e-13
    x = ROD.centres(12)[0] * 2 - 1
    parabola = 0.4 + (x * x - 1)[None, None]  # the stencil reads it exactly; its walls are at -1 and 1
    torch.testing.assert_close(Guards.of(ROD, boundary=True)(parabola, parabola), parabola, rtol=0, atol=1e-14)


def test_walls_and_integrals_hold_together() -> None:
    closed = replace(BOX, fields=(Field("a", conserved=True), Field("h", conserved=True, lower=-9.0)))
    u, before = frames(closed, (8, 6))
    kept = Guards.of(closed, boundary=True, conservation=True)(u, before)
    torch.testing.assert_close(mean(kept), mean(before), rtol=0, atol=1e-14)
    assert all(wall_mismatch(kept[:, :1], axis, "neumann").abs().max() < 1e-13 for axis in range(2))


@pytest.mark.parametrize(
    ("equation", "switches", "said"),
    [
        ("reaction_diffusion1d", {"conservation": True}, r"guards\.conservation.*reaction_diffusion1d: it conserves"),
        ("burgers1d", {"positivity": True}, r"guards\.positivity.*burgers1d.*no field a bound"),
        ("kolmogorov2d", {"divergence": True}, r"guards\.divergence.*kolmogorov2d.*solenoidal"),
        (replace(BOX, solenoidal=("h", "v")), {"divergence": True}, r"guards\.divergence.*box2d.*has walls"),
        ("burgers1d", {"boundary": True}, r"guards\.boundary.*burgers1d.*has no walls"),
        (replace(BOX, boundary="dirichlet"), {"boundary": True, "conservation": True}, "contradict each other"),
    ],
)
def test_a_guard_without_an_object_is_refused(equation: str | Equation, switches: dict[str, bool], said: str) -> None:
    with pytest.raises(UpsError, match=said):
        Guards.of(equation, **switches)


def test_too_few_cells_for_two_walls() -> None:
    u, before = frames(BOX, (8, 5))
    with pytest.raises(UpsError, match="6 cells along every axis, not 5"):
        Guards.of(BOX, boundary=True)(u, before)


def test_guards_are_made_of_settings() -> None:
    tree = {"data": {"task": "burgers1d"}, "guards": {"conservation": True}}
    switches = Settings.model_validate(tree).guards.model_dump()
    assert len(Guards.of("burgers1d", **switches).projections) == 1
    assert not Guards.of(
        "burgers1d", **Settings.model_validate({"data": {"task": "burgers1d"}}).guards.model_dump()
    ).active


@pytest.mark.parametrize("name", EQUATIONS)
def test_descriptions_name_one_solenoidal_field_per_axis(name: str) -> None:
    equation = get_equation(name)
    assert len(equation.solenoidal_channels) in (0, equation.dim)
