"""The codec: lossless where it has room, optimal where it has not, and the same on the grid as at points."""

from __future__ import annotations

import math

import pytest
import torch

from ups.models.codec import Codec, lagrange_stencil


@pytest.mark.parametrize(("axes", "channels", "patch"), [(1, 1, 8), (2, 2, 4), (2, 1, 8), (3, 1, 4)])
def test_a_codec_with_room_for_every_value_loses_nothing(axes: int, channels: int, patch: int) -> None:
    codec = Codec(channels, 64, patch, [True] * axes)
    u = torch.randn(3, channels, *[2 * patch] * axes)
    z = codec.encode(u)
    assert z.shape == (3, 64, *[2] * axes)
    torch.testing.assert_close(codec.decode(z), u, atol=1e-5, rtol=0)
    # an isometry: distances in latent space are distances between fields
    torch.testing.assert_close(z.square().sum(), u.square().sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("axes", [1, 2])
def test_grid_path_and_point_path_agree(axes: int, periodic: bool) -> None:
    codec = Codec(2, 16, 4, [periodic] * axes)
    u = torch.randn(2, 2, *[12] * axes)
    nodes = torch.cartesian_prod(*[torch.arange(12.0)] * axes).reshape(-1, axes)
    z = codec.encode(u)
    torch.testing.assert_close(codec.decode_at(z, nodes), codec.decode(z).flatten(2), atol=1e-5, rtol=0)


def test_decoding_between_nodes_converges_at_sixth_order() -> None:
    errors = []
    for size in (16, 32):
        codec = Codec(1, 8, 8, [True])
        x = (torch.arange(size, dtype=torch.float64)) / size
        u = torch.sin(2 * math.pi * x)[None, None]
        where = torch.linspace(0, size, 101, dtype=torch.float64)[:, None]
        found = codec.interpolate(u, where)
        errors.append((found - torch.sin(2 * math.pi * where[:, 0] / size)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > 5.5


@pytest.mark.parametrize("most", [1, 4 * 216, 6 * 216 - 1])
def test_points_are_interpolated_a_few_at_a_time(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, four or five of nine at once, the last of them fewer, give what all at once do; 216 values lie near each."""
    codec = Codec(2, 16, 4, [True, False])
    u, points = torch.randn(3, 2, 8, 12), 12 * torch.rand(9, 2)
    at_once = codec.interpolate(u, points)
    part, gathered = codec._interpolate, []

    def counted(u: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        gathered.append(216 * len(points))
        return part(u, points)

    monkeypatch.setattr("ups.models.codec.NEAR_VALUES", most)
    monkeypatch.setattr(codec, "_interpolate", counted)
    torch.testing.assert_close(codec.interpolate(u, points), at_once, rtol=0, atol=0)
    assert len(gathered) > 1
    assert max(gathered) <= max(most, 216)
    assert codec.interpolate(u, points[:0]).shape == (3, 2, 0)


def test_interpolation_weights_sum_to_one_and_are_cardinal() -> None:
    position = torch.tensor([0.0, 0.25, 3.0, 7.9])
    nodes, weights = lagrange_stencil(position, 8, periodic=True)
    torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64))
    at_node = weights[2][nodes[2] == 3]
    torch.testing.assert_close(at_node, torch.ones(1, dtype=torch.float64))
    assert weights[2].abs().sum() == 1


def test_a_mirrored_axis_keeps_a_field_that_is_even_about_its_walls() -> None:
    # cos(pi k (i + 1/2) / n) is even about both walls, so mirroring continues it exactly
    codec, size = Codec(1, 4, 4, [False]), 32
    i = torch.arange(size, dtype=torch.float64)
    u = torch.cos(math.pi * (i + 0.5) / size)[None, None]
    where = torch.tensor([[-0.5], [0.1], [size - 0.5]], dtype=torch.float64)
    wanted = torch.cos(math.pi * (where[:, 0] + 0.5) / size)
    torch.testing.assert_close(codec.interpolate(u, where)[0, 0], wanted, atol=1e-6, rtol=0)


def test_a_lossy_codec_starts_at_the_best_linear_subspace() -> None:
    torch.manual_seed(0)
    codec = Codec(1, 3, 8, [True])
    mixing = torch.randn(8, 8) * torch.tensor([5.0, 3.0, 2.0, 0.5, 0.3, 0.2, 0.1, 0.05])
    cells = torch.randn(400, 8) @ mixing.T
    u = cells.reshape(100, 1, 32)
    before = (codec.decode(codec.encode(u)) - u).square().sum()
    codec.fit(u)
    after = (codec.decode(codec.encode(u)) - u).square().sum()
    best = torch.linalg.svdvals(cells.double())[3:].square().sum()
    assert after < before
    torch.testing.assert_close(after.double(), best, rtol=1e-4, atol=0)
