"""Darcy flow: the solver's order, exactness and symmetries, and random media as the published ones."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ups.errors import UpsError
from ups.physics.darcy import HIGH, LOW
from ups.physics.equations import get_equation
from ups.physics.solvers import solve
from ups.physics.solvers.darcy import DarcySolver

DARCY = get_equation("darcy2d")
TIMES = np.array([0.0, 1.0])


def media(num: int = 3, points: int = 16) -> torch.Tensor:
    assert DARCY.initial_condition is not None
    generator = torch.Generator().manual_seed(0)
    return DARCY.initial_condition(num, DARCY.centres(points), torch.ones(1).double(), generator)


def solved(a: torch.Tensor, beta: float = 1.0) -> torch.Tensor:
    return solve(DARCY, a, torch.full((len(a), 1), beta).double(), TIMES)[:, 1]


def manufactured_error(points: int) -> float:
    """With a = 1 + x/2 + y/4 and u = sin(pi x) sin(2 pi y), f = -div(a grad u) by hand."""
    x, y = (axis.numpy() for axis in DARCY.centres(points))
    x, y = np.meshgrid(x, y, indexing="ij")
    a = 1 + x / 2 + y / 4
    u = np.sin(np.pi * x) * np.sin(2 * np.pi * y)
    u_x, u_y = np.pi * np.cos(np.pi * x) * np.sin(2 * np.pi * y), 2 * np.pi * np.sin(np.pi * x) * np.cos(2 * np.pi * y)
    found = DarcySolver().solve_one(a, 5 * np.pi**2 * a * u - u_x / 2 - u_y / 4, (1.0, 1.0))
    return float(np.linalg.norm(found - u) / np.linalg.norm(u))


def test_the_solver_is_of_second_order() -> None:
    errors = [manufactured_error(points) for points in (16, 32, 64)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert errors[-1] < 1e-3
    assert all(1.9 < order < 2.1 for order in orders)


def test_layers_that_meet_at_faces_are_exact() -> None:
    """Between walls held at 0 and 1, without a source, u rises in proportion to the resistance passed.

    In one dimension: a grid one cell wide, whose other walls are infinitely far away.
    """
    a = np.array([1.0, 1.0, 0.1, 0.1, 0.1, 1.0])[:, None]
    solver, step = DarcySolver(), 1 / 6
    matrix = solver.matrix(a, (1.0, 1e9)).toarray() * step
    resistance = np.concatenate([[0.5 / a[0, 0]], 0.5 / a[:-1, 0] + 0.5 / a[1:, 0], [0.5 / a[-1, 0]]]) * step
    u = resistance[:-1].cumsum() / resistance.sum()  # 0 at the one wall and 1 at the other, with a flux of 1 / sum
    inflow = np.zeros(6)
    inflow[-1] = 1 / resistance[-1]
    np.testing.assert_allclose(matrix @ u, inflow, atol=1e-9)


def test_the_published_discretisation_is_the_five_point_star_of_arithmetic_means() -> None:
    """On a grid of one value both means agree; ghost cells beyond the walls are zero."""
    star = DarcySolver(mean="arithmetic", wall=1.0).matrix(np.full((3, 3), 2.0), (1.0, 1.0)).toarray() / 9
    assert star[4].tolist() == [0, -2, 0, -2, 8, -2, 0, -2, 0]
    assert star[0].tolist() == [8, -2, 0, -2, 0, 0, 0, 0, 0]


def test_the_matrix_is_symmetric_and_positive() -> None:
    a = media(1)[0, 0].numpy()
    for solver in (DarcySolver(), DarcySolver(mean="arithmetic", wall=1.0)):
        matrix = solver.matrix(a, (1.0, 1.0)).toarray()
        np.testing.assert_array_equal(matrix, matrix.T)
        assert np.linalg.eigvalsh(matrix).min() > 0


def test_the_solution_keeps_the_symmetries_that_are_described() -> None:
    assert DARCY.symmetries == {"reflection", "rotation"}
    a = media()
    u = solved(a)
    torch.testing.assert_close(solved(a.flip(-1)), u.flip(-1))
    torch.testing.assert_close(solved(a.flip(-2)), u.flip(-2))
    torch.testing.assert_close(solved(a.mT.contiguous()), u.mT)


def test_the_solution_is_linear_in_the_source_and_inverse_in_the_coefficient() -> None:
    a = media()
    torch.testing.assert_close(solved(a, beta=3.0), 3 * solved(a))
    torch.testing.assert_close(solved(5 * a), solved(a) / 5)


def test_what_flows_in_flows_out() -> None:
    """The integral of the source equals the flow through the walls, and u is positive."""
    a, points = media(), 16
    u = solved(a)
    assert bool((u > 0).all())
    flow = sum((2 * a * u).select(axis, end).sum(dim=(1, 2)) for axis in (2, 3) for end in (0, -1))
    torch.testing.assert_close(flow / (1 / points) ** 2, torch.full((3,), float(points**2)).double())


def test_media_have_two_values_and_are_functions_of_the_coordinates() -> None:
    coarse, fine = media(points=16), media(points=48)
    assert fine.unique().tolist() == [LOW, HIGH]
    torch.testing.assert_close(fine[..., 1::3, 1::3], coarse)


def test_media_are_as_the_published_ones() -> None:
    """In published files 1.7 % of neighbours differ at 64 cells; correlations are 0.73 and 0.3 at 8 and 24 cells."""
    a = (media(200, 64)[:, 0] - LOW) / (HIGH - LOW)
    assert float((a[:, 1:] != a[:, :-1]).double().mean()) == pytest.approx(0.017, abs=0.002)
    deviation = a - a.mean()
    for distance, expected in ((8, 0.73), (24, 0.30)):
        product = (deviation[:, distance:] * deviation[:, :-distance]).mean() / deviation.square().mean()
        assert float(product) == pytest.approx(expected, abs=0.05)


def test_a_coefficient_that_is_not_positive_and_more_frames_are_refused() -> None:
    a = media()
    a[1, 0, 2, 3] = 0.0
    with pytest.raises(UpsError, match="must be positive everywhere"):
        solved(a)
    with pytest.raises(UpsError, match="2 frames, not 3"):
        solve(DARCY, media(), torch.ones(3, 1).double(), np.arange(3.0))


def test_roles_are_given_and_sought() -> None:
    assert DARCY.steady
    assert [[field.name for field in role] for role in DARCY.roles] == [["a"], ["u"]]
    assert not get_equation("burgers1d").steady
    assert get_equation("burgers1d").roles == (get_equation("burgers1d").fields,)
