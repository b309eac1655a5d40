"""The loop on real windows: what resumes where horizon and weights of the windows change on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.layouts import write_task
from tests.training.toy_training import ToyObjective, curve, records, same, stop_at, train, weights
from torch import Tensor

from ups.config.data import DataSettings
from ups.data.split import load_files
from ups.data.windows import WindowLoader
from ups.training.schedule import Budget, Schedule
from ups.training.signals import Interrupted


def test_resumes_on_real_windows_whose_horizon_changes_within_an_epoch(tmp_path: Path) -> None:
    path = write_task(tmp_path / "burgers1d.h5", "burgers1d", num=5, frames=9, resolution=8)
    data = DataSettings(task=("burgers1d",))

    def loader() -> WindowLoader:
        return WindowLoader({"burgers1d": load_files([path], "burgers1d", data)}, 7, 1, 1, seed=3)

    whole, first, second = ToyObjective(), ToyObjective(on_batch=stop_at(12)), ToyObjective()
    budget = Budget("epochs", 5)
    expected = train(tmp_path / "whole", whole, loader=loader(), budget=budget, validate_every="auto")
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", first, loader=loader(), budget=budget, validate_every="auto")
    found = train(tmp_path / "parts", second, loader=loader(), budget=budget, validate_every="auto")
    assert (found.steps, found.best_step) == (expected.steps, expected.best_step)
    assert same(weights(whole), weights(second))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")
    assert records(tmp_path / "whole")[-1]["epoch"] == 5.0
    assert sum("valid_nrmse" in record for record in records(tmp_path / "whole")) == 5


def test_a_horizon_that_changes_within_the_only_epoch_leaves_the_budget_whole(tmp_path: Path) -> None:
    """20 batches of one frame; from 14/20 on, 8 of six frames: the place is then 6/8, and two batches are left."""
    path = write_task(tmp_path / "burgers1d.h5", "burgers1d", num=5, frames=9, resolution=8)
    trajectories = load_files([path], "burgers1d", DataSettings(task=("burgers1d",)))

    class UnrollsLate(ToyObjective):
        def plan(self, epoch: int, fraction: float) -> int:
            return 1 if fraction < 0.7 else 6

    def loader() -> WindowLoader:
        return WindowLoader({"burgers1d": trajectories}, 2, 1, 1, seed=3)

    asked: list[float] = []
    schedule = Schedule(lambda fraction: asked.append(fraction) or 1.0 - 0.9 * fraction)
    options = {"budget": Budget("epochs", 1), "schedule": schedule, "validate_every": 4, "log_every": 1}
    whole, first, second = UnrollsLate(), UnrollsLate(on_batch=stop_at(14)), UnrollsLate()
    expected = train(tmp_path / "whole", whole, loader=(batches := loader()), **options)
    assert (expected.steps, batches.epochs, batches.epoch, batches.horizon) == (16, 1.0, 1, 6)
    assert asked == pytest.approx([*((step + 0.5) / 20 for step in range(15)), 7 / 8 + 0.5 / 8])
    assert [record["epoch"] for record in records(tmp_path / "whole") if "loss" in record][-3:] == [0.7, 0.875, 1.0]

    with pytest.raises(Interrupted, match="after step 15"):
        train(tmp_path / "parts", first, loader=loader(), **options)
    found = train(tmp_path / "parts", second, loader=loader(), **options)
    assert (found.steps, found.best_step) == (expected.steps, expected.best_step)
    assert asked[:16] == asked[16:]
    assert same(weights(whole), weights(second))


def test_resumes_with_the_windows_weighed_as_they_were(tmp_path: Path) -> None:
    path = write_task(tmp_path / "burgers1d.h5", "burgers1d", num=5, frames=9, resolution=8)
    trajectories = load_files([path], "burgers1d", DataSettings(task=("burgers1d",)))

    def options(objective: ToyObjective) -> dict[str, Any]:
        def refocus() -> dict[str, Tensor]:
            return {
                "burgers1d": torch.linspace(
                    1.0, 3.0 + float(next(objective.module.parameters()).detach().sum()) ** 2, 8
                )
            }

        loader = WindowLoader({"burgers1d": trajectories}, 7, 1, 1, seed=3)
        return {"loader": loader, "budget": Budget("steps", 25), "validate_every": 4, "refocus": refocus}

    whole, first, second, even = ToyObjective(), ToyObjective(on_batch=stop_at(13)), ToyObjective(), ToyObjective()
    train(tmp_path / "whole", whole, **options(whole))
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", first, **options(first))
    train(tmp_path / "parts", second, **options(second))
    assert same(weights(whole), weights(second))
    train(tmp_path / "even", even, **{**options(even), "refocus": None})
    assert not same(weights(whole), weights(even))
