"""Commands that use finished runs: `ups evaluate`, `rollout`, `report` and `board`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.outcome import Ups, cells
from tests.pipeline.toy_run import decide_run, write_run

from ups.cli.choices import GuardChoice
from ups.config.physics import GuardSettings
from ups.physics.guards import GUARDS
from ups.terminal import LineProgress


def test_board_shows_writes_and_compares(cli: Ups, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    missing = cli("board", "--runs-dir", runs)
    assert (missing.code, missing.out) == (2, "")
    assert "no leaderboard at" in missing.err
    for name, nrmse in (("a", 0.2), ("b", 0.1)):
        decide_run(write_run(runs, name, nrmse=nrmse))
    shown = cli("board", "--runs-dir", runs)
    assert shown.code == 0
    lines = cells(shown.out)
    assert lines[0] == ["run", "task", "nrmse", "conservation", "s / step", "standing", "judged"]
    assert [(line[0], line[2], line[5]) for line in lines[1:]] == [
        ("b", "0.1", "champion"),
        ("a", "0.2", "was champion"),
    ]
    assert cli("board", "--runs-dir", runs / "leaderboard.sqlite").out == shown.out
    files = [tmp_path / "board.csv", tmp_path / "board.html"]
    assert cli("board", "--runs-dir", runs, "--csv", files[0], "--html", files[1]).out.splitlines() == [
        *map(str, files)
    ]
    assert all(file.stat().st_size for file in files)
    compared = cells(cli("board", "--runs-dir", runs, "--compare", runs / "a", "b").out)
    assert compared[:2] == [
        ["task", "metric", "a", "b", "second / first"],
        ["burgers1d", "nrmse", "0.2", "0.1", "0.5"],
    ]
    assert cli("board", "--runs-dir", runs, "--compare", "a", "../../x").code == 2


def test_board_imports_no_torch() -> None:
    script = "import sys; import ups.cli, ups.evaluation.board; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a run and files, as far as can be seen without opening them."""
    monkeypatch.chdir(tmp_path)
    Path("runs/x").mkdir(parents=True)
    for name in ("runs/x/config.yaml", "a.h5", "b.h5", "c.h5", "in.h5"):
        Path(name).touch()


@pytest.mark.usefixtures("place")
def test_evaluate_takes_files_after_data(cli: Ups, stand_in: Any) -> None:
    calls = stand_in("ups.pipeline.evaluate", "evaluate_run", [{"model": "ups"}])
    assert cli("evaluate", "runs/x", "--data", "a.h5", "b.h5", "--data", "c.h5").out.endswith("ups\n")
    assert cli("evaluate", "runs/x", "--split", "valid").code == 0
    both = cli("evaluate", "runs/x", "--split", "valid", "--data", "a.h5")
    assert (both.code, "exclude each other" in both.err) == (2, True)
    assert cli("evaluate", "runs/x", "--device", "cpu").code == 0
    (run, files, split, _, device), given = calls[0]
    assert given == {"members": None, "views": None}
    assert cli("evaluate", "runs/x", "--members", "0", "--views", "2").code == 0
    assert calls[3][1] == {"members": 0, "views": 2}
    assert cli("evaluate", "runs/x", "--views", "-1").code == 2
    assert (run, set(files), split) == (Path("runs/x"), {Path("a.h5"), Path("b.h5"), Path("c.h5")}, "test")
    assert calls[1][0][1:3] == ((), "valid")
    assert (device, calls[2][0][4]) == (None, "cpu")
    refused = cli("evaluate", "runs/x", "a.h5")
    assert refused.code == 2
    assert "--data" in refused.err


@pytest.mark.usefixtures("place")
def test_rollout_and_report_print_what_they_wrote(cli: Ups, stand_in: Any) -> None:
    calls = stand_in("ups.pipeline.rollout", "rollout_file")
    assert cli("rollout", "runs/x", "in.h5", "--steps", "3", "--out", "out.h5").out == "out.h5\n"
    assert calls[0][0][:-1] == (Path("runs/x"), Path("in.h5"), 3, Path("out.h5"), None, None, 0)
    assert isinstance(calls[0][0][-1], LineProgress)
    assert calls[0][1] == dict.fromkeys(("mode", "guards", "corrector_every", "views", "device"))
    assert cli("rollout", "runs/x", "in.h5", "--steps", "0", "--out", "out.h5").code == 2
    stand_in("ups.evaluation.report", "write_report", Path("runs/x/report.html"))
    assert cli("report", "runs/x").out == "runs/x/report.html\n"


@pytest.mark.usefixtures("place")
def test_rollout_takes_guards_corrections_and_mode(cli: Ups, stand_in: Any) -> None:
    calls = stand_in("ups.pipeline.rollout", "rollout_file")
    rollout = ("rollout", "runs/x", "in.h5", "--steps", "3", "--out", "out.h5")
    guards = ("--guard", "conservation", "--guard", "positivity")
    assert cli(*rollout, *guards, "--corrector-every", "2", "--views", "4", "--mode", "physical").code == 0
    asked = {"mode": "physical", "guards": ("conservation", "positivity"), "corrector_every": 2, "views": 4}
    assert calls[0][1] == {**asked, "device": None}
    assert cli(*rollout, "--no-guards", "--device", "cuda").code == 0
    assert calls[1][1]["device"] == "cuda"
    assert calls[1][1]["guards"] == ()
    for wrong in (("--guard", "mass"), ("--corrector-every", "0"), ("--views", "-1")):
        assert cli(*rollout, *wrong).code == 2
    for wrong in (("--mode", "fourier"), (*guards, "--no-guards")):
        assert cli(*rollout, *wrong).code == 2
    assert len(calls) == 2


def test_the_guards_of_settings_and_of_the_command_line_are_those_there_are() -> None:
    assert set(GUARDS) == {choice.value for choice in GuardChoice} == set(GuardSettings.model_fields)
