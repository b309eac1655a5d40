"""The command line: what it prints, how it exits, and that help costs nothing. The pipeline behind it is a stand-in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from tests.layouts import write_task
from tests.pipeline.toy_run import decide_run, write_run

import ups
from ups.cli import main
from ups.config import load_settings
from ups.errors import CheckpointError, DataError, UpsError, UsageError
from ups.pipeline.check_report import CheckReport, Folder, Problem
from ups.pipeline.records import folder_of

COMMANDS = ["run", "train", "evaluate", "check", "rollout", "watch", "report", "push", "board", "data"]


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Ups = Callable[..., Outcome]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Ups]:
    """Runs the command line in this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ups", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        code = stop.value.code
        return Outcome(0 if code is None else int(code), printed.out, printed.err)

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A settings file that is right."""
    path = tmp_path / "settings.yaml"
    path.write_text("task: burgers1d\n", encoding="utf-8")
    return path


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Puts a function in a module's place; returns the calls that it received."""

    def put(module: str, name: str, result: Any = None) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def function(*args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: function}))
        return calls

    return put


OUTCOME = SimpleNamespace(
    run_dir=Path("runs/demo-burgers1d-0123abcd"),
    table=[{"model": "ups", "nrmse": "0.002"}, {"model": "persistence", "nrmse": "0.63", "note": "last"}],
    messages=("report: runs/x/report.html",),
    passed=True,
)


