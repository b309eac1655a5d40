"""The motion that the parameters give to fields is found, and found to be none where there is none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ups.models.drift import Drift
from ups.models.modes import ModeTransform
from ups.models.propagator import LinearPropagator


def moved(u: Tensor, cells: Tensor) -> Tensor:
    """u(x - cells) of band-limited fields, by their Fourier series in float64."""
    size = u.shape[-1]
    waves = torch.arange(size // 2 + 1, dtype=torch.float64)
    turn = torch.exp(-2j * math.pi * waves * cells.double()[:, None] / size)
    return torch.fft.irfft(torch.fft.rfft(u.double()) * turn[:, None], n=size).float()


def smooth(num: int, size: int = 64) -> Tensor:
    """Random fields without a Nyquist mode."""
    waves = torch.arange(size // 2 + 1)
    return torch.fft.irfft(torch.fft.rfft(torch.randn(num, 1, size)) * torch.exp(-waves / 12) * (waves < 30), n=size)


def fitted(propagator: LinearPropagator, u: Tensor, after: Tensor, p: Tensor) -> LinearPropagator:
    """With knots, drift and matrices from one batch."""
    propagator.choose_knots(p)
    propagator.measure_drift([(u, after, p)])
    propagator.fit([(u, after, p)])
    return propagator


@pytest.mark.parametrize("speed", [0.3, 7.0])
def test_a_speed_between_those_seen_is_as_exact_as_they_are(speed: float) -> None:
    """Seven cells and more from value to value: phases of all but the lowest modes wrap, cross-correlations do not."""
    torch.manual_seed(0)
    u, p = smooth(400), torch.tensor([-1.5, -0.5, 0.5, 1.5]).repeat(100)[:, None]
    propagator = fitted(LinearPropagator((64,), [True], 1, [0], [True]), u, moved(u, 4 + speed * p[:, 0]), p)
    unseen, between = smooth(5), torch.tensor([[-1.1], [-0.2], [0.0], [0.9], [1.4]])
    torch.testing.assert_close(propagator(unseen, between), moved(unseen, 4 + speed * between[:, 0]), atol=1e-4, rtol=0)


def test_speeds_along_two_axes_are_those_of_two_parameters() -> None:
    torch.manual_seed(0)
    p = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 2).repeat(20, 1)
    speed = torch.tensor([[1.5, 0.0], [-0.7, 2.2]])  # cells along each axis for a unit of each parameter
    u = torch.randn(len(p), 2, 16, 24)
    drift = Drift(ModeTransform((16, 24), [True, True]), [1, 2])
    drift.cells[1:] = speed
    params = torch.cat([torch.zeros(len(p), 1), p], dim=1)
    spectrum = torch.fft.rfftn(u, dim=(-2, -1))
    after = torch.fft.irfftn(drift(spectrum, params), s=(16, 24), dim=(-2, -1))
    found = Drift(ModeTransform((16, 24), [True, True]), [1, 2])
    found.fit([(u, after, params)])
    torch.testing.assert_close(found.cells[1:], speed, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.cells[0], torch.zeros(2), atol=1e-3, rtol=0)


def test_whole_cells_are_a_roll() -> None:
    drift, u = Drift(ModeTransform((8, 6), [True, True]), [0]), torch.randn(3, 2, 8, 6)
    drift.cells[1] = torch.tensor([2.0, -1.0])
    modes = drift(torch.fft.rfftn(u, dim=(-2, -1)), torch.ones(3, 1))
    rolled = u.roll((2, -1), (-2, -1))
    torch.testing.assert_close(torch.fft.irfftn(modes, s=(8, 6), dim=(-2, -1)), rolled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["still", "noise", "bent"])
def test_what_does_not_move_like_that_is_blended(case: str) -> None:
    """Decay alone, fields that have nothing to do with those before, and motions that are no affine function."""
    torch.manual_seed(0)
    u, p = smooth(500), torch.linspace(-1.5, 1.5, 5).repeat(100)[:, None]
    after = {"still": u * (0.5 + 0.1 * p[..., None]), "noise": smooth(500), "bent": moved(u, 9 * p[:, 0].square())}
    drift = Drift(ModeTransform((64,), [True]), [0])
    drift.fit([(u, after[case], p)])
    assert not drift.cells.any()


@pytest.mark.parametrize("strength", [0.5, 0.1])
def test_fields_that_move_apart_are_blended_also_where_one_is_weaker(strength: float) -> None:
    """By p and -p cells: all fields together move as the stronger one does."""
    torch.manual_seed(0)
    p = torch.tensor([-1.5, -0.5, 0.5, 1.5]).repeat(100)[:, None]
    first, second = smooth(400), strength * smooth(400)
    drift = Drift(ModeTransform((64,), [True]), [0])
    drift.fit([(torch.cat([first, second], 1), torch.cat([moved(first, p[:, 0]), moved(second, -p[:, 0])], 1), p)])
    assert not drift.cells.any()


def test_fields_that_move_together_move_whatever_their_strength() -> None:
    """The weaker by 0.1, besides noise that is too weak to say anything, and a field that is the same everywhere."""
    torch.manual_seed(0)
    p = torch.tensor([-1.5, -0.5, 0.5, 1.5]).repeat(100)[:, None]
    u = torch.cat([smooth(400), 0.1 * smooth(400)], 1)
    noise, flat = 1e-3 * torch.randn(2, 400, 1, 64), torch.randn(400, 1, 1).expand(-1, -1, 64)
    drift = Drift(ModeTransform((64,), [True]), [0])
    drift.fit([(torch.cat([u, noise[0], flat], 1), torch.cat([moved(u, 3 * p[:, 0]), noise[1], -flat], 1), p)])
    torch.testing.assert_close(drift.cells[:, 0], torch.tensor([0.0, 3.0]), atol=1e-2, rtol=0)


def of_their_own(values: int, each: int = 12) -> tuple[Tensor, Tensor]:
    """Parameters of trajectories, every one with its own, and the order that has even ones before odd ones."""
    trajectory = torch.arange(values).repeat_interleave(each)
    order = torch.cat([(trajectory % 2 == parity).nonzero().flatten() for parity in (0, 1)])
    return torch.linspace(-1.7, 1.7, values)[trajectory[order], None], trajectory[order]


@pytest.mark.parametrize("values", [6, 32])
def test_motions_are_found_where_every_trajectory_has_a_value_of_its_own(values: int) -> None:
    torch.manual_seed(0)
    p, _ = of_their_own(values)
    u, drift = smooth(len(p)), Drift(ModeTransform((64,), [True]), [0])
    drift.fit([(u, moved(u, 1 + 4 * p[:, 0]), p)])
    torch.testing.assert_close(drift.cells[:, 0], torch.tensor([1.0, 4.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("case", ["noise", "apart", "few"])
def test_nothing_is_found_where_values_of_their_own_tell_none(case: str) -> None:
    """No motion at all, halves that are 0.6 cells apart, and two values in either half."""
    torch.manual_seed(0)
    p, trajectory = of_their_own(4 if case == "few" else 32)
    u, drift = smooth(len(p)), Drift(ModeTransform((64,), [True]), [0])
    after = {"noise": smooth(len(p)), "apart": moved(u, 4 * p[:, 0] + 0.6 * (trajectory % 2)), "few": moved(u, p[:, 0])}
    drift.fit([(u, after[case], p)])
    assert not drift.cells.any()


def test_a_forcing_that_is_read_stays_where_it_is() -> None:
    torch.manual_seed(0)
    u, p = smooth(400), torch.tensor([-1.0, 0.0, 1.0, 2.0]).repeat(100)[:, None]
    forcing = smooth(1).expand(400, -1, -1) * torch.randn(400, 1, 1)
    propagator = LinearPropagator((64,), [True], 1, [0], [False], static=1)
    fitted(propagator, torch.cat([u, forcing], 1), moved(u, 3 * p[:, 0]) + 0.5 * forcing, p)
    u, forcing, between = smooth(3), smooth(3), torch.tensor([[-0.5], [0.3], [1.5]])
    torch.testing.assert_close(
        propagator(torch.cat([u, 0 * forcing], 1), between), moved(u, 3 * between[:, 0]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(propagator(torch.cat([0 * u, forcing], 1), between), 0.5 * forcing, atol=1e-4, rtol=0)
