"""The linear propagator recovers linear dynamics exactly, keeps integrals, and interpolates between parameters."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from ups.models.least_squares import NormalEquations
from ups.models.local_kernel import TapEquations, along_axes, axis_waves, fit_matrices, growth, reaches
from ups.models.modes import ModeTransform, cosine_basis
from ups.models.propagator import LinearPropagator


@pytest.mark.parametrize(
    ("shape", "periodic"),
    [((16,), True), ((15,), True), ((8, 12), True), ((16,), False), ((8, 6), False), ((4, 6, 8), True)],
)
def test_modes_and_back_is_the_identity(shape: tuple[int, ...], periodic: bool) -> None:
    transform = ModeTransform(shape, [periodic] * len(shape))
    u = torch.randn(2, 3, *shape)
    torch.testing.assert_close(transform.inverse(transform(u)), u, atol=1e-5, rtol=1e-5)


def test_cosine_basis_is_orthonormal() -> None:
    basis = cosine_basis(12)
    torch.testing.assert_close(basis @ basis.T, torch.eye(12, dtype=torch.float64))


def test_a_shift_is_recovered_exactly() -> None:
    """Advection by three cells is linear: one fit predicts unseen fields."""
    torch.manual_seed(0)
    propagator = LinearPropagator((32,), [True], 1, [], [True])
    u = torch.randn(200, 1, 32)
    propagator.fit([(u, u.roll(3, -1), torch.zeros(200, 0))])
    unseen = torch.randn(5, 1, 32)
    # the shift of the Nyquist mode of an even grid is real, hence exact too
    torch.testing.assert_close(propagator(unseen, torch.zeros(5, 0)), unseen.roll(3, -1), atol=1e-4, rtol=0)


def test_coupled_fields_between_walls_are_recovered() -> None:
    """Two fields that diffuse between no-flow walls and exchange mass: exact in cosine modes."""
    torch.manual_seed(0)
    size, basis = 16, cosine_basis(16)
    decay = torch.exp(-0.1 * (math.pi * torch.arange(size, dtype=torch.float64) / size) ** 2)
    exchange = torch.tensor([[0.9, 0.2], [0.1, 0.8]], dtype=torch.float64)

    def step(u: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oi,bik->bok", exchange, (u.double() @ basis.T) * decay).matmul(basis).float()

    propagator = LinearPropagator((size,), [False], 2, [], [False, False])
    u, unseen = torch.randn(300, 2, size), torch.randn(4, 2, size)
    propagator.fit([(u[:150], step(u[:150]), torch.zeros(150, 0)), (u[150:], step(u[150:]), torch.zeros(150, 0))])
    torch.testing.assert_close(propagator(unseen, torch.zeros(4, 0)), step(unseen), atol=1e-4, rtol=0)


def test_a_conserved_mean_survives_a_fit_to_noise() -> None:
    propagator = LinearPropagator((16,), [True], 1, [], [True])
    u = torch.randn(50, 1, 16)
    propagator.fit([(u, torch.randn(50, 1, 16), torch.zeros(50, 0))])
    unseen = torch.randn(3, 1, 16)
    torch.testing.assert_close(propagator(unseen, torch.zeros(3, 0)).mean(-1), unseen.mean(-1), atol=1e-6, rtol=0)


def test_unseen_parameters_between_training_values() -> None:
    """u' = (1 - p / 10) u is linear in p: the fit at three values holds in between."""
    torch.manual_seed(0)
    propagator = LinearPropagator((8,), [True], 1, [0], [False])
    u, p = torch.randn(300, 1, 8), torch.tensor([-1.0, 0.0, 1.0]).repeat(100)[:, None]
    propagator.choose_knots(p)
    propagator.fit([(u, (1 - p[..., None] / 10) * u, p)])
    unseen, between = torch.randn(4, 1, 8), torch.full((4, 1), 0.37)
    torch.testing.assert_close(propagator(unseen, between), (1 - 0.037) * unseen, atol=1e-4, rtol=0)


def test_it_is_the_identity_before_it_is_fitted() -> None:
    u = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(
        LinearPropagator((8, 8), [True, True], 2, [], [False, False])(u, torch.zeros(2, 0)), u, atol=1e-5, rtol=0
    )


