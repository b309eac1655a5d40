"""The steady prior's objective: every step supervised, the spread trained apart, symmetries, and that it learns."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from tests.models.small_prior import SMALL, make_prior, media

from ups.data.augment import Augment
from ups.data.fields import Batch, Grid
from ups.errors import UpsError
from ups.models.baselines import SteadyNetwork, make_baseline
from ups.models.networks import FNO
from ups.models.prior import SteadyPrior
from ups.physics.equations import get_equation
from ups.physics.solvers.darcy import DarcySolver
from ups.training.losses import relative_l2
from ups.training.prior import SteadyNetworkObjective, SteadyPriorObjective, calibrate, gaussian_crps, transformed

DARCY = get_equation("darcy2d")


def make_batch(num: int = 8) -> Batch:
    a = media(num, 8)
    u = torch.stack(
        [torch.from_numpy(DarcySolver().solve_one(x, 0 * x + 1, (1.0, 1.0))) for x in a[:, 0].double().numpy()]
    )
    frames = torch.stack([a, u[:, None].float()], dim=1)
    axes = tuple(axis.numpy() for axis in DARCY.centres(8))
    return Batch("darcy2d", frames, torch.ones(num), torch.ones(num, 1), Grid(axes, (False, False)), 1)


def make_objective(prior: SteadyPrior, *, enabled: bool = False) -> SteadyPriorObjective:
    return SteadyPriorObjective(prior, {"darcy2d": Augment(DARCY, enabled=enabled)})


def gradients(objective: SteadyPriorObjective) -> dict[str, float]:
    """Size of the loss's gradient by part of the model."""
    prior = objective.prior
    prior.zero_grad()
    loss, _ = objective(make_batch(), torch.Generator())
    loss.backward()
    return {
        part: sum(float(p.grad.norm()) for p in getattr(prior, part).parameters() if p.grad is not None)
        for part in ("drift", "divergences", "errors", "codecs")
    }


def test_each_part_trains_what_it_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refinement trains drift and conductivities; the spread's loss the expected errors alone."""
    objective = make_objective(make_prior().train())
    both = gradients(objective)
    assert min(both["drift"], both["divergences"], both["errors"]) > 0
    assert both["codecs"] == 0
    monkeypatch.setattr("ups.training.prior.SPREAD_WEIGHT", 0.0)
    without = gradients(objective)
    assert without["errors"] == 0
    assert without["drift"] == pytest.approx(both["drift"], rel=1e-6)
    monkeypatch.setattr("ups.training.prior.SPREAD_WEIGHT", 1.0)
    monkeypatch.setattr("ups.training.prior.relative_l2", lambda u, truth: torch.zeros(()))
    alone = gradients(objective)
    assert alone["errors"] > 0
    assert alone["drift"] == alone["divergences"] == 0


def test_later_steps_weigh_more() -> None:
    """With errors of the two steps known, the loss is (1 e_1 + 4 e_2) / 5."""
    prior = make_prior()
    loss, metrics = make_objective(prior)(make_batch(), torch.Generator())
    expected = (metrics["first"] + 4 * metrics["relative"]) / 5 + 0.1 * metrics["spread"]
    torch.testing.assert_close(loss.detach(), expected)


def test_symmetries_transform_sample_and_geometry_alike() -> None:
    """On a lattice with nodes on the first walls, what is transformed is still zero where the geometry is."""
    prior = make_prior(origin=(0.0, 0.0))
    objective, batch = make_objective(prior, enabled=True), make_batch(32)
    batch.frames[:, 1, :, 0] = batch.frames[:, 1, :, :, 0] = 0.0
    rng = torch.Generator().manual_seed(0)
    given, sought, geometry = transformed(objective.prior, objective.augments, batch, rng)
    walls = geometry[:, 0] == 0
    assert torch.equal(walls, sought[:, 0] == 0)
    corners = {(bool(one[0, 4]), bool(one[-1, 4]), bool(one[4, 0]), bool(one[4, -1])) for one in walls}
    assert corners == {(x, not x, y, not y) for x in (True, False) for y in (True, False)}
    assert geometry.shape == (32, 2, 8, 8)
    assert not torch.equal(given, batch.frames[:, 0])


