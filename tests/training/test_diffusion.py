"""The corrector's objectives: who gets a gradient, what is learned, and that a student lands where its teacher does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.small_corrector import SMALL, TASK, make_simulator
from torch import nn

from ups.data.augment import Augment
from ups.data.fields import Batch, Grid
from ups.errors import UpsError
from ups.models.corrector import carry_by
from ups.models.noise import NoiseSeries, autoregression
from ups.models.simulator import Simulator
from ups.physics.equations import get_equation
from ups.training.diffusion import (
    DiffusionObjective,
    DiffusionTerms,
    DistillObjective,
    DistillTerms,
    ResidualSteps,
    fit_memory,
    fit_scales,
    tau_distribution,
)

AUGMENTS = {TASK: Augment(get_equation(TASK), enabled=False)}
UNIFORM = tau_distribution("uniform")


def make_batch(num: int = 8, seed: int = 1) -> Batch:
    grid = Grid(axes=((np.arange(32) + 0.5) / 32,), periodic=(True,))
    frames = torch.randn(num, 2, 1, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(TASK, frames, torch.full((num,), 0.1), torch.full((num, 1), 0.01), grid, 1)


def sizes_of_gradients(simulator: Simulator) -> dict[str, float]:
    """Root-sum-square gradient of every part."""
    corrector = simulator.corrector
    assert corrector is not None
    parts: dict[str, nn.Module] = {
        "operator": simulator.operator,
        "codec": simulator.codecs,
        "moments": corrector.denoiser.moments,
        "flow": corrector.denoiser.flow,
    }
    if corrector.student is not None:
        parts["student"] = corrector.student
    return {
        name: sum(float(p.grad.square().sum()) for p in part.parameters() if p.grad is not None) ** 0.5
        for name, part in parts.items()
    }


@pytest.mark.parametrize("terms", [DiffusionTerms(), DiffusionTerms(spectral=1.0), DiffusionTerms(relative=1.0)])
def test_the_diffusion_trains_its_two_networks_alone(terms: DiffusionTerms) -> None:
    simulator = make_simulator()
    objective = DiffusionObjective(simulator, AUGMENTS, UNIFORM, terms)
    loss, metrics = objective(make_batch(), torch.Generator().manual_seed(0))
    loss.backward()
    sizes = sizes_of_gradients(simulator)
    assert sizes["operator"] == sizes["codec"] == 0
    assert min(sizes["moments"], sizes["flow"]) > 1e-6
    wanted = {"mean", "spread", "flow"} | {name for name in ("spectral", "relative") if getattr(terms, name)}
    assert set(metrics) == wanted
    assert float(loss.detach()) == pytest.approx(sum(float(value) for value in metrics.values()), rel=1e-5)


@pytest.mark.parametrize("term", ["spectral", "relative"])
def test_an_optional_term_moves_the_flow(term: str) -> None:
    gradients = []
    for weight in (0.0, 5.0):
        simulator = make_simulator()
        objective = DiffusionObjective(simulator, AUGMENTS, UNIFORM, DiffusionTerms(**{term: weight}))
        objective(make_batch(), torch.Generator().manual_seed(0))[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in objective.corrector.denoiser.flow.parameters()]))
    assert (gradients[1] - gradients[0]).norm() > 1e-3 * gradients[0].norm()


def test_the_spread_does_not_move_the_mean_and_the_flow_neither() -> None:
    # Of the moments' last layer, channel 0 writes the mean and channel 1 the spread.
    simulator = make_simulator()
    objective = DiffusionObjective(simulator, AUGMENTS, UNIFORM)
    corrector = objective.corrector
    condition, residual, _ = objective.steps.of(make_batch(), torch.Generator().manual_seed(0))
    outlet = corrector.denoiser.moments.outlets[TASK]
    (condition.mean - residual).square().mean().backward()
    by_mean = outlet.weight.grad.clone()
    outlet.weight.grad = None
    objective(make_batch(), torch.Generator().manual_seed(0))[0].backward()
    torch.testing.assert_close(outlet.weight.grad[0], by_mean[0], rtol=1e-4, atol=1e-7)
    assert by_mean[1].abs().max() == 0
    assert outlet.weight.grad[1].abs().max() > 0


def backward_of(term: str, loss: torch.Tensor, metrics: dict[str, torch.Tensor]) -> None:
    """Back-propagates one of the terms that a loss is the sum of, in the order of its metrics."""
    assert loss.grad_fn is not None
    stacked, alone = loss.grad_fn.next_functions[0][0], torch.tensor([float(name == term) for name in metrics])
    assert stacked is not None
    assert stacked.name() == "StackBackward0"
    stacked.register_prehook(lambda gradients: (gradients[0] * alone,))
    loss.backward()


@pytest.mark.parametrize(("term", "part", "channels"), [
    ("mean", "moments", {0}), ("spread", "moments", {1}), ("flow", "flow", {0}), ("spectral", "flow", {0}),
    ("relative", "flow", {0}),
])  # fmt: skip
def test_every_term_trains_its_own_network_and_channel(term: str, part: str, channels: set[int]) -> None:
    """All the parameters of that network and no other; of the moments' outlet, the mean's channel or the spread's."""
    simulator = make_simulator()
    corrector = simulator.corrector
    assert corrector is not None
    objective = DiffusionObjective(simulator, AUGMENTS, UNIFORM, DiffusionTerms(spectral=1.0, relative=1.0))
    loss, metrics = objective(make_batch(), torch.Generator().manual_seed(0))
    backward_of(term, loss, metrics)
    trained = {name for name, p in simulator.named_parameters() if p.grad is not None and bool(p.grad.any())}
    network = corrector.denoiser.get_submodule(part)
    assert trained == {f"corrector.denoiser.{part}.{name}" for name, _ in network.named_parameters()}
    outlet = network.get_submodule(f"outlets.{TASK}")
    for written in (outlet.bias.grad, outlet.weight.grad.flatten(1).abs().sum(1)):
        assert set(written.nonzero().flatten().tolist()) == channels


