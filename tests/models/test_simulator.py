"""The composed simulator: its roll-outs, what it keeps, and its fit in closed form."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tests.models.helpers import make_spec
from tests.models.small_simulator import SMALL, arguments, make_simulator

from ups.errors import UpsError
from ups.models.baselines import make_baseline
from ups.models.simulator import Simulator


@torch.no_grad()
@pytest.mark.parametrize("axes", [1, 2])
def test_latent_and_physical_roll_outs_agree_when_the_codec_loses_nothing(axes: int) -> None:
    simulator = make_simulator(axes=axes, size=16)
    u = torch.randn(2, 1, 1, *[16] * axes)
    latent, physical = (simulator.rollout(u, 4, mode=mode, **arguments(2)) for mode in ("latent", "physical"))
    assert latent.shape == (2, 4, 1, *[16] * axes)
    torch.testing.assert_close(latent, physical, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_conserved_field_keeps_its_integral_over_a_roll_out() -> None:
    u = torch.randn(3, 1, 1, 32)
    out = make_simulator().rollout(u, 10, **arguments(3))
    assert (out[:, -1] - u[:, 0]).abs().max() > 0.1
    torch.testing.assert_close(out.mean(-1), u.mean(-1).expand(3, 10, 1), atol=2e-6, rtol=0)


@torch.no_grad()
def test_context_frames_are_used_and_moved_along() -> None:
    simulator = make_simulator(context=2)
    u = torch.randn(1, 2, 1, 32)
    two = simulator.rollout(u, 2, **arguments(1))
    first = simulator.step(u, **arguments(1))
    again = simulator.step(torch.stack([u[:, 1], first], 1), **arguments(1))
    torch.testing.assert_close(two, torch.stack([first, again], 1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(simulator.step(torch.stack([u[:, 1], u[:, 1]], 1), **arguments(1)), first, atol=1e-4)


@torch.no_grad()
def test_units_do_not_matter() -> None:
    """The same model in units that are a thousand times larger predicts the same fields."""
    plain, scaled = make_simulator(), make_simulator(mean=(300.0,), std=(1700.0,))
    u = torch.randn(2, 1, 1, 32)
    torch.testing.assert_close(
        scaled.rollout(1000 * u, 3, **arguments(2)) / 1000, plain.rollout(u, 3, **arguments(2)), atol=1e-5, rtol=1e-4
    )


def test_grids_that_cannot_be_cut_into_tokens_are_refused() -> None:
    with pytest.raises(UpsError, match="multiple of 4"):
        Simulator({"task": make_spec(size=30)}, SMALL)
    with pytest.raises(UpsError, match=r"multiple of 16 \(operator.pdet.coarsen 4 x 4\)"):
        Simulator({"task": make_spec(size=24)}, replace(SMALL, coarsen=(4, 4)))
    windowed = replace(SMALL, coarsen=(2,), architecture="pdet_unet", depths=(1, 1), window=8)
    with pytest.raises(UpsError, match=r"\(operator.pdet.coarsen 2, halvings of pdet_unet 2, operator.pdet.window 8\)"):
        Simulator({"task": make_spec(size=48)}, windowed)
    with pytest.raises(UpsError, match="one dimension"):
        Simulator({"a": make_spec(), "b": make_spec(axes=2)}, SMALL)


class Pairs:
    """Batches of random pairs, the same at every pass; notes how many normalised fields are alive at each batch."""

    def __init__(self, simulator: Simulator, split: int) -> None:
        rng = torch.Generator().manual_seed(3)
        u, params = torch.randn(120, 1, 32, generator=rng), torch.rand(120, 1, generator=rng) + 0.1
        after = u.roll(1, -1) * (1 + params[..., None]) + 0.1 * u.square()
        self.batches = list(zip(u.split(split), after.split(split), params.split(split), strict=True))
        self.made: list[weakref.ref[torch.Tensor]] = []
        self.alive = 0
        simulator.normalizers["task"].register_forward_hook(lambda _m, _i, out: self.made.append(weakref.ref(out)))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for batch in self.batches:
            self.alive = max(self.alive, sum(field() is not None for field in self.made))
            yield batch


def test_a_fit_to_streamed_batches_is_the_fit_to_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ups.models.propagator.ENOUGH", 1000)  # which halves are compared depends on the batches
    spec = make_spec(param_names=("nu",), param_log=(True,), param_mean=(-0.6,), param_std=(0.5,))
    fitted = []
    for split in (10, 120):
        torch.manual_seed(0)
        simulator = Simulator({"task": spec}, replace(SMALL, latent_dim=3))
        simulator.fit("task", Pairs(simulator, split))
        fitted.append(simulator.state_dict())
    for name, streamed in fitted[0].items():
        torch.testing.assert_close(streamed, fitted[1][name], rtol=1e-5, atol=1e-5, msg=name)


def test_a_fit_holds_no_more_than_the_batch_at_hand_and_the_one_before() -> None:
    simulator = make_simulator(param_names=("nu",), param_log=(True,), param_mean=(-0.6,), param_std=(0.5,))
    pairs = Pairs(simulator, 10)
    simulator.fit("task", pairs)
    assert 0 < pairs.alive <= 4 < len(pairs.batches)


def test_a_lossy_codec_starts_at_the_components_of_the_first_frames_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ups.models.codec.FITTED", 25)
    simulator = Simulator({"task": make_spec()}, replace(SMALL, latent_dim=2))
    u = torch.randn(120, 1, 32)
    u[25:] *= 1000
    simulator.fit("task", [(part, part, torch.zeros(len(part), 0)) for part in u.split(10)])
    codec = Simulator({"task": make_spec()}, replace(SMALL, latent_dim=2)).codecs["task"]
    codec.fit(simulator.normalizers["task"](u[:25]))
    torch.testing.assert_close(simulator.codecs["task"].encoder, codec.encoder)


def test_pairs_that_can_be_read_only_once_are_refused() -> None:
    u = torch.randn(4, 1, 32)
    with pytest.raises(ValueError, match="more than once"):
        make_simulator().fit("task", iter([(u, u, torch.zeros(4, 0))]))


@torch.no_grad()
def test_a_unet_may_end_in_a_single_token() -> None:
    """Its convolutions are then wider than what they read; a conserved field keeps its integral all the same."""
    torch.manual_seed(0)
    wide = replace(SMALL, architecture="pdet_unet", depths=(1, 1), coarsen=(4,))
    simulator = Simulator({"task": make_spec(size=8)}, wide)
    for p in simulator.operator.parameters():
        torch.nn.init.normal_(p, std=0.1)
    u = torch.randn(2, 1, 1, 8)
    out = simulator.rollout(u, 2, **arguments(2))
    assert (out[:, -1] - u[:, 0]).abs().max() > 0.01
    torch.testing.assert_close(out.mean(-1), u.mean(-1).expand(2, 2, 1), atol=2e-6, rtol=0)


@torch.no_grad()
def test_the_codec_loses_nothing_under_autocast() -> None:
    simulator = make_simulator()
    u, nodes = torch.randn(2, 1, 32), (torch.arange(32)[:, None] + 0.5) / 32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = simulator.reconstruct(u, task="task")
        at_nodes = simulator.decode_at(simulator.encode(u[:, None], task="task"), nodes, task="task")
        stepped = simulator.step(u[:, None], **arguments(2))
    torch.testing.assert_close(found, u, atol=1e-5, rtol=0)
    torch.testing.assert_close(at_nodes[:, 0], u, atol=1e-4, rtol=0)
    assert stepped.dtype == torch.float32
    torch.testing.assert_close(stepped.mean(-1), u.mean(-1), atol=2e-6, rtol=0)


def test_dt_tells_the_tasks_of_a_model_apart() -> None:
    one, params = make_simulator(), torch.zeros(1, 0)
    assert one.normalizers["task"].features(torch.tensor([0.1]), params).item() == pytest.approx(0.0, abs=1e-6)
    two = Simulator({"a": make_spec(dt=0.1), "b": make_spec(dt=0.4)}, SMALL)
    found = [two.normalizers[task].features(torch.tensor([dt]), params).item() for task, dt in (("a", 0.1), ("b", 0.4))]
    assert found == pytest.approx([-math.log(2), math.log(2)], abs=1e-6)


@pytest.mark.parametrize("mode", ["latent", "physical"])
def test_another_time_step_is_refused(mode: str) -> None:
    simulator, u = make_simulator(dt=0.05), torch.randn(2, 1, 1, 32)
    given = {"task": "task", "params": torch.zeros(2, 0), "mode": mode}
    simulator.rollout(u, 1, dt=torch.full((2,), 0.05 * 1.0005), **given)  # type: ignore[arg-type]
    with pytest.raises(UpsError, match=r"steps of 0.05; it was not trained for 0.1"):
        simulator.rollout(u, 1, dt=torch.tensor([0.05, 0.1]), **given)  # type: ignore[arg-type]
    with pytest.raises(UpsError, match=r"steps of 0.05; it was not trained for 0.1"):
        make_baseline("persistence", simulator.tasks).rollout(u, 1, dt=torch.full((2,), 0.1), **given)  # type: ignore[arg-type]
