"""Where the time of a training's checkpoints goes, and what would take less memory."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ups.config.names import setting_names
from ups.config.schema import Settings
from ups.pipeline.plan import TimedStore, memory_remedies
from ups.timing import Timings
from ups.training import saver as saving
from ups.training.checkpoint import CheckpointStore
from ups.training.saver import BackgroundSaver


def test_what_training_stands_still_for_a_background_save_is_time_of_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy takes 0.2 s, a save 0.3 s: training waits for two copies, and for the first save at the second one."""
    copied, save = saving.copied, CheckpointStore.save

    def slow_copy(state: Any) -> Any:
        time.sleep(0.2)
        return copied(state)

    def slow_save(store: CheckpointStore, step: int, state: Mapping[str, Any]) -> Path:
        time.sleep(0.3)
        return save(store, step, state)

    timings = Timings("rest")
    store = TimedStore(tmp_path, fingerprint={}).timed(partial(timings.part, "checkpoints"))
    monkeypatch.setattr(saving, "copied", slow_copy)
    monkeypatch.setattr(CheckpointStore, "save", slow_save)
    with timings.part("train", compute=True), BackgroundSaver(store) as saver:
        saver.save(1, {"step": 1})
        saver.save(2, {"step": 2})
        time.sleep(0.6)  # trains on while the second is saved
    assert 0.45 < timings.parts["checkpoints"].seconds == pytest.approx(saver.stalled, abs=0.1)
    assert timings.parts["train"].seconds >= 0.6


@pytest.mark.parametrize(
    ("task", "stage", "network"),
    [
        ("burgers1d", "operator", "operator"),
        ("burgers1d", "diff_residual", "diffusion"),
        ("burgers1d", "baselines-fno", None),
        ("darcy2d", "steady_prior", "prior"),
    ],
)
def test_less_memory_is_asked_of_settings_that_the_training_reads(task: str, stage: str, network: str | None) -> None:
    settings = Settings.model_validate({"task": task, "training": {"rollout_horizon": 3, "lambda_rollout": 1.0}})
    named = set(re.findall(r"\w+(?:\.\w+)+", " ".join(memory_remedies(settings, stage, 4))))
    assert named <= set(setting_names())
    networks = {name.partition(".")[0] for name in named} & {"operator", "diffusion", "prior"}
    assert networks == ({network} if network else set())
    assert ("training.rollout_horizon" in named) == (network == "operator")
