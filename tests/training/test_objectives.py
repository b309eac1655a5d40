"""Every loss term sends its gradient to the parameters it claims to train, and to no others.

And the terms that a stage refuses to build.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.helpers import make_spec

from ups.config import Settings
from ups.data.augment import Augment
from ups.data.fields import Batch, Grid
from ups.errors import UpsError
from ups.models.baselines import NetworkEmulator
from ups.models.simulator import Architecture, Simulator
from ups.physics.description import Field
from ups.physics.equations import get_equation
from ups.training.losses import InverseCurriculum
from ups.training.objectives import CodecObjective, EmulatorObjective, OperatorObjective, OperatorTerms, sample_queries
from ups.training.physics import PhysicsPriors, Prediction, TaskPriors
from ups.training.stages import build_objective

NOTHING = OperatorTerms(forward=0.0, relative=0.0)
AUGMENTS = {"task": Augment(get_equation("burgers1d"), enabled=False)}
PRIORS = ("divergence", "conservation", "boundary", "positivity", "residual", "latent_norm", "latent_diversity")
LAWFUL = replace(
    get_equation("burgers1d"),
    fields=(Field("u", conserved=True, lower=0.0),),
    solenoidal=("u",),
    rhs=lambda u, params, spacing: -u,
)
"""An equation that has something for every prior."""


def make_simulator(latent_dim: int = 2, **changes: object) -> Simulator:
    """A simulator whose codec loses something (2 of 4 values per token), so that no term is zero by construction."""
    torch.manual_seed(0)
    simulator = Simulator(
        {"task": make_spec(**changes)},  # type: ignore[arg-type]
        Architecture(latent_dim=latent_dim, patch=4, hidden_dim=16, heads=2, depths=(1,), stem_width=8),
    )
    for p in simulator.operator.parameters():
        torch.nn.init.normal_(p, std=0.1)
    if latent_dim < 4:  # away from the orthonormal start, where encoder and decoder are each other's best answer
        for p in simulator.codecs.parameters():
            p.data += 0.1 * torch.randn(p.shape)
    return simulator


def make_batch(horizon: int = 1, context: int = 1) -> Batch:
    grid = Grid(axes=((np.arange(32) + 0.5) / 32,), periodic=(True,))
    frames = torch.randn(4, context + horizon, 1, 32, generator=torch.Generator().manual_seed(1))
    return Batch(
        task="task", frames=frames, dt=torch.full((4,), 0.1), params=torch.zeros(4, 0), grid=grid, context=context
    )


def make_priors(*names: str, frequency: int = 1) -> PhysicsPriors:
    weights = dict.fromkeys(names, 1.0)
    return PhysicsPriors({"task": TaskPriors(LAWFUL, (1 / 32,), **weights, bc_type="neumann")}, frequency)


def make_calm_batch(horizon: int = 1) -> Batch:
    """A batch whose targets break no law of `LAWFUL` more than a random prediction does."""
    batch = make_batch(horizon)
    frames = batch.frames - batch.frames.mean(-1, keepdim=True)
    frames[:, 1:] *= 0.01
    return replace(batch, frames=1 + frames)


def gradients(objective: OperatorObjective | CodecObjective | EmulatorObjective, batch: Batch) -> dict[str, float]:
    """Root-sum-square gradient of the operator's, the encoder's and the decoder's parameters."""
    module = objective.module
    module.zero_grad()
    loss, _ = objective(batch, torch.Generator().manual_seed(0))
    loss.backward()
    found = {"operator": 0.0, "encoder": 0.0, "decoder": 0.0}
    for name, p in module.named_parameters():
        part = next((part for part in ("encoder", "decoder") if name.endswith(part)), "operator")
        found[part] += 0.0 if p.grad is None else p.grad.norm().item()
    return found


TRAINED = [
    ({"forward": 1.0}, {"operator", "encoder", "decoder"}),
    ({"relative": 1.0}, {"operator", "encoder", "decoder"}),
    ({"spectral": 1.0}, {"operator", "encoder", "decoder"}),
    ({"inv_dec": 1.0}, {"operator", "encoder", "decoder"}),
    ({"inv_enc": 1.0}, {"encoder", "decoder"}),
    ({"rollout": 1.0, "rollout_horizon": 3}, {"operator", "encoder", "decoder"}),
]
"""Every term of the operator's stage that compares with data, and what it trains."""


@pytest.mark.parametrize(
    ("term", "trained", "frozen"),
    [
        (term, trained, frozen)
        for term, trained in TRAINED
        for frozen in (False, True)
        if not frozen or "operator" in trained  # settings refuse a term that trains the codec alone if it is frozen
    ],
)
def test_each_term_trains_what_it_claims(term: dict[str, float], trained: set[str], frozen: bool) -> None:
    terms = replace(NOTHING, **term)  # type: ignore[arg-type]
    simulator = make_simulator()
    simulator.codecs.requires_grad_(not frozen)
    objective = OperatorObjective(simulator, AUGMENTS, terms, InverseCurriculum(0, 1.0))
    found = gradients(objective, make_batch(horizon=terms.rollout_horizon))
    assert {part for part, size in found.items() if size > 1e-6} == (trained & {"operator"} if frozen else trained)


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


