"""`ups check`: problems and figures for a person and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.outcome import Ups, cells

from ups.config import load_settings
from ups.errors import CheckpointError, DataError, UpsError, UsageError
from ups.pipeline.check_report import CheckReport, Folder, Problem
from ups.pipeline.records import folder_of


def checked(*problems: Problem) -> CheckReport:
    """What the checks return."""
    return CheckReport("runs/x", problems, Folder("runs", True, 3 * 2**30, 2**26), {})


def test_check_lists_every_problem_and_exits_1(cli: Ups, config: Path, stand_in: Any) -> None:
    found = [Problem("data", "a.h5", "has NaN", "remove it"), Problem("folder", "runs", "is full", "free space")]
    stand_in("ups.pipeline.run", "check_pipeline", checked(*found))
    done = cli("check", config)
    assert done.code == 1
    assert done.out.splitlines() == [
        *("a.h5: has NaN", "  remove it"),
        *("runs: is full", "  free space"),
        "2 problems found",
    ]
    listed = cli("check", config, "--json")
    assert listed.code == 1
    assert json.loads(listed.out)["problems"] == [vars(problem) for problem in found]
    assert json.loads(listed.out)["passed"] is False


def test_check_does_not_list_the_same_fault_twenty_times(cli: Ups, config: Path, stand_in: Any) -> None:
    found = [Problem("data", "a.h5", f"{n} values are NaN (trajectory {n})", "remove it") for n in range(2, 14)]
    found.append(Problem("data", "b.h5", "1 value is NaN (group 1)", "x"))
    stand_in("ups.pipeline.run", "check_pipeline", checked(*found))
    lines = cli("check", config).out.splitlines()
    listed = [line for problem in found[:5] for line in (f"{problem.where}: {problem.what}", f"  {problem.remedy}")]
    assert lines[lines.index(listed[0]) :] == [
        *listed,
        *("a.h5: ... and 7 more like it", "  remove it"),
        *("b.h5: 1 value is NaN (group 1)", "  x"),
        "13 problems found",
    ]


@pytest.mark.parametrize("override", ["training.batch_sise=3", "task=burger1d"])
def test_check_says_wrong_settings_as_json_too(cli: Ups, config: Path, stand_in: Any, override: str) -> None:
    stand_in("ups.pipeline.run", "check_pipeline", UsageError("no equation is called 'burger1d'"))
    done = cli("check", config, override, "--json")
    found = json.loads(done.out)
    (problem,) = found["problems"]
    assert found["passed"] is False
    assert (done.code, done.err, problem["kind"], problem["where"]) == (2, "", "settings", str(config))
    assert problem["what"] in cli("check", config, override).err


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UpsError("runs/x/steps.json is damaged; delete it"), "folder"),
        (DataError("a.h5 is no HDF5 file; make it again"), "data"),
        (CheckpointError("runs/x/model is damaged; train again"), "model"),
    ],
)
def test_check_says_any_other_error_as_json_too(
    cli: Ups, config: Path, stand_in: Any, error: UpsError, kind: str
) -> None:
    stand_in("ups.pipeline.run", "check_pipeline", error)
    done = cli("check", config, "--json")
    found = json.loads(done.out)
    (problem,) = found["problems"]
    assert (done.code, done.err, found["passed"]) == (1, "", False)
    assert (problem["kind"], problem["where"], problem["what"]) == (kind, str(config), str(error))
    assert cli("check", config).err == f"error: {error}\n"


def test_check_says_a_damaged_record_as_json_too(cli: Ups, config: Path, tmp_path: Path) -> None:
    path = folder_of(load_settings(config, [f"runs_dir={tmp_path}"])) / "steps.json"
    path.parent.mkdir()
    path.write_text("{")
    done = cli("check", config, f"runs_dir={tmp_path}", "--json")
    (problem,) = json.loads(done.out)["problems"]
    assert (done.code, problem["kind"]) == (1, "folder")
    assert problem["what"].startswith(f"{path} is damaged")


def test_check_without_problems_exits_0(cli: Ups, config: Path, stand_in: Any) -> None:
    stand_in("ups.pipeline.run", "check_pipeline", checked())
    done = cli("check", config)
    assert (done.code, done.err) == (0, "")
    assert cells(done.out) == [
        ["passed", "details"],
        ["folder", "runs: 64 MiB needed, 3.0 GiB free"],
        ["no problems found"],
    ]
    assert json.loads(cli("check", config, "--json").out)["passed"] is True


def test_what_is_doubted_is_said_and_is_no_problem(
    cli: Ups, config: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckReport, "doubts", ("burgers1d: the solver is 0.5 off",))
    stand_in("ups.pipeline.run", "check_pipeline", checked())
    done = cli("check", config)
    assert done.code == 0
    assert done.out.splitlines()[-2:] == ["warning: burgers1d: the solver is 0.5 off", "no problems found, 1 warning"]
