"""A step's form: what is conserved at any weights, and how its scale is set."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.models.helpers import make_spec
from torch import Tensor

from ups.models.architecture import Architecture
from ups.models.simulator import Simulator
from ups.models.step import Rest
from ups.models.store import load_model, save_model


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_flux_conserves_the_integral_at_any_weights(axes: int, periodic: bool) -> None:
    rest = Rest(2, "flux", [periodic] * axes)
    change = rest(torch.randn(4, rest.width, *[8] * axes))
    assert change.shape == (4, 2, *[8] * axes)
    assert change.abs().max() > 0.1
    torch.testing.assert_close(change.flatten(2).sum(-1), torch.zeros(4, 2), atol=1e-4, rtol=0)


def test_no_flux_passes_a_wall() -> None:
    """A uniform flux changes nothing inside and piles up at the walls only through the missing faces there."""
    rest = Rest(1, "flux", [False])
    change = rest(torch.ones(1, 1, 6))
    torch.testing.assert_close(change[0, 0], torch.tensor([-1.0, 0, 0, 0, 0, 1.0]))


def test_a_source_changes_the_integral_and_an_increment_is_passed_on() -> None:
    rest = Rest(1, "flux_source", [True])
    raw = torch.zeros(1, rest.width, 8)
    raw[:, 1] = 1
    assert rest(raw).sum() == 8
    raw = torch.randn(1, 1, 8)
    torch.testing.assert_close(Rest(1, "increment", [True])(raw), raw)


def test_the_scale_is_that_of_the_flux_which_makes_the_left_over() -> None:
    """If the left-over is the divergence of a known flux, that flux has unit size in raw units."""
    torch.manual_seed(0)
    flux = torch.randn(64, 1, 128)
    flux = 3.0 * (flux - flux.mean(-1, keepdim=True))
    rest = Rest(1, "flux", [True])
    rest.fit([flux - flux.roll(-1, -1)])
    torch.testing.assert_close(rest.flux_scale.item(), flux.square().mean().sqrt().item(), rtol=1e-3, atol=0)
    torch.testing.assert_close(rest(flux / rest.flux_scale), flux - flux.roll(-1, -1), atol=1e-5, rtol=1e-5)


def test_the_scale_in_two_dimensions_is_that_of_the_smallest_flux() -> None:
    """A gradient flux is the smallest with its divergence; its size over both axes is recovered."""
    torch.manual_seed(0)
    potential = torch.randn(32, 1, 16, 16)
    x, y = potential.roll(1, 2) - potential, potential.roll(1, 3) - potential
    rest = Rest(1, "flux", [True, True])
    rest.fit([x - x.roll(-1, 2) + y - y.roll(-1, 3)])
    torch.testing.assert_close(
        rest.flux_scale.item(), (x.square() + y.square()).mean().sqrt().item(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("form", ["flux", "flux_source", "increment"])
def test_scales_of_streamed_batches_are_those_of_all_at_once(form: str) -> None:
    torch.manual_seed(0)
    left_over = torch.randn(50, 2, 8, 6) * torch.tensor([1.0, 30.0]).reshape(2, 1, 1)
    streamed, whole = Rest(2, form, [True, True]), Rest(2, form, [True, True])
    streamed.fit(iter(left_over.split(16)))
    whole.fit([left_over])
    torch.testing.assert_close(streamed.flux_scale, whole.flux_scale, rtol=1e-6, atol=0)
    torch.testing.assert_close(streamed.source_scale, whole.source_scale, rtol=1e-6, atol=0)
    root_mean_square = left_over.square().mean(dim=(0, 2, 3)).sqrt()
    torch.testing.assert_close(streamed.source_scale.flatten(), root_mean_square, rtol=1e-5, atol=0)


def test_a_forcing_is_read_by_base_and_network_and_not_advanced() -> None:
    spec = make_spec(axes=2, size=16, name="kolmogorov2d", fields=("w",), static=1, spacing=(2 * math.pi / 16,) * 2)
    torch.manual_seed(0)
    emulator = Simulator({"kolmogorov2d": spec}, Architecture(patch=4)).eval()
    physics = emulator.physics["kolmogorov2d"]
    assert physics.static.shape == (1, 16, 16)
    assert physics.static.square().mean().sqrt() == pytest.approx(1)
    before = torch.randn(64, 1, 16, 16)
    after = 0.5 * before + 3 * physics.static  # a step that the affine base knows exactly
    no_params = torch.zeros(64, 0)
    emulator.fit("kolmogorov2d", [(before * 1.7 + 0.3, after * 1.7 + 0.3, no_params)])
    found = physics.advance_base(before, no_params)
    mean_free = found - found.mean((2, 3), keepdim=True)  # the base passes the mean of a conserved field on as it is
    torch.testing.assert_close(mean_free, after - after.mean((2, 3), keepdim=True), atol=1e-4, rtol=0)
    rest = emulator.operator.inlets["kolmogorov2d"]
    assert rest.weight.shape[1] == 2


def test_only_cells_beside_a_wall_gain_or_lose_through_open_walls() -> None:
    rest = Rest(1, "flux_open", [False, True])
    rest.source_scale.fill_(0.0)
    raw = torch.randn(3, rest.width, 8, 6)
    closed = rest(raw)
    torch.testing.assert_close(closed.sum((2, 3)), torch.zeros(3, 1), atol=1e-5, rtol=0)
    rest.source_scale.fill_(1.0)
    through = rest(raw) - closed
    assert through[:, :, [0, -1]].abs().min() > 0
    assert through[:, :, 1:-1].abs().max() == 0


def pairs_of(move: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    frames = 0.3 + 1.7 * torch.randn(200, 1, 32)
    return [(frames, move(frames), torch.zeros(200, 0))]


@pytest.mark.parametrize(
    ("move", "wanted"),
    [
        (lambda u: u.roll(1, -1), True),  # all of the step is linear
        (lambda u: u.roll(1, -1) + 0.1 * u.square(), True),  # most of it is
        (lambda u: u + 0.3 * torch.sin(9 * u), False),  # next to nothing of it is
    ],
)
def test_the_linear_propagator_is_the_base_only_where_it_explains_a_part_of_the_step(
    move: Callable[[Tensor], Tensor], wanted: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    simulator = Simulator({"task": make_spec()}, Architecture(latent_dim=16, patch=4, hidden_dim=16, heads=2))
    simulator.fit("task", pairs_of(move))
    physics = simulator.physics["task"]
    assert physics.is_linear is wanted
    assert physics.base_leaves is not None
    assert (physics.base_leaves < 0.5) is wanted
    u = torch.randn(2, 1, 32)
    moved = not torch.equal(physics.advance_base(u, torch.zeros(2, 0)), u)
    assert moved is wanted
    save_model(simulator, tmp_path)
    found = load_model(tmp_path)
    assert isinstance(found, Simulator)
    assert found.physics["task"].is_linear is wanted


@pytest.mark.parametrize("base", ["linear", "persistence"])
def test_a_base_that_is_asked_for_is_the_base(base: str) -> None:
    torch.manual_seed(0)
    sizes = Architecture(latent_dim=16, patch=4, hidden_dim=16, heads=2, base=base)
    simulator = Simulator({"task": make_spec()}, sizes)
    simulator.fit("task", pairs_of(lambda u: u.roll(1, -1) if base == "persistence" else u + 0.3 * torch.sin(9 * u)))
    assert simulator.physics["task"].is_linear is (base == "linear")
