"""The loop: the same as one written out, what it validates and keeps, when it ends, and what it leaves alone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.training.toy_training import CPU, ToyLoader, ToyObjective, records, same, train, weights, windows
from torch import nn

from ups.config.learning import TrainingSettings
from ups.training.loop import LoopSettings, evaluating
from ups.training.schedule import Budget, cosine
from ups.training.state import TrainingClock


def test_equals_a_loop_written_out_with_torch_alone(tmp_path: Path) -> None:
    steps, objective = 20, ToyObjective()
    train(tmp_path, objective, steps=steps, ema_decay=0.0, validate=iter([2.0, 1.0]).__next__)

    bare, batches = ToyObjective(), iter(loader := ToyLoader())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in bare.module.parameters() if p.ndim == d], "weight_decay": w}
            for d, w in ((2, 1e-2), (1, 0.0))
        ],
        betas=(0.9, 0.99),
        fused=True,
    )
    torch.manual_seed(17)
    rng = torch.Generator().manual_seed(17)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * cosine((step + 0.5) / steps, warmup=0.05, final=0.01)
        loader.set_horizon(bare.plan(0, step / steps))
        loss, _ = bare(next(batches), rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(bare.module.parameters(), 1.0)
        optimizer.step()
    torch.testing.assert_close(weights(objective), weights(bare), rtol=1e-6, atol=1e-8)


def test_accumulated_batches_equal_one_batch_of_all(tmp_path: Path) -> None:
    whole, parts = (Plain(ToyObjective(dropout=0.0)) for _ in range(2))
    train(tmp_path / "whole", whole, steps=6, loader=ToyLoader(batch_size=20))
    train(tmp_path / "parts", parts, steps=6, loader=ToyLoader(batch_size=5), accum_steps=4)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-5, atol=1e-6)


class Plain:
    """The toy's mean square alone."""

    def __init__(self, toy: ToyObjective) -> None:
        self.module, self.validate = toy.module, toy.validate

    def plan(self, epoch: int, fraction: float) -> int:
        return 1

    def __call__(self, batch, rng):
        u = batch.inputs[:, -1]
        return (u + self.module(u) - batch.targets[:, 0]).square().mean(), {}


def test_keeps_the_averaged_weights_of_the_best_validation(tmp_path: Path) -> None:
    objective, seen = ToyObjective(), []
    scores = iter([3.0, 1.0, 2.0])

    def validate() -> float:
        assert not objective.module.training
        seen.append(weights(objective))
        return next(scores)

    outcome = train(tmp_path, objective, steps=30, validate=validate)
    assert (outcome.steps, outcome.best_metric, outcome.best_step, outcome.stopped) == (30, 1.0, 20, "budget")
    assert objective.module.training
    assert same(weights(objective), seen[1])
    raw = ToyObjective()
    train(tmp_path / "raw", raw, steps=30, ema_decay=0.0, validate=iter([3.0, 1.0, 2.0]).__next__)
    assert not same(weights(raw), seen[1])


def test_validates_at_the_end_whatever_the_interval(tmp_path: Path) -> None:
    calls = []
    outcome = train(tmp_path, ToyObjective(), steps=13, validate=lambda: calls.append(1) or 1.0, validate_every=1000)
    assert (len(calls), outcome.best_step) == (1, 13)


@pytest.mark.parametrize(("budget", "expected"), [(Budget("epochs", 3), 3), (Budget("steps", 40), 20)])
def test_automatic_validation_is_per_epoch_or_per_twentieth(tmp_path: Path, budget: Budget, expected: int) -> None:
    calls: list[int] = []
    train(tmp_path, ToyObjective(), budget=budget, validate=lambda: calls.append(1) or 1.0, validate_every="auto")
    assert len(calls) == expected


@pytest.mark.parametrize("budget", [Budget("epochs", 3), Budget("steps", 40)])
def test_automatic_validations_may_be_counted_instead(tmp_path: Path, budget: Budget) -> None:
    calls: list[int] = []
    several = {"validate_every": "auto", "auto_validations": 7}
    train(tmp_path, ToyObjective(), budget=budget, validate=lambda: calls.append(1) or 1.0, **several)
    assert len(calls) == 7


