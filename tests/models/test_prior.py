"""The steady prior: walls, symmetries, lattices finer than the trained one, ensembles, and its codec."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.models.helpers import make_spec
from tests.models.small_prior import SMALL, darcy_spec, make_prior, media

from ups.errors import UpsError
from ups.models.divergence import Divergences
from ups.models.prior import SteadyPrior
from ups.models.spread import ErrorModel
from ups.physics.solvers.darcy import DarcySolver


def run(prior: SteadyPrior, a: torch.Tensor, **arguments: Any) -> torch.Tensor:
    ones = torch.ones(len(a))
    known = {"task": "darcy2d", "dt": ones, "params": ones[:, None], **arguments}
    with torch.no_grad():
        draw = prior.rollout_members if "members" in known else prior.rollout
        return draw(a[:, None], known.pop("steps", 1), **known)


def test_the_solution_is_one_frame_that_vanishes_at_the_walls() -> None:
    """With nodes on the wall (the first of them) the values there are zero whatever the weights."""
    assert run(make_prior(), media(3, 8)).shape == (3, 1, 1, 8, 8)
    u = run(make_prior(origin=(0.0, 0.0)), media(3, 8))[:, 0, 0]
    assert float(u[:, 0].abs().max()) == float(u[:, :, 0].abs().max()) == 0.0
    assert float(u[:, 1:, 1:].abs().min()) > 0


def test_conductivities_are_bounded_where_what_is_given_is_far_from_its_mean() -> None:
    """Eight deviations away, exp(2 a) would be of ten million."""
    parts, u = Divergences(1, 2), torch.randn(1, 1, 8, 8)
    far = [parts(u, torch.full_like(u, value)).detach() for value in (8.0, 80.0)]
    torch.testing.assert_close(*far, rtol=0, atol=0)
    assert float(far[0].abs().max()) < 1e4
    near = parts(u, torch.ones_like(u)).detach()
    assert float((near[:, 1] / near[:, 0]).mean()) == pytest.approx(math.exp(4.0), rel=1e-4)


@torch.no_grad()
def test_a_solution_without_flow_through_the_walls_is_free_there() -> None:
    """Of two priors of the same weights, one for each kind of wall, only the one's solution and spread are held."""
    found = []
    for task in ("darcy2d", "relaxation2d"):
        torch.manual_seed(0)
        prior = SteadyPrior({task: darcy_spec(name=task, origin=(0.0, 0.0))}, replace(SMALL, num_steps=1)).eval()
        for p in prior.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.2)
        found.append(prior.solve(media(2, 8), task, torch.ones(2, 1)))
    (held, held_size), (free, free_size) = found
    geometry = prior.geometry(prior.shares("relaxation2d", (8, 8)))
    torch.testing.assert_close(held, geometry[0] * free)
    assert not held_size[..., 0].any()
    assert float(free[..., 0].abs().min()) > 0
    assert float(free_size[..., 0].min()) > 0


def test_every_step_moves_the_iterate() -> None:
    prior = make_prior()
    a, features = torch.randn(2, 1, 8, 8), torch.zeros(2, 1)
    geometry = prior.geometry(prior.shares("darcy2d", (8, 8))).expand(2, -1, 8, 8)
    with torch.no_grad():
        iterates = prior.refine(a, geometry, features, "darcy2d")
    assert len(iterates) == 2
    assert float((iterates[1] - iterates[0]).norm()) > 1e-3


@pytest.mark.parametrize("change", [{"conductivities": 0}, {"conductivities": 1}, {"num_steps": 1}])
def test_parts_can_be_left_out(change: dict[str, int]) -> None:
    prior = make_prior(replace(SMALL, **change))
    assert run(prior, media(2, 8), members=3).isfinite().all()


def test_a_finer_lattice_is_shifted_coarse_ones() -> None:
    """Every second cell of a 16 x 16 solution is that of an 8 x 8 prior whose lattice begins where those cells do."""
    prior, a = make_prior(), media(2, 16)
    fine = run(prior, a)
    assert fine.shape == (2, 1, 1, 16, 16)
    for first in ((0, 0), (0, 1), (1, 1)):
        shifted = make_prior(origin=tuple((start + 0.5) / 16 for start in first))
        cells = (..., slice(first[0], None, 2), slice(first[1], None, 2))
        torch.testing.assert_close(fine[cells], run(shifted, a[cells]), rtol=1e-4, atol=1e-6)


def test_lattices_that_are_no_multiple_and_more_steps_are_refused() -> None:
    prior = make_prior()
    for grid in ((12, 12), (16, 8), (4, 4), (16,)):
        with pytest.raises(UpsError, match="trained on"):
            prior.check(torch.zeros(1, 1, 1, *grid), "darcy2d")
    for grid, advice in (((12, 12), "a whole multiple of 8 x 8"), ((16,), "the batch comes first, then the field a")):
        with pytest.raises(UpsError, match=rf"what is given \(u0\) has shape.*{advice}"):
            prior.check(torch.zeros(1, 1, 1, *grid), "darcy2d")
    with pytest.raises(UpsError, match="give the field a, in this order"):
        prior.check(torch.zeros(1, 1, 2, 8, 8), "darcy2d")
    with pytest.raises(UpsError, match="give 1 frame of context"):
        prior.check(torch.zeros(1, 2, 1, 8, 8), "darcy2d")
    with pytest.raises(UpsError, match="knows the tasks darcy2d"):
        prior.check(torch.zeros(1, 1, 1, 8, 8), "burgers1d")
    with pytest.raises(UpsError, match="steps must be 1, not 3"):
        run(prior, media(1, 8), steps=3)
    with pytest.raises(UpsError, match="steps must be 1, not 2"):
        run(prior, media(1, 8), steps=2, members=2)