def test_a_frozen_codec_gets_no_gradient() -> None:
    simulator = make_simulator()
    simulator.codecs.requires_grad_(False)
    found = gradients(OperatorObjective(simulator, AUGMENTS, OperatorTerms(), InverseCurriculum(0, 1.0)), make_batch())
    assert found["operator"] > 0
    assert found["encoder"] == found["decoder"] == 0


def test_the_roll_outs_gradient_goes_through_all_steps() -> None:
    """With only the third frame in the loss, every one of the three applications of the operator is seen."""
    objective = OperatorObjective(
        make_simulator(16), AUGMENTS, replace(NOTHING, rollout=1.0, rollout_horizon=3), InverseCurriculum(0, 1.0)
    )
    calls: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        calls.append(output)

    handle = objective.simulator.operator.register_forward_hook(keep)
    loss, metrics = objective(make_batch(horizon=3), torch.Generator().manual_seed(0))
    handle.remove()
    loss.backward()
    assert len(calls) == 3
    assert all(out.grad is not None and out.grad.norm() > 0 for out in calls)
    assert set(metrics) == {"rollout"}


def test_roll_outs_join_late() -> None:
    objective = OperatorObjective(
        make_simulator(),
        AUGMENTS,
        OperatorTerms(rollout=1.0, rollout_horizon=4, rollout_start=0.7),
        InverseCurriculum(0, 1.0),
    )
    assert [objective.plan(0, fraction) for fraction in (0.0, 0.69, 0.7, 1.0)] == [1, 1, 4, 4]


def test_inverse_terms_follow_curriculum_and_frequency() -> None:
    terms = replace(NOTHING, forward=1.0, inv_enc=0.04, inverse_frequency=3)
    objective = OperatorObjective(make_simulator(), AUGMENTS, terms, InverseCurriculum(2, 0.05))
    seen = []
    for epoch in (0, 3):
        for _ in range(6):
            objective.plan(epoch, 0.0)
            seen.append("inv_enc" in objective(make_batch(), torch.Generator().manual_seed(0))[1])
    assert seen == [False] * 6 + [True, False, False] * 2


