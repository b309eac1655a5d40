from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ups.config.learning import CosineSchedule, PlateauSchedule, StageSettings, StepSchedule, WsdSchedule
from ups.training.schedule import Budget, Plateau, build_schedule, cosine, step, wsd

fractions = st.floats(0, 1)


@given(warmup=st.floats(0, 0.5), final=fractions, decay=st.floats(0.01, 0.5))
def test_every_schedule_starts_at_its_warm_up_and_ends_with_the_budget(
    warmup: float, final: float, decay: float
) -> None:
    for shape in (
        lambda f: cosine(f, warmup=warmup, final=final),
        lambda f: wsd(f, warmup=warmup, decay=decay, final=final),
    ):
        assert shape(0.0) == (0.0 if warmup > 0 else 1.0)
        assert shape(warmup) == pytest.approx(1.0)
        assert shape(1.0) == pytest.approx(final, abs=1e-12)


@given(first=fractions, second=fractions)
def test_rates_fall_after_the_warm_up(first: float, second: float) -> None:
    early, late = sorted((0.1 + 0.9 * first, 0.1 + 0.9 * second))
    for shape in (
        lambda f: cosine(f, warmup=0.1, final=0.01),
        lambda f: wsd(f, warmup=0.1, decay=0.3, final=0.01),
        lambda f: step(f, warmup=0.1, step_size=0.2, gamma=0.5),
    ):
        assert shape(early) >= shape(late) - 1e-12


def test_known_values() -> None:
    assert cosine(0.55, warmup=0.1, final=0.0) == pytest.approx(0.5)
    assert wsd(0.69, warmup=0.1, decay=0.3, final=0.0) == 1.0
    assert wsd(0.775, warmup=0.1, decay=0.3, final=0.0) == pytest.approx(0.5)
    assert [step(f, warmup=0.0, step_size=0.25, gamma=0.1) for f in (0.2, 0.25, 0.6)] == pytest.approx([1, 0.1, 0.01])


@pytest.mark.parametrize("settings", [CosineSchedule(), WsdSchedule(), StepSchedule(), PlateauSchedule()])
def test_settings_build_what_they_name(settings: CosineSchedule) -> None:
    schedule = build_schedule(settings)
    assert schedule(0.025) == pytest.approx(0.5)  # half-way through the warm-up of 0.05
    assert schedule(0.06) == pytest.approx(1.0, abs=0.01)


def test_plateau_falls_when_validations_stop_improving() -> None:
    schedule = Plateau(warmup=0.0, factor=0.5, patience=2)
    factors = []
    for metric in (3.0, 2.0, 2.5, 2.5, float("nan"), 2.1, 1.0, 1.5, 1.5):
        schedule.observe(metric)
        factors.append(schedule(0.5))
    assert factors == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    twin = Plateau(warmup=0.0, factor=0.5, patience=2)
    twin.load_state_dict(schedule.state_dict())
    assert twin(0.5) == schedule(0.5)


@pytest.mark.parametrize("unit", ["epochs", "steps", "seconds"])
def test_a_budget_counts_its_own_unit(unit: str) -> None:
    budget = Budget.of(StageSettings.model_validate({unit: 4}))
    for done, fraction in ((0.0, 0.0), (2.0, 0.5), (4.0, 1.0), (12.0, 1.0)):
        elsewhere = {"epochs": 1e9, "steps": 1e9, "seconds": 1e9}
        assert budget.fraction(**{**elsewhere, unit: done}) == fraction
