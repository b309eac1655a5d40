"""Physics priors: their values worked out by hand, no loss for the truth, a gradient, and what they refuse."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.models.helpers import make_spec

from ups.config import Settings
from ups.config.physics import PhysicsPriorSettings
from ups.errors import UpsError
from ups.models.architecture import Architecture
from ups.models.simulator import Simulator
from ups.physics.description import Equation, Field
from ups.physics.equations import EQUATIONS, get_equation
from ups.physics.guards import Guards
from ups.training.physics import (
    PhysicsPriors,
    Prediction,
    TaskPriors,
    boundary_loss,
    build_priors,
    conservation_loss,
    divergence_loss,
    latent_diversity_loss,
    latent_norm_loss,
    positivity_loss,
    residual_loss,
)

FLOW = replace(
    get_equation("kolmogorov2d"),
    name="flow2d",
    fields=(Field("p", lower=0.0), Field("u", conserved=True), Field("v", conserved=True)),
    solenoidal=("u", "v"),
    forcing=None,
    rhs=lambda u, params, spacing: -params[:, 0, None, None, None] * u,
)
"""A flow on a periodic square in which everything decays."""
BOX = replace(
    get_equation("reaction_diffusion2d"),
    name="box2d",
    fields=(Field("h", conserved=True, lower=0.0, upper=2.0),),
    rhs=None,
)
IN_TIME = [equation for equation in EQUATIONS.values() if not equation.steady]
TERMS = ("divergence", "conservation", "boundary", "positivity", "residual", "latent_norm", "latent_diversity")


def prediction(frames: torch.Tensor, truth: torch.Tensor, **changes: Any) -> Prediction:
    """A roll-out of two parameters, a time step of 0.1 and random latents; every frame is float32."""
    values: dict[str, Any] = {
        "frames": frames.float(),
        "truth": truth.float(),
        "latents": torch.randn(len(frames), frames.shape[1] - 1, 4, *[2] * (frames.ndim - 3)),
        "params": torch.full((len(frames), 2), 0.5),
        "dt": torch.full((len(frames),), 0.1),
    }
    return Prediction(**{**values, **changes})


def noise(channels: int, cells: int = 8, axes: int = 2, frames: int = 3, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, frames, channels, *[cells] * axes, generator=rng)


def spacing_of(equation: Equation, cells: int) -> tuple[float, ...]:
    return tuple(length / cells for length in equation.lengths)


def every_term(equation: Equation, found: Prediction, **changes: Any) -> dict[str, torch.Tensor]:
    """The terms of all fields that an equation has something for; the latents' in any case."""
    cells = found.frames.shape[-1]
    wanted = {
        "divergence": bool(equation.solenoidal),
        "conservation": any(field.conserved for field in equation.fields),
        "boundary": equation.boundary != "periodic" or "bc_type" in changes,
        "positivity": any(field.lower is not None or field.upper is not None for field in equation.fields),
        "residual": equation.rhs is not None,
        "latent_norm": True,
        "latent_diversity": True,
    }
    weights = {name: float(has) for name, has in wanted.items()}
    priors = TaskPriors(equation, spacing_of(equation, cells), **weights, **changes)
    return {name: term() for name, (weight, term) in priors.terms(found).items() if weight > 0}


@pytest.mark.parametrize("equation", [FLOW, BOX, *IN_TIME], ids=lambda equation: equation.name)
def test_the_truth_has_no_loss_and_a_prediction_has_one_with_a_gradient(equation: Equation) -> None:
    """The truth here is noise: it breaks every law, and the prediction, being twice as rough, breaks it more."""
    truth = noise(len(equation.fields), axes=equation.dim)
    params = torch.tensor([[parameter.default for parameter in equation.parameters]] * 2).reshape(2, -1)
    frames = torch.cat([truth[:, :1], 2 * truth[:, 1:] + 0.3], dim=1).requires_grad_()
    for name, value in every_term(equation, prediction(truth, truth, params=params)).items():
        assert name.startswith("latent") or value == 0, name
    found = every_term(equation, prediction(frames, truth, params=params))
    assert len(found) > 2
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert value.shape == ()
        if not name.startswith("latent"):
            (gradient,) = torch.autograd.grad(value, frames, retain_graph=True)
            assert value > 0.01, name
            assert gradient.isfinite().all(), name
            assert gradient.norm() > 1e-4, name
            assert not gradient[:, 0].any() or name == "residual", name


