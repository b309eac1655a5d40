"""Every score against its formula, written out in numpy and float64, and against cases with a known answer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ups.evaluation import metrics
from ups.physics.equations import get_equation


def fields(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(shape) + 0.3
    return torch.from_numpy((truth + 0.1 * rng.standard_normal(shape)).astype(np.float32)), torch.from_numpy(
        truth.astype(np.float32)
    )


@pytest.mark.parametrize("shape", [(3, 5, 1, 16), (2, 4, 2, 8, 6)])
def test_relative_errors_follow_their_formulae(shape: tuple[int, ...]) -> None:
    prediction, truth = fields(*shape)
    p, u = prediction.numpy().astype(np.float64), truth.numpy().astype(np.float64)
    samples, frames, channels = shape[:3]
    for n in range(samples):
        e = (p - u)[n]
        per_channel = [math.sqrt((e[:, c] ** 2).sum()) / math.sqrt((u[n, :, c] ** 2).sum()) for c in range(channels)]
        by_frame = [
            [math.sqrt((e[t, c] ** 2).mean()) / math.sqrt((u[n, t, c] ** 2).mean()) for c in range(channels)]
            for t in range(frames)
        ]
        spread = [
            [math.sqrt((e[t, c] ** 2).mean() / (u[n, t, c].var() + 1e-7)) for c in range(channels)]
            for t in range(frames)
        ]
        expected = {
            metrics.nrmse: np.mean(per_channel),
            metrics.pdebench_nrmse: np.mean(by_frame),
            metrics.rel_l2: math.sqrt((e**2).sum()) / math.sqrt((u[n] ** 2).sum()),
            metrics.mean_squared_error: (e**2).mean(),
            metrics.max_error: np.abs(e).max(),
            metrics.vrmse: np.mean(spread),
        }
        for metric, value in expected.items():
            assert metric(prediction, truth)[n].item() == pytest.approx(value, rel=1e-12), metric.__name__
        assert metrics.error_by_frame(prediction, truth)[n].tolist() == pytest.approx(
            np.mean(by_frame, axis=1).tolist()
        )


@given(shift=st.floats(0.0, 0.5), wave=st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_nrmse_of_a_shifted_sine(shift: float, wave: int) -> None:
    """|sin(k(x - s)) - sin(kx)| has the norm 2 |sin(ks/2)| times that of the sine."""
    x = torch.arange(64, dtype=torch.float64) / 64
    truth = torch.sin(2 * math.pi * wave * x).expand(1, 3, 1, 64)
    prediction = torch.sin(2 * math.pi * wave * (x - shift)).expand(1, 3, 1, 64)
    expected = 2 * abs(math.sin(math.pi * wave * shift))
    for metric in (metrics.nrmse, metrics.pdebench_nrmse, metrics.rel_l2):
        assert metric(prediction, truth).item() == pytest.approx(expected, abs=1e-9)


def test_nrmse_weighs_all_frames_together_and_pdebench_each_alike() -> None:
    truth = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 4)
    prediction = truth + torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    assert metrics.nrmse(prediction, truth).item() == pytest.approx(math.sqrt(1 / 10))
    assert metrics.pdebench_nrmse(prediction, truth).item() == pytest.approx(0.5)


def test_fourier_error_of_one_dimension_follows_pdebench() -> None:
    prediction, truth = fields(2, 3, 2, 48)
    error = (prediction.double() - truth.double()).numpy()
    modes = np.abs(np.fft.rfft(error, axis=-1)) ** 2 / 48**2
    for band, (low, high) in enumerate([(0, 4), (4, 12), (12, 25)]):
        expected = (np.sqrt(modes[..., low:high].sum(-1)) / (high - low)).mean((1, 2))
        assert metrics.fourier_rmse(prediction, truth)[:, band].tolist() == pytest.approx(expected.tolist(), rel=1e-10)


def test_fourier_error_of_two_dimensions_counts_each_pair_of_modes_once() -> None:
    prediction, truth = fields(1, 1, 1, 10, 12)
    error = (prediction.double() - truth.double()).numpy()[0, 0, 0]
    modes = np.fft.fft2(error) / error.size
    bands: list[float] = [0.0, 0.0, 0.0]
    shells: list[set[int]] = [set(), set(), set()]
    for a, b in itertools.product(range(10), range(12)):
        ka, kb = (a if a <= 5 else a - 10), (b if b <= 6 else b - 12)
        shell = int(math.hypot(ka, kb))
        band = 0 if shell < 4 else 1 if shell < 12 else 2
        own = (-a) % 10 == a and (-b) % 12 == b
        bands[band] += abs(modes[a, b]) ** 2 * (1 if own else 0.5)
        shells[band].add(shell)
    found = metrics.fourier_rmse(prediction, truth)[0]
    for band in (0, 1):
        assert found[band].item() == pytest.approx(math.sqrt(bands[band]) / len(shells[band]), rel=1e-10)
    assert math.isnan(found[2].item())  # the grid has no wave number from 12 on


@pytest.mark.parametrize("wave", [2, 7, 13])
def test_a_single_mode_is_seen_in_its_band_alone(wave: int) -> None:
    x = torch.arange(64, dtype=torch.float64) / 64
    truth = torch.ones(1, 1, 1, 64, dtype=torch.float64)
    prediction = truth + 0.5 * torch.cos(2 * math.pi * wave * x)
    found = metrics.fourier_rmse(prediction, truth)[0].tolist()
    size = [4, 8, 21]
    expected = [
        0.25 / size[band] if low <= wave < (high or 99) else 0.0 for band, (low, high) in enumerate(metrics.BANDS)
    ]
    assert found == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("periodic", [(True, True), (False, False), (True, False)])
def test_energy_spectrum_sums_to_the_mean_square(periodic: tuple[bool, ...]) -> None:
    u = torch.randn(2, 3, 12, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    total = metrics.energy_spectrum(u, periodic).sum(-1)
    torch.testing.assert_close(total, u.square().mean((2, 3)))


def test_energy_spectrum_puts_a_cosine_in_its_shell_with_and_without_walls() -> None:
    x = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    waves = torch.cos(2 * math.pi * 5 * x).reshape(1, 1, 32)
    for periodic in (True, False):
        energy = metrics.energy_spectrum(waves, (periodic,))[0, 0]
        assert energy[5].item() == pytest.approx(0.5)
        assert energy.sum().item() == pytest.approx(0.5)


def test_conservation_gap_is_the_drift_beyond_that_of_the_data() -> None:
    equation = get_equation("burgers1d")
    spacing, size = (0.1,), 10
    initial = torch.linspace(1, 2, size).reshape(1, 1, size).double()
    drift_of_truth, drift = torch.tensor([0.0, 0.01, 0.02]), torch.tensor([0.01, -0.05, 0.03])
    truth = initial[:, None] + drift_of_truth.reshape(1, 3, 1, 1)
    prediction = initial[:, None] + drift.reshape(1, 3, 1, 1)
    gap = metrics.conservation_gap(prediction, truth, initial, torch.ones(1, 1), equation, spacing)
    assert gap.item() == pytest.approx((0.05 - 0.02) * size / initial.abs().sum().item())
    curve = metrics.conservation_drift(prediction, initial, torch.ones(1, 1), equation, spacing)[0, :, 0]
    torch.testing.assert_close(curve, drift.double().abs() * size / initial.abs().sum())
    better = metrics.conservation_gap(truth, prediction, initial, torch.ones(1, 1), equation, spacing)
    assert better.item() == 0


def test_flux_form_leaves_no_conservation_gap() -> None:
    equation = get_equation("advection1d")
    initial = torch.randn(2, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prediction = torch.stack([initial.roll(t, -1) for t in range(1, 5)], dim=1)
    gap = metrics.conservation_gap(prediction, prediction, initial, torch.ones(2, 1), equation, (1 / 32,))
    assert gap.max().item() < 1e-14


def test_boundary_violation_is_of_the_prediction_beyond_the_truth() -> None:
    """None of a perfect prediction of a rough field; a blurred one, flatter at the walls than the truth, has some."""
    rough = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 1, 16, 8)))
    assert metrics.bc_violation(rough, rough, (False, False)).tolist() == [0, 0]
    blurred = metrics.bc_violation(0 * rough, rough, (False, False))
    assert blurred.min().item() > 1
    assert torch.equal(metrics.bc_violation(2 * rough, rough, (False, False)), blurred)


def test_boundary_violation_vanishes_with_the_slope_at_second_order() -> None:
    """An error whose slope at the walls is zero violates at the order of the difference; a ramp by its step."""
    violations = []
    for size in (16, 32, 64):
        x = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        u = (2 + torch.cos(math.pi * x)).reshape(1, 1, 1, size, 1).expand(1, 2, 1, size, size)
        violations.append(metrics.bc_violation(2 * u, u, (False, True)).item())
    assert violations[0] / violations[1] == pytest.approx(
        16, rel=0.2
    )  # dx^4: the third derivative is zero at the walls too
    assert violations[1] / violations[2] == pytest.approx(16, rel=0.2)
    ramp = ((torch.arange(16, dtype=torch.float64) + 0.5) / 16).reshape(1, 1, 1, 16)
    size_of_field = ramp.square().mean().sqrt().item()
    assert metrics.bc_violation(2 * ramp, ramp, (False,)).item() == pytest.approx((1 / 16) / size_of_field)


@pytest.mark.parametrize("first", [0.0, 0.5, 1.0], ids=["on the wall", "half a cell inside", "a cell inside"])
def test_boundary_violation_at_fixed_values_is_the_error_there(first: float) -> None:
    """An error that vanishes at the walls has none, wherever the values stand; a constant one is its size."""
    size = 12
    x = (torch.arange(size, dtype=torch.float64) + first) / size
    to_wall = ((first, 1 - first), (1.0, 1.0))
    y = (torch.arange(size, dtype=torch.float64) + 1) / (size + 1)
    bump = (x * (1 - x))[:, None] * y * (1 - y)
    u = (1 + torch.rand(1, 2, 1, size, size, generator=torch.Generator().manual_seed(0))).double()
    assert metrics.bc_violation(u + bump, u, (False, False), to_wall).item() < 1e-14
    shifted = metrics.bc_violation(u + 0.3, u, (False, False), to_wall).item()
    assert shifted == pytest.approx(0.3 / u.square().mean().sqrt().item())
    moved = metrics.bc_violation(u + bump, u, (False, False), ((first + 0.5, 1.5 - first), (1.0, 1.0))).item()
    assert moved > 1e-3, "the walls lie elsewhere"


def test_first_bad_frame_names_nan_and_infinity() -> None:
    u = torch.zeros(3, 4, 1, 5)
    u[1, 2, 0, 3], u[2, 0, 0, 0] = float("nan"), float("inf")
    assert metrics.first_bad_frame(u) == [None, 2, 0]
