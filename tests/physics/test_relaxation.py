"""The steady state of a relaxing field: the solver's order, symmetries, and where the evolution itself ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ups.errors import UpsError
from ups.physics.differences import laplacian_no_flow
from ups.physics.equations import get_equation
from ups.physics.solvers import solve
from ups.physics.solvers.relaxation import squared_wavenumbers
from ups.physics.solvers.transforms import Cosine

RELAXATION = get_equation("relaxation2d")
TIMES = np.array([0.0, 1.0])


def sources(num: int = 3, points: int = 32) -> torch.Tensor:
    assert RELAXATION.initial_condition is not None
    generator = torch.Generator().manual_seed(0)
    return RELAXATION.initial_condition(num, RELAXATION.centres(points), torch.ones(1).double(), generator)


def solved(f: torch.Tensor, diffusion: float = 0.01) -> torch.Tensor:
    return solve(RELAXATION, f, torch.full((len(f), 1), diffusion, dtype=torch.float64), TIMES)[:, 1]


def manufactured_error(points: int, diffusion: float) -> float:
    """u = exp(cos(pi x) cos(2 pi y)), whose slope vanishes at the walls; f = u + u³ - D lap u by hand."""
    x, y = torch.meshgrid(*RELAXATION.centres(points), indexing="ij")
    cx, sx, cy, sy = (wave(math.pi * k * s) for s, k in ((x, 1), (y, 2)) for wave in (torch.cos, torch.sin))
    u = torch.exp(cx * cy)
    laplacian = u * ((math.pi * sx * cy).square() + (2 * math.pi * cx * sy).square() - 5 * math.pi**2 * cx * cy)
    found = solved((u + u**3 - diffusion * laplacian)[None, None], diffusion)[0, 0]
    return float((found - u).norm() / u.norm())


@pytest.mark.parametrize("diffusion", [1e-4, 0.01, 10.0])
def test_errors_fall_faster_than_any_power_of_the_spacing(diffusion: float) -> None:
    coarse, fine = (manufactured_error(points, diffusion) for points in (8, 16))
    assert 1e-6 < coarse < 1e-3
    assert fine < 1e-4 * coarse


def test_the_evolution_itself_ends_there() -> None:
    """u_t = D lap u - u - u³ + f from two different states, by explicit steps; time 30 is e^-30 from the end."""
    f, diffusion, points = sources(1, 16), 0.01, 16
    cosine = Cosine((points, points), (1.0, 1.0), f.device)
    damping = diffusion * squared_wavenumbers((points, points), (1.0, 1.0), f.device)
    for u in (torch.zeros_like(f[:, 0]), torch.full_like(f[:, 0], 2.0)):
        step = 0.5 / (1 + 3 * 3.0**2 + float(damping.max()))
        for _ in range(int(30 / step)):
            u = u + step * (f[:, 0] - u - u**3 - cosine.inverse(damping * cosine.forward(u)))
        torch.testing.assert_close(u, solved(f)[:, 0], rtol=1e-6, atol=1e-6)


def test_finite_volumes_agree_to_second_order() -> None:
    """The residual by differences is that of a scheme of second order, whose walls let nothing through."""
    rms = []
    for points in (32, 64):
        f = sources(2, points)
        u = solved(f)
        spacing = (1 / points, 1 / points)
        rms.append(
            float((0.01 * laplacian_no_flow(u[:, 0], spacing) - u[:, 0] - u[:, 0] ** 3 + f[:, 0]).square().mean())
        )
    assert 1.8 < math.log2(rms[0] / rms[1]) / 2 < 2.2


def test_without_diffusion_or_with_much_of_it_the_state_is_known() -> None:
    """Each place by itself, or everywhere one value: the root of u + u³ = mean of f."""
    f = sources()
    flat = solved(f, diffusion=100.0)
    mean = f.mean(dim=(2, 3))
    value = flat.mean(dim=(2, 3))
    torch.testing.assert_close(value + value**3, mean, rtol=1e-2, atol=1e-2)
    assert float(flat.std(dim=(2, 3)).max()) < 1e-2


def test_what_is_put_in_is_taken_out() -> None:
    """Nothing flows through the walls: the integrals of f and of u + u³ are the same."""
    f = sources()
    u = solved(f)
    torch.testing.assert_close((u + u**3).mean(dim=(2, 3)), f.mean(dim=(2, 3)), rtol=1e-8, atol=1e-9)


def test_the_solution_keeps_the_symmetries_that_are_described() -> None:
    assert RELAXATION.symmetries == {"reflection", "rotation"}
    f = sources()
    u = solved(f)
    torch.testing.assert_close(solved(f.flip(-1)), u.flip(-1), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(solved(f.flip(-2)), u.flip(-2), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(solved(f.mT.contiguous()), u.mT, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(solved(-f), -u, rtol=1e-7, atol=1e-8)


def test_a_source_that_is_zero_leaves_nothing() -> None:
    f = sources()
    f[1] = 0.0
    u = solved(f)
    assert not u[1].any()
    torch.testing.assert_close(u[2:], solved(f[2:]), rtol=1e-7, atol=1e-8)


def test_a_solution_does_not_depend_on_those_solved_beside_it() -> None:
    f = sources(6)
    f[1] *= 0.01
    torch.testing.assert_close(solved(f), torch.cat([solved(one[None]) for one in f]), rtol=0, atol=1e-13)


def test_sources_are_of_the_size_they_are_said_to_have_and_functions_of_the_coordinates() -> None:
    assert float(sources(400, 16).std()) == pytest.approx(3.0, rel=0.05)
    torch.testing.assert_close(sources(2, 48)[..., 1::3, 1::3], sources(2, 16))


def test_a_source_that_is_not_finite_and_more_frames_are_refused() -> None:
    f = sources()
    f[1, 0, 2, 3] = math.nan
    with pytest.raises(UpsError, match="the source of sample 1 is not finite"):
        solved(f)
    with pytest.raises(UpsError, match="2 frames, not 3"):
        solve(RELAXATION, sources(), torch.full((3, 1), 0.01).double(), np.arange(3.0))
