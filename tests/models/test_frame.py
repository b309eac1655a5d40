"""The moving frame: what it takes out comes back, and a boosted step is the step boosted."""

from __future__ import annotations

import math

import pytest
import torch
from tests.models.helpers import make_spec

from ups.models.architecture import Architecture
from ups.models.frame import MovingFrame
from ups.models.simulator import Simulator


@pytest.fixture
def spec():
    return make_spec(lattice=(64,), spacing=(1 / 64,), mean=(0.3,), std=(1.7,), dt=0.05, galilean=True)


def waves(num: int, size: int, mean: float) -> torch.Tensor:
    x = torch.arange(size) / size
    rng = torch.Generator().manual_seed(3)
    phases, heights = torch.rand(num, 4, 1, generator=rng) * 2 * math.pi, torch.randn(num, 4, 1, generator=rng)
    u = (heights * torch.sin(2 * math.pi * torch.arange(1, 5)[:, None] * x + phases)).sum(1)
    return (u + mean)[:, None]


def test_following_undoes_leaving(spec):
    frame, u = MovingFrame(spec), waves(5, 64, 0.8)
    still, mean = frame.enter(u[:, None])
    assert still.mean(-1).abs().max() < 1e-6
    torch.testing.assert_close(frame.follow(frame.leave(still[:, 0], mean), mean), still[:, 0], atol=1e-5, rtol=0)


def test_white_noise_survives_the_way_there_and_back(spec):
    """The Nyquist mode of an even grid has no phase that could be turned: it must not lose height either."""
    frame, u = MovingFrame(spec), torch.randn(5, 1, 64)
    still, mean = frame.enter(u[:, None])
    torch.testing.assert_close(frame.follow(frame.leave(still[:, 0], mean), mean), still[:, 0], atol=1e-4, rtol=0)


def test_a_travelling_wave_stands_still(spec):
    frame, u = MovingFrame(spec), waves(5, 64, 0.8)
    cells = (0.8 * 1.7 + 0.3) * 0.05 * 64
    later = waves(5, 64, 0.8)
    wave = torch.fft.rfft(later) * torch.exp(-2j * math.pi * torch.arange(33) * cells / 64)
    still, mean = frame.enter(u[:, None])
    torch.testing.assert_close(frame.leave(still[:, 0], mean), torch.fft.irfft(wave, n=64), atol=1e-5, rtol=0)


def test_earlier_frames_of_the_context_are_brought_along(spec):
    frame, now = MovingFrame(spec), waves(3, 64, 0.8)
    still, mean = frame.enter(now[:, None])
    earlier = MovingFrame._shift(now - mean, -frame._cells(mean)) + mean  # where a travelling wave was a step ago
    seen, _ = frame.enter(torch.stack([earlier, now], 1))
    torch.testing.assert_close(seen[:, 0], still[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("moving", [True, False])
def test_a_boosted_step_is_the_step_boosted(spec, moving):
    torch.manual_seed(0)
    simulator = Simulator({spec.name: spec}, Architecture(moving_frame=moving)).eval()
    with torch.no_grad():
        for outlet in simulator.operator.outlets.values():
            outlet.weight.normal_()
    shift = 3  # cells per step: an exact roll of the grid
    boost = shift / 64 / spec.dt
    u, options = waves(4, 64, 0.2)[:, None], {"task": spec.name, "dt": torch.full((4,), spec.dt)}
    options["params"] = torch.zeros(4, len(spec.param_names))
    with torch.no_grad():
        step, boosted = simulator.step(u, **options), simulator.step(u + boost, **options)
    gap = (boosted - boost - step.roll(shift, -1)).abs().max() / step.abs().max()
    assert (gap < 1e-4) == moving
