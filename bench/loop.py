"""What the training loop costs: a step of `fit` against the same step written out with PyTorch alone.

Both do the same arithmetic on the same batches: forward, backward, clipping, fused AdamW, average of the weights. The
loop also logs to a file every 20 steps, follows its schedule, and watches for signals and divergence. Rounds are
interleaved.

    python bench/loop.py [--rounds 9] [--steps 60]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ups.config.learning import CosineSchedule, OptimizerSettings
from ups.data.fields import Batch, Grid
from ups.training.checkpoint import CheckpointStore
from ups.training.ema import build_ema
from ups.training.loop import LoopSettings, fit
from ups.training.monitor import JsonlSink, Monitor
from ups.training.optim import build_optimizer
from ups.training.schedule import Budget, build_schedule

CELLS, BATCH, WARM_UP = 64, 32, 10
GRID = Grid((np.arange(CELLS) / CELLS,), (True,))
FRAMES = torch.randn(BATCH, 2, 1, CELLS, generator=torch.Generator().manual_seed(0))


class Loader:
    """The same batch for ever: what data costs is measured elsewhere."""

    epoch, epochs = 0, 0.0
    steps_per_epoch = 1000

    def set_horizon(self, horizon: int) -> None: ...

    def __iter__(self) -> Iterator[Batch]:
        batch = Batch("bench", FRAMES, torch.ones(BATCH), torch.empty(BATCH, 0), GRID, context=1)
        while True:
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Objective:
    """One step ahead by a residual convolution network; notes when it is called."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        middle = [nn.Conv1d(width, width, 5, padding=2, padding_mode="circular") for _ in range(3)]
        layers = [
            nn.Conv1d(1, width, 1),
            *(part for conv in middle for part in (conv, nn.GELU())),
            nn.Conv1d(width, 1, 1),
        ]
        self.module, self.times = nn.Sequential(*layers), []

    def plan(self, epoch: int, fraction: float) -> int:
        return 1

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        self.times.append(time.process_time())  # other work on the machine does not count
        u = batch.inputs[:, -1]
        loss = (u + self.module(u) - batch.targets[:, 0]).square().mean()
        return loss, {"relative": loss.detach()}

    def seconds_per_step(self) -> float:
        return (self.times[-1] - self.times[WARM_UP]) / (len(self.times) - 1 - WARM_UP)


def by_fit(width: int, steps: int) -> float:
    """Seconds per step of the loop."""
    objective = Objective(width)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            objective,
            Loader(),
            budget=Budget("steps", steps),
            optimizer=build_optimizer(objective.module, OptimizerSettings(name="adamw")),
            schedule=build_schedule(CosineSchedule()),
            ema=build_ema(objective.module, 0.999),
            settings=LoopSettings(validate_every=10**9, checkpoint_interval=10**9),
            validate=lambda: 1.0,
            checkpoints=CheckpointStore(Path(folder) / "checkpoints", fingerprint={}),
            monitor=Monitor("bench", [JsonlSink(Path(folder) / "log.jsonl")]),
            device=torch.device("cpu"),
            seed=0,
        )
    return objective.seconds_per_step()


def by_hand(width: int, steps: int) -> float:
    """Seconds per step of a loop without anything around it."""
    objective, rng = Objective(width), torch.Generator()
    params = list(objective.module.parameters())
    optimizer = torch.optim.AdamW(params, 1e-3, fused=True)
    average = [p.detach().clone() for p in params]
    batches = iter(Loader())
    for _ in range(steps):
        loss, _ = objective(next(batches), rng)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1e-3)
    return objective.seconds_per_step()


def main() -> None:
    """Prints a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    rows = {}
    for width in (32, 64):
        rounds = []
        for turn in range(options.rounds):  # either goes first in turn
            order = (by_hand, by_fit) if turn % 2 else (by_fit, by_hand)
            seconds = {way: way(width, options.steps) for way in order}
            rounds.append((seconds[by_hand], seconds[by_fit]))
        hand, loop = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(b / a for a, b in rounds)
        rows[f"width_{width}"] = round(ratio, 4)
        print(f"width {width:3d}   by hand {1e3 * hand:7.2f} ms   fit {1e3 * loop:7.2f} ms   ratio {ratio:.3f}")
    print(json.dumps({"bench": "loop", "target": 1.05, "ratio": rows, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
