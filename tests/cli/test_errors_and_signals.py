"""How errors and signals end a command: one message and a code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cli.outcome import Outcome, Ups

from ups.errors import CheckpointError, DataError, UpsError


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


STAND_IN = """
import sys, time
from types import SimpleNamespace
def work(*arguments, **keywords):
    try:
        print('ready', flush=True)
        for _ in range(600):  # a signal that comes just before a sleep begins does not end that one
            time.sleep(0.1)
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
    (tmp_path / "config.yaml").touch()  # a run
    given = {"run": config, "report": tmp_path}[command]
    with subprocess.Popen(
        [sys.executable, str(script), command, str(given)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
    code = "import time; print('ready', flush=True); [time.sleep(0.1) for _ in range(600)]"
    (tmp_path / "typer.py").write_text(code, encoding="utf-8")
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
