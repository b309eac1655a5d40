"""Steps that are not finite: skipped, gone back behind, told, and noticed without waiting for the device."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.training.toy_training import ToyObjective, curve, records, same, stop_at, train, weights
from torch.utils._python_dispatch import TorchDispatchMode

from ups.training.checkpoint import CheckpointStore
from ups.training.guard import StepGuard
from ups.training.monitor import DivergedError
from ups.training.schedule import cosine
from ups.training.signals import Interrupted


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


def test_scores_that_are_never_finite_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="no validation gave a finite score"):
        train(tmp_path, ToyObjective(), validate=lambda: float("inf"))


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
