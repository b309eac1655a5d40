"""Transforms: they invert, they diagonalise the Laplacian, and resampling is exact where it can be."""

from __future__ import annotations

import math

import pytest
import torch

from ups.physics.differences import laplacian_no_flow
from ups.physics.solvers.transforms import (
    Cosine,
    Fourier,
    Fourier2d,
    cell_averages,
    resample_mirrored,
    resample_periodic,
    without_alias,
)

CPU = torch.device("cpu")


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def wave(points: int) -> torch.Tensor:
    """A band-limited function with no symmetry, at the centres of cells of the unit period."""
    x = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return 0.3 + torch.sin(2 * math.pi * x + 0.4) + 0.5 * torch.cos(6 * math.pi * x + 1.1)


@pytest.mark.parametrize("points", [16, 17])
def test_fourier_inverts_and_differentiates_twice(points: int) -> None:
    fourier = Fourier(points, 2.5, CPU)
    u = noise(3, points)
    torch.testing.assert_close(fourier.inverse(fourier.forward(u)), u)
    x = 2.5 * (torch.arange(points, dtype=torch.float64) + 0.5) / points
    k = 2 * math.pi * 3 / 2.5
    mode = torch.sin(k * x + 0.2)
    torch.testing.assert_close(fourier.inverse(fourier.laplacian * fourier.forward(mode)), -(k**2) * mode)


@pytest.mark.parametrize("shape", [(16, 12), (9, 15)])
def test_fourier_in_two_dimensions_inverts_and_differentiates_twice(shape: tuple[int, int]) -> None:
    lengths = (2.5, 4.0)
    fourier, u = Fourier2d(shape, lengths, CPU), noise(3, *shape)
    torch.testing.assert_close(fourier.inverse(fourier.forward(u)), u)
    x, y = (length * (torch.arange(n, dtype=torch.float64) + 0.5) / n for n, length in zip(shape, lengths, strict=True))
    k, m = 2 * math.pi * 3 / 2.5, 2 * math.pi * 2 / 4.0
    mode = torch.sin(k * x[:, None] - m * y + 0.2)
    torch.testing.assert_close(fourier.inverse(fourier.laplacian * fourier.forward(mode)), -(k**2 + m**2) * mode)


@pytest.mark.parametrize("points", [15, 16, 17, 18])
def test_products_of_the_modes_that_are_kept_do_not_alias_into_them(points: int) -> None:
    """On so many points and on three times as many, the square of a state has the same kept modes; one more fails."""
    fourier, finer = Fourier(points, 1.0, CPU), Fourier(3 * points, 1.0, CPU)
    kept = without_alias(fourier.cycles, points).repeat_interleave(2)
    modes = kept * fourier.forward(noise(2, points))
    wide = torch.nn.functional.pad(modes, (0, 2 * len(finer.cycles) - modes.shape[-1]))
    squared = fourier.forward(fourier.inverse(modes).square())
    exact = finer.forward((3 * finer.inverse(wide)).square())[..., : modes.shape[-1]] / 3
    torch.testing.assert_close(kept * squared, kept * exact)
    assert int(kept.sum()) // 2 == (points - 1) // 3 + 1


def test_cosines_are_orthonormal_and_diagonalise_the_laplacian_between_walls() -> None:
    shape, lengths = (12, 9), (2.0, 3.0)
    cosine, u = Cosine(shape, lengths, CPU), noise(2, *shape)
    modes = cosine.forward(u)
    torch.testing.assert_close(modes.square().sum(), u.square().sum())
    torch.testing.assert_close(cosine.inverse(modes), u)
    spacing = (lengths[0] / shape[0], lengths[1] / shape[1])
    torch.testing.assert_close(cosine.inverse(cosine.laplacian * modes), laplacian_no_flow(u, spacing))


@pytest.mark.parametrize(("source", "target"), [(16, 48), (48, 16), (16, 25), (25, 16), (8, 8)])
def test_periodic_resampling_is_exact_for_what_both_grids_resolve(source: int, target: int) -> None:
    torch.testing.assert_close(resample_periodic(wave(source), target), wave(target))


def test_periodic_resampling_works_along_any_axis_and_keeps_the_mean() -> None:
    u = noise(3, 20, 2)
    coarse = resample_periodic(u, 7, dim=1)
    assert coarse.shape == (3, 7, 2)
    torch.testing.assert_close(coarse.mean(dim=1), u.mean(dim=1))


@pytest.mark.parametrize(("source", "target"), [(16, 48), (48, 16), (16, 25), (25, 16), (48, 64), (8, 8)])
def test_resampling_between_walls_is_exact_for_what_both_grids_resolve(source: int, target: int) -> None:
    def waves(points: int) -> tuple[torch.Tensor, torch.Tensor]:
        """No slope at the walls, and no value there."""
        x = math.pi * (torch.arange(points, dtype=torch.float64) + 0.5) / points
        return 0.3 + x.cos() - 0.5 * (7 * x).cos(), x.sin() - 0.5 * (7 * x).sin()

    for parity, found, expected in zip((1, -1), waves(source), waves(target), strict=True):
        torch.testing.assert_close(resample_mirrored(found, target, parity), expected)


@pytest.mark.parametrize("points", [7, 20, 33])
def test_resampling_between_walls_works_along_any_axis_and_cosines_keep_the_mean(points: int) -> None:
    u = noise(3, 20, 2)
    for dim in (1, -2):
        found = resample_mirrored(u, points, 1, dim)
        assert found.shape == (3, points, 2)
        torch.testing.assert_close(found.mean(dim=1), u.mean(dim=1))
    torch.testing.assert_close(found[1, :, 1], resample_mirrored(u[1, :, 1], points, 1))


@pytest.mark.parametrize("points", [5, 10, 13, 15, 20, 30, 40])
def test_cell_averages_are_those_of_a_grid_that_divides_both(points: int) -> None:
    u = noise(3, 20, 2)
    fine = u.repeat_interleave(points, dim=1)  # each of the new cells has 20 of these
    torch.testing.assert_close(cell_averages(u, points, 1), fine.unflatten(1, (points, 20)).mean(dim=2))
