"""Every loss term sends its gradient to the parameters it claims to train, and to no others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.helpers import make_spec

from ups.data.augment import Augment
from ups.data.fields import Batch, Grid
from ups.models.baselines import NetworkEmulator
from ups.models.simulator import Architecture, Simulator
from ups.physics.equations import get_equation
from ups.training.losses import InverseCurriculum
from ups.training.objectives import CodecObjective, EmulatorObjective, OperatorObjective, OperatorTerms, sample_queries

NOTHING = OperatorTerms(forward=0.0, relative=0.0)
AUGMENTS = {"task": Augment(get_equation("burgers1d"), enabled=False)}


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


@pytest.mark.parametrize(
    ("term", "trained"),
    [
        ({"forward": 1.0}, {"operator", "encoder", "decoder"}),
        ({"relative": 1.0}, {"operator", "encoder", "decoder"}),
        ({"spectral": 1.0}, {"operator", "encoder", "decoder"}),
        ({"inv_dec": 1.0}, {"operator", "encoder", "decoder"}),
        ({"inv_enc": 1.0}, {"encoder", "decoder"}),
        ({"rollout": 1.0, "rollout_horizon": 3}, {"operator", "encoder", "decoder"}),
    ],
)
def test_each_term_trains_what_it_claims(term: dict[str, float], trained: set[str]) -> None:
    terms = replace(NOTHING, **term)  # type: ignore[arg-type]
    objective = OperatorObjective(make_simulator(), AUGMENTS, terms, InverseCurriculum(0, 1.0))
    found = gradients(objective, make_batch(horizon=terms.rollout_horizon))
    assert {part for part, size in found.items() if size > 1e-6} == trained


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
