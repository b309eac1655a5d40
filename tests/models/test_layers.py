"""Layers: boundary conditions, symmetry of attention on periodic axes, windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ups.models.layers import Attention, Block, BoundaryConv, join_windows, pad_axis, pad_grid, split_windows


def test_padding_wraps_or_mirrors() -> None:
    u = torch.arange(4.0).reshape(1, 1, 4)
    assert pad_grid(u, 2, [True]).flatten().tolist() == [2, 3, 0, 1, 2, 3, 0, 1]
    assert pad_grid(u, 2, [False]).flatten().tolist() == [1, 0, 0, 1, 2, 3, 3, 2]


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize(("size", "width"), [(1, 2), (2, 5), (3, 7), (4, 4)])
def test_padding_of_any_width_is_numpys(size: int, width: int, periodic: bool) -> None:
    u = torch.randn(2, 1, size, 4)
    wanted = np.pad(u.numpy(), [(0, 0), (0, 0), (width, width), (0, 0)], mode="wrap" if periodic else "symmetric")
    torch.testing.assert_close(pad_axis(u, 2, width, width, periodic), torch.from_numpy(wanted), rtol=0, atol=0)


@pytest.mark.parametrize("periodic", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize(("size", "width"), [((5, 4), 1), ((3, 5), 3)])
def test_the_gradient_of_a_padded_field_is_the_one_of_its_copies(
    size: tuple[int, int], width: int, periodic: tuple[bool, bool]
) -> None:
    u = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, *(one + 2 * width for one in size), dtype=torch.float64)
    (pad_grid(u, width, periodic) * weights).sum().backward()
    found, u.grad = u.grad, None
    one_axis = pad_axis(u, 2, width, width, periodic[0])
    (pad_axis(one_axis, 3, width, width, periodic[1]) * weights).sum().backward()
    assert found is not None
    torch.testing.assert_close(found, u.grad)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_a_periodic_convolution_commutes_with_translation(axes: int) -> None:
    conv = BoundaryConv(axes, 2, 3, 3)
    u, shift, dims = torch.randn(2, 2, *[6] * axes), [2] * axes, list(range(2, 2 + axes))
    torch.testing.assert_close(conv(u.roll(shift, dims), [True] * axes), conv(u, [True] * axes).roll(shift, dims))


def test_a_mirrored_convolution_with_an_even_kernel_keeps_even_fields_even() -> None:
    conv = BoundaryConv(1, 1, 1, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, -2.0, 1.0]]]))
    # the no-flow Laplacian conserves the sum
    assert conv(torch.randn(1, 1, 9), [False]).sum().abs() < 1e-5


def filled(block: torch.nn.Module) -> torch.nn.Module:
    """Random weights everywhere: the initial zeros would hide what a layer does."""
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return block.eval()


@pytest.mark.parametrize(("axes", "window", "shift"), [(1, None, 3), (2, None, 1), (1, 4, 4), (2, 4, 4)])
def test_a_block_commutes_with_translation_on_periodic_axes(axes: int, window: int | None, shift: int) -> None:
    torch.manual_seed(0)
    block = filled(Block(16, 2, 8, axes, window=window, shift=True, mlp_ratio=2.0, qk_norm=True, drop_path=0.0))
    x, condition = torch.randn(2, *[8] * axes, 16), torch.randn(2, 8)
    dims, shifts = list(range(1, 1 + axes)), [shift] * axes
    moved = block(x.roll(shifts, dims), condition, [True] * axes)
    torch.testing.assert_close(moved, block(x, condition, [True] * axes).roll(shifts, dims), atol=1e-4, rtol=1e-4)


def test_attention_between_walls_knows_where_it_is() -> None:
    torch.manual_seed(0)
    attention = filled(Attention(16, 2))
    x = torch.randn(1, 8, 16)
    assert not torch.allclose(attention(x.roll(3, 1), [False]), attention(x, [False]).roll(3, 1), atol=1e-3)


def test_a_window_as_wide_as_the_axis_is_global_attention() -> None:
    torch.manual_seed(0)
    wide, windowed = filled(Attention(16, 2)), Attention(16, 2, window=8, shift=True)
    windowed.load_state_dict(wide.state_dict())
    x = torch.randn(2, 8, 8, 16)
    torch.testing.assert_close(windowed.eval()(x, [True, True]), wide(x, [True, True]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_windows_join_to_what_was_split(axes: int) -> None:
    x, shape = torch.randn(2, *[8, 4, 6][:axes], 5), [8, 4, 6][:axes]
    window = [4, 2, 3][:axes]
    torch.testing.assert_close(join_windows(split_windows(x, window), window, shape), x, rtol=0, atol=0)


def test_stochastic_depth_is_off_in_evaluation_and_unbiased_in_training() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, 4, 1, window=None, shift=False, mlp_ratio=2.0, qk_norm=True, drop_path=0.5)
    x = torch.ones(4000, 4, 8)
    kept = block.train()._keep(x, x)
    assert set(kept[:, 0, 0].tolist()) == {0.0, 2.0}
    assert abs(kept.mean().item() - 1) < 0.05
    torch.testing.assert_close(block.eval()._keep(x, x), x)
