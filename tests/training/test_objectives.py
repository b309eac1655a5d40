"""Every loss term sends its gradient to the parameters it claims to train, and to no others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models.helpers import make_spec
from tests.training.small_objectives import (
    AUGMENTS,
    NOTHING,
    PRIORS,
    gradients,
    make_batch,
    make_priors,
    make_simulator,
)

from ups.config.schema import Settings
from ups.models.baselines import NetworkEmulator
from ups.training.losses import InverseCurriculum
from ups.training.objectives import CodecObjective, EmulatorObjective, OperatorObjective, OperatorTerms, sample_queries
from ups.training.stages import build_objective

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
        if not frozen or not {"inv_enc", "inv_dec"} & set(term)  # which settings refuse where the codec is frozen
    ],
)
def test_each_term_trains_what_it_claims(term: dict[str, float], trained: set[str], frozen: bool) -> None:
    terms = replace(NOTHING, **term)  # type: ignore[arg-type]
    simulator = make_simulator()
    simulator.codecs.requires_grad_(not frozen)
    objective = OperatorObjective(simulator, AUGMENTS, terms, InverseCurriculum(0, 1.0))
    found = gradients(objective, make_batch(horizon=terms.rollout_horizon))
    assert {part for part, size in found.items() if size > 1e-6} == (trained & {"operator"} if frozen else trained)


def test_a_frozen_codec_gets_no_gradient() -> None:
    simulator = make_simulator()
    simulator.codecs.requires_grad_(False)
    found = gradients(OperatorObjective(simulator, AUGMENTS, OperatorTerms(), InverseCurriculum(0, 1.0)), make_batch())
    assert found["operator"] > 0
    assert found["encoder"] == found["decoder"] == 0


@pytest.mark.parametrize(("last", "reached"), [(None, [0, 1, 2, 3]), (2, [2, 3]), (1, [3])])
def test_the_roll_outs_gradient_goes_through_its_last_steps(last: int | None, reached: list[int]) -> None:
    """Applications of the operator that the roll-out's term sends a gradient to: all of them, or the last."""
    terms = replace(NOTHING, rollout=1.0, rollout_horizon=4, rollout_gradient_steps=last)
    objective = OperatorObjective(make_simulator(16), AUGMENTS, terms, InverseCurriculum(0, 1.0))
    calls: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
        calls.append(output)

    handle = objective.simulator.operator.register_forward_hook(keep)
    loss, metrics = objective(make_batch(horizon=4), torch.Generator().manual_seed(0))
    handle.remove()
    loss.backward()
    assert len(calls) == 4
    assert [step for step, out in enumerate(calls) if out.grad is not None and out.grad.norm() > 0] == reached
    assert set(metrics) == {"rollout"}


def test_the_last_steps_of_a_roll_out_are_compared_as_all_are() -> None:
    """Of a roll-out's last step alone, the term is that frame's error; those of one step stay."""
    batch, rng = make_batch(horizon=3), torch.Generator().manual_seed(0)
    whole = replace(NOTHING, rollout=1.0, rollout_horizon=3)
    found = {}
    for last, horizon in ((None, 2), (None, 3), (1, 3)):
        terms = replace(whole, forward=1.0, rollout_gradient_steps=last)
        part = replace(batch, frames=batch.frames[:, : batch.context + horizon])
        _, found[last, horizon] = OperatorObjective(make_simulator(16), AUGMENTS, terms, InverseCurriculum(0, 1.0))(
            part, rng.manual_seed(0)
        )
    assert len({float(one["forward"]) for one in found.values()}) == 1
    second, both, third = (float(one["rollout"]) for one in found.values())
    assert both == pytest.approx((second + third) / 2, rel=1e-5)


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


@pytest.mark.parametrize("term", ["latent_norm", "latent_diversity"])
def test_a_term_of_the_latents_trains_the_encoder_of_the_codec_alone(term: str) -> None:
    plain, priors = (
        CodecObjective(make_simulator(), AUGMENTS),
        CodecObjective(make_simulator(), AUGMENTS, **{term: 1.0}),
    )
    before, after = gradients(plain, make_batch()), gradients(priors, make_batch())
    assert after["encoder"] != pytest.approx(before["encoder"], rel=1e-3)
    assert after["decoder"] == pytest.approx(before["decoder"], rel=1e-5)
    assert float(priors(make_batch(), torch.Generator())[1][term]) > 0


def test_the_codecs_stage_has_the_terms_of_latents_that_the_settings_ask_for() -> None:
    priors = {"enabled": True, "lambda_latent_norm": 0.5, "lambda_latent_diversity": 0.25}
    settings = Settings.model_validate({"task": "burgers1d", "training": {"physics_priors": priors}})
    objective = build_objective("codec", settings, make_simulator(), AUGMENTS)
    assert isinstance(objective, CodecObjective)
    assert (objective.latent_norm, objective.latent_diversity) == (0.5, 0.25)
