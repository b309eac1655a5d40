"""How many threads of one operation train fastest, measured: on shared or hyper-threaded cores often one does."""

from __future__ import annotations

import os
import time
from contextlib import closing

import torch

from ups.pipeline.plan import make_loader
from ups.pipeline.workspace import THREADS, Workspace
from ups.training.loop import Objective
from ups.training.prior import SteadyPriorObjective
from ups.training.stages import build_augments, build_objective

WORTH = 1.2  # how much faster all threads must be than one
STEPS = 2  # of which the faster one counts


def settle_threads(workspace: Workspace) -> None:
    """Sets the threads of one operation where the settings do not; a run keeps to them, as other sums round otherwise.

    What the environment names is taken; else it is measured. Threads that wait for each other on cores which other
    programs use make a step tens of times as long as it is on one, so all are used only where they pay.
    """
    if workspace.settings.threads is not None or workspace.device.type != "cpu" or workspace.records.key(THREADS):
        return
    began, most = time.perf_counter(), torch.get_num_threads()
    count = most if most == 1 or "OMP_NUM_THREADS" in os.environ else _fastest(workspace, most)
    torch.set_num_threads(count)
    if workspace.run_dir.is_dir():
        workspace.records.finish(THREADS, "settled", time.perf_counter() - began, count=count)


def _fastest(workspace: Workspace, most: int) -> int:
    """All threads, or one where they are hardly faster."""
    objective, batch_size = _representative(workspace)
    with closing(make_loader(workspace, batch_size)) as loader:
        loader.set_horizon(objective.plan(0, 1.0))
        batch = next(iter(loader))
    rng = torch.Generator().manual_seed(0)

    def step() -> float:
        start = time.perf_counter()
        objective(batch, rng)[0].backward()
        return time.perf_counter() - start

    seconds = {}
    for count in (1, most):
        torch.set_num_threads(count)
        seconds[count] = min(step() for _ in range(STEPS))
    count = most if WORTH * seconds[most] < seconds[1] else 1
    took = ", ".join(f"{1000 * one:.0f} ms with {threads}" for threads, one in seconds.items())
    workspace.progress.say(f"threads: {count} (a step takes {took}; threads=N decides otherwise)")
    return count


def _representative(workspace: Workspace) -> tuple[Objective, int]:
    """The training that most of a run's time goes to, and its batch size."""
    augments = build_augments(workspace.settings, workspace.splits["train"])
    if workspace.steady:
        return SteadyPriorObjective(workspace.new_prior(), augments), workspace.batch_size("steady_prior")
    simulator = workspace.new_simulator()
    return build_objective("operator", workspace.settings, simulator, augments), workspace.batch_size("operator")
