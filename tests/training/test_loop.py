from __future__ import annotations

import math
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.training.toy_training import (
    CPU,
    ToyLoader,
    ToyObjective,
    curve,
    records,
    same,
    stop_at,
    train,
    weights,
    windows,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ups.config.learning import TrainingSettings
from ups.errors import CheckpointError
from ups.training.checkpoint import CheckpointStore
from ups.training.guard import StepGuard
from ups.training.loop import LoopSettings, evaluating
from ups.training.monitor import DivergedError
from ups.training.schedule import Budget, cosine
from ups.training.signals import Interrupted
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


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adam", "sgd"])
@pytest.mark.parametrize("accum_steps", [1, 2])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, optimizer: str, accum_steps: int) -> None:
    options = {"optimizer": optimizer, "accum_steps": accum_steps}
    whole, first, second = ToyObjective(), ToyObjective(on_batch=stop_at(13)), ToyObjective()
    expected = train(tmp_path / "whole", whole, **options)
    with pytest.raises(Interrupted, match="SIGTERM") as stopped:
        train(tmp_path / "parts", first, **options)
    assert stopped.value.exit_code == 143
    found = train(tmp_path / "parts", second, **options)
    assert (found.steps, found.best_metric, found.best_step) == (
        expected.steps,
        expected.best_metric,
        expected.best_step,
    )
    assert same(weights(whole), weights(second))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_control_c_saves_and_later_signals_are_ignored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="Ctrl-C in stage toy after step 5; saved") as stopped:
        train(tmp_path, ToyObjective(on_batch=stop_at(4, (signal.SIGINT, signal.SIGTERM))))
    assert stopped.value.exit_code == 130
    assert CheckpointStore(tmp_path / "checkpoints" / "toy", fingerprint={}).steps() == [0, 5]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("steps", [20, 30])  # in the middle, and at the end of the budget
def test_a_signal_during_validation_is_saved_before_it_is_heeded(tmp_path: Path, steps: int) -> None:
    """Step 20 is none at which a checkpoint is due; the signal comes while it is validated."""
    whole, first, second = ToyObjective(), ToyObjective(), ToyObjective()
    expected = train(tmp_path / "whole", whole)
    calls = []

    def validate() -> float:
        calls.append(1)
        if len(calls) == steps // 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return first.validate()

    with pytest.raises(Interrupted, match=f"after step {steps}; saved"):
        train(tmp_path / "parts", first, validate=validate)
    assert CheckpointStore(tmp_path / "parts" / "checkpoints" / "toy", fingerprint={}).steps()[-1] == steps
    found = train(tmp_path / "parts", second)
    assert (found.steps, found.best_metric) == (expected.steps, expected.best_metric)
    assert same(weights(whole), weights(second))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


class Bad(ToyObjective):
    """Not finite in the batches of the epochs `when`, or in the one batch `only`; in its loss or its gradient alone."""

    def __init__(self, where: str, *, when: range = range(0), only: int | None = None, **options) -> None:
        super().__init__(**options)
        self.where, self.when, self.only, self.epoch = where, when, only, 0

    def plan(self, epoch: int, fraction: float) -> int:
        self.epoch = epoch
        return super().plan(epoch, fraction)

    def __call__(self, batch, rng):
        bad = self.epoch in self.when or self.batches == self.only
        if bad and self.where == "batch":
            batch.frames.fill_(math.inf)
        loss, metrics = super().__call__(batch, rng)
        weight = self.module[0].weight
        if bad and self.where == "loss":
            loss = loss * math.nan
        if bad and self.where == "gradient":
            loss = loss + (weight - weight).sum().abs().sqrt()
        return loss, metrics


