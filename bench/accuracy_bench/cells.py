"""Computes one cell: trains a model on a task for its seconds, scores it, and makes the line of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from accuracy_bench.models import Model, build_fixed, build_network, get_model, recipe_of
from accuracy_bench.recipes import Recipe
from accuracy_bench.results import Cell, Line, key_of
from accuracy_bench.score import clock_of, load_truth, score
from accuracy_bench.tasks import get_task
from ups.config import Settings, load_settings
from ups.errors import UpsError, UsageError
from ups.models.emulator import Emulator
from ups.models.simulator import Simulator
from ups.models.step import StepEmulator
from ups.pipeline.baselines import train_emulator
from ups.pipeline.train import fit_closed_form, train_stage
from ups.pipeline.workspace import Workspace
from ups.runtime import seed_everything
from ups.terminal import LineProgress
from ups.training.monitor import DivergedError
from ups.training.schedule import Budget

BASE = Path(__file__).parent / "base.yaml"
CODEC_SHARE = 0.15  # of the budget, where the codec loses something and has to be trained


@dataclass(frozen=True)
class Places:
    """Where things are.

    Args:
        data: folder of the published files; None where only our own are asked for.
        cache: made files, and the continuations of published ones.
        runs: one folder per cell, with its log and its model.
    """

    data: Path | None
    cache: Path
    runs: Path


def settings_of(cell: Cell, model: Model, places: Places, more: tuple[str, ...] = ()) -> Settings:
    """The settings of a cell: defaults, the task's data, the model's own, and `more`."""
    clock = "wall" if cell.device == "cuda" else "process"
    overrides = [
        *get_task(cell.task).overrides(places.data, places.cache),
        f"runs_dir={places.runs / cell.slug}",
        f"seed={cell.seed}",
        f"device={cell.device}",
        f"stages.operator.seconds={cell.seconds}",
        f"training.clock={clock}",
        *model.settings,
        *more,
    ]
    return load_settings(BASE, overrides)


def open_workspace(cell: Cell, settings: Settings, say: Callable[[str], None]) -> Workspace:
    """A new, empty workspace of the cell, its train split cut to what the cell asks for."""
    shutil.rmtree(settings.runs_dir, ignore_errors=True)
    workspace = Workspace(settings, LineProgress(say, every=60.0))
    workspace.open()
    if cell.train is not None:
        for task, train in workspace.splits["train"].items():
            if cell.train > train.num:
                raise UsageError(f"{cell.task}: --train {cell.train}, but there are {train.num}")
            workspace.splits["train"][task] = train.subset(np.arange(cell.train))
    return workspace


def compute(
    cell: Cell,
    name: str,
    places: Places,
    say: Callable[[str], None],
    *,
    more: tuple[str, ...] = (),
    code: dict[str, str],
) -> Line:
    """Trains and scores a cell.

    Args:
        name: of the model; the cell's own is that of its row, another one for an experiment.
        more: further settings.
        code: entries that say which code computed the line.
    """
    model = get_model(name)
    get_task(cell.task).prepare(places.cache, say)
    workspace = open_workspace(cell, settings_of(cell, model, places, more), say)
    equation, test = next(iter(workspace.splits["test"].items()))
    axes = workspace.specs[equation].axes
    recipe = recipe_of(model, axes, cell.task) if model.kind == "network" else None
    line: Line = {
        **key_of(cell),
        **code,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "based_on": name,
        "axes": axes,
        "trajectories": {split: sets[equation].num for split, sets in workspace.splits.items()},
        "recipe": recipe.to_json() if recipe else {"settings": [*model.settings, *more]},
    }
    try:
        emulator, facts = train(workspace, cell, model, name, recipe)
    except DivergedError as error:
        return {**line, "failure": str(error), "nrmse": None, "finite": False}
    truth = load_truth(cell.task, test, places.cache)
    found = score(emulator, cell.task, test, truth, workspace.device)
    shutil.rmtree(workspace.run_dir / "checkpoints", ignore_errors=True)
    return {**line, **facts, **found}


def train(
    workspace: Workspace, cell: Cell, model: Model, name: str, recipe: Recipe | None
) -> tuple[Emulator, dict[str, Any]]:
    """The model, fitted and trained within the cell's seconds, fitting included; and what there is to say of it."""
    seed_everything(cell.seed)
    emulator: Emulator
    if model.kind == "stack":
        emulator = workspace.new_simulator().to(workspace.device)
    elif recipe is not None:
        emulator = build_network(model, workspace.specs, recipe).to(workspace.device)
    else:
        emulator = build_fixed(name, workspace.specs).to(workspace.device)
    now = clock_of(workspace.device)
    began = now()
    fitted = fit_closed_form(workspace, emulator)
    fitting = now() - began
    left = cell.seconds - fitting
    if left <= 0:
        raise UpsError(f"{cell.slug}: fitting alone takes {fitting:.0f} s; give more seconds")
    step = None
    if isinstance(emulator, Simulator):
        lossy = not all(codec.lossless for codec in emulator.codecs.values())
        if lossy:
            fitted = train_stage(workspace, "codec", emulator, fitted, Budget("seconds", CODEC_SHARE * left))
            left *= 1 - CODEC_SHARE
        train_stage(workspace, "operator", emulator, fitted, Budget("seconds", left))
        step = "operator"
    elif recipe is not None:
        assert isinstance(emulator, StepEmulator)
        batch_size = recipe.batch_size or workspace.batch_size("operator")
        budget = Budget("seconds", left)
        train_emulator(workspace, emulator, fitted, recipe.optimizer, budget, batch_size, focused=model.structural)
        step = f"baselines-{emulator.name}"
    notes = workspace.records.records.get(step, {}) if step else {}
    return emulator.eval(), {
        "parameters": sum(p.numel() for p in emulator.parameters() if p.requires_grad),
        "steps": notes.get("steps", 0),
        "best_step": notes.get("best_step"),
        "valid_nrmse": notes.get("best_valid"),
        "fitting_seconds": fitting,
        "training_seconds": notes.get("training_seconds", 0.0),
        "fitted_values": sum(b.numel() for b in emulator.buffers()),
    }
