"""What a stage knows of its data, and what it builds of its settings.

The description of a task, the patch of its tokens, the pairs of frames to fit, and the terms of its loss.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.helpers import make_spec
from tests.models.small_prior import darcy_spec
from tests.training.small_objectives import AUGMENTS, make_simulator

from ups.config import Settings
from ups.data.fields import Grid
from ups.data.normalize import compute_statistics
from ups.data.trajectories import MemoryFrames, TrajectorySet
from ups.errors import DataError, UpsError
from ups.models.baselines import SIZES, make_baseline
from ups.physics.equations import get_equation
from ups.training.baselines import STEADY, TRAININGS, baseline_training
from ups.training.builders import choose_patch, describe_task
from ups.training.objectives import OperatorObjective
from ups.training.pairs import fit_pairs
from ups.training.stages import build_objective


def make_train(lengths: list[int], nus: list[float]) -> TrajectorySet:
    """Burgers trajectories whose every value says where it is: 1000 trajectory + frame + cell / 16."""
    frames = torch.cat(
        [
            1000.0 * number + torch.arange(length)[:, None, None] + torch.arange(16.0) / 16
            for number, length in enumerate(lengths)
        ]
    )
    counts = torch.tensor(lengths)
    return TrajectorySet(
        "burgers1d",
        get_equation("burgers1d"),
        Grid(((np.arange(16) + 0.5) / 16,), (True,)),
        0.05,
        torch.tensor(nus)[:, None],
        counts,
        [str(number) for number in range(len(lengths))],
        MemoryFrames(frames, counts.cumsum(0) - counts),
    )


def make_settings(**changes: object) -> Settings:
    return Settings.model_validate({"data": {"task": "burgers1d"}, **changes})


def test_pairs_to_fit_are_distinct_neighbours_and_can_be_read_again() -> None:
    train = make_train([3, 1, 5, 2], [0.1, 0.2, 0.3, 0.4])
    pairs = fit_pairs(train, torch.Generator().manual_seed(0))
    first, again = list(pairs), list(pairs)
    assert len(first) == 1
    before, after, params = first[0]
    for one, other in zip(first[0], again[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(after, before + 1, rtol=0, atol=0)
    starts = before[:, 0, 0]
    assert sorted(starts.tolist()) == [0, 1, 2000, 2001, 2002, 2003, 3000]
    torch.testing.assert_close(params[:, 0], train.params[(starts // 1000).long(), 0], rtol=0, atol=0)


def test_pairs_to_fit_of_a_large_set_are_drawn_from_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ups.training.pairs.SHUFFLED_PAIRS", 2)
    train = make_train([3, 1, 5, 2], [0.1, 0.2, 0.3, 0.4])
    starts = torch.cat([before[:, 0, 0] for before, _, _ in fit_pairs(train, torch.Generator().manual_seed(0))])
    assert set(starts.tolist()) == {0, 1, 2000, 2001, 2002, 2003, 3000}
    with pytest.raises(DataError, match="two frames"):
        fit_pairs(make_train([1, 1], [0.1, 0.1]), torch.Generator())


def test_halves_of_every_batch_are_of_different_trajectories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ups.training.pairs.FIT_BATCH", 8)
    pairs = fit_pairs(make_train([6, 6, 6, 6], [0.1, 0.2, 0.3, 0.4]), torch.Generator().manual_seed(0))
    for trajectory in pairs.trajectory.split(8):
        middle = len(trajectory) // 2
        assert not set(trajectory[:middle].tolist()) & set(trajectory[middle:].tolist())
    assert len(pairs.trajectory) == 20


def test_no_pair_is_lost_where_trajectories_are_unequal() -> None:
    pairs = fit_pairs(make_train([9, 2, 4], [0.1, 0.2, 0.3]), torch.Generator().manual_seed(0))
    assert sorted(zip(pairs.trajectory.tolist(), pairs.start.tolist(), strict=True)) == [
        *((0, start) for start in range(8)), (1, 0), *((2, start) for start in range(3))
    ]  # fmt: skip


def test_a_task_knows_the_range_of_its_parameters() -> None:
    train = make_train([3, 3, 3], [0.02, 0.01, 0.04])
    spec = describe_task(make_settings(), train, compute_statistics(train))
    assert spec.param_low == pytest.approx((0.01,))
    assert spec.param_high == pytest.approx((0.04,))


def test_a_token_has_room_for_a_cell() -> None:
    fields = {"fields": ("a", "b", "c"), "mean": (0.0,) * 3, "std": (1.0,) * 3, "conserved": (False,) * 3}
    specs = {"task": make_spec(size=12, **fields)}
    assert choose_patch("auto", 12, specs) == 4
    assert choose_patch("auto", 3, specs) == 1
    assert choose_patch(4, 2, specs) == 4
    with pytest.raises(UpsError, match=r"latent\.dim must be at least the number of fields"):
        choose_patch("auto", 2, specs)


def test_priors_of_the_settings_reach_the_operators_objective() -> None:
    """And a task that has nothing for one of them is an error when the stage is built."""
    tree = {"enabled": True, "lambda_residual": 0.5, "frequency": 4}
    simulator = make_simulator(16, name="burgers1d")
    objective = build_objective("operator", make_settings(training={"physics_priors": tree}), simulator, AUGMENTS)
    assert isinstance(objective, OperatorObjective)
    assert (objective.priors.tasks["task"].residual, objective.priors.frequency) == (0.5, 4)
    asked = {"enabled": True, "lambda_conservation": 0.5}
    with pytest.raises(UpsError, match=r"lambda_conservation is 0\.5(.|\n)*zero by construction"):
        build_objective("operator", make_settings(training={"physics_priors": asked}), simulator, AUGMENTS)
    trained = make_settings(training={"physics_priors": asked}, latent={"codec": {"train_with_operator": True}})
    build_objective("operator", trained, simulator, AUGMENTS)


def test_a_baseline_is_trained_as_is_best_for_its_dimension_and_without_time_as_is_usual_there() -> None:
    for name in ("fno", "unet"):
        assert baseline_training(make_baseline(name, {"task": make_spec(size=32)})) is TRAININGS[name, 1]
        assert baseline_training(make_baseline(name, {"task": darcy_spec(16)})) is STEADY[name]
    assert set(SIZES) <= set(TRAININGS), "no size without the rate that was found with it"
