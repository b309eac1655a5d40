"""Noise in time: the variance and the correlations that were asked for, from the first draw on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz

from ups.models.noise import NoiseSeries, autoregression, standard_noise

MEASURED = (0.66, 0.29, 0.10)


def series(correlations: tuple[float, ...], steps: int, every: int = 1, draws: int = 1) -> torch.Tensor:
    """(step, draw, value) of a series of 100,000 values."""
    noise, like = NoiseSeries(torch.Generator().manual_seed(0), correlations, every), torch.zeros(100_000)
    found = []
    for _ in range(steps):
        found.append(torch.stack([noise.draw(like) for _ in range(draws)]))
        noise.end_step()
    return torch.stack(found)


def test_weights_solve_the_equations_of_yule_and_walker() -> None:
    for order, (weights, deviation) in enumerate(autoregression(MEASURED)):
        if order == 0:
            assert (weights, deviation) == ([], 1.0)
            continue
        c = np.array([1.0, *MEASURED])
        exact = np.linalg.solve(toeplitz(c[:order]), c[1 : order + 1])
        np.testing.assert_allclose(weights, exact, atol=1e-12)
        assert deviation == pytest.approx((1 - exact @ c[1 : order + 1]) ** 0.5)


def test_every_draw_has_unit_variance_and_the_correlations_asked_for() -> None:
    found = series(MEASURED, steps=7)[:, 0]
    measured = (found @ found.T / found.shape[1]).numpy()
    c = [1.0, *MEASURED]
    for _ in range(3):  # what the series implies further apart
        c.append(float(np.dot(autoregression(MEASURED)[-1][0], c[-1:-4:-1])))
    np.testing.assert_allclose(measured, toeplitz(c[:7]), atol=0.015)


def test_draws_of_one_step_are_independent_and_each_has_its_own_past() -> None:
    first, second = series((0.8,), steps=2, draws=2).unbind(1)
    assert float((first[0] * second[0]).mean()) == pytest.approx(0.0, abs=0.015)
    assert float((first[1] * second[0]).mean()) == pytest.approx(0.0, abs=0.015)
    assert float((second[1] * second[0]).mean()) == pytest.approx(0.8, abs=0.015)


def test_where_every_second_step_is_drawn_for_every_second_correlation_is_met() -> None:
    found = series(MEASURED, steps=2, every=2)[:, 0]
    assert float((found[1] * found[0]).mean()) == pytest.approx(MEASURED[1], abs=0.015)


def test_without_correlations_draws_are_the_generators_own() -> None:
    found, rng = series((), steps=2)[:, 0], torch.Generator().manual_seed(0)
    for draw in found:
        assert torch.equal(draw, standard_noise(draw, rng))
    zeros = series((0.0, 0.0), steps=2)[:, 0]
    assert torch.equal(zeros, found)


@pytest.mark.parametrize("impossible", [(1.2,), (0.9, -0.9), (-1.0, -1.0, -1.0)])
def test_what_no_series_can_have_is_brought_back(impossible: tuple[float, ...]) -> None:
    for _, deviation in autoregression(impossible):
        assert 0 < deviation <= 1
    found = series(impossible, steps=6)
    assert float(found.var()) == pytest.approx(1.0, abs=0.02)


def test_what_was_drawn_is_carried_along_once_for_every_step() -> None:
    noise, like = NoiseSeries(torch.Generator().manual_seed(0), (0.0, 0.95), every=2), torch.zeros(100_000)
    before = noise.draw(like)
    noise.end_step(lambda field: field.roll(3, -1))
    assert float((noise.draw(like) * before.roll(6, -1)).mean()) == pytest.approx(0.95, abs=0.015)
