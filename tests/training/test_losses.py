"""Loss terms: their values on cases worked out by hand, and the curriculum of the inverse terms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ups.training.losses import InverseCurriculum, mean_square, normalized_mse, relative_l2, shell_energy, spectral_loss


def test_norms_are_per_sample() -> None:
    truth = torch.tensor([[[3.0, 4.0]], [[30.0, 40.0]]])
    prediction = truth + torch.tensor([[[0.0, 5.0]], [[0.0, 5.0]]])
    assert relative_l2(prediction, truth).item() == pytest.approx((1 + 0.1) / 2)
    assert normalized_mse(prediction, truth).item() == pytest.approx((1 + 0.01) / 2)
    assert mean_square(prediction, truth).item() == pytest.approx(12.5)
    assert relative_l2(prediction, truth, least=10.0).item() == pytest.approx((0.5 + 0.1) / 2)
    assert normalized_mse(prediction, truth, least=10.0).item() == pytest.approx((0.25 + 0.01) / 2)


@pytest.mark.parametrize("shape", [(32,), (16, 16)])
def test_shells_hold_all_the_energy_in_its_place(shape: tuple[int, ...]) -> None:
    axis = torch.arange(shape[0]) / shape[0]
    wave = torch.cos(2 * math.pi * 3 * axis)
    u = wave.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)[None, None]
    energy = shell_energy(u, shape[0] // 2)
    assert energy[0, 0].argmax() == 3
    assert energy[0, 0, 3] == pytest.approx(energy.sum().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(24,), (15,), (12, 8), (8, 9), (2, 3), (6, 4, 5)])
def test_shell_energy_follows_numpys_full_transform(shape: tuple[int, ...]) -> None:
    u = np.random.default_rng(0).normal(size=shape)
    power = np.abs(np.fft.fftn(u, norm="forward")) ** 2
    waves = np.meshgrid(*[np.fft.fftfreq(size) for size in shape], indexing="ij")
    shells = np.minimum((np.sqrt(sum(wave**2 for wave in waves)) * 2 * 4).astype(int), 3)
    wanted = np.bincount(shells.ravel(), power.ravel(), minlength=4)
    found = shell_energy(torch.tensor(u, dtype=torch.float32)[None, None], 4)[0, 0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found.sum() == pytest.approx(np.mean(u**2), rel=1e-5)  # Parseval


@pytest.mark.parametrize("shape", [(16, 16), (12, 9)])
def test_the_spectral_loss_is_that_of_the_transposed_fields(shape: tuple[int, ...]) -> None:
    prediction, truth = torch.randn(2, 3, 1, *shape, generator=torch.Generator().manual_seed(0))
    turned = spectral_loss(prediction.mT, truth.mT)
    assert spectral_loss(prediction, truth).item() == pytest.approx(turned.item(), rel=1e-5)


def test_the_spectral_loss_sees_energy_and_not_phase() -> None:
    u = torch.randn(2, 1, 64)
    assert spectral_loss(u.roll(5, -1), u).item() == pytest.approx(0, abs=1e-4)
    assert spectral_loss(math.sqrt(2) * u, u).item() == pytest.approx(1, rel=1e-3)


def test_the_curriculum_waits_climbs_and_is_bounded() -> None:
    weigh = InverseCurriculum(warmup_epochs=10, max_weight=0.05)
    assert [weigh(0.04, epoch) for epoch in (0, 5, 10)] == [0, 0, 0]
    assert weigh(0.04, 15) == pytest.approx(0.02)
    assert weigh(0.04, 20) == weigh(0.04, 99) == 0.04
    assert weigh(1.0, 99) == 0.05
    assert InverseCurriculum(0, 0.05)(0.04, 0) == 0.04
