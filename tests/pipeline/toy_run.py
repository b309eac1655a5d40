"""Evaluated runs made of a few bytes, for what comes after the evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ups.config import Settings, dump_settings
from ups.config.gates import GateSettings
from ups.evaluation.gates import judge_small
from ups.evaluation.leaderboard import Leaderboard
from ups.pipeline.promote import Decision, current_hashes, decide
from ups.pipeline.records import StepRecords

DATA = "hash of the data"
PROTOCOL = {"hash": "p" * 64, "device": "cpu", "threads": 1, "batch_size": 32}
SCORES = {"nrmse": 0.1, "conservation_gap": 1e-7, "bc_violation": None, "ece": None, "wall_clock": 0.01}


def write_run(runs: Path, name: str, *, task: str = "burgers1d", small: float = 0.1, **scores: Any) -> Path:
    """A run that was trained and evaluated, with its records."""
    run = runs / name
    for folder in ("model", "evaluation"):
        (run / folder).mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(dump_settings(Settings.model_validate({"data": {"task": [task]}})))
    (run / "model" / "weights.safetensors").write_bytes(name.encode())
    (run / "model" / "config.json").write_text(json.dumps({"kind": "ups", "corrector": None}))
    content: dict[str, Any] = {"protocol": PROTOCOL, "baselines": {"persistence": {task: {"nrmse": 1.0}}}}
    for scope, values in (("small", {"nrmse": small}), ("full", SCORES | scores)):
        (run / "evaluation" / f"{scope}.json").write_text(json.dumps({**content, "tasks": {task: values}}))
    hashes = current_hashes(run, DATA)
    records = StepRecords(run)
    records.finish("evaluate-small", "key", 0.0, hashes=hashes)
    records.finish("evaluate", "key", 0.0, hashes=hashes)
    return run


def decide_run(run: Path, settings: GateSettings | None = None, board: Leaderboard | None = None) -> Decision:
    """Gates and promotion of a run, beside whose folder the leaderboard is."""
    board = board or Leaderboard(run.parent / "leaderboard.sqlite")
    small = judge_small(json.loads((run / "evaluation" / "small.json").read_text()))
    return decide(run, StepRecords(run), DATA, settings or GateSettings(first_champion=True), board, small)
