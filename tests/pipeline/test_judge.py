"""The table of scores: one row per model, and columns of ensembles only where there are any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.layouts import write_task
from tests.pipeline.small_run import write_config
from torch import Tensor

from ups.config.load import load_settings
from ups.config.schema import EvaluationScope, EvaluationSettings
from ups.evaluation.evaluate import Protocol, evaluate
from ups.evaluation.rollout import RolloutBatch, rollout_trajectories
from ups.physics.solvers.cost import SolverCost
from ups.pipeline import judge
from ups.pipeline.judge import score_table
from ups.pipeline.run import open_workspace
from ups.runtime import SilentProgress
from ups.timing import Timings

METRICS = ("nrmse", "one_step_nrmse", "codec_nrmse", "wall_clock", "crps", "ensemble_nrmse")


def content(*, crps: float | None, mean: float | None) -> dict[str, Any]:
    """What `evaluation/full.json` holds of a simulator and of a baseline that does not draw."""
    ours = dict(zip(METRICS, (0.01, 0.001, None, 0.5, crps, mean), strict=True))
    theirs = dict(zip(METRICS, (0.1, 0.02, None, 0.25, None, None), strict=True))
    solver = {"resolution": 32, "nrmse": 0.005, "seconds": 3.0, "found": True}
    return {
        "tasks": {"t": ours},
        "baselines": {"persistence": {"t": theirs}},
        "details": {"t": {"steps": 4, "solver": solver}},
    }


def test_columns_of_ensembles_stand_beside_the_error_where_there_are_any() -> None:
    rows = score_table(content(crps=0.004, mean=0.008))
    assert [list(row) for row in rows] == [
        ["task", "model", "nrmse", "ensemble", "crps", "one step", "codec", "s / trajectory"]
    ] * 3
    assert [row["model"] for row in rows] == ["persistence", "ups", "solver at 32"]
    assert [(row["nrmse"], row["ensemble"], row["crps"]) for row in rows] == [
        ("0.1", "-", "-"),
        ("0.01", "0.008", "0.004"),
        ("0.005", "-", "-"),
    ]
    assert [row["s / trajectory"] for row in rows] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("facts", "label"),
    [
        ({"samples": 4}, "solver at 32 (4 trajectories)"),
        ({"samples": 1}, "solver at 32 (1 trajectory)"),
        ({"samples": 4, "found": False}, "solver at 32 (4 trajectories, best tried)"),
        ({"found": False}, "solver at 32 (best tried)"),
    ],
)
def test_the_solvers_row_says_of_how_many_trajectories_it_is(facts: dict[str, Any], label: str) -> None:
    found = content(crps=None, mean=None)
    found["details"]["t"]["solver"] |= facts
    assert score_table(found)[-1]["model"] == label


def test_a_deterministic_model_has_the_table_it_had() -> None:
    rows = score_table(content(crps=None, mean=None))
    assert list(rows[0]) == ["task", "model", "nrmse", "one step", "codec", "s / trajectory"]
    older = content(crps=None, mean=None)
    for metric in ("crps", "ensemble_nrmse"):  # of before there were ensembles
        del older["tasks"]["t"][metric]
    assert score_table(older) == rows
    del older["tasks"]["t"]["nrmse"]
    with pytest.raises(KeyError):
        score_table(older)


@pytest.mark.parametrize(("asked_for", "steps"), [(None, None), (7, 7), (8, None), (1000, None)])
def test_settings_say_how_many_members_and_steps_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked_for: int | None, steps: int | None
) -> None:
    """As many steps as there are, or more, are all of them: one protocol, and one champion."""
    asked = []

    class Found:
        def save(self, folder: Path, scope: str) -> None:
            asked.append((folder, scope))

    def stand_in(emulators: object, sets: object, *, protocol: Protocol, **_: object) -> Found:
        asked.append(protocol)
        return Found()

    monkeypatch.setattr(judge, "evaluate", stand_in)
    evaluation = EvaluationSettings(members=5, solver_reference=False, full=EvaluationScope(steps=asked_for))
    settings = SimpleNamespace(evaluation=evaluation, data=SimpleNamespace(context=1))
    splits = {"test": {"one": SimpleNamespace(lengths=torch.tensor([9, 5]))}}
    workspace: Any = SimpleNamespace(
        settings=settings, splits=splits, device=None, progress=None, run_dir=tmp_path, timings=Timings()
    )
    judge.evaluate_models(workspace, {}, "full")
    assert asked == [Protocol(split="test", members=5, steps=steps), (tmp_path / "evaluation", "full")]


def test_solver_and_model_are_timed_on_the_same_trajectories_as_one_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of ten test trajectories, on which the evaluation takes the model's time together."""
    write_task(tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", "burgers1d", num=20, frames=5, resolution=32)
    config = write_config(tmp_path, "burgers1d", ["1D_Burgers_Sols_Nu0.01.hdf5"])
    settings = load_settings(config, ("data.split={train: 0.4, valid: 0.1, test: 0.5}",))
    workspace = open_workspace(settings, SilentProgress())
    test, emulators = workspace.splits["test"], {"ups": workspace.new_simulator().eval()}
    found = evaluate(emulators, test, protocol=Protocol("test", members=0), showcases=False)
    assert found.tasks["burgers1d"].emulators["ups"].timed_batch == 10
    solved: list[Any] = []
    timed: list[Any] = []

    def solver(equation: object, u0: Tensor, truth: Tensor, *_: object) -> SolverCost:
        solved.append(u0)
        return SolverCost(16, 0.0, 3.0, True, (), len(u0), 1.0)

    def rollouts(*given: Any, **options: Any) -> Iterator[RolloutBatch]:
        for batch in rollout_trajectories(*given, **options):
            timed.append(batch)
            yield replace(batch, seconds=8.0)

    monkeypatch.setattr(judge, "coarsest_solver", solver)
    monkeypatch.setattr(judge, "rollout_trajectories", rollouts)
    after = judge.time_solvers(found, emulators["ups"], test, workspace)
    (u0,), (batch,) = solved, timed
    torch.testing.assert_close(u0.float(), batch.initial)
    assert len(batch.indices) == judge.SOLVER_SAMPLES == 4
    assert after.scores("burgers1d")["solver_speedup"].value == pytest.approx(3.0 / (8.0 / 4))
