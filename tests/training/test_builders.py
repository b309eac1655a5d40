"""From settings to models: what an equation cannot be is refused, what is left to choose is chosen to fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.evaluation.helpers import make_set
from tests.models.helpers import make_spec

from ups.config.schema import Settings
from ups.data.normalize import compute_statistics
from ups.data.problems import BadDataError
from ups.errors import UsageError
from ups.physics.equations import EQUATIONS
from ups.training.builders import build_simulator, choose_coarsen, describe_task, require_form


def settings(form: str, *tasks: str) -> Settings:
    return Settings.model_validate({"task": list(tasks), "operator": {"form": form}})


@pytest.mark.parametrize(
    ("form", "task", "why"),
    [
        ("flux", "reaction_diffusion1d", "does not keep that of u; give auto \\(flux_source for reaction_diffusion1d"),
        ("flux", "reaction_diffusion2d", "does not keep that of u, v;"),
        ("flux", "shallow_water2d", "does not keep that of h; give auto \\(flux_open"),
        ("flux_open", "burgers1d", "burgers1d is periodic and has none; give auto \\(flux for"),
        ("flux_open", "reaction_diffusion2d", "has sources there"),
    ],
)
def test_a_form_that_the_fields_cannot_change_by_is_refused(form: str, task: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"operator.form is {form}, which .*{why}"):
        require_form(settings(form, task))


@pytest.mark.parametrize(("size", "refused"), [(1.0, False), (1e-3, True), (1e3, True)])
def test_fields_that_stay_as_they_are_have_to_be_of_the_size_of_one(size: float, refused: bool) -> None:
    train = make_set("advection1d", [size * torch.randn(4, 1, 16) for _ in range(3)])
    for normalize in (True, False):
        chosen = Settings.model_validate({"task": "advection1d", "data": {"normalize": normalize}})
        if refused and not normalize:
            with pytest.raises(BadDataError, match="is false, but u of advection1d is not of the size of 1"):
                describe_task(chosen, train, compute_statistics(train))
        else:
            describe_task(chosen, train, compute_statistics(train))


def test_each_of_several_tasks_has_to_allow_the_form() -> None:
    require_form(settings("flux", "advection1d", "burgers1d"))
    with pytest.raises(UsageError, match="reaction_diffusion1d does not keep"):
        require_form(settings("flux", "advection1d", "reaction_diffusion1d"))


@pytest.mark.parametrize("task", [task for task, equation in EQUATIONS.items() if not equation.steady])
def test_the_equations_own_form_and_those_that_hold_any_change_are_taken(task: str) -> None:
    for form in ("auto", "increment", "flux_source", EQUATIONS[task].form):
        require_form(settings(form, task))


@pytest.mark.parametrize(
    ("axes", "sizes", "coarsen"),
    [
        (1, (256,), (8,)),
        (1, (12,), (4,)),
        (1, (101,), ()),
        (1, (64, 20), (4,)),
        (2, (64,), (2, 2, 2)),
        (2, (12,), (2, 2)),
        (3, (32,), (2, 2)),
    ],
)
def test_the_lattice_is_coarsened_as_far_as_it_divides(
    axes: int, sizes: tuple[int, ...], coarsen: tuple[int, ...]
) -> None:
    specs = {str(size): make_spec(axes, size) for size in sizes}
    assert choose_coarsen("auto", specs) == coarsen
    assert choose_coarsen(3, specs) == (3,)
    assert choose_coarsen((2, 5), specs) == (2, 5)


@pytest.mark.parametrize(
    ("operator", "size", "coarsen"),
    [
        ({}, 40, (2, 2, 2)),
        ({"architecture_type": "pdet_unet"}, 40, (2, 2)),
        ({"architecture_type": "pdet_unet", "pdet": {"depths": [1, 1, 1]}}, 40, (2,)),
        ({"pdet": {"window": 8}}, 32, (2, 2)),
        ({"pdet": {"coarsen": [5, 2]}}, 40, (5, 2)),
    ],
)
def test_windows_and_halvings_find_whole_tokens(operator: dict[str, Any], size: int, coarsen: tuple[int, ...]) -> None:
    chosen = Settings.model_validate({"task": "reaction_diffusion2d", "operator": operator})
    assert build_simulator(chosen, {"task": make_spec(2, size)}).architecture.coarsen == coarsen


@pytest.mark.parametrize(
    ("symmetrize", "augment", "views"),
    [("auto", True, 1), ("auto", False, 0), (4, True, 4), (0, False, 0), (0, True, 0)],
)
def test_roll_outs_see_what_training_saw(symmetrize: Any, augment: bool, views: int) -> None:
    chosen = Settings.model_validate(
        {"task": "burgers1d", "operator": {"symmetrize": symmetrize}, "training": {"augment": augment}}
    )
    simulator = build_simulator(chosen, {"task": make_spec(1, 32)})
    assert simulator.symmetrize == simulator.architecture.symmetrize == views