def test_no_mode_grows_faster_between_knots_than_at_them() -> None:
    """Diffusion at ten diffusivities: high modes vanish at the larger ones, which a polynomial would make grow."""
    torch.manual_seed(0)
    waves, nus = torch.arange(17), torch.logspace(-3, 0, 10)
    p = torch.linspace(-1.5, 1.5, 10).repeat(60)[:, None]
    decay = torch.exp(-nus.repeat(60)[:, None] * waves.square() * 0.1)[:, None]
    u = torch.fft.irfft(torch.fft.rfft(torch.randn(600, 1, 32)) * decay.square(), n=32)
    propagator = LinearPropagator((32,), [True], 1, [0], [True])
    propagator.choose_knots(p)
    propagator.fit([(u, torch.fft.irfft(torch.fft.rfft(u) * decay, n=32), p)])
    values = torch.linspace(-2, 2, 41)[:, None]
    gain = torch.fft.rfft(propagator(torch.eye(1, 32).expand(41, 1, 32), values)).abs()
    assert gain.max() < 1 + 1e-3
    found = torch.fft.rfft(propagator(torch.eye(1, 32).expand(10, 1, 32), p[:10])).abs()[:, 0, :4]
    torch.testing.assert_close(found[:, :3], decay[:10, 0, :3], atol=0.25, rtol=0)  # ten values, four knots


def test_several_parameters_are_blended() -> None:
    torch.manual_seed(0)
    u, p = torch.randn(400, 1, 8), torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 2).repeat(100, 1)
    gain = 0.5 + 0.1 * p[:, :1] + 0.2 * p[:, 1:]
    propagator = LinearPropagator((8,), [True], 1, [0, 2], [False])
    params = torch.cat([p[:, :1], torch.zeros(400, 1), p[:, 1:]], dim=1)
    propagator.choose_knots(params)
    propagator.fit([(u, gain[..., None] * u, params)])
    torch.testing.assert_close(propagator(u[:4], params[:4]), gain[:4, :, None] * u[:4], atol=0.1, rtol=0)
    middle = propagator(u[:4], torch.zeros(4, 3))
    torch.testing.assert_close(middle, 0.5 * u[:4], atol=0.02, rtol=0)


