"""From settings to models: what an equation cannot be is refused."""

from __future__ import annotations

import pytest

from ups.config.schema import Settings
from ups.errors import UsageError
from ups.physics.equations import EQUATIONS
from ups.training.builders import require_form


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


def test_each_of_several_tasks_has_to_allow_the_form() -> None:
    require_form(settings("flux", "advection1d", "burgers1d"))
    with pytest.raises(UsageError, match="reaction_diffusion1d does not keep"):
        require_form(settings("flux", "advection1d", "reaction_diffusion1d"))


@pytest.mark.parametrize("task", [task for task, equation in EQUATIONS.items() if not equation.steady])
def test_the_equations_own_form_and_those_that_hold_any_change_are_taken(task: str) -> None:
    for form in ("auto", "increment", "flux_source", EQUATIONS[task].form):
        require_form(settings(form, task))
