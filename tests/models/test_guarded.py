"""Guards are part of a simulator's step: in roll-outs, in ensembles, in training, and in what is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.small_corrector import SMALL, TASK, make_context, make_simulator, roll

from ups.errors import UpsError, UsageError
from ups.models.baselines import make_baseline
from ups.models.simulator import Simulator
from ups.models.store import load_model, save_model
from ups.models.surrogate import Surrogate


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


def ask(simulator: Simulator, steps: int, **switches: Any) -> torch.Tensor:
    """As `predict`, as users ask for it."""
    return Surrogate(simulator, torch.device("cpu")).rollout(make_context(), steps, {"nu": 0.01}, **switches)


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
    simulator = make_guarded("conservation")
    assert simulator.corrector is not None
    for limit in (1.0, 0.3):
        simulator.corrector.contract(limit)
        found = roll(simulator, context, steps=10)
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


def test_guards_are_switched_on_and_off_in_a_rollout() -> None:
    """What comes out is that of a model with these guards, and the model is afterwards as it was."""
    context, loose, guarded = make_context(), make_guarded(), make_guarded("conservation")
    assert gap(ask(loose, 50), context) > 1e-3
    assert gap(ask(loose, 50, guards=["conservation"]), context) < 1e-6
    assert torch.equal(ask(loose, 5, guards=["conservation"]), ask(guarded, 5))
    assert torch.equal(ask(guarded, 5, guards=()), ask(loose, 5))
    assert torch.equal(ask(guarded, 5, guards=None), predict(guarded, context, 5))
    assert max(gap(u, context) for u in ask(loose, 10, members=2, guards=["conservation"])) < 1e-6
    for simulator, names in ((loose, ()), (guarded, ("conservation",))):
        assert (simulator.guards[TASK].active, simulator.architecture.guards) == (bool(names), names)


def test_corrections_are_made_as_often_as_a_rollout_asks() -> None:
    often = make_guarded()
    seldom = Simulator(often.tasks, replace(often.architecture, corrector_every=3))
    seldom.add_corrector(SMALL)
    seldom.load_state_dict(often.state_dict())
    wanted = ask(seldom, 6, members=2)
    assert torch.equal(ask(often, 6, members=2, corrector_every=3), wanted)
    assert not torch.equal(ask(often, 6, members=2), wanted)
    assert torch.equal(ask(seldom, 6, members=2, corrector_every=1), ask(often, 6, members=2))


def test_a_step_is_the_mean_over_as_many_views_as_a_rollout_asks() -> None:
    simulator = make_guarded()
    for trained in (1, 2):
        simulator.architecture = replace(simulator.architecture, symmetrize=trained)
        drawn = {
            views: (ask(simulator, 3, views=views), ask(simulator, 3, members=2, views=views)) for views in (0, 1, 2)
        }
        for views, found in drawn.items():
            other = make_guarded()
            other.architecture = replace(other.architecture, symmetrize=views)
            assert torch.equal(found[0], ask(other, 3))
            assert torch.equal(found[1], ask(other, 3, members=2))
        assert not torch.equal(drawn[1][0], drawn[2][0])
        assert not torch.equal(drawn[0][0], drawn[1][0])
        assert torch.equal(ask(simulator, 3), drawn[trained][0])


def test_a_model_that_may_have_seen_no_other_view_is_not_shown_any() -> None:
    simulator = make_guarded()
    simulator.architecture = replace(simulator.architecture, symmetrize=0)
    assert torch.equal(ask(simulator, 3, views=0), ask(simulator, 3))
    with pytest.raises(UsageError, match=r"views is 2, but .*operator\.symmetrize 0"):
        ask(simulator, 3, views=2)


def test_a_rollout_stays_in_latent_space_unless_asked() -> None:
    """They differ where decoding does not undo encoding; there no guard would be exact."""
    simulator, context = make_guarded(), make_context()
    with torch.no_grad():
        simulator.codecs[TASK].decoder.mul_(1.01)
    arguments = {"task": TASK, "dt": torch.full((3,), 0.1), "params": torch.full((3, 1), 0.01)}
    with torch.no_grad():
        latent, physical = (simulator.rollout(context, 4, mode=mode, **arguments) for mode in ("latent", "physical"))
    assert torch.equal(ask(simulator, 4, mode="physical"), physical)
    assert torch.equal(ask(simulator, 4, mode="latent"), latent)
    assert torch.equal(ask(simulator, 4), latent)
    assert not torch.allclose(latent, physical)
    with pytest.raises(UpsError, match="decoding undoes encoding"):
        ask(simulator, 4, guards=["conservation"])
    assert torch.equal(ask(simulator, 4), latent)


@pytest.mark.parametrize(
    ("switches", "said"),
    [
        ({"guards": ["mass"]}, "there is no 'mass'; the guards are conservation, positivity, divergence, boundary"),
        ({"guards": "conservation"}, "give a list of names"),
        ({"guards": ["boundary"]}, "nothing for it in burgers1d: its domain is periodic"),
        ({"corrector_every": 2}, "give members too"),
        ({"corrector_every": 0, "members": 2}, "corrector_every is 0; it must be at least 1"),
        ({"views": -1}, "views is -1; it must be at least 0"),
        ({"mode": "fourier"}, "must be latent or physical"),
    ],
)
def test_a_switch_that_does_not_exist_is_refused(switches: dict[str, Any], said: str) -> None:
    with pytest.raises(UpsError, match=said):
        ask(make_guarded(), 1, **switches)


def test_baselines_have_no_switches() -> None:
    surrogate = Surrogate(make_baseline("persistence", make_guarded().tasks), torch.device("cpu"))
    for switch in ({"guards": ()}, {"mode": "latent"}, {"views": 2}):
        with pytest.raises(UsageError, match=f"{next(iter(switch))}: 'persistence' is no latent simulator"):
            surrogate.rollout(make_context(), 1, **switch)