def test_divergence_of_a_wave() -> None:
    """u = a sin(2 x): mean |2 a cos 2x| = 4 a / pi over the truth's rms gradient, that of v = b sin(x), b / sqrt 2."""
    cells = 64
    x = torch.arange(cells) * (2 * math.pi / cells)
    spacing, zero = spacing_of(FLOW, cells), torch.zeros(cells, cells)
    truth = torch.stack([zero, zero, (3 * torch.sin(x))[:, None].expand(cells, cells)])[None, None].repeat(
        1, 2, 1, 1, 1
    )
    frames = truth.clone()
    frames[:, 1, 1] = (0.7 * torch.sin(2 * x))[:, None]
    loss = divergence_loss(prediction(frames, truth), FLOW, spacing)
    assert loss.item() == pytest.approx(0.7 * 4 / math.pi / (3 / math.sqrt(2)), rel=5e-3)  # |cos| by 64 points
    guarded = Guards.of(FLOW, divergence=True)(frames[:, 1], frames[:, 0])
    assert divergence_loss(prediction(torch.stack([truth[:, 0], guarded], 1), truth), FLOW, spacing) < 1e-6


def test_conservation_is_the_share_of_the_integral_that_is_lost() -> None:
    """The height grows by 0.5 against a mean |h| of 2; the data itself loses 0.1."""
    start = 2 + 0.1 * noise(1, frames=1).sign()
    start = start - start.mean(dim=(3, 4), keepdim=True) + 2
    frames = torch.cat([start, start + 0.5, start - 0.3], 1)
    truth = torch.cat([start, start - 0.1, start - 0.1], 1)
    loss = conservation_loss(prediction(frames, truth), BOX, spacing_of(BOX, 8))
    assert loss.item() == pytest.approx(((0.5 - 0.1) / 2 + (0.3 - 0.1) / 2) / 2, rel=1e-5)
    wave = torch.tensor([3.0, -3.0]).repeat(8, 4)[None, None, None]  # its integral is zero, that of its size is not
    loss = conservation_loss(
        prediction(torch.cat([wave, wave + 0.6], 1), torch.cat([wave, wave], 1)), BOX, (0.25, 0.25)
    )
    assert loss.item() == pytest.approx(0.6 / 3, rel=1e-5)


def test_boundary_mismatch_by_hand() -> None:
    """h = 1 + s x along x of four cells: slopes h dx s at both of its walls, none at the other two."""
    x = torch.arange(4.0) + 0.5
    truth = torch.ones(1, 2, 1, 4, 4)
    frames = (truth + 0.3 * x[:, None]).contiguous()
    found = prediction(frames, truth)
    assert boundary_loss(found, BOX, None, None).item() == pytest.approx(0.3 / math.sqrt(2), rel=1e-5)
    # Values at the walls: 1 and 2.2 across x; along y the same as in the cells.
    across, along = (1.0, 2.2), [1 + 0.3 * (i + 0.5) for i in range(4)]
    square = (4 * sum((v - 0.5) ** 2 for v in across) + 2 * sum((v - 0.5) ** 2 for v in along)) / 16
    loss = boundary_loss(found, BOX, "dirichlet", 0.5)
    assert loss.item() == pytest.approx(math.sqrt(square), rel=1e-5)
    seam = boundary_loss(found, BOX, "periodic", None)
    assert seam.item() == pytest.approx(1.2 / math.sqrt(2), rel=1e-5)


def test_the_equations_own_condition_counts_beyond_the_truth_and_another_in_full() -> None:
    x = torch.arange(4.0) + 0.5
    truth = (torch.ones(1, 2, 1, 4, 4) + 0.2 * x[:, None]).contiguous()
    rms = truth[:, 1:].square().mean().sqrt().item()
    found = prediction(truth + 0.1 * x[:, None], truth)
    assert boundary_loss(found, BOX, "neumann", None).item() == pytest.approx(0.1 / math.sqrt(2) / rms, rel=1e-4)
    walled = replace(BOX, boundary="dirichlet", boundary_value=0.5)
    same = prediction(truth, truth)
    assert boundary_loss(same, walled, None, None) == 0
    assert boundary_loss(same, walled, "dirichlet", 0.5) == 0
    assert boundary_loss(same, walled, "dirichlet", 0.7) > 0.1
    assert boundary_loss(same, BOX, "dirichlet", 0.7) > 0.1