@pytest.mark.parametrize("periodic", [True, False])
def test_what_a_fit_to_noise_leaves_far_away_is_taken_out(periodic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local linear step with as much noise as signal: hardly a tap of the kernel is left beyond its neighbourhood."""
    torch.manual_seed(0)
    waves = torch.arange(25 if periodic else 48, dtype=torch.float64)
    decay = torch.exp(-((waves / (12 if periodic else 24)) ** 2))
    transform = ModeTransform((48,), [periodic]).double()

    def step(u: torch.Tensor) -> torch.Tensor:
        return transform.inverse(transform(u) * decay)

    u = torch.randn(64, 1, 48).double()
    clean = step(u)
    noisy = clean + clean.std() * torch.randn(64, 1, 48)
    impulse = torch.zeros(1, 1, 48)
    impulse[..., 24] = 1
    errors = []
    for enough in (8, 1000):
        monkeypatch.setattr("ups.models.propagator.ENOUGH", enough)
        propagator = LinearPropagator((48,), [periodic], 1, [], [False])
        propagator.fit([(u[:32], noisy[:32], torch.zeros(32, 0)), (u[32:], noisy[32:], torch.zeros(32, 0))])
        found = propagator(impulse, torch.zeros(1, 0))
        near, far = found[..., 18:31], torch.cat([found[..., :14], found[..., 35:]], dim=-1)
        errors.append((far.norm(), (near - step(impulse.double()).float()[..., 18:31]).norm()))
    assert errors[0][0] < 1e-6 < 0.1 * errors[1][0]
    assert errors[0][1] < 1.2 * errors[1][1]


@pytest.mark.parametrize("periodic", [True, False])
def test_coupled_kernels_in_two_dimensions_are_recovered_from_few_noisy_pairs(periodic: bool) -> None:
    """Nine taps (four between walls) for each pair of channels, from ten fields to either half."""
    torch.manual_seed(0)
    shape, transform = (12, 10), ModeTransform((12, 10), [periodic] * 2).double()
    taps = 0.3 * torch.randn(2, 2, *[3 if periodic else 2] * 2, dtype=torch.float64)
    waves = [axis_waves(transform, axis, 1) for axis in range(2)]
    matrix = along_axes(taps.to(waves[0].dtype), waves)

    def step(u: torch.Tensor) -> torch.Tensor:
        return transform.inverse(torch.einsum("oi...,bi...->bo...", matrix, transform(u.double()))).float()

    u, none = torch.randn(20, 2, *shape), torch.zeros(20, 0)
    propagator = LinearPropagator(shape, [periodic] * 2, 2, [], [False] * 2)
    propagator.fit([(u, step(u) + 0.1 * torch.randn(20, 2, *shape), none)])
    new = torch.randn(50, 2, *shape)
    error = (propagator(new, torch.zeros(50, 0)) - step(new)).square().mean().sqrt()
    assert error < 0.02  # 18 or 8 numbers a field from 2400 with noise of 0.1; 240 free ones would be 0.03 off


def sums(u: torch.Tensor, after: torch.Tensor, transform: ModeTransform) -> NormalEquations:
    """Normal equations of all pairs."""
    equations = NormalEquations(transform.multiplicity().flatten())
    equations.add(transform(u).flatten(2), transform(after).flatten(2), torch.ones(len(u), dtype=torch.float64))
    return equations


PERIODIC = [((9,), (2,), True), ((8, 5), (2, 1), True), ((4, 3, 6), (1, 1, 2), True)]
WALLS = [((7,), (6,), False), ((5, 6), (2, 3), False)]


@pytest.mark.parametrize(("shape", "reach", "periodic"), [*PERIODIC, *WALLS])
def test_taps_are_those_of_least_squares_in_space(
    shape: tuple[int, ...], reach: tuple[int, ...], periodic: bool
) -> None:
    """Against shifts of the fields and `lstsq`: odd and even grids, three channels read, two written."""
    torch.manual_seed(0)
    transform, axes = ModeTransform(shape, [periodic] * len(shape)).double(), len(shape)
    u, after = torch.randn(30, 3, *shape).double(), torch.randn(30, 2, *shape).double()
    equations = TapEquations(sums(u, after, transform), transform, reach)
    taps = equations.solve([False, False])

    def moved(field: torch.Tensor, away: tuple[int, ...]) -> torch.Tensor:
        """What a tap reads; between walls the mean of both sides of a field that is mirrored there."""
        for axis, (far, size) in enumerate(zip(away, shape, strict=True), start=2):
            if periodic:
                field = field.roll(far, axis)
            else:
                mirrored = torch.cat([field, field.flip(axis)], axis)
                field = 0.5 * (mirrored.roll(far, axis) + mirrored.roll(-far, axis)).narrow(axis, 0, size)
        return field

    places = product(*(range(-far if periodic else 0, far + 1) for far in reach))
    columns = torch.cat([moved(u, away) for away in places], dim=1).movedim(1, -1).flatten(0, axes)
    wanted = after.movedim(1, -1).flatten(0, axes)
    in_space = torch.linalg.lstsq(columns, wanted).solution.T
    torch.testing.assert_close(taps, in_space, atol=1e-6, rtol=1e-6)
    left = (wanted - columns @ in_space.T).square().sum()
    torch.testing.assert_close(equations.error(taps), float(left), rtol=1e-6, atol=0)
    modes = equations.modes(taps).permute(1, 2, 0).unflatten(-1, transform.mode_shape)
    found = transform.inverse(torch.einsum("oi...,bi...->bo...", modes, transform(u)))
    torch.testing.assert_close(found.movedim(1, -1).flatten(0, axes), columns @ taps.T)


def test_taps_of_a_field_that_keeps_its_mean_sum_to_one() -> None:
    torch.manual_seed(0)
    transform = ModeTransform((12,), [True]).double()
    u, after = torch.randn(30, 3, 12).double(), torch.randn(30, 2, 12).double()
    equations = TapEquations(sums(u, after, transform), transform, (2,))
    kept, free = equations.solve([False, True]), equations.solve([False, False])
    torch.testing.assert_close(kept[0], free[0])
    totals = kept[1].unflatten(0, (5, 3)).sum(0)
    torch.testing.assert_close(totals, torch.tensor([0.0, 1.0, 0.0]).double(), atol=1e-9, rtol=0)
    assert equations.error(kept) > equations.error(free)


def test_a_short_kernel_is_refused_where_it_makes_waves_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short kernel fits smooth fields well, but the waves that they hardly have would grow by it."""
    torch.manual_seed(0)
    waves = torch.arange(33, dtype=torch.float64)
    u, rest = torch.fft.irfft(
        torch.fft.rfft(torch.randn(2, 400, 1, 64).double()) * torch.exp(-((waves / 4) ** 2)), n=64
    )
    moved = torch.fft.rfft(u) * torch.exp(-2j * math.pi * waves * 5.3 / 64)
    after = torch.fft.irfft(moved, n=64) + 0.05 * rest
    transform = ModeTransform((64,), [True]).double()
    halves = [sums(u[part], after[part], transform) for part in (slice(200), slice(200, None))]
    found = growth(fit_matrices(*halves, transform, [False]))
    assert found.max() < 1.02
    monkeypatch.setattr("ups.models.local_kernel.GROWTH", 1e9)
    assert growth(fit_matrices(*halves, transform, [False])).max() > 1.05


def test_the_shortest_kernel_is_found_where_nothing_is_left_over() -> None:
    """An exact step of three taps: held-out errors are all rounding, and say nothing else."""
    for seed in range(6):
        torch.manual_seed(seed)
        u = torch.randn(40, 1, 32)
        propagator = LinearPropagator((32,), [True], 1, [], [True])
        propagator.fit([(u, 0.5 * u + 0.25 * (u.roll(1, -1) + u.roll(-1, -1)), torch.zeros(40, 0))])
        impulse = torch.eye(32)[:1, None]
        found = propagator(impulse, torch.zeros(1, 0))[0, 0]
        torch.testing.assert_close(found[[0, 1, -1]], torch.tensor([0.5, 0.25, 0.25]), atol=1e-5, rtol=0)
        assert found[2:-1].abs().max() < 1e-6


def test_the_reach_of_a_field_without_a_mean_is_not_judged_by_its_mean() -> None:
    """Diffusion of fields that have none: what a kernel makes of it is noise, and it is kept by the conservation."""
    for seed in range(4):
        torch.manual_seed(seed)
        u = torch.randn(300, 1, 64)
        u = u - u.mean(-1, keepdim=True)
        after = torch.fft.irfft(torch.fft.rfft(u) * torch.exp(-0.02 * torch.arange(33) ** 2), n=64)
        propagator = LinearPropagator((64,), [True], 1, [], [True])
        propagator.fit([(u, after + 0.1 * torch.randn(300, 1, 64), torch.zeros(300, 0))])
        found = propagator(torch.eye(64)[:1, None], torch.zeros(1, 0))[0, 0]
        assert found[20:-20].abs().max() < 1e-6
        torch.testing.assert_close(found.sum(), torch.tensor(1.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("at_rest", [slice(None), slice(20)])
def test_fields_at_rest_are_no_reason_to_stop(at_rest: slice) -> None:
    torch.manual_seed(0)
    u = torch.randn(40, 1, 16)
    u[at_rest] = 0
    propagator = LinearPropagator((16,), [True], 1, [], [False])
    propagator.fit([(u, 0.5 * u, torch.zeros(40, 0))])
    torch.testing.assert_close(propagator(u, torch.zeros(40, 0)), 0.5 * u)


def test_reaches_end_where_the_grid_or_the_equations_do() -> None:
    assert list(reaches(ModeTransform((7,), [True]), 1)) == [(1,), (2,), (3,)]
    assert list(reaches(ModeTransform((32, 6), [True] * 2), 1))[-1] == (15, 2)
    assert list(reaches(ModeTransform((5, 9), [False] * 2), 1))[-1] == (4, 8)
    assert list(reaches(ModeTransform((64, 64), [True] * 2), 2))[-1] == (6, 6)  # 13 x 13 taps of two channels


def test_modes_of_a_real_transform_count_as_often_as_the_grid_has_them() -> None:
    for shape, periodic in (((8,), True), ((9,), True), ((6, 7), True), ((6, 8), True), ((6, 8), False)):
        transform = ModeTransform(shape, [periodic] * len(shape)).double()
        u = torch.randn(1, 1, *shape, dtype=torch.float64)
        power = (transform(u).abs().square() * transform.multiplicity()).sum()
        torch.testing.assert_close(power, u.square().sum())


def test_a_kernel_may_lie_anywhere_and_be_long() -> None:
    """A shift by a part of a cell has a kernel that falls off slowly; no short one is as good, so all of it stays."""
    torch.manual_seed(0)
    turn = torch.exp(-2j * math.pi * torch.arange(33) * 20.3 / 64)
    u = torch.fft.irfft(torch.fft.rfft(torch.randn(40, 1, 64)) * (torch.arange(33) < 30), n=64)
    propagator = LinearPropagator((64,), [True], 1, [], [True])
    propagator.fit([(u, torch.fft.irfft(torch.fft.rfft(u) * turn, n=64), torch.zeros(40, 0))])
    torch.testing.assert_close(
        propagator(u[:3], torch.zeros(3, 0)), torch.fft.irfft(torch.fft.rfft(u[:3]) * turn, n=64), atol=1e-4, rtol=0
    )


def test_many_values_of_two_parameters_never_make_a_mode_grow() -> None:
    torch.manual_seed(0)
    u, p = torch.randn(2000, 1, 8), torch.rand(2000, 2) * 3 - 1.5
    gain = torch.sigmoid(2 * p[:, :1] - p[:, 1:])
    propagator = LinearPropagator((8,), [True], 1, [0, 1], [False])
    propagator.choose_knots(p)
    propagator.fit([(u, gain[..., None] * u, p)])
    impulse = torch.eye(1, 8).expand(500, 1, 8)
    found = torch.fft.rfft(propagator(impulse, p[:500])).abs()
    assert found.max() < 1.0 + 1e-4
    assert (found[:, 0, 1] - gain[:500, 0]).square().mean().sqrt() < 0.2
