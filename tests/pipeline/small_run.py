"""Real runs of a few steps on tiny data. What needs no training is made of a few bytes by `toy_run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ups.config.load import load_settings
from ups.pipeline.run import RunOutcome, run_pipeline, train_pipeline
from ups.runtime import SilentProgress

SIZES = {
    1: {"latent": {"dim": 16, "patch": 4}, "pdet": {"hidden_dim": 16, "depths": 1, "heads": 2, "stem_width": 8}},
    2: {"latent": {"dim": 32, "patch": 4}, "pdet": {"hidden_dim": 16, "depths": 1, "heads": 2, "stem_width": 8}},
}


def write_config(folder: Path, task: str, files: list[str], **more: Any) -> Path:
    """Settings of a run of twelve steps."""
    sizes = SIZES[2 if task.endswith("2d") else 1]
    settings: dict[str, Any] = {
        "task": task,
        "threads": 1,
        "runs_dir": str(folder / "runs"),
        "data": {"root": str(folder), "files": files},
        "latent": sizes["latent"],
        "operator": {"pdet": sizes["pdet"]},
        "training": {"batch_size": 4, "checkpoint_interval": 5},
        "stages": {"codec": {"epochs": 1}, "operator": {"steps": 12}},
        "evaluation": {"baselines": ["persistence", "linear"], "solver_reference": False},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps({**settings, **more}))  # JSON is YAML
    return path


def run(config: Path, *overrides: str, **choices: Any) -> RunOutcome:
    """Trains, evaluates, judges and reports."""
    return run_pipeline(load_settings(config, overrides), progress=SilentProgress(), **choices)


def train(config: Path, *overrides: str) -> RunOutcome:
    """Trains alone."""
    return train_pipeline(load_settings(config, overrides), progress=SilentProgress())