def finite(state: dict) -> bool:
    parts = state["parts"]
    tensors = [*parts["module"].values(), *parts["ema"]["average"]]
    tensors += [item for one in parts["optimizer"]["state"].values() for item in one.values()]
    return all(tensor.isfinite().all() for tensor in tensors if isinstance(tensor, torch.Tensor))


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
@pytest.mark.parametrize("on_device", [False, True])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
    tmp_path: Path, optimizer: str, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on_device:
        decide_on_the_device(monkeypatch)
    found = []
    for where in ("loss", "gradient", "batch"):
        objective = Bad(where, only=17)
        outcome = train(tmp_path / where, objective, optimizer=optimizer, validate=iter([3.0, 2.0, 1.0]).__next__)
        assert outcome.stopped == "budget"
        found.append(weights(objective))
        logged = [record for record in records(tmp_path / where) if "loss" in record]
        assert [r["step"] for r in logged if r["skipped_steps"]] == [20]
        assert all(record["loss"] is not None for record in logged)
        state = CheckpointStore(tmp_path / where / "checkpoints" / "toy", fingerprint={}).load()
        assert state is not None
        assert finite(state)
    assert same(found[0], found[1])  # the one step was left out, whatever was wrong with it
    assert same(found[0], found[2])
    usual = ToyObjective()
    train(tmp_path / "usual", usual, optimizer=optimizer, validate=iter([3.0, 2.0, 1.0]).__next__)
    assert not same(found[0], weights(usual))


def decide_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ups.training.loop.StepGuard", lambda *args, on_device: StepGuard(*args, on_device=True))


