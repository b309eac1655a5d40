"""The baselines: what defines each of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.models.helpers import make_spec

from ups.errors import UpsError
from ups.models.baselines import NetworkEmulator, make_baseline, make_fno
from ups.models.networks import FNO, SpectralConv, UNetNetwork


def arguments(batch: int) -> dict[str, object]:
    return {"task": "task", "dt": torch.full((batch,), 0.1), "params": torch.zeros(batch, 0)}


def test_persistence_repeats_the_last_frame() -> None:
    u = torch.randn(2, 3, 1, 32)
    out = make_baseline("persistence", {"task": make_spec(context=3)}).rollout(u, 4, **arguments(2))
    torch.testing.assert_close(out, u[:, -1:].expand(2, 4, 1, 32))


@torch.no_grad()
def test_the_linear_baseline_solves_linear_problems() -> None:
    torch.manual_seed(0)
    linear = make_baseline("linear", {"task": make_spec()})
    u = torch.randn(200, 1, 32)
    linear.fit("task", [(u, u.roll(1, -1), torch.zeros(200, 0))])  # type: ignore[operator]
    unseen = torch.randn(2, 1, 1, 32)
    torch.testing.assert_close(
        linear.rollout(unseen, 5, **arguments(2))[:, -1], unseen[:, 0].roll(5, -1), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_spectral_convolution_multiplies_every_kept_mode_by_its_matrix(axes: int) -> None:
    """A single real wave goes through the matrix of its own mode; waves above the cut vanish."""
    torch.manual_seed(0)
    layer, size = SpectralConv(axes, 2, 3), 16
    x = torch.arange(size) / size
    grids = torch.meshgrid(*[x] * axes, indexing="ij")
    wave = torch.cos(2 * math.pi * sum(2 * g for g in grids))
    u = torch.stack([wave, torch.zeros_like(wave)])[None]
    matrix = torch.view_as_complex(layer.weight.detach())[0][(0, slice(None), *[2] * axes)]
    phase = 2 * math.pi * sum(2 * g for g in grids)
    wanted = torch.stack([matrix[o].real * torch.cos(phase) - matrix[o].imag * torch.sin(phase) for o in range(2)])[
        None
    ]
    torch.testing.assert_close(layer(u).detach(), wanted, atol=1e-5, rtol=1e-4)
    high = torch.cos(2 * math.pi * 5 * grids[-1]).expand(1, 2, *[size] * axes)
    assert layer(high).abs().max() < 1e-5


@torch.no_grad()
def test_an_fno_gives_the_same_function_at_another_resolution() -> None:
    torch.manual_seed(0)
    network = FNO(1, 1, 1, modes=4, width=8)
    coarse, fine = (torch.sin(2 * math.pi * torch.arange(n) / n)[None, None] for n in (64, 128))
    # pointwise layers and kept modes do not see the grid; aliasing of the activations is what is left
    torch.testing.assert_close(network(fine, [True])[..., ::2], network(coarse, [True]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["fno", "unet"])
@pytest.mark.parametrize("axes", [1, 2])
def test_networks_step_two_fields_with_parameters(name: str, axes: int) -> None:
    spec = make_spec(
        axes=axes, size=16, fields=("u", "v"), mean=(0.0, 1.0), std=(1.0, 2.0), conserved=(False, False),
        param_names=("nu",), param_log=(True,), param_mean=(0.0,), param_std=(1.0,),
    )  # fmt: skip
    emulator = make_baseline(name, {"task": spec}).eval()
    u, dt = torch.randn(2, 1, 2, *[16] * axes), torch.full((2,), 0.1)
    low, high = (emulator.step(u, task="task", dt=dt, params=torch.full((2, 1), value)) for value in (0.1, 10.0))
    assert low.shape == (2, 2, *[16] * axes)
    assert not torch.allclose(low, high)


def test_a_baseline_can_be_given_the_structural_parts() -> None:
    emulator = NetworkEmulator({"task": make_spec()}, "fno", base="linear", form=None).eval()
    u = torch.randn(2, 1, 1, 32)
    torch.testing.assert_close(emulator.step(u, **arguments(2)).mean(-1), u[:, 0].mean(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("axes", [1, 2])
def test_a_residual_u_net_knows_small_inputs_from_large_ones(axes: int) -> None:
    """What a norm over space would forget."""
    network = UNetNetwork(axes, 1, 1, width=8, levels=2, residual=True)
    u, periodic = torch.randn(2, 1, *[16] * axes), [True] * axes
    small, large = network(0.5 * u, periodic), network(u, periodic)
    assert small.shape == u.shape
    assert (small - large).norm() > 0.2 * large.norm()
    shifted = network(u.roll(4, -1), periodic)  # by whole cells of the coarsest level
    torch.testing.assert_close(shifted, large.roll(4, -1))


def test_a_grid_that_a_u_net_cannot_halve_is_refused() -> None:
    make_baseline("unet", {"task": make_spec(size=24)})
    with pytest.raises(UpsError, match="multiple of 8"):
        make_baseline("unet", {"task": make_spec(size=20)})


def test_usual_sizes_are_of_the_dimension_and_give_way_to_a_network_of_ones_own() -> None:
    emulator = make_baseline("fno", {"task": make_spec(size=32)})
    assert isinstance(emulator, NetworkEmulator)
    network = emulator.networks["task"]
    assert isinstance(network, FNO)
    assert (len(network.spectral), network.spectral[0].weight.shape[1:4]) == (3, (32, 32, 32))
    own = NetworkEmulator({"task": make_spec()}, "fno", make_fno).networks["task"]
    assert isinstance(own, FNO)
    assert len(own.spectral) == 4


def test_a_spectral_convolution_computes_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    transform, seen = torch.fft.rfftn, []

    def rfftn(u: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append(u.dtype)
        return transform(u, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.fft, "rfftn", rfftn)
    torch.manual_seed(0)
    layer, u = SpectralConv(1, 2, 3), torch.randn(2, 2, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(u.bfloat16())
    torch.testing.assert_close(found, layer(u.bfloat16().float()), rtol=0, atol=0)
    assert set(seen) == {torch.float32}  # a CPU would convert by itself, a GPU refuses


def test_fno_between_walls_is_the_plain_one_on_a_mirrored_field() -> None:
    torch.manual_seed(0)
    plain = FNO(2, 1, 2, width=4, modes=3, layers=2, position=False)
    padded = FNO(2, 1, 2, width=4, modes=3, layers=2, position=False, padding=0.25)
    padded.load_state_dict(plain.state_dict())
    u = torch.randn(3, 1, 8, 12)
    wider = torch.from_numpy(np.pad(u.numpy(), ((0, 0), (0, 0), (0, 0), (3, 3)), mode="symmetric"))  # 12 / 4 cells
    walls = (True, False)
    torch.testing.assert_close(padded(u, walls), plain(wider, walls)[..., 3:-3])
    assert not torch.allclose(padded(u, walls), plain(u, walls))
    assert torch.equal(padded(u, (True, True)), plain(u, (True, True)))