def test_positivity_by_hand() -> None:
    """Of four cells one is 0.4 below zero and one 0.8 above the bound of 2; the truth is 1."""
    truth = torch.ones(1, 2, 1, 2, 2)
    frames = truth.clone()
    frames[0, 1, 0] = torch.tensor([[-0.4, 2.8], [1.0, 0.0]])
    assert positivity_loss(prediction(frames, truth), BOX).item() == pytest.approx((0.4 + 0.8) / 4)
    rough = truth.clone()
    rough[0, 1, 0, 0, 0] = -0.4
    beyond = (0.8 / 4) / rough[:, 1].square().mean().sqrt().item()
    assert positivity_loss(prediction(frames, rough), BOX).item() == pytest.approx(beyond)


def test_residual_by_hand() -> None:
    """u' = -u / 2 from 1: a prediction off by e has R(p) - R(u) = e / dt + e / 4."""
    dt, error = 0.1, 0.03
    decay = torch.exp(torch.tensor([0.0, -0.5 * dt])).reshape(1, 2, 1, 1, 1)
    truth = decay.expand(1, 2, 3, 4, 4)
    frames = torch.cat([truth[:, :1], truth[:, 1:] + error], 1)
    loss = residual_loss(prediction(frames, truth), FLOW, spacing_of(FLOW, 4))
    squares = (1 + math.exp(-dt)) / 2
    scale = squares / 4 + squares * (0.01 / dt) ** 2
    assert loss.item() == pytest.approx((error / dt + error / 4) ** 2 / scale, rel=1e-4)


def test_the_residual_of_the_solution_is_zero_at_any_time_step() -> None:
    """After four units of time the trapezoidal rule is off by half of u: no reason to leave the solution."""
    decay = torch.exp(torch.tensor([0.0, -2.0, -4.0])).reshape(1, 3, 1, 1, 1)
    truth = decay.expand(1, 3, 3, 4, 4)
    dt = torch.tensor([4.0])
    rate = (truth[:, 1] - truth[:, 0]) / 4 + 0.25 * (truth[:, 1] + truth[:, 0])
    assert rate.abs().min() > 0.05
    found = truth.clone().requires_grad_()
    loss = residual_loss(prediction(found, truth, dt=dt), FLOW, spacing_of(FLOW, 4))
    (gradient,) = torch.autograd.grad(loss, found)
    assert loss == 0
    assert not gradient.any()


def test_a_field_at_rest_has_a_finite_residual() -> None:
    """Where the right-hand side vanishes the error is measured against a hundredth of the field per step."""
    still = replace(FLOW, rhs=lambda u, params, spacing: 0 * u)
    truth = torch.ones(1, 2, 3, 4, 4)
    frames = torch.cat([truth[:, :1], truth[:, 1:] + 0.01], 1)
    loss = residual_loss(prediction(frames, truth), still, spacing_of(still, 4))
    assert loss.item() == pytest.approx(1.0, rel=1e-4)


