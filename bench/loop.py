"""What the trainer costs: a step of `fit`, with all that a run has about it, against the same step in a bare loop.

    python bench/loop.py [--rounds 5] [--interval 100] [--out bench/results]

Both train the operator of `configs/burgers1d.yaml` on the same batches of one loader, with the same optimizer, clipping
and average of the weights. `fit` also follows its schedule, watches for signals, skips steps that are not finite,
judges, writes to every sink that is installed (a file, TensorBoard, Weights & Biases offline) every 20 steps, and saves
a checkpoint every `interval` steps, five times as often as by default. Rounds are interleaved. Ratios are of CPU
seconds, in which other work on the machine does not count (though it slows them: hence also the ratio of the least of
either) but the thread that writes checkpoints does; the stall is the part of the wall's time in which training stood
still for them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ups.config.load import load_settings
from ups.data.fields import Batch
from ups.pipeline.plan import make_loader
from ups.pipeline.tracking import open_sinks
from ups.pipeline.train import fit_closed_form
from ups.pipeline.workspace import Workspace
from ups.runtime import SilentProgress
from ups.training.checkpoint import CheckpointStore
from ups.training.ema import build_ema
from ups.training.loop import LoopSettings, Objective, fit
from ups.training.monitor import Monitor
from ups.training.optim import build_optimizer
from ups.training.schedule import Budget, build_schedule
from ups.training.sinks import NullSink, Record
from ups.training.stages import build_augments, build_objective

CONFIG = Path(__file__).parents[1] / "configs" / "burgers1d.yaml"
WARM_UP, STAGE = 20, "operator"
SINKS = {"tensorboard": "logging.tensorboard=true", "wandb": "logging.wandb.mode=offline"}


class Timed:
    """An objective that notes when it is called, by the clock of the process and that of the wall."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.module = objective, objective.module
        self.times: list[tuple[float, float]] = []

    def plan(self, epoch: int, fraction: float) -> int:
        """As the objective."""
        return self.objective.plan(epoch, fraction)

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        self.times.append((time.process_time(), time.perf_counter()))
        return self.objective(batch, rng)

    def seconds(self) -> tuple[float, float]:
        """CPU and wall seconds per step after the warm-up."""
        begun, ended = self.times[WARM_UP], self.times[-1]
        return tuple((b - a) / (len(self.times) - 1 - WARM_UP) for a, b in zip(begun, ended, strict=True))  # type: ignore[return-value]


@dataclass
class Stalls(NullSink):
    """Adds up what training stood still for checkpoints, on the way and in all."""

    on_the_way: float = 0.0
    in_all: float = 0.0
    saves: int = field(default=0)

    def write(self, record: Record) -> None:
        """Takes the stall of a record."""
        stall = float(record.get("checkpoint_stall") or 0.0)
        self.on_the_way, self.saves = self.on_the_way + stall, self.saves + (stall > 0)

    def end_stage(self, stage: str, summary: Record) -> None:
        """Takes the stall of the stage."""
        self.in_all = float(summary["checkpoint_stall"] or 0.0)


def prepare(workspace: Workspace) -> Timed:
    """The operator's objective, untrained but for what it has in closed form."""
    simulator = workspace.new_simulator()
    fit_closed_form(workspace, simulator)
    settings = workspace.settings
    objective = build_objective(STAGE, settings, simulator, build_augments(settings, workspace.splits["train"]))
    objective.module.train()
    return Timed(objective)


def by_fit(workspace: Workspace, steps: int, folder: Path) -> tuple[Timed, Stalls]:
    """Trains by the loop."""
    objective, stalls, settings = prepare(workspace), Stalls(), workspace.settings
    optimizer = settings.optimizer_of(STAGE)
    with closing(make_loader(workspace, workspace.batch_size(STAGE))) as loader:
        fit(
            objective,
            loader,
            budget=Budget("steps", steps),
            optimizer=build_optimizer(objective.module, optimizer),
            schedule=build_schedule(optimizer.scheduler),
            ema=build_ema(objective.module, settings.training.ema_decay),
            settings=LoopSettings.of(settings.training, patience=None),
            validate=lambda: 1.0,
            checkpoints=CheckpointStore(folder / "checkpoints", fingerprint={}),
            monitor=Monitor(STAGE, [*open_sinks(settings, folder), stalls]),
            device=workspace.device,
            seed=0,
        )
    return objective, stalls


