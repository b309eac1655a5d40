"""Flow matching: samplers of known order, a denoiser that is right for Gaussians, and what a corrector must keep."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.small_corrector import SMALL, TASK, make_context, make_simulator, roll
from torch import Tensor

from ups.errors import CheckpointError, UpsError
from ups.models.corrector import contraction, limit_of
from ups.models.diffusion import SAMPLERS, Condition, PointMlp, angle, even_times, on_circle
from ups.models.noise import NoiseSeries, standard_noise
from ups.models.simulator import Simulator
from ups.models.store import adopt, load_model, save_model
from ups.models.surrogate import Surrogate

# --- sampler ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_a_sampler_has_its_order(name: str, order: int) -> None:
    # dw/dtheta = w cos(theta) from 1: w = exp(sin theta), e at the end
    errors = []
    for steps in (8, 16):
        start = torch.ones(1, 1, 1, dtype=torch.float64)
        states = SAMPLERS[name](lambda w, tau: w * angle(tau).double().cos(), start, even_times(steps))
        assert len(states) == steps + 1
        errors.append(abs(float(states[-1]) - math.e))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize(("sampler", "steps", "left"), [
    ("heun", 16, ("euler", 5)), ("heun", 3, ("euler", 5)), ("heun", 2, ("heun", 2)), ("euler", 16, ("euler", 5)),
])  # fmt: skip
def test_a_quick_sample_calls_the_network_so_often_at_most(sampler: str, steps: int, left: tuple[str, int]) -> None:
    simulator = make_simulator(architecture=replace(SMALL, sampler=sampler, sampler_steps=steps))
    corrector = simulator.corrector
    assert corrector is not None
    calls, turn = 0, corrector.denoiser.turn

    def counted(*given: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return turn(*given)

    condition = Condition(TASK, torch.randn(2, 2, 32), torch.zeros(2, 2), torch.zeros(2, 1, 32), torch.ones(2, 1, 32))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), corrector.sampling(5):
        patch.setattr(corrector.denoiser, "turn", counted)
        corrector.draw(condition, NoiseSeries(torch.Generator().manual_seed(0)))
        assert (corrector.architecture.sampler, corrector.architecture.sampler_steps) == left
    assert 0 < calls <= 5
    assert (corrector.architecture.sampler, corrector.architecture.sampler_steps) == (sampler, steps)


# --- denoiser --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["transformer", "mlp"])
@pytest.mark.parametrize("steps", [1, 5])
def test_an_untrained_flow_samples_the_gaussian_of_the_moments(architecture: str, steps: int) -> None:
    """Exactly, in any number of steps, and where the spread is tiny too."""
    simulator = make_simulator(trained=False, architecture=replace(SMALL, architecture=architecture))
    assert simulator.corrector is not None
    mean, spread = torch.randn(2, 1, 32), torch.rand(2, 1, 32) ** 8
    condition = Condition(TASK, torch.randn(2, 2, 32), torch.zeros(2, 2), mean, spread)
    with torch.no_grad():
        found = simulator.corrector.draw(condition, NoiseSeries(torch.Generator().manual_seed(0)), steps=steps)
    noise = standard_noise(mean, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, mean + spread * noise)


def test_the_circle_is_the_straight_path_at_unit_variance() -> None:
    noise, data, tau = torch.randn(3, 1, 8), torch.randn(3, 1, 8), torch.tensor([0.0, 0.3, 1.0])
    at = tau[:, None, None]
    straight = (1 - at) * noise + at * data
    torch.testing.assert_close(on_circle(noise, data, tau), straight / (at**2 + (1 - at) ** 2).sqrt())


def test_a_student_that_knows_the_turn_lands_at_the_data_from_anywhere() -> None:
    simulator = make_simulator()
    assert simulator.corrector is not None
    noise, data = torch.randn(2, 1, 32), torch.randn(2, 1, 32)
    for tau in (0.0, 0.4, 0.9):
        theta = float(angle(tau))
        w = math.cos(theta) * noise + math.sin(theta) * data
        turn = math.cos(theta) * data - math.sin(theta) * noise
        simulator.corrector.denoiser.turn = lambda *_, turn=turn: turn  # type: ignore[method-assign]
        condition = Condition(TASK, torch.zeros(2, 2, 32), torch.zeros(2, 2), noise, noise)
        torch.testing.assert_close(simulator.corrector.land(w, tau, condition), data)


def test_a_point_network_does_not_mix_cells() -> None:
    torch.manual_seed(0)
    network = PointMlp(1, {TASK: (2, 1)}, {TASK: 0}, width=8, depth=2)
    for p in network.parameters():
        torch.nn.init.normal_(p)
    u = torch.randn(1, 2, 16)
    changed = u.clone()
    changed[..., 5] += 1
    difference = network(changed, torch.zeros(1, 1), TASK, (True,)) - network(u, torch.zeros(1, 1), TASK, (True,))
    assert difference[..., 5].abs().min() > 0
    assert difference[..., [i for i in range(16) if i != 5]].abs().max() == 0


# --- corrector -------------------------------------------------------------------------------------------------------


def test_members_differ_and_depend_on_the_seed_alone() -> None:
    simulator, context = make_simulator(), make_context()
    found = roll(simulator, context)
    assert found.shape == (4, 3, 3, 1, 32)
    assert torch.equal(found, roll(simulator, context))
    assert not torch.equal(found, roll(simulator, context, seed=1))
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_members_keep_the_integral_that_the_step_keeps() -> None:
    context = make_context()
    found = roll(make_simulator(), context, steps=5)
    drift = (found.mean(-1) - context.mean(-1)[:, :1]).abs().max()
    assert float(drift) < 1e-5
    loose = roll(make_simulator(form="increment"), context, steps=5)
    assert (loose.mean(-1) - context.mean(-1)[:, :1]).abs().max() > 1e-3


def test_members_are_galilean_invariant() -> None:
    simulator, context = make_simulator(galilean=True, mean=(0.0,), std=(1.0,)), make_context()
    boost = 10 / 32 / 0.1  # ten cells in a step
    still, moving = roll(simulator, context, steps=1), roll(simulator, context + boost, steps=1)
    torch.testing.assert_close(moving - boost, still.roll(10, -1), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("cells", [0, 10])
def test_members_go_astray_in_one_direction_for_as_long_as_errors_last(every: int, cells: int) -> None:
    """An untrained corrector of an operator that moves everything by whole cells: what members add is noise alone."""
    simulator = make_simulator(trained=False, galilean=True, mean=(0.0,), std=(1.0,))
    simulator.architecture = replace(simulator.architecture, corrector_every=every)

    def advance(u_hat: Tensor, **_: object) -> Tensor:
        mirrored = u_hat.mean((1, 2, 3))[:, None, None] < 0  # and moves the other way
        return torch.where(mirrored, u_hat[:, -1].roll(-cells, -1), u_hat[:, -1].roll(cells, -1))

    simulator.advance_normalized = advance  # type: ignore[method-assign]
    assert simulator.corrector is not None
    simulator.corrector.scales[TASK].memory.copy_(torch.tensor([0.7, 0.5, 0.3]))
    context = make_context()
    context += cells / 32 / 0.1 - context.mean(-1, keepdim=True)
    found = roll(simulator, context, steps=2 * every, members=500)
    path = torch.cat([context.expand(500, -1, -1, -1, -1), found], dim=2).unbind(2)
    first, second = torch.stack([u.roll(-cells * step, -1) for step, u in enumerate(path)][::every]).diff(dim=0)
    together = float((first * second).mean() / first.square().mean())
    assert together == pytest.approx({1: 0.7, 2: 0.5}[every], abs=0.02)


def test_without_spread_all_members_are_the_corrected_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator, context = make_simulator(), make_context()
    simulator.architecture = replace(simulator.architecture, symmetrize=0)  # views of their own set members apart
    assert simulator.corrector is not None
    simulator.corrector.widen(0.0)
    with monkeypatch.context() as patch:
        patch.delattr(NoiseSeries, "draw")  # nothing is drawn
        found = roll(simulator, context, steps=1)
    torch.testing.assert_close(found[0], found[1])
    simulator.corrector.widen(2.0)
    wide = roll(simulator, context, steps=1)
    simulator.corrector.widen(1.0)
    normal = roll(simulator, context, steps=1)
    torch.testing.assert_close(wide - found, 2 * (normal - found), atol=1e-5, rtol=1e-3)
    simulator.corrector.widen(0.0)
    simulator.architecture = replace(simulator.architecture, symmetrize=1)
    apart = roll(simulator, context, steps=1)
    assert (apart[0] - apart[1]).abs().max() > 1e-4, "each member sees a view of its own"


def test_only_every_so_many_steps_are_corrected() -> None:
    context = make_context()
    simulator = make_simulator()
    simulator.architecture = replace(simulator.architecture, corrector_every=2, symmetrize=0)
    found = roll(simulator, context, steps=2)
    torch.testing.assert_close(found[0, :, 0], found[1, :, 0], rtol=0, atol=0)
    assert (found[0, :, 1] - found[1, :, 1]).abs().max() > 1e-3


def test_scales_are_those_of_the_operators_error() -> None:
    simulator = make_simulator(trained=False, form="increment")
    corrector, physics = simulator.corrector, simulator.physics[TASK]
    assert corrector is not None
    u = torch.randn(64, 1, 1, 32)
    prediction = u[:, 0] + 0.5 * torch.randn(64, 1, 32)
    truth = prediction + 0.02 * torch.randn(64, 1, 32)
    corrector.fit(TASK, physics, [(u[:32], prediction[:32], truth[:32]), (u[32:], prediction[32:], truth[32:])])
    assert float(corrector.scales[TASK].residual) == pytest.approx(0.02, rel=0.1)
    assert float(corrector.scales[TASK].change) == pytest.approx(0.5, rel=0.1)
    with pytest.raises(UpsError, match="nothing to correct"):
        corrector.fit(TASK, physics, [(u, prediction, prediction)])


def test_a_student_takes_the_place_of_its_teacher() -> None:
    simulator, context = make_simulator(), make_context()
    assert simulator.corrector is not None
    teacher = roll(simulator, context, steps=1)
    student = simulator.corrector.add_student()
    assert student is simulator.corrector.add_student()
    taught = roll(simulator, context, steps=1)
    assert (taught - teacher).abs().max() > 1e-4  # two jumps are not the whole path
    condition = Condition(TASK, torch.randn(1, 2, 32), torch.zeros(1, 2), torch.zeros(1, 1, 32), torch.ones(1, 1, 32))
    x = torch.randn(1, 1, 32)
    torch.testing.assert_close(simulator.corrector.land(x, 1.0, condition), x)
    marks = [hasattr(p, "no_muon") for p in simulator.corrector.denoiser.flow.parameters()]
    assert [hasattr(p, "no_muon") for p in student.parameters()] == marks
    assert any(marks)


def test_members_are_moved_towards_their_mean_once_all_are_rolled_out() -> None:
    """So what the next steps are of does not change; on the grid and at points."""
    simulator, context = make_simulator(), make_context()
    assert simulator.corrector is not None
    apart = roll(simulator, context, steps=3)
    simulator.corrector.contract(limit_of(0.6, len(apart)))
    found = roll(simulator, context, steps=3)
    torch.testing.assert_close(found, apart.mean(0) + 0.6 * (apart - apart.mean(0)), atol=1e-5, rtol=1e-4)
    surrogate, nodes = Surrogate(simulator, torch.device("cpu")), (torch.arange(32) + 0.5) / 32
    drawn = [surrogate.rollout(context, 2, {"nu": 0.01}, members=3, points=points) for points in (None, nodes)]
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-5, rtol=1e-4)


def test_a_member_that_diverged_leaves_the_others_to_each_other() -> None:
    simulator = make_simulator()
    assert simulator.corrector is not None
    simulator.corrector.contract(limit_of(0.6, 4))
    members = torch.randn(5, 2, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    whole = simulator.corrector.towards_mean(members[:4], TASK)
    members[4, :, 1:] = 1.0
    members[4, :, 1:, 0, 0] = math.nan
    found = simulator.corrector.towards_mean(members, TASK)
    torch.testing.assert_close(found[:4, :, 1:], whole[:, :, 1:])
    torch.testing.assert_close(found[4, :, 1:], members[4, :, 1:], equal_nan=True)
    assert (found[:, :, 0] - members[:, :, 0]).abs().min() > 0
    alone = simulator.corrector.towards_mean(members[:1], TASK)
    assert torch.equal(alone, members[:1])


@pytest.mark.parametrize("num", [2, 5, 50])
def test_members_of_any_number_are_moved_to_where_their_spread_fits_their_means_error(num: int) -> None:
    """Three times as far apart as the truth is from their centre, however many of them were calibrated by."""
    rng = torch.Generator().manual_seed(0)
    members, truth = 3 * torch.randn(num, 20000, generator=rng), torch.randn(20000, generator=rng)
    limit = limit_of(float(contraction(torch.tensor(1 / 3), torch.tensor(8))), 8)
    moved = float(contraction(torch.tensor(limit), torch.tensor(num))) * (members - members.mean(0))
    spread = (moved.square().sum(0).mean() / (num - 1) * (num + 1) / num).sqrt()
    assert float(spread / (members.mean(0) - truth).square().mean().sqrt()) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("student", [False, True])
def test_a_corrector_is_saved_and_loaded_with_its_simulator(tmp_path: Path, student: bool) -> None:
    simulator, context = make_simulator(), make_context()
    assert simulator.corrector is not None
    if student:
        for p in simulator.corrector.add_student().parameters():
            p.data += 0.01
    simulator.corrector.widen(1.3)
    simulator.corrector.contract(0.8)
    simulator.corrector.scales[TASK].memory.copy_(torch.tensor([0.6, 0.3, 0.1]))
    save_model(simulator, tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Simulator)
    assert loaded.draws
    assert torch.equal(roll(loaded, context), roll(simulator, context))
    other = make_simulator(trained=False)
    other.corrector = None
    adopt(other, tmp_path)
    assert torch.equal(roll(other, context), roll(simulator, context))
    wider = Simulator(simulator.tasks, replace(simulator.architecture, hidden_dim=32))
    with pytest.raises(CheckpointError, match="another architecture"):
        adopt(wider, tmp_path)


def test_a_surrogate_draws_members_on_the_grid_and_at_points() -> None:
    surrogate = Surrogate(make_simulator(), torch.device("cpu"))
    u0 = make_context()[:, 0]
    found = surrogate.rollout(u0, 2, {"nu": 0.01}, members=5, seed=3)
    assert found.shape == (5, 3, 2, 1, 32)
    assert torch.equal(found, surrogate.rollout(u0, 2, {"nu": 0.01}, members=5, seed=3))
    nodes = (torch.arange(32) + 0.5) / 32
    at_nodes = surrogate.rollout(u0, 2, {"nu": 0.01}, members=5, seed=3, points=nodes)
    torch.testing.assert_close(at_nodes, found, atol=1e-5, rtol=1e-4)
    with pytest.raises(UpsError, match="must be at least 1"):
        surrogate.rollout(u0, 2, members=0)


def test_a_simulator_without_a_corrector_draws_nothing() -> None:
    simulator = make_simulator()
    simulator.corrector = None
    with pytest.raises(UpsError, match="diff_residual"):
        roll(simulator, make_context())
    with pytest.raises(UpsError, match="deterministic; train the stage diff_residual"):
        Surrogate(simulator, torch.device("cpu")).rollout(make_context()[:, 0], 2, members=2)
