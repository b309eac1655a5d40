"""The linear propagator recovers linear dynamics exactly, keeps integrals, and interpolates between parameters."""

from __future__ import annotations

import math

import pytest
import torch

from ups.models.least_squares import NormalEquations
from ups.models.local_kernel import fit_matrices, kernels
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
    (near,) = (waves for waves in kernels(transform, 2) if len(waves) == (9 if periodic else 4))
    taps = 0.3 * torch.randn(2, 2, len(near), dtype=torch.float64)
    matrix = torch.einsum("oir,r...->oi...", taps.to(near.dtype), near.reshape(-1, *transform.mode_shape))

    def step(u: torch.Tensor) -> torch.Tensor:
        return transform.inverse(torch.einsum("oi...,bi...->bo...", matrix, transform(u.double()))).float()

    u, none = torch.randn(20, 2, *shape), torch.zeros(20, 0)
    propagator = LinearPropagator(shape, [periodic] * 2, 2, [], [False] * 2)
    propagator.fit([(u, step(u) + 0.1 * torch.randn(20, 2, *shape), none)])
    new = torch.randn(50, 2, *shape)
    error = (propagator(new, torch.zeros(50, 0)) - step(new)).square().mean().sqrt()
    assert error < 0.02  # 18 or 8 numbers from 2400 with noise of 0.1; 480 free ones of every mode would be 0.03 off


def test_a_short_kernel_is_refused_where_it_makes_waves_grow() -> None:
    """Smooth fields fit a kernel of a few taps well, but the waves that they hardly have would grow by it."""
    torch.manual_seed(0)
    waves = torch.arange(33, dtype=torch.float64)
    spectrum = torch.fft.rfft(torch.randn(400, 1, 64).double()) * torch.exp(-((waves / 4) ** 2))
    u = torch.fft.irfft(spectrum, n=64)
    after = torch.fft.irfft(spectrum * torch.exp(-0.01 * waves**2), n=64) + 0.01 * torch.randn(400, 1, 64)
    transform = ModeTransform((64,), [True]).double()
    halves = [NormalEquations(transform.multiplicity()) for _ in range(2)]
    for half, part in zip(halves, (slice(200), slice(200, None)), strict=True):
        half.add(transform(u[part]), transform(after[part]), torch.ones(200, dtype=torch.float64))
    whole = halves[0] + halves[1]

    def held_out(matrices: list[torch.Tensor]) -> float:
        return halves[0].error(matrices[1]) + halves[1].error(matrices[0])

    (few,) = (one for one in kernels(transform, 1) if len(one) == 9)
    assert held_out([half.solve_taps(few) for half in halves]) < held_out([half.solve() for half in halves])
    assert whole.solve_taps(few).abs().max() > 1.2
    found = fit_matrices(whole, *halves, transform)
    assert found.abs().max() <= max(1.0, float(whole.solve().abs().max())) * 1.001


def test_modes_of_a_real_transform_count_as_often_as_the_grid_has_them() -> None:
    for shape, periodic in (((8,), True), ((9,), True), ((6, 7), True), ((6, 8), True), ((6, 8), False)):
        transform = ModeTransform(shape, [periodic] * len(shape)).double()
        u = torch.randn(1, 1, *shape, dtype=torch.float64)
        power = (transform(u).abs().square() * transform.multiplicity()).sum()
        torch.testing.assert_close(power, u.square().sum())


def test_a_kernel_may_lie_anywhere_and_be_long() -> None:
    """A shift by a part of a cell has a kernel that falls off slowly; both halves see it alike, so all of it stays."""
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