def test_latent_terms_by_hand() -> None:
    z = torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]])[None, None]  # tokens (3, 4), (0, 2), (1, 0)
    sizes = [math.sqrt(12.5), math.sqrt(2), math.sqrt(0.5)]
    assert latent_norm_loss(z).item() == pytest.approx(sum((size - 1) ** 2 for size in sizes) / 3)
    assert latent_diversity_loss(z).item() == pytest.approx((0.8 + 0.6 + 0.0) / 3)
    empty = torch.zeros(1, 1, 2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(latent_norm_loss(empty) + latent_diversity_loss(empty), empty)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"enabled": True}, "every lambda is 0"),
        ({"lambda_residual": 0.1}, "lambda_residual above 0 would have no effect"),
        ({"enabled": True, "lambda_residual": -1.0}, "greater than or equal to 0"),
        ({"enabled": True, "lambda_residual": 0.1, "bc_type": "neumann"}, "lambda_boundary is 0"),
        ({"enabled": True, "lambda_boundary": 0.1, "bc_type": "dirichlet"}, "give bc_value"),
        ({"enabled": True, "lambda_boundary": 0.1, "bc_value": 1.0}, "give bc_type dirichlet"),
        ({"enabled": True, "lambda_boundary": 0.1, "bc_type": "neumann", "bc_value": 1.0}, "give bc_type dirichlet"),
        ({"enabled": True, "lambda_boundary": 0.1, "bc_type": "open"}, "bc_type"),
        ({"enabled": True, "lambda_residual": 0.1, "frequency": 0}, "greater than 0"),
        ({"enabled": True, "lambda_entropy": 0.1}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Settings.model_validate({"data": {"task": "burgers1d"}, "training": {"physics_priors": tree}})


def test_weights_reach_their_terms() -> None:
    """Every setting is a term's weight, and none another's."""
    names = [name.removeprefix("lambda_") for name in PhysicsPriorSettings.model_fields if name.startswith("lambda_")]
    assert sorted(names) == sorted(TERMS)
    simulator = make_simulator("reaction_diffusion1d", form="flux_source", conserved=(False,))
    settings = PhysicsPriorSettings(
        enabled=True,
        lambda_boundary=1.0,
        lambda_positivity=2.0,
        lambda_residual=3.0,
        lambda_latent_norm=4.0,
        lambda_latent_diversity=5.0,
        bc_type="dirichlet",
        bc_value=0.25,
        frequency=3,
    )
    priors = build_priors(settings, simulator)
    of_task = priors.tasks["task"]
    found = {name: weight for name, (weight, _) in of_task.terms(prediction(noise(1, 32, 1), noise(1, 32, 1))).items()}
    assert found == {
        "divergence": 0.0, "conservation": 0.0, "boundary": 1.0, "positivity": 2.0, "residual": 3.0,
        "latent_norm": 4.0, "latent_diversity": 5.0,
    }  # fmt: skip
    assert (of_task.bc_type, of_task.bc_value, of_task.spacing) == ("dirichlet", 0.25, (1 / 32,))
    assert [priors.due(batches) for batches in range(5)] == [True, False, False, True, False]
    assert build_priors(PhysicsPriorSettings(), simulator) is PhysicsPriors.none
    assert not PhysicsPriors.none.due(0)


def make_simulator(name: str, latent_dim: int = 16, patch: int = 4, **changes: Any) -> Simulator:
    """A simulator of a task that is called `task`, of the equation `name`; its codec is frozen."""
    axes = get_equation(name).dim
    spec = make_spec(name=name, axes=axes, size=32 if axes == 1 else 8, **changes)
    simulator = Simulator({"task": spec}, Architecture(latent_dim, patch, hidden_dim=16, heads=2, depths=(1,)))
    simulator.codecs.requires_grad_(False)
    return simulator


@pytest.mark.parametrize(
    ("name", "changes", "key", "said"),
    [
        ("burgers1d", {}, "divergence", r"its fields \(u\) form no velocity"),
        ("kolmogorov2d", {"patch": 4}, "divergence", r"its fields \(w\) form no velocity"),
        ("reaction_diffusion1d", {"form": "flux_source"}, "conservation", "conserves the integral of none"),
        ("burgers1d", {}, "conservation", "steps are fluxes and its codec loses nothing.*zero by construction"),
        ("burgers1d", {}, "boundary", "periodic and has no walls.*give bc_type"),
        ("burgers1d", {}, "positivity", "none of its fields .* has a bound"),
        ("shallow_water2d", {"periodic": (False, False)}, "residual", "no right-hand side"),
        ("burgers1d", {"patch": 32, "latent_dim": 32}, "latent_diversity", "a single token"),
    ],
)
def test_a_prior_that_says_nothing_of_a_task_is_refused(
    name: str, changes: dict[str, Any], key: str, said: str
) -> None:
    settings = PhysicsPriorSettings.model_validate({"enabled": True, f"lambda_{key}": 0.1})
    with pytest.raises(
        UpsError, match=rf"training\.physics_priors\.lambda_{key} is 0\.1, but task has nothing.*{said}"
    ):
        build_priors(settings, make_simulator(name, **changes))


@pytest.mark.parametrize(
    ("name", "changes", "tree"),
    [
        ("burgers1d", {"latent_dim": 2}, {"lambda_conservation": 0.1}),  # the codec loses something
        ("burgers1d", {"form": "increment"}, {"lambda_conservation": 0.1}),
        ("burgers1d", {}, {"lambda_boundary": 0.1, "bc_type": "periodic"}),
        ("burgers1d", {}, {"lambda_residual": 0.1, "lambda_latent_norm": 0.1}),
        ("reaction_diffusion1d", {"form": "flux_source"}, {"lambda_positivity": 0.1}),
        ("shallow_water2d", {"periodic": (False, False)}, {"lambda_positivity": 0.1, "lambda_boundary": 0.1}),
    ],
)
def test_a_prior_that_says_something_is_taken(name: str, changes: dict[str, Any], tree: dict[str, Any]) -> None:
    settings = PhysicsPriorSettings.model_validate({"enabled": True, **tree})
    assert build_priors(settings, make_simulator(name, **changes)).due(0)


def test_conservation_is_no_foregone_conclusion_once_the_codec_is_trained() -> None:
    simulator = make_simulator("burgers1d")
    simulator.codecs.requires_grad_(True)
    assert build_priors(PhysicsPriorSettings(enabled=True, lambda_conservation=0.1), simulator).due(0)
