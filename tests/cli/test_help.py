"""Help and version: what they list, and that they cost nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.outcome import Outcome, Ups

import ups

COMMANDS = ["run", "train", "evaluate", "check", "rollout", "watch", "report", "push", "board", "data"]


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


README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("command", [[name] for name in COMMANDS[:-1]] + [["data", "make"], ["data", "inspect"]])
def test_the_readme_names_every_option_of_a_command_and_no_other(cli: Ups, command: list[str]) -> None:
    start = f"| `ups {' '.join(command)} "
    (row,) = (line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(start))
    options = set(re.findall(r"^\s+(--[a-z-]+)", cli(*command, "--help").out, flags=re.MULTILINE)) - {"--help"}
    assert set(re.findall(r"--[a-z-]+", row)) == options


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


def test_help_names_the_steps_that_can_be_forced(cli: Ups) -> None:
    from ups.pipeline.run import STEPS

    shown = cli("run", "--help").out
    assert all(step in shown.partition("--force")[2] for step in STEPS)