def test_the_crps_is_that_of_a_normal_distribution() -> None:
    """Against the integral of (F(x) - 1[x >= 0])² by Riemann sum."""
    x = torch.linspace(-12, 12, 240001, dtype=torch.float64)
    for error, size in ((0.3, 0.7), (-1.2, 0.4), (0.0, 1.5)):
        cdf = torch.from_numpy(stats.norm.cdf(x.numpy(), error, size))
        expected = float(((cdf - (x >= 0).double()) ** 2).sum() * (x[1] - x[0]))
        found = gaussian_crps(torch.tensor(error).double(), torch.tensor(size).double())
        assert float(found) == pytest.approx(expected, abs=1e-4)


def test_calibration_finds_the_level_of_the_errors() -> None:
    """Truths that are five expected sizes of normal noise away are met by a level of five."""
    prior, batch = make_prior(), make_batch(64)
    with torch.no_grad():
        u, size = prior.solve(batch.frames[:, 0], "darcy2d", batch.params)
    noise = torch.randn(u.shape, generator=torch.Generator().manual_seed(0))
    batch.frames[:, 1] = prior.scales["darcy2d"].leave(u + 5 * size * noise, "sought")
    assert calibrate(prior, [batch])["darcy2d"] == pytest.approx(5.0, rel=0.1)
    assert float(prior.errors["darcy2d"].level) == pytest.approx(5.0, rel=0.1)


def test_it_learns_and_stays_reproducible() -> None:
    """A small prior fits eight samples within some steps; the same seed gives the same weights."""
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        prior = SteadyPrior(make_prior().tasks, SMALL).train()
        objective, batch, rng = make_objective(prior, enabled=True), make_batch(), torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam([p for p in prior.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss, metrics = objective(batch, rng)
            loss.backward()
            optimizer.step()
            losses.append(float(metrics["relative"]))
        found.append(losses)
    assert found[0] == found[1]
    assert found[0][0] == pytest.approx(1.0)  # starts at zero
    assert sum(found[0][-5:]) / 5 < 0.35
    assert objective.plan(3, 0.5) == 1


def test_a_baseline_learns_to_solve_from_what_is_given() -> None:
    """The FNO fits eight samples far better than zero, and its step is what its objective was trained on."""
    torch.manual_seed(0)
    network = make_baseline("fno", make_prior().tasks)
    assert isinstance(network, SteadyNetwork)
    objective, batch = SteadyNetworkObjective(network, {"darcy2d": Augment(DARCY, enabled=False)}), make_batch()
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=5e-3), []
    for _ in range(40):
        optimizer.zero_grad()
        loss, _ = objective(batch, torch.Generator())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < 0.3
    with torch.no_grad():
        found = network.step(batch.frames[:, :1], task="darcy2d", dt=batch.dt, params=batch.params)
        again, _ = objective(batch, torch.Generator())
    torch.testing.assert_close(relative_l2(found, batch.frames[:, 1]), again, atol=1e-5, rtol=1e-4)


def test_a_baseline_reads_where_the_walls_are_and_solves_on_finer_lattices() -> None:
    torch.manual_seed(0)
    network = make_baseline("fno", make_prior().tasks).eval()
    assert isinstance(network, SteadyNetwork)
    a, one = media(3, 8), {"task": "darcy2d", "dt": torch.ones(3), "params": torch.ones(3, 1)}
    moved = make_baseline("fno", make_prior(origin=(0.0, 0.0)).tasks).eval()
    moved.load_state_dict(network.state_dict())
    assert not torch.allclose(network.step(a[:, None], **one), moved.step(a[:, None], **one))
    fine = network.rollout(media(3, 16)[:, None], 1, **one)
    assert fine.shape == (3, 1, 1, 16, 16)
    assert isinstance(network.networks["darcy2d"], FNO)
    with pytest.raises(UpsError, match="steps must be 1"):
        network.rollout(a[:, None], 2, **one)
