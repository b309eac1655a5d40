"""The loop stopped and gone on with: to the same bits, with saves that run beside it, and of the same settings only."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from tests.training.toy_training import ToyObjective, curve, same, stop_at, train, weights

from ups.errors import CheckpointError
from ups.training.checkpoint import CheckpointStore
from ups.training.signals import Interrupted


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


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    train(tmp_path, ToyObjective(), fingerprint={"optimizer": {"lr": 0.1}})
    with pytest.raises(CheckpointError, match=r"optimizer\.lr: 0\.1 in the checkpoint, 0\.2 now"):
        train(tmp_path, ToyObjective(), fingerprint={"optimizer": {"lr": 0.2}})
