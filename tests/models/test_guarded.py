"""Guards are part of a simulator's step: in roll-outs, in ensembles, in training, and in what is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.models.small_corrector import SMALL, TASK, make_context, make_simulator, roll

from ups.errors import UpsError
from ups.models.simulator import Simulator
from ups.models.store import load_model, save_model


def make_guarded(*guards: str, form: str = "increment") -> Simulator:
    """A simulator of random weights, whose steps keep nothing by themselves."""
    loose = make_simulator(form=form)
    simulator = Simulator(loose.tasks, replace(loose.architecture, guards=guards, form=form))
    simulator.add_corrector(SMALL)
    simulator.load_state_dict(loose.state_dict())
    for p in simulator.operator.outlets.parameters():
        torch.nn.init.normal_(p, std=0.003)
    return simulator.eval()


def predict(simulator: Simulator, context: torch.Tensor, steps: int) -> torch.Tensor:
    dt, params = torch.full((len(context),), 0.1), torch.full((len(context), 1), 0.01)
    with torch.no_grad():
        return simulator.rollout(context, steps, task=TASK, dt=dt, params=params)


def gap(u: torch.Tensor, context: torch.Tensor) -> float:
    """Largest change of the integral over time, over that of |u_0|."""
    change = u.double().mean(-1) - context.double().mean(-1)[:, :1]
    return float(change.detach().abs().max() / context.double().abs().mean())


def test_a_guarded_rollout_keeps_the_integral() -> None:
    context = make_context()
    assert gap(predict(make_guarded(), context, 50), context) > 1e-3
    assert gap(predict(make_guarded("conservation"), context, 50), context) < 1e-6


def test_members_of_a_guarded_ensemble_keep_it_too() -> None:
    context = make_context()
    found = roll(make_guarded("conservation"), context, steps=10)
    assert max(gap(member, context) for member in found) < 1e-6


def test_guards_are_saved_with_the_model(tmp_path: Path) -> None:
    context, simulator = make_context(), make_guarded("conservation")
    save_model(simulator, tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, Simulator)
    assert torch.equal(predict(loaded, context, 5), predict(simulator, context, 5))
    assert gap(predict(loaded, context, 50), context) < 1e-6


def test_the_operator_is_trained_through_its_guards() -> None:
    simulator, context = make_guarded("conservation"), make_context()
    z = simulator.encode(context, task=TASK)
    arguments = {"task": TASK, "dt": torch.full((3,), 0.1), "params": torch.full((3, 1), 0.01)}
    u = simulator.decode(simulator.advance(z, **arguments)[:, None], task=TASK)
    assert gap(u, context) < 1e-6
    u.square().sum().backward()
    assert all(p.grad is not None for p in simulator.operator.parameters())


def test_a_guard_that_the_equation_has_nothing_for_is_refused() -> None:
    with pytest.raises(UpsError, match=r"guards\.boundary"):
        make_guarded("boundary")


def test_a_codec_that_loses_what_a_guard_keeps_is_refused() -> None:
    """What is decoded from a lossy codec has another integral than what was projected."""
    loose = make_simulator(form="increment")
    few = replace(loose.architecture, latent_dim=3)
    Simulator(loose.tasks, few)
    with pytest.raises(UpsError, match=r"latent\.dim 3 .* 4 values .*latent\.patch 4.* guards\.conservation"):
        Simulator(loose.tasks, replace(few, guards=("conservation",)))
    assert Simulator(loose.tasks, replace(few, latent_dim=4, guards=("conservation",))).guards[TASK].active