@pytest.mark.parametrize("on_device", [False, True])
def test_many_bad_steps_go_back_to_the_last_good_checkpoint(
    tmp_path: Path, on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third epoch, steps 11 to 15, is bad; checkpoints are due at 7 and 14, of which the latter is not good."""
    if on_device:
        decide_on_the_device(monkeypatch)
    objective = Bad("loss", when=range(2, 3))
    outcome = train(tmp_path, objective, max_bad_steps=5)
    assert (outcome.steps, outcome.stopped) == (30, "budget")
    told = [record for record in records(tmp_path) if record.get("rollbacks")]
    assert [(r["step"], r["rollbacks"], r["skipped_steps"]) for r in told] == [(7, 1, 5)]
    assert told[0]["diagnosis"].startswith("step 11, a batch of toy in epoch 2.20: loss nan, first 1.")
    steps = [record["step"] for record in records(tmp_path) if "loss" in record]
    assert steps == sorted(set(steps))
    assert records(tmp_path)[-1]["lr"] == pytest.approx(0.5 * 1e-2 * cosine(29.5 / 30, warmup=0.05, final=0.01))
    usual = [record["lr"] for record in records(tmp_path) if "lr" in record and record["step"] < 7]
    assert usual == [pytest.approx(1e-2 * cosine(3.5 / 30, warmup=0.05, final=0.01))]


def test_roll_backs_end_in_a_diagnosis(tmp_path: Path) -> None:
    objective = Bad("gradient", when=range(2, 100))
    with pytest.raises(DivergedError) as diverged:
        train(tmp_path, objective, steps=100, max_bad_steps=5, max_rollbacks=2)
    text = str(diverged.value)
    assert diverged.value.exit_code == 1
    assert "stage toy diverged after 2 roll-backs to its last good checkpoint" in text
    assert "a batch of toy in epoch" in text
    assert "not finite are the gradients of 0.weight" in text
    assert "training.lambda_*" in text
    assert [r["rollbacks"] for r in records(tmp_path) if "rollbacks" in r] == [1, 2]
    state = CheckpointStore(tmp_path / "checkpoints" / "toy", fingerprint={}).load()
    assert state is not None
    assert (state["step"], state["rollbacks"]) == (7, 2)
    assert finite(state)


def test_bad_from_the_first_step_on_is_told_as_well(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"diverged after 3 roll-backs .* step 1, a batch of toy in epoch"):
        train(tmp_path, Bad("loss", when=range(100)), steps=1000)


@pytest.mark.parametrize("batch", [3, 9, 12, 13, 14, 17, 26])
def test_stopped_and_resumed_equals_uninterrupted_also_around_a_roll_back(tmp_path: Path, batch: int) -> None:
    options = {"max_bad_steps": 3}
    whole, first, second = (Bad("loss", when=range(2, 3)) for _ in range(3))
    expected = train(tmp_path / "whole", whole, **options)
    seen = []

    def stop(_: int) -> None:
        seen.append(1)
        if len(seen) == batch:
            os.kill(os.getpid(), signal.SIGTERM)

    first.on_batch = stop
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", first, **options)
    found = train(tmp_path / "parts", second, **options)
    assert replace(found, seconds=0.0) == replace(expected, seconds=0.0)
    assert same(weights(whole), weights(second))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_a_roll_back_after_a_stop_leaves_nothing_later_to_resume_from(tmp_path: Path) -> None:
    """Stopped in step 13, among bad ones; the roll-back to step 7 comes after, and the next kill right after that."""
    options = {"max_bad_steps": 5}
    whole, first, killed, last = (Bad("loss", when=range(2, 3)) for _ in range(4))
    expected = train(tmp_path / "whole", whole, **options)
    seen: list[list[int]] = []
    store = CheckpointStore(tmp_path / "parts" / "checkpoints" / "toy", fingerprint={})

    def note(_: int) -> None:
        seen.append(store.steps())
        if seen[-1][-1] == 7:
            raise RuntimeError("killed")

    first.on_batch, killed.on_batch = stop_at(12), note
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", first, **options)
    assert store.steps() == [7, 13]
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "parts", killed, **options)
    assert seen == [*[[7, 13]] * 3, [7]]
    found = train(tmp_path / "parts", last, **options)
    assert replace(found, seconds=0.0) == replace(expected, seconds=0.0)
    assert same(weights(whole), weights(last))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("where", ["_put", "_remove"])
def test_killed_while_a_roll_back_is_saved_it_is_done_again_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, keep: int
) -> None:
    """Stopped in step 13, among bad ones; dies when step 7 shall take its place again, or step 13 go after that."""
    options = {"max_bad_steps": 5, "keep": keep}
    whole, first, killed, last = (Bad("loss", when=range(2, 3)) for _ in range(4))
    expected = train(tmp_path / "whole", whole, **options)
    first.on_batch = stop_at(12)
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", first, **options)
    store = CheckpointStore(tmp_path / "parts" / "checkpoints" / "toy", fingerprint={})
    assert store.steps() == [7, 13][-keep:]

    def dies(*_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(CheckpointStore, where, dies)
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "parts", killed, **options)
    assert store.steps() == ([7, 13] if where == "_remove" else [7, 13][-keep:])
    monkeypatch.undo()
    found = train(tmp_path / "parts", last, **options)
    assert replace(found, seconds=0.0) == replace(expected, seconds=0.0)
    assert same(weights(whole), weights(last))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save of step 7 waits for the second batch after it, and the one of step 14 for the save of step 7."""
    save, written, waited = CheckpointStore.save, threading.Event(), []

    def slow(store: CheckpointStore, step: int, state: dict) -> Path:
        if step == 7:
            waited.append(written.wait(timeout=20))
        return save(store, step, state)

    monkeypatch.setattr(CheckpointStore, "save", slow)
    whole, other = ToyObjective(), ToyObjective(on_batch=lambda batches: written.set() if batches == 9 else None)
    train(tmp_path, other)
    assert waited == [True]
    monkeypatch.undo()
    train(tmp_path / "whole", whole)
    assert same(weights(whole), weights(other))


def test_a_save_that_fails_ends_training_within_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, failed = CheckpointStore.save, threading.Event()

    def fail(store: CheckpointStore, step: int, state: dict) -> Path:
        if step == 14:
            failed.set()
            raise CheckpointError("the disk is full")
        return save(store, step, state)

    def wait(batches: int) -> None:
        if batches == 14:
            assert failed.wait(timeout=20)
            time.sleep(0.1)

    monkeypatch.setattr(CheckpointStore, "save", fail)
    objective = ToyObjective(on_batch=wait)
    with pytest.raises(CheckpointError, match="full"):
        train(tmp_path, objective)
    assert objective.batches == 15


def test_scores_that_are_never_finite_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="no validation gave a finite score"):
        train(tmp_path, ToyObjective(), validate=lambda: float("inf"))


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    train(tmp_path, ToyObjective(), fingerprint={"optimizer": {"lr": 0.1}})
    with pytest.raises(CheckpointError, match=r"optimizer\.lr: 0\.1 in the checkpoint, 0\.2 now"):
        train(tmp_path, ToyObjective(), fingerprint={"optimizer": {"lr": 0.2}})


def test_the_host_waits_for_the_device_at_log_points_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Syncs(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    decide_on_the_device(monkeypatch)
    counts = []
    for steps in (12, 36):
        with Syncs() as syncs:
            train(
                tmp_path / str(steps),
                ToyObjective(),
                steps=steps,
                validate=lambda: 1.0,
                log_every=100,
                validate_every=100,
                checkpoint_interval=100,
            )
        counts.append(syncs.count)
    assert counts[0] == counts[1]


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
