"""Views are symmetries of the equation, come back exactly, and change from step to step of a roll-out alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.helpers import make_spec
from torch import Tensor

from ups.data.fields import Batch, Grid
from ups.errors import UpsError
from ups.models.architecture import Architecture
from ups.models.diffusion import DiffusionArchitecture
from ups.models.emulator import TaskSpec
from ups.models.simulator import Simulator
from ups.models.step import static_fields
from ups.models.views import PLAIN, Seen, Views
from ups.physics.equations import EQUATIONS, get_equation
from ups.training.diffusion import ResidualSteps, fit_memory, fit_scales

IN_TIME = [name for name, equation in EQUATIONS.items() if not equation.steady]


def spec_of(task: str, size: int = 32, **changes: object):  # type: ignore[no-untyped-def]
    equation = get_equation(task)
    fields = len(equation.fields)
    spacing = tuple((high - low) / size for low, high in equation.domain)
    values = {
        "name": task,
        "fields": tuple(field.name for field in equation.fields),
        "periodic": equation.periodic,
        "spacing": spacing,
        "origin": tuple(low + step / 2 for (low, _), step in zip(equation.domain, spacing, strict=True)),
        "static": 0 if equation.forcing is None else 1,
        "form": "increment",
        "conserved": (False,) * fields,
        "mean": (0.0,) * fields,
        "std": (1.0,) * fields,
    }
    return make_spec(equation.dim, size, **{**values, **changes})


def views_of(spec: TaskSpec) -> Views:
    return Views(spec, static_fields(spec))


def make_simulator(task: str, symmetrize: int, size: int = 16, latent_dim: int = 64, **changes: object) -> Simulator:
    torch.manual_seed(0)
    sizes = Architecture(
        latent_dim=latent_dim, patch=4, coarsen=(4,), hidden_dim=16, heads=2, depths=(1,), stem_width=8
    )
    architecture = replace(sizes, base="persistence", symmetrize=symmetrize, moving_frame=False)
    simulator = Simulator({task: spec_of(task, size, **changes)}, architecture)
    for p in simulator.operator.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return simulator.eval()


def call(task: str, batch: int) -> dict[str, object]:
    return {"task": task, "dt": torch.full((batch,), 0.1), "params": torch.zeros(batch, 0)}


@pytest.mark.parametrize("size", [32, 12, 9])
@pytest.mark.parametrize("task", [name for name in IN_TIME if EQUATIONS[name].rhs is not None])
def test_every_view_is_a_symmetry_of_the_equation(task: str, size: int) -> None:
    """rhs(V u) = V rhs(u), on the grid."""
    equation, spec = get_equation(task), spec_of(task, size)
    views = views_of(spec)
    u = torch.randn(2, len(spec.fields), *spec.lattice, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    params = torch.full((2, len(equation.parameters)), 0.1, dtype=torch.float64)
    rate = equation.rhs(u, params, spec.spacing)
    for index in range(2 * views.number):
        found = equation.rhs(views.see(u, views.at(index)), params, spec.spacing)
        wanted = views.see(rate, views.at(index))
        torch.testing.assert_close(found, wanted, atol=1e-9 * float(rate.abs().max()), rtol=1e-9)


@pytest.mark.parametrize("task", IN_TIME)
def test_a_view_is_of_the_field_in_its_units_and_comes_back(task: str) -> None:
    fields = len(get_equation(task).fields)
    plain, views = views_of(spec_of(task)), views_of(spec_of(task, mean=(0.7,) * fields, std=(1.9,) * fields))
    u = torch.randn(3, 2, fields, *views.lattice, generator=torch.Generator().manual_seed(0))
    for index in range(8):
        view = views.at(index)
        seen = views.see((u - 0.7) / 1.9, view)
        torch.testing.assert_close(seen * 1.9 + 0.7, plain.see(u, view))
        torch.testing.assert_close(views.back(seen, view) * 1.9 + 0.7, u)


@pytest.mark.parametrize(("task", "number"), [("advection1d", 1), ("burgers1d", 2), ("shallow_water2d", 8)])
def test_the_first_is_plain_and_none_comes_again_before_all_came(task: str, number: int) -> None:
    views = views_of(spec_of(task))
    assert views.number == number
    assert views.at(0) == replace(PLAIN, shift=(0,) * len(views.lattice))
    for turn in range(2):
        seen = [views.at(turn * number + index) for index in range(number)]
        assert len({(view.swapped, view.mirrored) for view in seen}) == number


def test_forced_flow_has_the_motions_that_its_forcing_leaves() -> None:
    views = views_of(spec_of("kolmogorov2d"))
    assert views.number == 16
    u = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert len({tuple(views.see(u, views.at(index)).flatten().tolist()) for index in range(16)}) == 16


def test_opposites_follow_each_other() -> None:
    views = views_of(spec_of("reaction_diffusion2d"))
    for index in range(0, 8, 2):
        one, other = views.at(index), views.at(index + 1)
        assert one.swapped != other.swapped
        assert set(one.mirrored) ^ set(other.mirrored) == {0, 1}


@pytest.mark.parametrize(
    ("task", "size", "token"), [("burgers1d", 128, 8), ("advection1d", 128, 8), ("burgers1d", 48, 6)]
)
def test_moves_visit_every_place_within_a_token(task: str, size: int, token: int) -> None:
    views = views_of(spec_of(task, size))
    for mirrored in ((), (0,))[: views.number]:
        seen = [view.shift[0] % token for view in map(views.at, range(4 * token)) if view.mirrored == mirrored]
        assert set(seen) == set(range(token))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("task", ["burgers1d", "reaction_diffusion2d", "kolmogorov2d"])
def test_no_step_sees_what_the_one_before_saw(task: str, count: int) -> None:
    spec = spec_of(task)
    views = views_of(spec)
    u = torch.randn(len(spec.fields), *spec.lattice, generator=torch.Generator().manual_seed(0))

    def seen(number: int) -> set[tuple[float, ...]]:
        view, views_of_it = views.of_step(number, count)
        seen = views.see(u, view)
        return {tuple(views.see(seen, views.at(index)).flatten().tolist()) for index in range(views_of_it)}

    for number in range(8):
        assert len(seen(number)) == count
        assert seen(number) != seen(number + 1)


def test_no_view_is_paid_for_twice() -> None:
    assert views_of(spec_of("reaction_diffusion2d")).of_step(3, 12)[1] == 8
    assert views_of(spec_of("burgers1d")).of_step(3, 12)[1] == 12, "they differ by how far they are moved"


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize(("task", "size"), [("advection1d", 16), ("burgers1d", 16), ("kolmogorov2d", 32)])
def test_all_views_that_may_be_paid_for_differ(task: str, size: int, unit: int) -> None:
    views = views_of(spec_of(task, size))
    views.keep_tokens(unit)
    count = views.of_step(3, 10**6)[1]
    assert count == views.distinct
    assert len({views.at(index) for index in range(count)}) == count


def test_views_that_a_grid_does_not_have_are_left_out() -> None:
    centred = spec_of("kolmogorov2d")
    origin = tuple(low - step / 2 for low, step in zip(centred.origin, centred.spacing, strict=True))
    at_vertices = replace(centred, origin=origin)
    assert views_of(at_vertices).number < views_of(centred).number
    static = static_fields(at_vertices)
    views = Views(at_vertices, static)
    for index in range(16):
        moved = replace(views.at(index), shift=(0, views.at(index).shift[1]))
        torch.testing.assert_close(views.see(static, moved, change=True), static, atol=1e-4, rtol=1e-4)
    stretched = spec_of("reaction_diffusion2d", spacing=(0.1, 0.2))
    assert views_of(stretched).number == 4


@pytest.mark.parametrize(("task", "size"), [("burgers1d", 32), ("kolmogorov2d", 48)])
def test_what_a_lossy_codec_left_stays_on_its_tokens(task: str, size: int) -> None:
    """Where motions move a grid by parts of tokens, only those are left that move it by whole ones."""
    views = make_simulator(task, 1, size, latent_dim=2).physics[task].views
    shifts = [cells for index in range(32) for cells in views.at(index).shift]
    assert len(set(shifts)) > 2
    assert all(cells % 4 == 0 for cells in shifts)
    exact = make_simulator(task, 1, size).physics[task].views
    assert any(cells % 4 for index in range(32) for cells in exact.at(index).shift)


def test_a_grid_of_less_than_a_token_is_refused_before_its_views_are_made() -> None:
    with pytest.raises(UpsError, match="cannot be cut into latent tokens"):
        make_simulator("burgers1d", 1, 2, latent_dim=2)


def test_an_unknown_equation_is_seen_as_it_is() -> None:
    views = views_of(make_spec())
    u = torch.randn(2, 1, 32)
    assert all(torch.equal(views.see(u, views.at(index)), u) for index in range(4))


def test_the_mean_over_all_views_has_the_symmetry() -> None:
    task = "reaction_diffusion2d"
    u = torch.randn(2, 1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    for symmetrize, equivariant in ((8, True), (1, False), (0, False)):
        simulator = make_simulator(task, symmetrize, conserved=(False, False))
        turned = simulator.step(u.mT.flip(-1), **call(task, 2))
        wanted = simulator.step(u, **call(task, 2)).mT.flip(-1)
        assert torch.allclose(turned, wanted, atol=1e-5) is equivariant
        assert not torch.allclose(wanted, u[:, 0].mT.flip(-1), atol=1e-3), "nothing happens in a step"


@torch.no_grad()
def test_each_step_of_a_roll_out_sees_the_next_view_and_training_sees_none() -> None:
    task = "burgers1d"
    simulator, plain = make_simulator(task, 1), make_simulator(task, 0)
    u = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    views, state, wanted = simulator.physics[task].views, u, []
    for number in range(5):
        view = views.at(number)
        seen = plain.step(views.see(state, view), **call(task, 2))
        wanted.append(views.back(seen, view))
        state = wanted[-1][:, None]
    found = simulator.rollout(u, 5, **call(task, 2))
    torch.testing.assert_close(found, torch.stack(wanted, 1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain.rollout(u, 5, **call(task, 2)), atol=1e-3)
    z = simulator.encode(u, task=task)
    assert torch.equal(simulator.advance(z, **call(task, 2)), plain.advance(z, **call(task, 2)))


@torch.no_grad()
def test_a_correction_is_made_in_the_view_of_its_step() -> None:
    task = "burgers1d"
    simulator = make_simulator(task, 1, mean=(0.4,), std=(1.3,))
    views, normalizer = simulator.physics[task].views, simulator.normalizers[task]
    u, met = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0)), []

    def correct(u_hat: Tensor, u_next: Tensor, view: Seen) -> Tensor:
        met.append((u_hat, u_next, view))
        return u_next

    z = simulator.rollout_latent(u, 4, correct=correct, **call(task, 2))
    states = normalizer(torch.cat([u, simulator.decode(z, task=task)], dim=1))
    for number, (u_hat, u_next, view) in enumerate(met):
        assert view == views.at(number)
        torch.testing.assert_close(u_hat[:, 0], views.see(states[:, number], view), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(u_next, views.see(states[:, number + 1], view), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_each_member_sees_views_of_its_own() -> None:
    task, members = "burgers1d", 3
    simulator, met = make_simulator(task, 1), []
    views, normalizer = simulator.physics[task].views, simulator.normalizers[task]
    u = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(0)).repeat(members, 1, 1, 1)

    def correct(u_hat: Tensor, u_next: Tensor, view: Seen) -> Tensor:
        met.append((u_hat, view))
        return u_next

    z = simulator.rollout_latent(u, 3, correct=correct, members=members, **call(task, 2 * members))
    states = normalizer(torch.cat([u, simulator.decode(z, task=task)], dim=1))
    for number, (u_hat, view) in enumerate(met):
        assert view == tuple(views.at(number + member) for member in range(members))
        for member, seen in enumerate(u_hat[:, 0].chunk(members)):
            state = states[:, number].chunk(members)[member]
            torch.testing.assert_close(seen, views.see(state, views.at(number + member)), atol=1e-5, rtol=1e-5)


def test_errors_that_lie_as_the_field_is_seen_are_forgotten() -> None:
    """A fixed pattern is added to what is seen: without views it is the same at every step, with them it is not."""
    remembered = {}
    for symmetrize in (0, 1):
        task = "burgers1d"
        simulator = make_simulator(task, symmetrize)
        pattern = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(1))
        simulator.advance_normalized = lambda u_hat, **_: u_hat[:, -1] + 0.1 * pattern  # type: ignore[method-assign]  # noqa: B023
        simulator.add_corrector(DiffusionArchitecture(hidden_dim=16, depth=1, stem_width=8, sampler_steps=2))
        frames = torch.randn(8, 1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(8, 4, 1, 16)
        axes = (np.arange(16) / 16,)
        batch = Batch(task, frames, torch.full((8,), 0.1), torch.zeros(8, 0), Grid(axes, (True,)), 1)
        steps = ResidualSteps(simulator, {})
        fit_scales(steps, task, [replace(batch, frames=frames[:, :2])])
        fit_memory(steps, batch)
        remembered[symmetrize] = simulator.corrector.scales[task].memory[0].item()  # type: ignore[union-attr]
    assert remembered[0] > 0.9
    assert abs(remembered[1]) < 0.6