def test_patience_ends_training_and_the_end_is_saved(tmp_path: Path) -> None:
    scores = iter([1.0, 2.0, float("nan"), 0.0])
    outcome = train(tmp_path, ToyObjective(), steps=100, validate=scores.__next__, patience=2)
    assert (outcome.steps, outcome.best_step, outcome.stopped) == (30, 10, "patience")
    again = train(tmp_path, ToyObjective(), steps=100, validate=scores.__next__, patience=2)
    assert replace(again, seconds=outcome.seconds) == outcome
    assert next(scores) == 0.0  # nothing was validated again


@pytest.mark.parametrize(("unit", "amount", "steps"), [("steps", 11, 11), ("epochs", 3, 15)])
def test_a_budget_is_used_up_exactly(tmp_path: Path, unit: str, amount: int, steps: int) -> None:
    outcome = train(tmp_path, ToyObjective(), budget=Budget(unit, amount))  # type: ignore[arg-type]
    assert outcome.steps == steps
    assert records(tmp_path)[-1]["lr"] < 0.05 * 1e-2


@pytest.mark.parametrize("clock", ["wall", "process"])
def test_a_budget_in_seconds_counts_training_alone(tmp_path: Path, clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes 1/8 s of the clock, a validation 2 s: a budget of 4 s is 32 steps, whatever the validations."""
    now = [100.0]

    def takes(seconds: float) -> float:
        now[0] += seconds
        return 1.0

    monkeypatch.setattr("ups.training.state.CLOCKS", {clock: lambda: now[0]})
    objective = ToyObjective(on_batch=lambda _: takes(0.125))
    outcome = train(tmp_path, objective, budget=Budget("seconds", 4.0), validate=lambda: takes(2.0), clock=clock)
    assert (outcome.steps, outcome.seconds, now[0]) == (32, 4.0, 100.0 + 4.0 + 4 * 2.0)


def test_sleep_is_time_of_the_wall_and_not_of_the_process() -> None:
    wall, process = (TrainingClock(kind, CPU) for kind in ("wall", "process"))
    with wall.running(), process.running():
        time.sleep(0.1)
    assert process.seconds < 0.1 <= wall.seconds


def test_validation_does_not_touch_the_random_numbers_of_training(tmp_path: Path) -> None:
    quiet, noisy = ToyObjective(), ToyObjective()
    scores = iter([2.0, 1.0])
    train(tmp_path / "quiet", quiet, steps=20, validate=iter([2.0, 1.0]).__next__)
    train(tmp_path / "noisy", noisy, steps=20, validate=lambda: next(scores) + 0 * float(torch.rand(3).sum()))
    assert same(weights(quiet), weights(noisy))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_mixed_precision_trains_alike(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    full, mixed = (ToyObjective(dropout=0.0) for _ in range(2))
    expected = train(tmp_path / "full", full, steps=60)
    found = train(tmp_path / "mixed", mixed, steps=60, amp=dtype)
    assert found.best_metric == pytest.approx(expected.best_metric, rel=tolerance)
    assert found.best_metric != expected.best_metric


def test_frozen_parts_and_modes_are_left_alone(tmp_path: Path) -> None:
    objective = ToyObjective()
    objective.module[0].requires_grad_(False)
    objective.module[2].eval()
    before = weights(objective)
    train(tmp_path, objective)
    after = weights(objective)
    assert same(before[:2], after[:2])
    assert not same(before[2:], after[2:])
    assert [part.training for part in objective.module] == [True, True, False, True]


def test_evaluating_restores_the_mode_of_every_part() -> None:
    module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(module):
        assert not module[0].training
    assert [module.training, module[0].training, module[1].training] == [True, True, False]


def test_records_say_how_fast_and_how_far(tmp_path: Path) -> None:
    train(tmp_path, ToyObjective(), steps=8, validate=lambda: 1.0)
    first = records(tmp_path)[0]
    assert (first["stage"], first["step"], first["epoch"]) == ("toy", 4, 0.8)
    assert first["points_per_second"] == pytest.approx(first["samples_per_second"] * windows(1, 0)[0, :2, 0].numel())
    assert 0 <= first["data_wait"] < 1
    assert [record["checkpoint_stall"] > 0 for record in records(tmp_path) if "loss" in record] == [False, True]
    assert first["memory_peak_mb"] > 10
    assert first["epochs_since_improvement"] == 0.8


def test_precision_is_full_unless_asked_otherwise() -> None:
    assert LoopSettings.of(TrainingSettings(), patience=3).amp is None
    assert LoopSettings.of(TrainingSettings(amp=True), patience=3).amp is torch.bfloat16
    half = TrainingSettings(amp=True, amp_dtype="float16")
    assert LoopSettings.of(half, patience=None).amp is torch.float16
