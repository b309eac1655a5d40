"""What stages that draw ensembles may spend beside their training: counts that keep within their share."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from tests.layouts import write_task
from tests.pipeline.small_run import write_config

from ups.config.load import load_settings
from ups.models.simulator import Simulator
from ups.pipeline.effort import (
    CALIBRATION,
    CALIBRATION_SHARE,
    CHOICE,
    CHOICE_SHARE,
    LEAST_FRAMES,
    TRIALS,
    Effort,
    EnsembleSize,
    expected_steps,
)
from ups.pipeline.run import open_workspace
from ups.pipeline.train import fit_closed_form
from ups.pipeline.validation import validation_of
from ups.pipeline.workspace import Workspace
from ups.runtime import SilentProgress
from ups.training.diffusion import DiffusionObjective
from ups.training.schedule import Budget
from ups.training.stages import build_augments, build_objective

FULL = Effort(of_step=266.0, rollouts=((16, 100), (8, 40)), sampler="heun", sampler_steps=16)


@pytest.mark.parametrize("steps", [400, 1500, 6000, 20000, 10**6])
@pytest.mark.parametrize("every", [1, 5])
def test_validations_and_calibration_keep_within_half_of_the_training(steps: int, every: int) -> None:
    effort = replace(FULL, corrector_every=every)
    assert effort.beside_training(steps) <= (CHOICE_SHARE + CALIBRATION_SHARE) * steps * effort.of_step
    assert CHOICE_SHARE + CALIBRATION_SHARE <= 1 / 2 + 1e-9


def test_more_training_is_validated_by_larger_ensembles_up_to_all_there_are_to_be() -> None:
    for sizes, size_of in ((CHOICE, FULL.choice), (CALIBRATION, FULL.calibration)):
        found = [size_of(steps) for steps in (1, 10**3, 10**4, 10**5, 10**7)]
        rows = [FULL.of_ensembles(size) for size in found]
        assert rows == sorted(rows)
        assert (found[0].members, found[0].samples, found[0].frames) == (*sizes[-1], LEAST_FRAMES)
        assert (found[-1].members, found[-1].samples, found[-1].frames) == (*sizes[0], 100)


def test_ensembles_are_the_largest_that_their_share_has_room_for() -> None:
    steps = 500

    def of_choice(size: EnsembleSize) -> float:
        return FULL.validations(steps) * FULL.of_ensembles(size)

    for size, sizes, share, rows in (
        (FULL.choice(steps), CHOICE, CHOICE_SHARE, of_choice),
        (FULL.calibration(steps), CALIBRATION, CALIBRATION_SHARE, FULL.of_calibration),
    ):
        room = share * steps * FULL.of_step
        assert rows(size) <= room
        larger = [EnsembleSize(*one, 100) for one in sizes] + [replace(size, frames=size.frames + 1)]
        assert all(rows(one) > room for one in larger if rows(one) > rows(size))


def test_roll_outs_shorter_than_the_fewest_frames_are_taken_whole() -> None:
    assert replace(FULL, rollouts=((3, 5),)).choice(1).frames == 5


def test_no_more_trajectories_are_said_to_be_rolled_out_than_there_are() -> None:
    few, one = (replace(FULL, rollouts=rollouts) for rollouts in (((3, 20), (2, 20)), ((1, 20),)))
    assert " members of 3 trajectories over " in str(few.calibration(10**6))
    assert " members of 1 trajectory over " in str(one.choice(1))


def test_fewer_validations_may_each_be_larger() -> None:
    often, seldom = (replace(FULL, validate_every=every).choice(3000) for every in (10, 1000))
    assert FULL.of_ensembles(seldom) > FULL.of_ensembles(often)


def test_an_ensemble_costs_what_its_networks_are_called_for() -> None:
    """One task of 7 trajectories, 4 members: 28 rows and a call's own, a frame is operator, moments, two Heun steps.

    Before, operator and moments see four steps of 16 windows.
    """
    effort = Effort(of_step=1.0, rollouts=((7, 10),), sampler="heun", sampler_steps=2)
    size = replace(effort.calibration(10**9), members=4)
    assert effort.of_ensembles(size) == 10 * (28 + 6) * (1 + 1 + 2 * 2) + 2 * 4 * (16 + 6)
    assert replace(effort, sampler="euler").of_ensembles(size) == 10 * (28 + 6) * (1 + 1 + 2) + 2 * 4 * (16 + 6)
    many = replace(effort, sampler_steps=16)
    assert many.of_ensembles(size) == 10 * (28 + 6) * (1 + 1 + 5) + 2 * 4 * (16 + 6)
    assert many.of_ensembles(size, drawn=False) == 10 * (28 + 6) * (1 + 1) + 2 * 4 * (16 + 6)
    assert many.of_calibration(size) == many.of_ensembles(size, drawn=False) + TRIALS * many.of_ensembles(size)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """That of a run on Burgers data, opened."""
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=12, resolution=32)
    settings = load_settings(write_config(tmp_path, "burgers1d", ["b.hdf5"]))
    workspace = open_workspace(settings, SilentProgress())
    workspace.open()
    return workspace


def diffusion(workspace: Workspace) -> DiffusionObjective:
    simulator = workspace.new_simulator()
    assert isinstance(simulator, Simulator)
    fit_closed_form(workspace, simulator)
    augments = build_augments(workspace.settings, workspace.splits["train"])
    objective = build_objective("diff_residual", workspace.settings, simulator, augments)
    assert isinstance(objective, DiffusionObjective)
    return objective


def test_a_step_of_several_views_is_work_of_as_many_as_differ(workspace: Workspace) -> None:
    objective, found = diffusion(workspace), []
    simulator = objective.steps.simulator
    for views in (0, 1, 2, 10**6):
        simulator.architecture = replace(simulator.architecture, symmetrize=views)
        found.append(Effort.of(workspace, objective, 4))
    assert [effort.views for effort in found] == [1, 1, 2, 64], "two mirrored ones of 32 cells"
    assert found[2].of_step > found[1].of_step == found[0].of_step


def test_a_budget_in_seconds_is_turned_into_steps_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, budget = diffusion(workspace), Budget("seconds", 5.0)
    steps = expected_steps(workspace, "diff_residual", objective, 4, budget, "key")
    assert steps > 1
    assert all(one.grad is None for one in objective.module.parameters())
    record = "effort-diff_residual"
    workspace.records.finish(record, str(workspace.records.key(record)), 0.0, steps=10**9)
    assert expected_steps(workspace, "diff_residual", objective, 4, budget, "key") == 10**9
    assert expected_steps(workspace, "diff_residual", objective, 4, Budget("seconds", 6.0), "key") < 10**9
    workspace.records.finish(record, str(workspace.records.key(record)), 0.0, steps=10**9)
    assert expected_steps(workspace, "diff_residual", objective, 4, Budget("seconds", 6.0), "another") < 10**9


def test_budgets_in_steps_and_epochs_are_never_timed(workspace: Workspace) -> None:
    objective = diffusion(workspace)
    assert expected_steps(workspace, "diff_residual", objective, 4, Budget("steps", 9), "key") == 9
    windows = sum(int((one.lengths - 1).sum()) for one in workspace.splits["train"].values())
    assert expected_steps(workspace, "diff_residual", objective, 4, Budget("epochs", 3), "key") in (
        3 * (windows // 4),
        3 * -(-windows // 4),
    )
    assert workspace.records.key("effort-diff_residual") is None


def test_validations_are_seldom_where_the_training_is_short() -> None:
    assert [FULL.validations(steps) for steps in (1, 100, 10**6)] == [3, 3, 6]
    student = replace(FULL, of_distance=1000.0)
    found = {steps: student.validations(steps) for steps in (1, 300, 10**6)}
    assert found == {1: 3, 300: int(300 * 266 * CHOICE_SHARE / 1000), 10**6: 20}
    assert replace(FULL, validate_every=7).validations(15) == 3


def test_the_roll_outs_are_those_of_the_validation_split(workspace: Workspace) -> None:
    assert Effort.of(workspace, diffusion(workspace), 4).rollouts == ((workspace.splits["valid"]["burgers1d"].num, 11),)


@pytest.mark.parametrize("stage", ["codec", "operator"])
def test_validations_take_as_many_trajectories_at_once_as_the_settings_say(workspace: Workspace, stage: str) -> None:
    evaluation = workspace.settings.evaluation.model_copy(update={"batch_size": 5})
    workspace.settings = workspace.settings.model_copy(update={"evaluation": evaluation})
    validate = validation_of(workspace, stage, workspace.new_simulator())
    assert isinstance(validate.measure, partial)
    assert validate.measure.keywords["batch_size"] == 5
