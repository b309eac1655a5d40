"""A training small enough to run in milliseconds that uses everything the loop promises to keep.

It draws from PyTorch's stream (dropout) and from the objective's generator (noise), and counts its batches.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ups.config.learning import CosineSchedule, OptimizerSettings
from ups.data.fields import Batch, Grid
from ups.data.windows import WindowLoader
from ups.training.checkpoint import CheckpointStore
from ups.training.ema import build_ema
from ups.training.loop import LoopSettings, StageOutcome, fit
from ups.training.monitor import JsonlSink, Monitor
from ups.training.optim import build_optimizer
from ups.training.schedule import Budget, Schedule, build_schedule

CELLS = 8
GRID = Grid((np.arange(CELLS) / CELLS,), (True,))
CPU = torch.device("cpu")


def windows(num: int, seed: int) -> Tensor:
    """Random walks of four frames, (num, 4, 1, CELLS)."""
    return torch.randn(num, 4, 1, CELLS, generator=torch.Generator().manual_seed(seed)).cumsum(1)


class ToyLoader:
    """Batches of random walks in an order drawn anew for every epoch."""

    def __init__(self, num: int = 40, batch_size: int = 8, seed: int = 0) -> None:
        self.data, self.batch_size, self.seed = windows(num, seed), batch_size, seed
        self.epoch = self.position = 0
        self.horizon = 1
        self.steps_per_epoch = num // batch_size

    @property
    def epochs(self) -> float:
        return self.epoch + self.position / self.steps_per_epoch

    def set_horizon(self, horizon: int) -> None:
        self.horizon = horizon

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Every window of a toy is like the others."""

    def __iter__(self) -> Iterator[Batch]:
        while True:
            order = torch.randperm(
                len(self.data), generator=torch.Generator().manual_seed(1000 * self.seed + self.epoch)
            )
            frames = self.data[order[self.position * self.batch_size :][: self.batch_size], : 1 + self.horizon]
            self.position += 1
            if self.position == self.steps_per_epoch:
                self.epoch, self.position = self.epoch + 1, 0
            yield Batch("toy", frames, torch.ones(len(frames)), torch.empty(len(frames), 0), GRID, context=1)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "horizon": self.horizon}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position, self.horizon = state["epoch"], state["position"], state["horizon"]


class ToyObjective:
    """Mean square of a noisy one-step forecast; every third batch counts double, and roll-outs join half-way."""

    def __init__(
        self, *, dropout: float = 0.1, noise: float = 0.01, on_batch: Callable[[int], None] | None = None
    ) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(CELLS, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, CELLS))
        self.noise, self.on_batch, self.batches = noise, on_batch, 0

    def plan(self, epoch: int, fraction: float) -> int:
        return 1 if fraction < 0.5 else 2

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if self.on_batch is not None:
            self.on_batch(self.batches)
        u, losses = batch.inputs[:, -1], []
        u = u + self.noise * torch.randn(u.shape, generator=rng)
        for k in range(batch.horizon):
            u = u + self.module(u)
            losses.append((u - batch.targets[:, k]).square().mean())
        loss = torch.stack(losses).mean() * (2 if self.batches % 3 == 0 else 1)
        self.batches += 1
        return loss, {"first": losses[0]}

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches = state["batches"]

    def validate(self) -> float:
        frames = windows(16, seed=99)
        with torch.no_grad():
            return float((frames[:, 0] + self.module(frames[:, 0]) - frames[:, 1]).square().mean())


def settings_with(**changes: Any) -> LoopSettings:
    return replace(LoopSettings(log_every=4, validate_every=10, checkpoint_interval=7), **changes)


def train(
    run: Path,
    objective: ToyObjective,
    *,
    steps: int = 30,
    optimizer: str = "adamw",
    ema_decay: float = 0.9,
    validate: Callable[[], float] | None = None,
    fingerprint: dict[str, Any] | None = None,
    budget: Budget | None = None,
    loader: ToyLoader | WindowLoader | None = None,
    schedule: Schedule | None = None,
    device: torch.device = CPU,
    refocus: Callable[[], Mapping[str, Tensor]] | None = None,
    keep: int = 2,
    **changes: Any,
) -> StageOutcome:
    """Trains the toy in the folder `run`, from its checkpoint if it has one."""
    chosen = OptimizerSettings.model_validate({"name": optimizer, "lr": 1e-2, "adam_lr": 1e-2, "weight_decay": 1e-2})
    return fit(
        objective,
        loader or ToyLoader(),
        budget=budget or Budget("steps", steps),
        optimizer=build_optimizer(objective.module, chosen),
        schedule=schedule or build_schedule(CosineSchedule()),
        ema=build_ema(objective.module, ema_decay),
        settings=settings_with(**changes),
        validate=validate or objective.validate,
        checkpoints=CheckpointStore(run / "checkpoints" / "toy", fingerprint=fingerprint or {}, keep=keep),
        monitor=Monitor("toy", [JsonlSink(run / "log.jsonl")]),
        device=device,
        seed=17,
        refocus=refocus,
    )


def weights(objective: ToyObjective) -> list[torch.Tensor]:
    return [p.detach().clone() for p in objective.module.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def curve(run: Path) -> list[tuple]:
    keys = ("step", "epoch", "loss", "first", "grad_norm", "lr", "valid_nrmse", "best_step")
    return [tuple(record.get(key) for key in keys) for record in records(run)]


def stop_at(batch: int, signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)):
    def stop(batches: int) -> None:
        if batches == batch:
            for number in signals:
                os.kill(os.getpid(), number)

    return stop