def test_a_task_with_time_and_a_lattice_without_whole_tokens_are_refused() -> None:
    with pytest.raises(UpsError, match="task: the steady prior is for problems without time"):
        SteadyPrior({"task": make_spec(2, 8)}, SMALL)
    with pytest.raises(UpsError, match="9 x 9 has no whole tokens: make each axis a multiple of 2"):
        SteadyPrior({"darcy2d": darcy_spec(9)}, SMALL)


def test_divergences_are_the_solvers_inside() -> None:
    """With kappa = a, cells that touch no wall have the solver's -div(a grad u)."""
    a, u = media(1, 8).double(), torch.rand(1, 1, 8, 8).double()
    divergences = Divergences(1, 1).double()
    torch.nn.init.ones_(divergences.slope)
    matrix = DarcySolver().matrix(a[0, 0].numpy(), (8.0, 8.0))
    expected = torch.from_numpy(matrix @ u.flatten().numpy()).reshape(8, 8)
    found = -divergences(u, a.log())[0, 0].detach()
    torch.testing.assert_close(found[1:-1, 1:-1], expected[1:-1, 1:-1])
    torch.testing.assert_close(found.sum(), torch.zeros(()).double(), atol=1e-12, rtol=0)  # nothing passes the walls


def test_the_network_keeps_the_symmetries_of_geometry_and_divergences() -> None:
    prior, a = make_prior(), media(2, 8)
    geometry = prior.geometry(prior.shares("darcy2d", (8, 8)))
    divergences = prior.divergences["darcy2d"]
    for turn in (lambda u: u.flip(-1), lambda u: u.flip(-2), lambda u: u.mT):
        torch.testing.assert_close(turn(geometry), geometry)
        torch.testing.assert_close(turn(divergences(a, a)), divergences(turn(a), turn(a)))


def test_members_spread_as_expected_around_the_solution() -> None:
    prior, a = make_prior(), media(2, 8)
    prior.errors["darcy2d"].level.fill_(3.0)
    assert prior.draws
    members = run(prior, a, members=4000, rng=torch.Generator().manual_seed(1))
    assert members.shape == (4000, 2, 1, 1, 8, 8)
    with torch.no_grad():
        u, size = prior.solve(a, "darcy2d", torch.ones(2, 1))
    scale = prior.scales["darcy2d"]
    deviation = scale.leave(3.0 * size, "sought")
    torch.testing.assert_close(members.std(0)[:, 0], deviation, rtol=0.06, atol=1e-6)
    standard = (members.mean(0)[:, 0] - scale.leave(u, "sought")) / deviation
    assert float(standard.abs().max()) < 4.5 / 4000**0.5
    again = run(prior, a, members=2, rng=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again, run(prior, a, members=2, rng=torch.Generator().manual_seed(1)), rtol=0, atol=0)
    assert float((again[0] - again[1]).abs().max()) > 0


def test_noise_is_as_smooth_as_the_errors_seen_and_alike_on_every_lattice() -> None:
    """Errors of one cosine leave noise of that cosine alone; a finer lattice shares every third centre."""
    model = ErrorModel(1, 1, 3, 4, (24,))
    share = (torch.arange(24) + 0.5) / 24
    for _ in range(3):
        model.observe(torch.randn(64, 1, 1) * torch.cos(3 * torch.pi * share), (share,))
    assert float(model.power[0, 3]) > 1e4 * float(model.power[0, [0, 1, 2, 4, 5]].max())
    model.power[0] = torch.exp(-torch.arange(16.0))
    fine = (torch.arange(72) + 0.5) / 72
    coarse_noise = model.noise(5, 2, (share,), torch.Generator().manual_seed(0))
    fine_noise = model.noise(5, 2, (fine,), torch.Generator().manual_seed(0))
    torch.testing.assert_close(fine_noise[..., 1::3], coarse_noise, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("axes", [1, 2])
def test_waves_and_uniform_errors_of_one_amplitude_are_seen_as_equal(axes: int) -> None:
    """Else members would differ too much, or too little, by what they are on the mean."""
    model, share = ErrorModel(axes, 1, 3, 4, (24,) * axes), (torch.arange(24) + 0.5) / 24
    along = 2 + 2 * torch.cos(torch.pi * share)
    error = along if axes == 1 else along[:, None] * along / 2
    model.observe(error.expand(5, 1, *error.shape), (share,) * axes)
    wanted = torch.zeros_like(model.power)
    wanted[(0, *[slice(2)] * axes)] = 4.0
    torch.testing.assert_close(model.power, wanted, rtol=1e-5, atol=1e-5)


def test_the_codec_loses_nothing_of_either_role() -> None:
    prior = make_prior()
    u = torch.rand(3, 1, 8, 8)
    for role in ("given", "sought"):
        z = prior.encode(u, task="darcy2d", role=role)
        assert z.shape == (3, 4, 4, 4)
        torch.testing.assert_close(prior.decode(z, task="darcy2d", role=role), u, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prior.reconstruct(u, task="darcy2d"), u, rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in prior.codecs.parameters())


def test_weights_are_all_there_is_to_a_prior() -> None:
    """Another prior with the same weights predicts the same, the spread's level and spectrum included."""
    prior = make_prior()
    prior.errors["darcy2d"].level.fill_(2.0)
    torch.manual_seed(5)
    other = SteadyPrior(prior.tasks, SMALL)
    other.load_state_dict(prior.state_dict())
    a = media(1, 8)
    found = [run(one.eval(), a, members=2, rng=torch.Generator().manual_seed(0)) for one in (prior, other)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
