"""Ensembles of a model of several tasks: scales, spread and the student's distance are of each task by itself."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.layouts import write_task
from tests.pipeline.small_run import write_config
from torch import Tensor

from ups.config.load import load_settings
from ups.data.fields import Batch
from ups.data.windows import WindowLoader
from ups.models.corrector import limit_of
from ups.models.simulator import Simulator
from ups.pipeline.calibration import CONTRACTIONS, calibrate
from ups.pipeline.effort import DISTANCE_BATCHES, EnsembleSize
from ups.pipeline.ensembles import DistanceToTeacher
from ups.pipeline.run import open_workspace
from ups.pipeline.train import train_stage
from ups.pipeline.workspace import Workspace
from ups.runtime import SilentProgress
from ups.training.builders import add_corrector
from ups.training.diffusion import DistillObjective, DistillTerms, ResidualSteps, fit_memory, fit_scales
from ups.training.schedule import Budget

SIZE = EnsembleSize(2, 2, 3)
TASKS = ("advection1d", "burgers1d")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Of two tasks."""
    write_task(tmp_path / "a.hdf5", "advection1d", num=12, frames=6, resolution=32, beta=0.4)
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=6, resolution=32, nu=0.01)
    config = write_config(tmp_path, "burgers1d", [])
    settings = json.loads(config.read_text())
    settings["task"] = list(TASKS)
    settings["data"]["files"] = {"advection1d": ["a.hdf5"], "burgers1d": ["b.hdf5"]}
    settings["stages"] |= {"diff_residual": {"steps": 2}, "consistency_distill": {"steps": 2}}
    settings["diffusion"] = {"hidden_dim": 16, "depth": 1, "stem_width": 8, "sampler_steps": 2}
    config.write_text(json.dumps(settings))
    return open_workspace(load_settings(config), SilentProgress())


@pytest.fixture
def simulator(workspace: Workspace) -> Simulator:
    """Untrained, with a corrector."""
    simulator = workspace.new_simulator().eval()
    add_corrector(workspace.settings, simulator)
    return simulator


def test_calibration_sets_each_task_to_what_its_own_scores_say(
    workspace: Workspace, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    corrector = simulator.corrector
    assert corrector is not None
    truth = {"advection1d": 2.0, "burgers1d": 0.5}

    def crps(widen: float, t: float) -> float:
        return (math.sqrt(2 * (widen**2 + t**2)) - widen) / math.sqrt(math.pi)

    best = {"advection1d": CONTRACTIONS[16], "burgers1d": CONTRACTIONS[20]}
    shares = torch.tensor(CONTRACTIONS)

    def scored(*_: object) -> list[Tensor]:
        found = []
        for task in workspace.splits["valid"]:
            widen = float(corrector.scales[task].widen)
            both = torch.tensor([crps(widen, truth[task]), widen**2])
            found.append(torch.cat([both, 1 + (shares - best[task]).square()]).expand(4, -1))
        return found

    monkeypatch.setattr("ups.pipeline.calibration.score_ensembles", scored)
    calibrate(workspace, "diff_residual", simulator, ResidualSteps(simulator, {}), SIZE)
    for task, spread in truth.items():
        assert float(corrector.scales[task].widen) == pytest.approx(spread, rel=0.02)
        assert float(corrector.scales[task].contract) == pytest.approx(limit_of(best[task], SIZE.members))


def test_every_task_has_the_scales_and_the_memory_of_its_own_residuals(
    workspace: Workspace, simulator: Simulator
) -> None:
    corrector = simulator.corrector
    assert corrector is not None

    def buffers(task: str) -> list[Tensor]:
        scale = corrector.scales[task]
        return [scale.residual.clone(), scale.change.clone(), scale.memory.clone()]

    steps, untouched = ResidualSteps(simulator, {}), buffers("burgers1d")
    context = workspace.settings.data.context
    for task in TASKS:
        train = {task: workspace.splits["train"][task]}
        with WindowLoader(train, 12, context, 1, 0) as loader:
            fit_scales(steps, task, [loader.next_batch()])
        with WindowLoader(train, 12, context, 4, 0) as loader:
            fit_memory(steps, loader.next_batch())
        if task == "advection1d":
            assert all(map(torch.equal, untouched, buffers("burgers1d")))
            first = buffers(task)
    assert all(map(torch.equal, first, buffers("advection1d"))), "fitting a task changes no other"
    for one, other in zip(first, buffers("burgers1d"), strict=True):
        assert not torch.allclose(one, other, rtol=1e-3)


def test_a_stage_fits_and_calibrates_every_task(workspace: Workspace, simulator: Simulator) -> None:
    train_stage(workspace, "diff_residual", simulator, "untrained", Budget("steps", 2))
    assert simulator.corrector is not None
    for task in TASKS:
        scale = simulator.corrector.scales[task]
        assert not torch.equal(scale.residual, torch.ones_like(scale.residual)), task
        assert not torch.equal(scale.change, torch.ones_like(scale.change)), task
        assert scale.memory.any(), task


def test_the_distance_to_the_teacher_is_the_mean_over_tasks(
    workspace: Workspace, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = DistillObjective(simulator, {}, DistillTerms())
    seen: Counter[str] = Counter()

    def distance(batch: Batch, rng: torch.Generator, starts: list[int]) -> Tensor:
        seen[batch.task] += 1
        return torch.tensor({"advection1d": 1.0, "burgers1d": 4.0}[batch.task])

    monkeypatch.setattr(objective, "distance", distance)
    assert DistanceToTeacher(workspace, objective)() == pytest.approx(2.5)
    assert set(seen) == set(TASKS)
    assert set(seen.values()) <= set(range(1, DISTANCE_BATCHES + 1))