def test_a_lossless_codec_reconstructs_and_a_lossy_one_learns() -> None:
    batch, rng = make_batch(), torch.Generator()
    assert CodecObjective(make_simulator(16), AUGMENTS)(batch, rng)[0] < 1e-5
    objective = CodecObjective(make_simulator(2), AUGMENTS)
    before = objective(batch, rng)[0]
    assert before > 0.1
    found = gradients(objective, batch)
    assert found["encoder"] > 0
    assert found["decoder"] > 0
    optimizer = torch.optim.Adam(objective.module.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        objective(batch, rng)[0].backward()
        optimizer.step()
    assert objective(batch, rng)[0] < 0.9 * before


def test_a_perfect_model_has_no_loss() -> None:
    """The linear base solves a shift exactly; with no rest on top every term vanishes."""
    simulator = make_simulator(16)
    torch.nn.init.zeros_(simulator.operator.outlets["task"].weight)  # type: ignore[arg-type]
    torch.nn.init.zeros_(simulator.operator.outlets["task"].bias)  # type: ignore[arg-type]
    u = torch.randn(200, 1, 32)
    simulator.fit("task", [(u, u.roll(2, -1), torch.zeros(200, 0))])
    start = torch.randn(4, 1, 32)
    batch = replace(make_batch(), frames=torch.stack([start.roll(2 * k, -1) for k in range(4)], 1))
    terms = OperatorTerms(spectral=1.0, inv_enc=1.0, inv_dec=1.0, rollout=1.0, rollout_horizon=3)
    loss, metrics = OperatorObjective(simulator, AUGMENTS, terms, InverseCurriculum(0, 1.0))(batch, torch.Generator())
    assert set(metrics) == {"forward", "relative", "spectral", "rollout", "inv_enc", "inv_dec"}
    assert loss < 0.01


def test_baselines_learn_one_step_ahead() -> None:
    emulator = NetworkEmulator({"task": make_spec()}, "fno")
    assert gradients(EmulatorObjective(emulator, AUGMENTS), make_batch())["operator"] > 0


def test_queries_are_distinct_nodes_or_all() -> None:
    rng = torch.Generator().manual_seed(0)
    index = sample_queries(torch.Size([8, 8]), 10, rng)
    assert index is not None
    assert len(set(index.tolist())) == 10
    assert max(index.tolist()) < 64
    assert sample_queries(torch.Size([8]), 8, rng) is None
    assert sample_queries(torch.Size([8]), None, rng) is None


@pytest.fixture
def picky_ffts(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFTs that take float32 alone, as those of a GPU do under autocast."""
    forward, backward = torch.fft.rfftn, torch.fft.irfftn

    def rfftn(u: torch.Tensor, **options: object) -> torch.Tensor:
        assert u.dtype == torch.float32
        return forward(u, **options)  # type: ignore[arg-type]

    def irfftn(u: torch.Tensor, **options: object) -> torch.Tensor:
        assert u.dtype == torch.complex64
        return backward(u, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.fft, "rfftn", rfftn)
    monkeypatch.setattr(torch.fft, "irfftn", irfftn)


@pytest.mark.usefixtures("picky_ffts")
def test_codec_and_losses_keep_float32_under_autocast() -> None:
    """Only the network runs in bfloat16: what is lossless stays so, and every parameter still gets its gradient."""
    simulator = make_simulator(16)
    terms = OperatorTerms(spectral=1.0, inv_enc=1.0, inv_dec=1.0, rollout=1.0, rollout_horizon=2, num_queries=8)
    operator = OperatorObjective(simulator, AUGMENTS, terms, InverseCurriculum(0, 1.0), make_priors(*PRIORS))
    seen: list[torch.dtype] = []
    simulator.operator.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact, _ = CodecObjective(simulator, AUGMENTS)(make_batch(), torch.Generator())
        _, metrics = operator(make_batch(horizon=2), torch.Generator().manual_seed(0))
    assert exact < 1e-5
    assert metrics["inv_enc"] < 1e-10
    assert metrics["inv_dec"] < 1e-10
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    assert set(seen) == {torch.bfloat16}

    lossy = make_simulator()
    fno = NetworkEmulator({"task": make_spec()}, "fno", base="linear", form=None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_codec = gradients(CodecObjective(lossy, AUGMENTS), make_batch())
        of_operator = gradients(OperatorObjective(lossy, AUGMENTS, terms, InverseCurriculum(0, 1.0)), make_batch(2))
        of_baseline = gradients(EmulatorObjective(fno, AUGMENTS), make_batch())
    assert min(of_codec["encoder"], of_codec["decoder"]) > 0
    assert min(of_operator.values()) > 0
    assert of_baseline["operator"] > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fno.parameters())


def make_settings(**changes: object) -> Settings:
    return Settings.model_validate({"data": {"task": "burgers1d"}, **changes})


@pytest.mark.parametrize("term", ["lambda_inv_enc", "lambda_inv_dec"])
def test_a_term_that_is_zero_by_construction_is_refused(term: str) -> None:
    plain = make_settings()
    settings = plain.model_copy(update={"training": plain.training.model_copy(update={term: 0.1})})
    with pytest.raises(UpsError, match=rf"{term} is 0.1(.|\n)*zero by construction: the codec loses nothing"):
        build_objective("operator", settings, make_simulator(16), AUGMENTS)
    build_objective("codec", settings, make_simulator(16), AUGMENTS)
    build_objective("operator", settings, make_simulator(2), AUGMENTS)
    trained = make_settings(training={term: 0.1}, latent={"codec": {"train_with_operator": True}})
    build_objective("operator", trained, make_simulator(16), AUGMENTS)  # training may leave the exact codec


def test_priors_of_the_settings_reach_the_operators_objective() -> None:
    """And a task that has nothing for one of them is an error when the stage is built."""
    tree = {"enabled": True, "lambda_residual": 0.5, "frequency": 4}
    simulator = make_simulator(16, name="burgers1d")
    objective = build_objective("operator", make_settings(training={"physics_priors": tree}), simulator, AUGMENTS)
    assert isinstance(objective, OperatorObjective)
    assert (objective.priors.tasks["task"].residual, objective.priors.frequency) == (0.5, 4)
    asked = {"enabled": True, "lambda_conservation": 0.5}
    with pytest.raises(UpsError, match=r"lambda_conservation is 0\.5(.|\n)*zero by construction"):
        build_objective("operator", make_settings(training={"physics_priors": asked}), simulator, AUGMENTS)
    trained = make_settings(training={"physics_priors": asked}, latent={"codec": {"train_with_operator": True}})
    build_objective("operator", trained, simulator, AUGMENTS)


def test_a_field_that_is_almost_zero_does_not_outweigh_all_others() -> None:
    """Where a truth passes through the mean of the data, its error counts against a tenth of a field's usual size."""
    batch, curriculum = make_batch(), InverseCurriculum(0, 1.0)
    simulator = make_simulator(latent_dim=4)
    normalizer = simulator.normalizers["task"]
    batch.frames[0, 1] = normalizer.inverse(torch.full((1, 1, 32), 1e-6))[0]
    network = NetworkEmulator(simulator.tasks, "fno")
    _, metrics = OperatorObjective(simulator, AUGMENTS, OperatorTerms(), curriculum)(batch, torch.Generator())
    _, plain = EmulatorObjective(network, AUGMENTS)(batch, torch.Generator())
    with torch.no_grad():
        arguments = {"task": "task", "dt": batch.dt, "params": batch.params}
        for emulator, found in ((simulator, metrics["relative"]), (network, plain["relative"])):
            truth = normalizer(batch.frames[:, 1])
            error = (normalizer(emulator.step(batch.frames[:, :1], **arguments)) - truth).flatten(1).norm(dim=1)
            size = truth.flatten(1).norm(dim=1)
            size[0] = 0.1 * 32**0.5
            torch.testing.assert_close(found, (error / size).mean(), rtol=1e-4, atol=0)
    assert metrics["forward"] < 1e4