def test_the_student_alone_is_distilled() -> None:
    simulator = make_simulator()
    objective = DistillObjective(simulator, AUGMENTS, DistillTerms(teacher_steps=4))
    objective(make_batch(), torch.Generator().manual_seed(0))[0].backward()
    sizes = sizes_of_gradients(simulator)
    assert sizes.pop("student") > 1e-6
    assert set(sizes.values()) == {0.0}


def test_micro_batches_change_neither_loss_nor_gradient() -> None:
    found = []
    for micro_batch in (3, 8):
        simulator = make_simulator()
        terms = DistillTerms(num_taus=(2,), micro_batch=micro_batch, teacher_steps=4)
        objective = DistillObjective(simulator, AUGMENTS, terms)
        loss, _ = objective(make_batch(), torch.Generator().manual_seed(0))
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in objective.student.parameters()])))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_the_validated_distance_does_not_follow_the_schedule() -> None:
    objective = DistillObjective(make_simulator(), AUGMENTS, DistillTerms(num_taus=(1, 4), teacher_steps=8))
    found = []
    for epoch in (0, 1):
        objective.plan(epoch, 0.0)
        with torch.no_grad():
            found.append(objective.distance(make_batch(), torch.Generator().manual_seed(0), [0, 4]))
    assert torch.equal(found[0], found[1])


def test_a_task_without_a_batch_is_not_left_without_scales() -> None:
    with pytest.raises(UpsError, match="nothing to correct"):
        fit_scales(ResidualSteps(make_simulator(), AUGMENTS), TASK, [])


def test_taus_follow_their_schedule() -> None:
    objective = DistillObjective(make_simulator(), AUGMENTS, DistillTerms(num_taus=(1, 4), teacher_steps=8))
    rng = torch.Generator().manual_seed(0)
    for epoch, num in ((0, 1), (1, 4), (9, 4)):
        objective.plan(epoch, 0.0)
        starts = objective._starts(rng)
        assert starts[:2] == [0, 4][:num]  # of noise, and half-way, as two steps sample
        assert len(set(starts)) == num
        assert max(starts) < 8


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_every_place_that_the_student_samples_from_is_taught(steps: int) -> None:
    simulator = make_simulator(architecture=replace(SMALL, student_steps=steps))
    objective = DistillObjective(simulator, AUGMENTS, DistillTerms(num_taus=(3,), teacher_steps=8))
    own, rng = objective.own_places(), torch.Generator().manual_seed(0)
    assert own == {1: [0], 2: [0, 4], 3: [0, 3, 5], 4: [0, 2, 4, 6], 8: [*range(8)]}[steps]
    drawn = [objective._starts(rng) for _ in range(40)]
    assert all(len(set(starts)) == 3 for starts in drawn)
    assert set(own) <= {place for starts in drawn for place in starts}
    if len(own) <= 3:
        assert all(set(own) <= set(starts) for starts in drawn)


