"""How accurate the steady prior is on Darcy flow after some seconds of training, against neuraloperator's FNO.

    python bench/darcy.py --data FOLDER [--models ups fno ...] [--seconds 200] [--seeds 0] [--out FILE.jsonl]

All models train on the same 900 samples of 16 x 16 cells of neuraloperator's small Darcy set, in the same loop, for the
same seconds of this process's CPU time on one thread; validation (100 more samples, not counted) chooses their weights.
They are tested on 50 samples at 16 x 16 and, without retraining, at 32 x 32. One JSON line is printed for each model.

The set's fields are samples at the nodes i / n, of which the first lie on the wall (u is some hundredth of its
neighbours there, while the last row's is half of them), whatever its coordinates say: they are corrected, but for the
model `ups_as_filed`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is first imported

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from accuracy_bench.peers import make_neuralop_fno
from ups.config import Settings
from ups.config.data import DataSettings, SplitSettings
from ups.config.learning import OptimizerSettings
from ups.data.augment import Augment
from ups.data.fields import Batch
from ups.data.normalize import compute_statistics
from ups.data.split import load_files, load_splits
from ups.data.trajectories import TrajectorySet
from ups.data.windows import WindowLoader
from ups.evaluation.metrics import nrmse, rel_l2
from ups.evaluation.rollout import rollout_trajectories
from ups.evaluation.validate import validation_error
from ups.models.emulator import Emulator, TaskSpec
from ups.models.prior import PriorArchitecture, SteadyPrior
from ups.runtime import seed_everything
from ups.training.builders import describe_task
from ups.training.checkpoint import CheckpointStore
from ups.training.ema import build_ema
from ups.training.loop import LoopSettings, fit
from ups.training.losses import relative_l2
from ups.training.monitor import Monitor
from ups.training.optim import build_optimizer
from ups.training.prior import SteadyPriorObjective, calibrate, gaussian_crps
from ups.training.schedule import Budget, build_schedule

TASK, CPU = "darcy2d", torch.device("cpu")
TRAIN, TESTS = "darcy_train_16.hdf5", {"16": "darcy_test_16.hdf5", "32": "darcy_test_32.hdf5"}
EMA = 0.999


class FnoEmulator(Emulator):
    """neuraloperator's FNO from standardised coefficients to solutions in units of their deviation."""

    name = "neuralop_fno"

    def __init__(self, tasks: Mapping[str, TaskSpec], modes: int, width: int) -> None:
        super().__init__(tasks)
        self.network = make_neuralop_fno(tasks[TASK], 1, 1, width=width, modes=modes, position=True)

    def step(self, context: Tensor, *, task: str, dt: Tensor, params: Tensor, number: int = 0) -> Tensor:
        spec = self.tasks[task]
        found: Tensor = self.network((context[:, -1] - spec.given_mean[0]) / spec.given_std[0], spec.periodic)
        return found * spec.std[0] + spec.mean[0]

    def check(self, context: Tensor, task: str, dt: Tensor | None = None) -> None:
        """Any lattice will do."""


class MeanEmulator(Emulator):
    """The mean solution of the training samples, whatever is given."""

    name = "mean"

    def __init__(self, tasks: Mapping[str, TaskSpec], train: TrajectorySet) -> None:
        super().__init__(tasks)
        self.mean = torch.stack([train.trajectory(number)[1] for number in range(train.num)]).mean(0)

    def step(self, context: Tensor, *, task: str, dt: Tensor, params: Tensor, number: int = 0) -> Tensor:
        factor = context.shape[-1] // self.mean.shape[-1]
        mean = self.mean.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
        return mean.expand(len(context), *mean.shape)

    def check(self, context: Tensor, task: str, dt: Tensor | None = None) -> None:
        """Any lattice will do."""


class RelativeObjective:
    """Relative L2 of a prediction in physical units."""

    def __init__(self, emulator: Emulator) -> None:
        self.module: nn.Module = emulator
        self.emulator = emulator

    def plan(self, epoch: int, fraction: float) -> int:
        """One frame, always."""
        return 1

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        found = self.emulator.step(batch.inputs, task=batch.task, dt=batch.dt, params=batch.params)
        return relative_l2(found, batch.targets[:, 0]), {}


@dataclass(frozen=True)
class Model:
    """One row: sizes and training."""

    kind: str
    batch_size: int
    optimizer: OptimizerSettings
    sizes: Mapping[str, Any] = field(default_factory=dict)
    augment: bool = True
    nodes: bool = True


OURS = Model("ups", 8, OptimizerSettings(name="muon", lr=1e-2, adam_lr=4e-3))
MODELS = {
    "ups": OURS,
    "ups_as_filed": replace(OURS, nodes=False),
    "ups_no_symmetry": replace(OURS, augment=False),
    "ups_no_divergence": replace(OURS, sizes={"conductivities": 0}),
    "ups_one_step": replace(OURS, sizes={"num_steps": 1}),
    "ups_four_steps": replace(OURS, sizes={"num_steps": 4}),
    "fno": Model("fno", 32, OptimizerSettings(name="adamw", lr=5e-3, weight_decay=1e-4), {"modes": 8, "width": 32}),
    "mean": Model("mean", 32, OptimizerSettings()),
}


