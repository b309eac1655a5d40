"""The gates: what beats a champion passes, and everything that is missing fails with its reason."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from ups.config.gates import GateSettings
from ups.data.fields import Grid
from ups.evaluation.gates import FIRST, ROUNDING, Judgement, Scored, judge, judge_hashes, judge_small
from ups.evaluation.scores import ScoreAccumulator
from ups.physics.equations import EQUATIONS, get_equation
from ups.pipeline.promote import undefined_metrics

PERIODIC = {"t": {"bc_violation": "the domain is periodic: there is no boundary"}}
SCORES = {"nrmse": 0.1, "conservation_gap": 0.01, "bc_violation": None, "ece": None, "wall_clock": 0.5}
MACHINE = {"device": "cpu", "processor": "Fast 9000", "threads": 1, "batch_size": 32}


def run(name: str = "candidate", **scores: Any) -> Scored:
    return Scored(name, f"model of {name}", "protocol", {"t": {**SCORES, **scores}}, {}, False, MACHINE)


CHAMPION = run("champion")


def verdicts(judgement: Judgement) -> dict[str, bool | None]:
    return {one.gate: one.passed for one in judgement.verdicts}


def settings(**choices: Any) -> GateSettings:
    return GateSettings.model_validate(choices)


def test_what_is_better_passes_and_what_is_not_does_not() -> None:
    better = judge(run(nrmse=0.099), CHAMPION, settings(), PERIODIC)
    assert better.passed
    assert verdicts(better) == {
        "nrmse": True,
        "conservation_gap": True,
        "bc_violation": None,
        "ece": None,
        "wall_clock": True,
    }
    assert not judge(run(), CHAMPION, settings(), PERIODIC).passed, "as good is not better"
    assert not judge(run(nrmse=0.11), CHAMPION, settings(), PERIODIC).passed


@pytest.mark.parametrize(("nrmse", "passes"), [(0.0949, True), (0.0951, False), (0.1, False)])
def test_min_delta_is_a_part_of_the_champions_error(nrmse: float, passes: bool) -> None:
    found = judge(run(nrmse=nrmse), CHAMPION, settings(min_delta=0.05), PERIODIC)
    assert found.passed is passes
    assert found.verdicts[0].limit == pytest.approx(0.095)


@pytest.mark.parametrize("metric", ["conservation_gap", "wall_clock"])
def test_a_ratio_has_a_limit(metric: str) -> None:
    worse = run(nrmse=0.01, **{metric: 1.1 * SCORES[metric]})
    found = judge(worse, CHAMPION, settings(), PERIODIC)
    assert [one.gate for one in found.failures] == [metric]
    assert "1.1 times" in found.failures[0].why
    assert judge(worse, CHAMPION, settings(ratios={metric: 1.2}), PERIODIC).passed
    assert judge(worse, CHAMPION, settings(ratios={metric: None}), PERIODIC).passed


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, "0.001", True])
@pytest.mark.parametrize("metric", ["nrmse", "conservation_gap", "wall_clock"])
def test_what_is_missing_fails_on_either_side(metric: str, bad: Any) -> None:
    without = run(**{"nrmse": 0.01, metric: bad})
    for candidate, champion in (
        (without, CHAMPION),
        (without, None),
        (run(nrmse=0.01), run("champion", **{metric: bad})),
    ):
        found = judge(candidate, champion, settings(first_champion=True), PERIODIC)
        assert [one.gate for one in found.failures] == [metric]
    gone = {name: value for name, value in {**SCORES, "nrmse": 0.01}.items() if name != metric}
    found = judge(replace(run(), tasks={"t": gone}), CHAMPION, settings(), PERIODIC)
    assert [one.gate for one in found.failures] == [metric], "a metric that is not in the file"


def test_a_reason_is_told() -> None:
    candidate = replace(run(nrmse=None), reasons={"t": {"nrmse": "3 of 4 roll-outs diverged"}})
    assert "3 of 4 roll-outs diverged" in judge(candidate, CHAMPION, settings()).failures[0].why


def test_a_missing_champion_fails_unless_it_may() -> None:
    found = judge(run(), None, settings(), PERIODIC)
    assert [(one.gate, one.why) for one in found.failures] == [("champion", FIRST)]
    assert judge(run(), None, settings(first_champion=True), PERIODIC).passed
    assert not judge(run(nrmse=0.2), CHAMPION, settings(first_champion=True), PERIODIC).passed, "there is one"


def test_auto_leaves_out_only_what_the_equation_does_not_have() -> None:
    better = run(nrmse=0.01)
    assert [one.gate for one in judge(better, CHAMPION, settings(), {}).failures] == ["bc_violation"]
    demanded = judge(better, CHAMPION, settings(ratios={"bc_violation": 1.0}), PERIODIC)
    assert [one.gate for one in demanded.failures] == ["bc_violation"], "a number is demanded everywhere"
    why = next(one.why for one in judge(better, CHAMPION, settings(), PERIODIC).verdicts if one.gate == "bc_violation")
    assert why == "not judged: the domain is periodic: there is no boundary"


def test_a_calibration_that_the_champion_has_must_not_be_lost() -> None:
    drawing = replace(run("champion", ece=0.05), draws=True)
    assert [one.gate for one in judge(run(nrmse=0.01), drawing, settings(), PERIODIC).failures] == ["ece"]
    assert judge(replace(run(nrmse=0.01, ece=0.4), draws=True), CHAMPION, settings(), PERIODIC).passed
    ours = replace(run(nrmse=0.01, ece=0.06), draws=True)
    assert [one.gate for one in judge(ours, drawing, settings(), PERIODIC).failures] == ["ece"]
    silent = replace(run(nrmse=0.01), draws=True)  # draws, but no ensemble was rolled out
    assert [one.gate for one in judge(silent, None, settings(first_champion=True), PERIODIC).failures] == ["ece"]


def test_rounding_is_no_reason_to_fail() -> None:
    exact = run("champion", conservation_gap=1e-9)
    near, far = (run(nrmse=0.01, conservation_gap=factor * ROUNDING["conservation_gap"]) for factor in (0.9, 1.1))
    assert judge(near, exact, settings(), PERIODIC).passed
    assert not judge(far, exact, settings(), PERIODIC).passed
    assert not judge(run(nrmse=0.01, conservation_gap=1e-3), run("champion", conservation_gap=0.0), settings()).passed


@pytest.mark.parametrize("other", [{"device": "NVIDIA H200"}, {"processor": "Slow 100"}])
def test_times_of_other_machines_are_not_compared(other: dict[str, str]) -> None:
    elsewhere = replace(run(nrmse=0.01, wall_clock=1e-6), machine={**MACHINE, **other})
    found = judge(elsewhere, CHAMPION, settings(), PERIODIC)
    assert [one.gate for one in found.failures] == ["wall_clock"]
    assert "gates.ratios.wall_clock=null" in found.failures[0].why
    assert judge(elsewhere, CHAMPION, settings(ratios={"wall_clock": None}), PERIODIC).passed


def test_every_task_must_be_better() -> None:
    def of(name: str, *errors: float) -> Scored:
        tasks = {task: {**SCORES, "nrmse": error} for task, error in zip("ab", errors, strict=True)}
        return replace(run(name), tasks=tasks)

    nothing = {task: {"bc_violation": "none"} for task in "ab"}
    assert judge(of("new", 0.09, 0.09), of("old", 0.1, 0.1), settings(), nothing).passed
    found = judge(of("new", 0.0001, 0.11), of("old", 0.1, 0.1), settings(), nothing)
    assert [(one.gate, one.task) for one in found.failures] == [("nrmse", "b")]


@pytest.mark.parametrize(
    "other",
    [replace(CHAMPION, protocol="another"), replace(CHAMPION, tasks={**CHAMPION.tasks, "more": SCORES})],
)
def test_another_protocol_or_set_of_tasks_is_not_compared(other: Scored) -> None:
    assert "protocol" in [one.gate for one in judge(run(nrmse=0.01), other, settings(), PERIODIC).failures]


def test_the_champion_itself_stays_so_while_its_scores_are_there() -> None:
    assert judge(CHAMPION, CHAMPION, settings(), PERIODIC).passed
    assert not judge(run("champion", nrmse=None), CHAMPION, settings(), PERIODIC).passed
    copy = replace(CHAMPION, run="another name")
    assert not judge(copy, CHAMPION, settings(), PERIODIC).passed


def test_no_task_is_no_pass() -> None:
    assert not judge(replace(run(), tasks={}), None, settings(first_champion=True)).passed
    assert not judge_small({}).passed
    assert not Judgement(()).passed


@pytest.mark.parametrize(
    ("ours", "persistence", "passes"),
    [(0.1, 0.2, True), (0.2, 0.2, False), (None, 0.2, False), (math.nan, 0.2, False), (0.1, None, False)],
)
def test_the_small_gate_asks_for_more_than_standing_still(ours: Any, persistence: Any, passes: bool) -> None:
    scores = {"tasks": {"t": {"nrmse": ours}}, "baselines": {"persistence": {"t": {"nrmse": persistence}}}}
    assert judge_small(scores).passed is passes
    finite = ours is not None and math.isfinite(ours)
    assert judge_small({**scores, "baselines": {}}).passed is finite


def test_hashes_must_be_there_and_agree() -> None:
    names, hashes = ("data", "model"), {"data": "a", "model": "b"}
    assert judge_hashes(hashes, hashes, names).passed
    for recorded, found, what in (
        ({"data": "a"}, hashes, "no record of the model"),
        (hashes, {"data": "a"}, "model is gone"),
        (hashes, {**hashes, "model": "c"}, "model has changed"),
    ):
        judgement = judge_hashes(recorded, found, names)
        assert [what in one.why for one in judgement.failures] == [True]


def test_verdicts_survive_the_file() -> None:
    found = judge(run(nrmse=0.01), CHAMPION, settings(), PERIODIC)
    assert Judgement.from_json(found.to_json()) == found


@pytest.mark.parametrize("name", sorted(EQUATIONS))
def test_what_an_equation_does_not_have_is_what_its_scores_leave_out(name: str) -> None:
    equation = get_equation(name)
    grid = Grid(tuple(axis.numpy() for axis in equation.centres(8)), equation.periodic)
    missing = ScoreAccumulator(equation, grid)._unavailable
    assert undefined_metrics(equation) == {
        metric: missing[metric] for metric in ("conservation_gap", "bc_violation") if metric in missing
    }


@pytest.mark.parametrize(
    "wrong",
    [
        *({"min_delta": 1.0}, {"min_delta": -0.1}, {"metric": "solver_speedup"}, {"ratio": {}}, {"first_champion": 1}),
        *({"ratios": {"ece": 0}}, {"ratios": {"wall_clok": 1.0}}, {"ratios": "auto"}),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**wrong)


def test_one_ratio_given_leaves_the_others_as_they_are() -> None:
    assert settings(ratios={"wall_clock": 2}).ratios.model_dump() == {
        "conservation_gap": "auto",
        "bc_violation": "auto",
        "ece": "auto",
        "wall_clock": 2.0,
    }


def test_scores_are_read_as_they_are_written() -> None:
    content = {
        "protocol": {"hash": "h", **MACHINE, "split": "test"},
        "tasks": {"t": SCORES},
        "reasons": {"tasks": {"t": {"ece": "none"}}},
    }
    found = Scored.of("name", "model", content, draws=True)
    assert found == Scored("name", "model", "h", {"t": SCORES}, {"t": {"ece": "none"}}, True, MACHINE)
    with pytest.raises(KeyError):
        Scored.of("name", "model", {"tasks": {}}, draws=False)
    assert (found.value("t", "nrmse"), found.value("t", "ece"), found.value("u", "nrmse")) == (0.1, None, None)
    assert (found.reason("t", "ece"), found.reason("t", "crps")) == ("none", "it was not measured")
