"""Physics priors among the terms of the operator's objective: what they train, and what they see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.training.small_objectives import (
    AUGMENTS,
    NOTHING,
    PRIORS,
    gradients,
    make_batch,
    make_priors,
    make_simulator,
)

from ups.data.fields import Batch
from ups.training.losses import InverseCurriculum
from ups.training.objectives import OperatorObjective
from ups.training.physics import Prediction, TaskPriors


def make_calm_batch(horizon: int = 1) -> Batch:
    """A batch whose targets break no law of `LAWFUL` more than a random prediction does."""
    batch = make_batch(horizon)
    frames = batch.frames - batch.frames.mean(-1, keepdim=True)
    frames[:, 1:] *= 0.01
    return replace(batch, frames=1 + frames)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("prior", PRIORS)
def test_each_prior_trains_the_operator(prior: str, frozen: bool) -> None:
    simulator = make_simulator()
    simulator.codecs.requires_grad_(not frozen)
    objective = OperatorObjective(simulator, AUGMENTS, NOTHING, InverseCurriculum(0, 1.0), make_priors(prior))
    found = gradients(objective, make_calm_batch())
    trained = {"operator"} if frozen else {"operator", "encoder", "decoder"}
    assert {part for part, size in found.items() if size > 1e-5} == trained
    assert all(p.grad is None for p in simulator.codecs.parameters()) == frozen


def test_priors_see_every_predicted_frame_in_physical_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last given frame, then the simulator's own roll-out; beside it the truth."""
    seen: list[Prediction] = []
    monkeypatch.setattr(TaskPriors, "terms", lambda _self, found: seen.append(found) or {})
    simulator = make_simulator(context=2)
    terms = replace(NOTHING, rollout=1.0, rollout_horizon=3)
    batch = make_batch(3, context=2)
    OperatorObjective(simulator, AUGMENTS, terms, InverseCurriculum(0, 1.0), make_priors("residual"))(
        batch, torch.Generator()
    )
    (found,) = seen
    rolled = simulator.rollout(batch.inputs, 3, task="task", dt=batch.dt, params=batch.params)
    torch.testing.assert_close(found.frames, torch.cat([batch.frames[:, 1:2], rolled], dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.truth, batch.frames[:, 1:], rtol=0, atol=0)
    torch.testing.assert_close(simulator.decode(found.latents, task="task"), rolled, rtol=1e-5, atol=1e-5)
    assert found.dt is batch.dt
    assert found.params is batch.params


def test_priors_have_their_own_names_and_frequency_and_add_up() -> None:
    priors = make_priors(*PRIORS, frequency=3)
    terms = replace(NOTHING, forward=1.0)
    objective = OperatorObjective(make_simulator(), AUGMENTS, terms, InverseCurriculum(0, 1.0), priors)
    batch, seen = make_calm_batch(), []
    for number in range(5):
        if number == 2:  # resumed where it stood
            state = objective.state_dict()
            objective.batches = 99
            objective.load_state_dict(state)
        loss, metrics = objective(batch, torch.Generator())
        torch.testing.assert_close(loss.detach(), torch.stack(list(metrics.values())).sum())
        seen.append(set(metrics))
    assert seen == [{"forward", *PRIORS}, {"forward"}, {"forward"}, {"forward", *PRIORS}, {"forward"}]