def by_hand(workspace: Workspace, steps: int) -> Timed:
    """Trains by a loop without anything around it."""
    objective, settings = prepare(workspace), workspace.settings
    params = [p for p in objective.module.parameters() if p.requires_grad]
    optimizer = build_optimizer(objective.module, settings.optimizer_of(STAGE))
    average, rng = [p.detach().clone() for p in params], torch.Generator().manual_seed(0)
    with closing(make_loader(workspace, workspace.batch_size(STAGE))) as loader:
        loader.set_horizon(objective.plan(0, 1.0))
        batches = iter(loader)
        for _ in range(steps):
            loss, _ = objective(next(batches), rng)
            loss.backward()
            nn.utils.clip_grad_norm_(params, settings.training.grad_clip or 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(average, params, 1e-3)
    return objective


def median(rows: list[dict[str, float]], value: Callable[[dict[str, float]], float]) -> float:
    """The median of what `value` makes of every round."""
    return statistics.median(value(row) for row in rows)


def main() -> None:
    """Prints a line per round and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--interval", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    steps, rows = 2 * options.interval + 50, list[dict[str, float]]()
    with tempfile.TemporaryDirectory() as place:
        own = (f"data.root={place}", f"runs_dir={place}", "data.generate.samples=60", "threads=1")
        often = (f"training.checkpoint_interval={options.interval}", f"training.validate_every={10**9}")
        installed = [name for name in SINKS if importlib.util.find_spec(name) is not None]
        settings = load_settings(CONFIG, [*own, *often, *(SINKS[name] for name in installed)])
        workspace = Workspace(settings, SilentProgress())
        workspace.generate_missing()
        for turn in range(options.rounds):
            folder = Path(place) / str(turn)
            if turn % 2:  # either goes first in turn
                hand = by_hand(workspace, steps)
            loop, stalls = by_fit(workspace, steps, folder)
            if not turn % 2:
                hand = by_hand(workspace, steps)
            size = sum(path.stat().st_size for path in folder.rglob("state.pt")) / 2 / 2**20
            (cpu, wall), (bare_cpu, bare_wall) = loop.seconds(), hand.seconds()
            stall = stalls.on_the_way / (wall * (steps - 1 - WARM_UP))
            rows.append({"cpu": cpu, "wall": wall, "bare_cpu": bare_cpu, "bare_wall": bare_wall, "stall": stall})
            rows[-1] |= {"per_save": stalls.on_the_way / stalls.saves, "mib": size}
            print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    result = {
        "bench": "loop",
        "target": 1.05,
        "ratio": round(median(rows, lambda row: row["cpu"] / row["bare_cpu"]), 4),
        "ratio_of_the_least": round(min(row["cpu"] for row in rows) / min(row["bare_cpu"] for row in rows), 4),
        "ratios": [round(row["cpu"] / row["bare_cpu"], 3) for row in rows],
        "ratio_of_wall_time": round(median(rows, lambda row: row["wall"] / row["bare_wall"]), 4),
        "stall": round(median(rows, lambda row: row["stall"]), 5),
        "stall_target": 0.02,
        "stall_of_a_save_in_steps": round(median(rows, lambda row: row["per_save"] / row["wall"]), 3),
        "checkpoint_mib": round(rows[-1]["mib"], 1),
        "checkpoint_interval": options.interval,
        "steps": steps,
        "rounds": options.rounds,
        "sinks": ["jsonl", *installed],
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))
    if options.out is not None:
        (options.out / "loop.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
