"""Whole runs that are killed, as a script: each attempt is a child process of its own.

    python run_faults.py stage FOLDER STAGE      SIGKILL twice while a stage is trained, resume, compare
    python run_faults.py kills FOLDER NUMBER     SIGKILL at random times over all that a run does, resume, compare

The last line printed is JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import torch
from training_faults import in_child

from kills import SETTINGS, STAGES, differences, killed_after, left_alone, other_scores, run_dir, write_config
from ups.config.load import load_settings
from ups.pipeline.run import train_pipeline
from ups.runtime import SilentProgress
from ups.training.sinks import JsonlSink, Record

DARCY: dict[str, Any] = {
    "task": "darcy2d",
    "threads": 1,
    "data": {
        "files": "darcy.hdf5",
        "generate": {"samples": 40, "seed": 1, "resolution": 16, "params": {"beta": 1.0}},
    },
    "prior": {"hidden_dim": 16, "depth": 1, "stem_width": 8},
    "training": {"batch_size": 8, "checkpoint_interval": 3, "log_every": 1},
    "stages": {"steady_prior": {"steps": 24}},
}
STEPS = {"codec": 24, "operator": 12, "diff_residual": 8, "consistency_distill": 6}


def small() -> dict[str, Any]:
    """The settings of the bench of kills, for a few steps of every stage."""
    stages = {name: {**SETTINGS["stages"][name], "steps": steps} for name, steps in STEPS.items()}
    evaluation = {"members": 2, "baselines": ["persistence", "linear"], "solver_reference": False}
    batches = {"batch_size": 8, "checkpoint_interval": 3, "log_every": 1, "validate_every": 10}
    return {**SETTINGS, "stages": stages, "evaluation": evaluation, "training": batches}


def train_in_child(config: Path, stage: str, last: int | None) -> int:
    """Trains all stages; where `last` is given, to be killed before that record of the stage is written."""
    left, write = [last], JsonlSink.write

    def write_or_die(sink: JsonlSink, record: Record) -> None:
        if left[0] is not None and record["stage"] == stage:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        write(sink, record)

    def work() -> None:
        JsonlSink.write = write_or_die  # type: ignore[method-assign]
        train_pipeline(load_settings(config), progress=SilentProgress())

    return in_child(work)


def kill_in_stage(folder: Path, stage: str) -> dict[str, object]:
    settings, stages = (DARCY, (stage,)) if stage == "steady_prior" else (small(), STAGES)
    whole, parts = (write_config(folder / name, settings) for name in ("whole", "parts"))
    statuses = [train_in_child(whole, stage, None), *(train_in_child(parts, stage, last) for last in (5, 12, None))]
    return {"statuses": statuses, "differences": differences(run_dir(whole), run_dir(parts), stages)}


def kill_at_random(folder: Path, kills: int) -> dict[str, object]:
    settings, draw = small(), random.Random(0)
    whole, parts = (write_config(folder / name, settings) for name in ("whole", "parts"))
    mean = left_alone(whole) / kills
    made = sum(killed_after(parts, draw.uniform(0.4, 1.0) * mean) is not None for _ in range(kills))
    left_alone(parts)
    folders = run_dir(whole), run_dir(parts)
    return {"kills": made, "differences": [*differences(*folders), *other_scores(*folders)]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, where, which = sys.argv[1:]
    print(json.dumps(kill_in_stage(Path(where), which) if what == "stage" else kill_at_random(Path(where), int(which))))