def at_nodes(source: Path, folder: Path) -> Path:
    """A copy of a file whose coordinates are those of the nodes i / n."""
    target = folder / source.name
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        new.attrs["beta"] = old.attrs["beta"]
        for name in ("nu", "tensor"):
            new[name] = old[name][:]
        for name in ("x-coordinate", "y-coordinate"):
            new[name] = np.arange(len(old[name]), dtype=np.float32) / len(old[name])
    return target


def load(data: Path, folder: Path, *, nodes: bool) -> tuple[dict[str, TrajectorySet], dict[str, TrajectorySet]]:
    """Train and valid, and the test sets by resolution."""
    paths = {name: data / name for name in (TRAIN, *TESTS.values())}
    if nodes:
        paths = {name: at_nodes(path, folder) for name, path in paths.items()}
    settings = DataSettings(
        task=(TASK,),
        root=str(paths[TRAIN].parent),
        split=SplitSettings(train_files=(TRAIN,), test_files=(TESTS["16"],), valid=0.1),
    )
    splits = load_splits(settings)
    tests = {"16": splits["test"][TASK], "32": load_files([paths[TESTS["32"]]], TASK, settings)}
    return {split: splits[split][TASK] for split in ("train", "valid")}, tests


def score(emulator: Emulator, test: TrajectorySet) -> float:
    """Mean relative L2."""
    batches = rollout_trajectories(
        emulator, test, range(test.num), context=1, steps=1, mode="physical", batch_size=32, device=CPU
    )
    return float(torch.cat([rel_l2(batch.prediction, batch.truth) for batch in batches]).mean())


def spread(prior: SteadyPrior, test: TrajectorySet) -> dict[str, float]:
    """CRPS of the expected normal errors over the mean absolute error (0.71 where both are normal), and coverage."""
    frames = torch.stack([test.trajectory(number) for number in range(test.num)])
    with torch.no_grad():
        u, size = prior.solve(frames[:, 0], TASK, test.params)
        error, size = u - prior.scales[TASK].enter(frames[:, 1], "sought"), size * prior.errors[TASK].level
    inside = {
        f"coverage_{share}": float((error.abs() < z * size).float().mean()) for share, z in ((50, 0.674), (90, 1.645))
    }
    crps = float(gaussian_crps(error, size).mean() / error.abs().mean())
    return {"crps_over_mae": crps, "spread_skill": float(size.square().mean() / error.square().mean()) ** 0.5, **inside}


def run(name: str, data: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Trains and tests one model."""
    model = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        sets, tests = load(data, Path(folder), nodes=model.nodes)
        train = sets["train"]
        spec = describe_task(Settings.model_validate({"data": {"task": TASK}}), train, compute_statistics(train))
        seed_everything(seed)
        torch.set_num_threads(1)
        line: dict[str, Any] = {"model": name, "seconds": seconds, "seed": seed}
        if model.kind == "mean":
            emulator: Emulator = MeanEmulator({TASK: spec}, train)
        else:
            if model.kind == "fno":
                emulator = FnoEmulator({TASK: spec}, **model.sizes)
                objective: Any = RelativeObjective(emulator)
            else:
                emulator = SteadyPrior({TASK: spec}, PriorArchitecture(**model.sizes))
                objective = SteadyPriorObjective(emulator, {TASK: Augment(train.equation, enabled=model.augment)})
            outcome = train_model(emulator, objective, sets, model, seconds, seed, Path(folder))
            line |= {"steps": outcome.steps, "valid_nrmse": outcome.best_metric}
            line["parameters"] = sum(p.numel() for p in emulator.parameters() if p.requires_grad)
        emulator.eval()
        line |= {f"rel_l2_{at}": score(emulator, test) for at, test in tests.items()}
        if isinstance(emulator, SteadyPrior):
            valid = WindowLoader({TASK: sets["valid"]}, sets["valid"].num, 1, 1, 0, shuffle=False).next_batch()
            line["level"] = calibrate(emulator, [valid])[TASK]
            line |= {
                f"{key}_{at}": value for at, test in tests.items() for key, value in spread(emulator, test).items()
            }
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()}


def train_model(
    emulator: Emulator,
    objective: Any,
    sets: Mapping[str, TrajectorySet],
    model: Model,
    seconds: float,
    seed: int,
    folder: Path,
) -> Any:
    """The loop of every stage, for so many seconds of CPU time; the best weights by validation are left."""
    module = objective.module.train()

    with WindowLoader({TASK: sets["train"]}, model.batch_size, 1, 1, seed) as loader:
        return fit(
            objective,
            loader,
            budget=Budget("seconds", seconds),
            optimizer=build_optimizer(module, model.optimizer),
            schedule=build_schedule(model.optimizer.scheduler),
            ema=build_ema(module, EMA),
            settings=LoopSettings(validate_every="auto", checkpoint_interval=10**9, log_every=50, clock="process"),
            validate=lambda: validation_error(
                nrmse,
                emulator,
                {TASK: sets["valid"]},
                max_samples=None,
                steps=1,
                mode="physical",
                batch_size=32,
                device=CPU,
            ),
            checkpoints=CheckpointStore(folder / "checkpoints", fingerprint={}),
            monitor=Monitor("darcy", []),
            device=CPU,
            seed=seed,
        )


def main() -> None:
    """Runs the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=["ups", "fno", "mean"])
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, help="append the lines to this file, too")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for name in arguments.models:
            line = json.dumps(run(name, arguments.data, arguments.seconds, seed))
            print(line, flush=True)
            if arguments.out is not None:
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