def test_a_student_learns_to_land_where_its_teacher_does() -> None:
    simulator = make_simulator(architecture=replace(SMALL, sampler_steps=8))
    objective = DistillObjective(simulator, AUGMENTS, DistillTerms(num_taus=(2,), micro_batch=64, teacher_steps=8))
    optimizer = torch.optim.Adam(objective.module.parameters(), lr=3e-3)

    def distance() -> float:
        with torch.no_grad():
            return float(objective(make_batch(16, seed=7), torch.Generator().manual_seed(3))[0])

    before = distance()
    for step in range(60):
        loss, _ = objective(make_batch(16, seed=100 + step), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distance() < 0.3 * before
    assert sum(float(p.detach().abs().sum()) for p in objective.student.parameters()) > 1  # it was not trained to zero


def test_samples_have_the_shape_of_a_distribution_with_two_humps() -> None:
    """Regression would answer with the middle; a Gaussian with the right moments would fill it."""
    torch.manual_seed(0)
    simulator = make_simulator(
        trained=False, form="increment", architecture=replace(SMALL, architecture="mlp", depth=3)
    )
    objective = DiffusionObjective(simulator, AUGMENTS, UNIFORM)
    corrector = objective.corrector
    optimizer = torch.optim.Adam(objective.module.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    batch = make_batch(32)
    for _ in range(250):
        context, prediction, _, _ = objective.steps.predict(batch)
        signs = torch.randint(2, prediction.shape, generator=generator) * 2.0 - 1
        truth = simulator.normalizers[TASK].inverse(prediction + signs * corrector.scales[TASK].residual)
        humps = replace(batch, frames=torch.stack([batch.frames[:, 0], truth], dim=1))
        loss, _ = objective(humps, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    context, prediction, _, features = objective.steps.predict(batch)
    with torch.no_grad():
        given, _ = corrector.see(TASK, simulator.physics[TASK], context, prediction)
        condition = corrector.denoiser.condition(given, features, TASK)
        with corrector.sampling(16):
            sample = corrector.draw(condition, NoiseSeries(generator))
    assert float(sample.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(sample.std()) == pytest.approx(1.0, abs=0.25)
    assert float((sample.abs() < 0.5).float().mean()) < 0.15  # 0.38 of a Gaussian


def test_scales_come_from_the_operators_steps() -> None:
    simulator = make_simulator()
    steps = ResidualSteps(simulator, AUGMENTS)
    fit_scales(steps, TASK, [make_batch(seed=seed) for seed in range(3)])
    seen = [steps.of(make_batch(seed=seed), torch.Generator())[1] for seed in range(3)]
    assert float(torch.cat(seen).square().mean().sqrt()) == pytest.approx(1.0, rel=1e-4)


def test_the_frozen_operator_steps_in_full_precision_whatever_the_loop_computes_in() -> None:
    steps, batch = ResidualSteps(make_simulator(), AUGMENTS), make_batch()
    alone = steps.predict(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = steps.predict(batch)
    for found, wanted in zip(inside, alone, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("moving", [False, True])
def test_memory_is_how_alike_errors_of_neighbouring_steps_are(moving: bool) -> None:
    """Frames whose every step is the operator's and an error that lasts, carried along where there is a mean."""
    changes = {"galilean": True, "mean": (0.0,), "std": (1.0,)} if moving else {}
    simulator = make_simulator(trained=False, form="increment", **changes)
    steps, physics = ResidualSteps(simulator, AUGMENTS), simulator.physics[TASK]
    errors, start = NoiseSeries(torch.Generator().manual_seed(0), (0.8, 0.5)), make_batch(64)
    if moving:
        start = replace(start, frames=start.frames - start.frames.mean(-1, keepdim=True) + 3.3)
    frames = [start.frames[:, 0]]
    for _ in range(4):
        pair = replace(start, frames=torch.stack([frames[-1], frames[-1]], dim=1))
        context, u_next, _, _ = steps.predict(pair)
        error = 0.05 * errors.draw(u_next)
        error = error - error.mean(-1, keepdim=True)
        _, mean = simulator.corrector.see(TASK, physics, context, u_next)
        carry = carry_by(physics, mean)
        errors.end_step(carry)
        frames.append(simulator.normalizers[TASK].inverse(u_next + (error if carry is None else carry(error))))
    fit_memory(steps, replace(start, frames=torch.stack(frames, dim=1)))
    found = simulator.corrector.scales[TASK].memory.tolist()
    weights = autoregression((0.8, 0.5))[-1][0]
    assert found == pytest.approx([0.8, 0.5, weights[0] * 0.5 + weights[1] * 0.8], abs=0.05)


def test_memory_is_none_beyond_what_windows_show() -> None:
    simulator = make_simulator(trained=False, form="increment")
    frames = torch.randn(8, 3, 1, 32, generator=torch.Generator().manual_seed(2))
    fit_memory(ResidualSteps(simulator, AUGMENTS), replace(make_batch(8), frames=frames))
    first, *others = simulator.corrector.scales[TASK].memory.tolist()
    assert first != 0
    assert others == [0, 0]


@pytest.mark.parametrize(("text", "mean", "variance"), [
    ("uniform", 1 / 2, 1 / 12), ("beta(2, 1)", 2 / 3, 1 / 18), ("beta(0.5,0.5)", 1 / 2, 1 / 8)
])  # fmt: skip
def test_taus_have_the_moments_of_their_distribution(text: str, mean: float, variance: float) -> None:
    taus = tau_distribution(text)(20_000, torch.Generator().manual_seed(0))
    assert float(taus.mean()) == pytest.approx(mean, abs=0.01)
    assert float(taus.var()) == pytest.approx(variance, abs=0.01)
    assert 0 <= float(taus.min()) <= float(taus.max()) <= 1


def test_logit_normal_taus_are_symmetric_about_the_middle() -> None:
    taus = tau_distribution("logit_normal")(20_000, torch.Generator().manual_seed(0))
    assert float(torch.logit(taus).var()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("text", ["", "beta", "beta(0,1)", "normal"])
def test_another_distribution_is_refused(text: str) -> None:
    with pytest.raises(UpsError, match="tau_distribution"):
        tau_distribution(text)


def test_there_is_nothing_to_train_without_a_corrector() -> None:
    simulator = make_simulator()
    simulator.corrector = None
    with pytest.raises(UpsError, match="no corrector"):
        DiffusionObjective(simulator, AUGMENTS, UNIFORM)