def cells(printed: str) -> list[list[str]]:
    """What stands in the lines of a table and after it, rules left out."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines() if re.search(r"\w", line)]
    return [[cell for cell in line if cell] for line in lines]


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_only_those(cli: Ups) -> None:
    shown = cli("--help")
    listed = [line.split()[0] for line in shown.out.partition("Commands:")[2].splitlines() if line.strip()]
    assert (shown.code, listed) == (0, COMMANDS)
    data = cli("data", "--help")
    assert [line.split()[0] for line in data.out.partition("Commands:")[2].splitlines() if line.strip()] == [
        "make",
        "inspect",
    ]


@pytest.mark.parametrize("command", [[name] for name in COMMANDS] + [["data", "make"], ["data", "inspect"]])
def test_every_command_has_help(cli: Ups, command: list[str]) -> None:
    shown = cli(*command, "--help")
    assert shown.code == 0
    assert "Usage: ups " + " ".join(command) in shown.out
    assert "..." not in shown.out.replace("]...", ""), "a summary is cut off"


def test_version(cli: Ups) -> None:
    assert cli("--version") == Outcome(0, f"ups {ups.__version__}\n", "")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; import ups, ups.cli, ups.config; "
        "print([m for m in ('torch', 'numpy', 'h5py', 'rich', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ups", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"ups {ups.__version__}\n"


# --- commands --------------------------------------------------------------------------------------------------------


def test_run_prints_the_table_and_last_the_folder(cli: Ups, config: Path, stand_in: Any) -> None:
    calls = stand_in("ups.pipeline.run", "run_pipeline", OUTCOME)
    done = cli("run", config, "seed=4", "--force", "check", "--force", "operator", "latent.dim=8", "--skip-checks")
    assert (done.code, done.err) == (0, "")
    assert cells(done.out) == [
        ["model", "nrmse", "note"],
        ["ups", "0.002"],
        ["persistence", "0.63", "last"],
        ["report: runs/x/report.html"],
        ["runs/demo-burgers1d-0123abcd"],
    ]
    [((settings,), keywords)] = calls
    assert settings == load_settings(config, ["seed=4", "latent.dim=8"])
    assert keywords["force"] == ("check", "operator")
    assert keywords["skip_checks"] is True


def test_a_run_whose_gates_fail_exits_1_and_still_ends_with_the_folder(cli: Ups, config: Path, stand_in: Any) -> None:
    messages = ("not promoted: there is no champion yet", "report: runs/x/report.html")
    stand_in(
        "ups.pipeline.run", "run_pipeline", SimpleNamespace(**{**vars(OUTCOME), "messages": messages, "passed": False})
    )
    done = cli("run", config)
    assert (done.code, done.err) == (1, "")
    assert done.out.splitlines()[-3:] == [*messages, "runs/demo-burgers1d-0123abcd"]


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


@pytest.mark.parametrize(("stage", "given"), [("codec", "codec"), ("operator", "operator"), ("all", None)])
def test_train_names_its_stage(cli: Ups, config: Path, stand_in: Any, stage: str, given: str | None) -> None:
    calls = stand_in("ups.pipeline.run", "train_pipeline", OUTCOME)
    assert cli("train", config, "--stage", stage).out.endswith("runs/demo-burgers1d-0123abcd\n")
    assert calls[0][1]["stage"] == given
    assert cli("train", config, "--stage", "prior").code == 2


def test_other_ranks_print_nothing(cli: Ups, config: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in("ups.pipeline.run", "run_pipeline", OUTCOME)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli("run", config) == Outcome(0, "", "")


def checked(*problems: Problem) -> CheckReport:
    """What the checks return."""
    return CheckReport("runs/x", problems, Folder("runs", True, 3 * 2**30, 2**26), {})


def test_check_lists_every_problem_and_exits_1(cli: Ups, config: Path, stand_in: Any) -> None:
    found = [Problem("data", "a.h5", "has NaN", "remove it"), Problem("folder", "runs", "is full", "free space")]
    stand_in("ups.pipeline.run", "check_pipeline", checked(*found))
    done = cli("check", config)
    assert done.code == 1
    assert cells(done.out) == [
        ["where", "problem", "what to do"],
        ["a.h5", "has NaN", "remove it"],
        ["runs", "is full", "free space"],
        ["2 problems found"],
    ]
    listed = cli("check", config, "--json")
    assert listed.code == 1
    assert json.loads(listed.out)["problems"] == [vars(problem) for problem in found]
    assert json.loads(listed.out)["passed"] is False


def test_check_does_not_list_the_same_fault_twenty_times(cli: Ups, config: Path, stand_in: Any) -> None:
    found = [Problem("data", "a.h5", f"{n} values are NaN (trajectory {n})", "remove it") for n in range(1, 13)]
    found.append(Problem("data", "b.h5", "1 values are NaN (group 1)", "x"))
    stand_in("ups.pipeline.run", "check_pipeline", checked(*found))
    _, *rows = cells(cli("check", config).out.partition("where")[2])
    assert rows[:5] == [[problem.where, problem.what, problem.remedy] for problem in found[:5]]
    assert rows[5:] == [
        ["a.h5", "... and 7 more like it", "remove it"],
        ["b.h5", "1 values are NaN (group 1)", "x"],
        ["13 problems found"],
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


def test_help_names_the_steps_that_can_be_forced(cli: Ups) -> None:
    from ups.pipeline.run import STEPS

    shown = cli("run", "--help").out
    assert all(step in shown.partition("--force")[2] for step in STEPS)


def test_check_without_problems_exits_0(cli: Ups, config: Path, stand_in: Any) -> None:
    stand_in("ups.pipeline.run", "check_pipeline", checked())
    done = cli("check", config)
    assert (done.code, done.err) == (0, "")
    assert cells(done.out) == [
        ["checked", "fine"],
        ["folder", "runs: 64 MiB needed, 3.0 GiB free"],
        ["no problems found"],
    ]
    assert json.loads(cli("check", config, "--json").out)["passed"] is True


def test_evaluate_takes_files_after_data(cli: Ups, stand_in: Any) -> None:
    calls = stand_in("ups.pipeline.evaluate", "evaluate_run", [{"model": "ups"}])
    assert cli("evaluate", "runs/x", "--data", "a.h5", "b.h5", "--data", "c.h5").out.endswith("ups\n")
    assert cli("evaluate", "runs/x", "--split", "valid").code == 0
    both = cli("evaluate", "runs/x", "--split", "valid", "--data", "a.h5")
    assert (both.code, "exclude each other" in both.err) == (2, True)
    (run, files, split, _), _ = calls[0]
    assert (run, set(files), split) == (Path("runs/x"), {Path("a.h5"), Path("b.h5"), Path("c.h5")}, "test")
    assert calls[1][0][1:3] == ((), "valid")
    refused = cli("evaluate", "runs/x", "a.h5")
    assert refused.code == 2
    assert "--data" in refused.err


def test_rollout_and_report_print_what_they_wrote(cli: Ups, stand_in: Any) -> None:
    calls = stand_in("ups.pipeline.rollout", "rollout_file")
    assert cli("rollout", "runs/x", "in.h5", "--steps", "3", "--out", "out.h5").out == "out.h5\n"
    assert calls[0][0] == (Path("runs/x"), Path("in.h5"), 3, Path("out.h5"), None, None, 0)
    assert cli("rollout", "runs/x", "in.h5", "--steps", "0", "--out", "out.h5").code == 2
    stand_in("ups.evaluation.report", "write_report", Path("runs/x/report.html"))
    assert cli("report", "runs/x").out == "runs/x/report.html\n"


def test_data_make_passes_parameters_and_keeps_what_exists(cli: Ups, stand_in: Any, tmp_path: Path) -> None:
    calls = stand_in("ups.data.generate", "generate")
    out = tmp_path / "a.h5"
    make = ["data", "make", "burgers1d", "--out", out, "--samples", "2", "--seed", "1"]
    assert cli(*make, "nu=1e-2", "--time", "0.5").out == f"{out}\n"
    arguments, keywords = calls[0]
    assert arguments == ("burgers1d", out, 2, 1, {"nu": 0.01})
    assert (keywords["time"], keywords["resolution"], keywords["frames"]) == (0.5, None, None)
    out.touch()
    kept = cli(*make)
    assert kept.code == 2
    assert "--overwrite" in kept.err
    assert len(calls) == 1
    assert cli(*make, "--overwrite").code == 0
    for pair in ("nu", "nu=", "nu=soon", "=3"):
        assert cli(*make, "--overwrite", pair).code == 2
    assert "twice" in cli(*make, "--overwrite", "nu=1", "nu=2").err
    assert len(calls) == 2
    assert "is a folder" in cli(*make, "--overwrite", "--out", tmp_path).err
    assert cli(*make, "--overwrite", "--seed", 2**63).code == 2
    assert len(calls) == 2
    assert cli(*make, "--overwrite", "--seed", 2**63 - 1).code == 0


def test_inspect_is_written_for_a_person(cli: Ups, tmp_path: Path) -> None:
    path = write_task(tmp_path / "a.h5", "burgers1d", Nu=np.linspace(0.01, 0.02, 6))
    with h5py.File(path, "r+") as file:
        file["tensor"][2, 0, 0] = np.nan
        low, high = np.nanmin(file["tensor"][:]), np.nanmax(file["tensor"][:])
    shown = cli("data", "inspect", path)
    lines = [line.strip() for line in shown.out.splitlines()]
    assert shown.code == 1
    assert "nu: 0.01 to 0.02 (6 values)" in lines
    assert "tensor: 6 x 11 x 32" in lines
    assert any(line.startswith(f"u: {low:.4g} to {high:.4g}, mean ") and line.endswith(", 1 NaN") for line in lines)
    assert f"{path}: 1 values are NaN or Inf (trajectory 2, field u, first in frame 0); " in shown.out
    assert "DataProblem" not in shown.out
    assert not [line for line in lines if line.endswith(("()", ",)"))]


@pytest.mark.parametrize(("task", "attributes"), [("burgers1d", {"Nu": None}), ("cfd1d", {})])
def test_inspect_says_why_a_file_cannot_be_trained_on(cli: Ups, tmp_path: Path, task: str, attributes: Any) -> None:
    shown = cli("data", "inspect", write_task(tmp_path / "a.h5", task, resolution=8, **attributes))
    assert shown.code == 1
    assert "cannot be trained on: " in shown.out


@pytest.mark.parametrize("command", [["evaluate"], ["rollout", "in.h5", "--steps", "1", "--out", "o.h5"], ["report"]])
def test_a_folder_that_is_no_run_is_wrong_usage(cli: Ups, tmp_path: Path, command: list[str]) -> None:
    done = cli(command[0], tmp_path / "none", *command[1:])
    assert (done.code, done.out) == (2, "")
    assert str(tmp_path / "none") in done.err


@pytest.mark.parametrize(
    "command",
    [
        ["run", "none.yaml"],
        ["check", "none.yaml"],
        ["train", "none.yaml"],
        ["data", "inspect", "none.h5"],
        ["data", "inspect", "."],
        ["data", "make", "burger1d", "--out", "o.h5", "--samples", "1", "--seed", "0"],
        ["data", "make", "burgers1d", "--out", "o.h5", "--samples", "1", "--seed", "0", "mu=1"],
        ["data", "make", "burgers1d", "--out", "o.h5", "--samples", "0", "--seed", "0"],
        ["evaluate", "run", "--data", "none.h5"],
        ["evaluate", "run", "--split", "trial"],
        ["rollout", "run", "none.h5", "--steps", "1", "--out", "o.h5"],
        ["rollout", "run", "none.h5", "--steps", "1"],
        ["train", "settings.yaml", "--stage", "operater"],
        ["train", "settings.yaml", "--stage", "diff_residual"],
        ["train", "settings.yaml", "--stage", "steady_prior"],
        ["train", "settings.yaml", "task=burger1d"],
        ["run", "settings.yaml", "stages.steady_prior.steps=3"],
        ["run", "settings.yaml", "task=darcy2d", "evaluation.baselines=[linear]"],
        ["run", "settings.yaml", "stages.operator.seconds=0"],
        ["run", "settings.yaml", "--force", "trainn"],
        ["watch", "none", "--once"],
        ["report", "none"],
        ["board", "--runs-dir", "none"],
    ],
)
def test_what_was_typed_wrongly_exits_2(
    cli: Ups, config: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(config.parent)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(config.read_text())
    done = cli(*command)
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.strip()
    assert "Traceback" not in done.err


# --- errors ----------------------------------------------------------------------------------------------------------


class _Stopped(UpsError):
    exit_code = 143


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (DataError("a.h5 is cut short; fetch it again"), 1, "error: a.h5 is cut short; fetch it again\n"),
        (CheckpointError("damaged"), 1, "error: damaged\n"),
        (KeyboardInterrupt(), 130, "interrupted, run again to continue\n"),
        (_Stopped("stopped by SIGTERM after step 3"), 143, "stopped by SIGTERM after step 3\n"),
    ],
)
def test_errors_are_one_message_and_a_code(
    cli: Ups, config: Path, stand_in: Any, raised: BaseException, code: int, said: str
) -> None:
    stand_in("ups.pipeline.run", "run_pipeline", raised)
    assert cli("run", config) == Outcome(code, "", said)


def test_a_mistake_of_ours_keeps_its_traceback(cli: Ups, config: Path, stand_in: Any) -> None:
    stand_in("ups.pipeline.run", "run_pipeline", ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli("run", config)


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["run", "x.yaml", "--nope"], ["data", "make", "burgers1d"]])
def test_wrong_usage_exits_2(cli: Ups, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_wrong_settings_exit_2(cli: Ups, config: Path) -> None:
    done = cli("run", config, "training.batch_sise=3")
    assert (done.code, done.out) == (2, "")
    assert "did you mean training.batch_size?" in done.err


STAND_IN = """
import sys, time
from types import SimpleNamespace
def work(*arguments, **keywords):
    try:
        print('ready', flush=True)
        time.sleep(60)
    finally:
        print('cleaned', flush=True)
        FINALLY
sys.modules['ups.pipeline.run'] = SimpleNamespace(run_pipeline=work)
sys.modules['ups.evaluation.report'] = SimpleNamespace(write_report=work)
from ups.cli import main
main()
"""


@pytest.mark.parametrize("command", ["run", "report"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("finally_", ["pass", "raise ImportError('cut short')"])
def test_a_signal_ends_a_command_in_one_line_after_cleaning_up(
    config: Path, tmp_path: Path, command: str, number: signal.Signals, finally_: str
) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN.replace("FINALLY", finally_), encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(script), command, str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    said = "interrupted, run again to continue\n" if command == "run" else "interrupted\n"
    assert (process.returncode, out, err) == (128 + number, "cleaned\n", said)
    assert time.monotonic() - began < 30


def test_ctrl_c_during_the_first_import_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import time; print('ready', flush=True); time.sleep(60)", encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-m", "ups", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGINT, "")
