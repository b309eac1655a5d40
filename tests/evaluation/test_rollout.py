"""What advances the fields sees the context frames and its own predictions, never the truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.evaluation.helpers import Steps, make_set, shifted, travelling_sines
from torch import Tensor

from ups.errors import DataError
from ups.evaluation import rollout
from ups.evaluation.rollout import predict_single_steps, reconstruct, rollout_trajectories

CPU: dict[str, Any] = {"mode": "physical", "batch_size": 3, "device": torch.device("cpu")}


def test_the_exact_step_reproduces_the_trajectories() -> None:
    sets = {"advection1d": make_set("advection1d", travelling_sines())}
    batches = list(
        rollout_trajectories(Steps(sets, shifted), sets["advection1d"], [0, 1, 3], context=1, steps=None, **CPU)
    )
    assert [batch.indices for batch in batches] == [(0, 1, 3)]
    torch.testing.assert_close(batches[0].prediction, batches[0].truth, atol=2e-5, rtol=0)
    torch.testing.assert_close(batches[0].initial, torch.stack([travelling_sines()[n][0] for n in (0, 1, 3)]))
    assert batches[0].seconds is None


class Clock:
    """Time that passes only in the emulator's steps: as long as is foreseen for each of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
        self.now, self.seconds = 0.0, iter(seconds)
        monkeypatch.setattr(rollout.time, "perf_counter", lambda: self.now)

    def step(self, u: Tensor) -> Tensor:
        self.now += next(self.seconds)
        return shifted(u)


@pytest.mark.parametrize(
    ("seconds", "fastest"),
    [
        # one step to warm up, then roll-outs of two steps: four of the first batch, one of the second
        ([9.0, *(0.3, 0.2), *(0.2, 0.1), *(0.1, 0.02), *(0.3, 0.3), *(0.0, 0.0)], 0.12),
        # no third repetition: it would exceed the two seconds
        ([9.0, *(0.5, 0.5), *(0.5, 0.3), *(0.4, 0.5), *(0.0, 0.0)], 0.8),
        # none at all
        ([9.0, *(5.0, 5.0), *(0.0, 0.0)], 10.0),
    ],
)
def test_the_fastest_of_a_few_passes_over_the_first_batch_counts(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], fastest: float
) -> None:
    sets = {"advection1d": make_set("advection1d", travelling_sines())}
    clock = Clock(monkeypatch, seconds)
    batches = list(
        rollout_trajectories(
            Steps(sets, clock.step), sets["advection1d"], range(4), context=1, steps=2, timed=True, **CPU
        )
    )
    assert [batch.seconds for batch in batches] == [pytest.approx(fastest), None]
    assert next(clock.seconds, None) is None  # every step that was foreseen was made


def test_a_prediction_does_not_change_with_the_frames_after_the_context() -> None:
    truth = travelling_sines()
    poisoned = [torch.cat([one[:2], torch.full_like(one[2:], 1e6)]) for one in truth]
    predictions = []
    for trajectories in (truth, poisoned):
        sets = {"advection1d": make_set("advection1d", trajectories)}
        emulator = Steps(sets, lambda u: 0.9 * shifted(u), context=2)
        (batch, _) = rollout_trajectories(emulator, sets["advection1d"], range(4), context=2, steps=5, **CPU)
        predictions.append(batch.prediction)
        assert max(given.abs().max().item() for given in emulator.given) < 10
    assert torch.equal(*predictions)


def test_trajectories_of_equal_length_are_batched_and_go_to_their_own_end() -> None:
    lengths = [9, 5, 9, 7]
    sets = {"advection1d": make_set("advection1d", [u[:n] for u, n in zip(travelling_sines(), lengths, strict=True)])}
    batches = list(rollout_trajectories(Steps(sets, shifted), sets["advection1d"], range(4), context=1, steps=6, **CPU))
    assert [(batch.indices, batch.truth.shape[1]) for batch in batches] == [((0, 2), 6), ((1,), 4), ((3,), 6)] or [
        (batch.indices, batch.truth.shape[1]) for batch in batches
    ] == [((0, 2, 3), 6), ((1,), 4)]


def test_single_steps_start_from_true_frames() -> None:
    sets = {"advection1d": make_set("advection1d", travelling_sines())}
    emulator = Steps(sets, lambda u: 1.1 * shifted(u))
    options: dict[str, Any] = {"batch_size": 3, "device": torch.device("cpu")}
    prediction, truth = predict_single_steps(emulator, sets["advection1d"], 2, context=1, steps=None, **options)
    torch.testing.assert_close(prediction, 1.1 * truth, atol=2e-5, rtol=0)
    assert truth.shape[1] == 8
    assert [len(given) for given in emulator.given] == [3, 3, 2]
    torch.testing.assert_close(torch.cat(emulator.given)[:, 0], travelling_sines()[2][:-1])


def test_reconstruction_covers_every_frame() -> None:
    sets = {"advection1d": make_set("advection1d", travelling_sines())}
    emulator = Steps(sets, shifted)
    decoded, truth = reconstruct(emulator, sets["advection1d"], 1, batch_size=4, device=torch.device("cpu"))
    assert torch.equal(decoded, truth)
    assert truth.shape[1] == 9


def test_a_trajectory_with_nothing_to_predict_is_named() -> None:
    sets = {"advection1d": make_set("advection1d", [travelling_sines()[0][:2]])}
    with pytest.raises(DataError, match="trajectory 0 has 2 frames, of which 2 are given"):
        list(
            rollout_trajectories(
                Steps(sets, shifted, context=2), sets["advection1d"], [0], context=2, steps=None, **CPU
            )
        )
