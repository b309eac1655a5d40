"""What is typed wrongly: exit code 2, one message, nothing done."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.outcome import OUTCOME, Ups


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
        ["data", "inspect", "n" * 300],
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
        ["run", "settings.yaml", "--force", "diff_residual"],
        ["run", "settings.yaml", "--force", "steady_prior"],
        ["check", "settings.yaml", "operator.form=flux_open"],
        ["run", "settings.yaml", "data.files=none.h5"],
        ["run", "settings.yaml", "data.files=[none*.h5]"],
        ["train", "settings.yaml", "data.files=none.h5"],
        ["run", "settings.yaml", "data.files=null", "data.root=none"],
        ["run", "settings.yaml", "runs_dir=a.h5"],
        ["train", "settings.yaml", "runs_dir=a.h5/runs"],
        ["rollout", "run", "a.h5", "--steps", "1", "--out", "a.h5"],
        ["rollout", "run", "a.h5", "--steps", "1", "--out", "o.h5", "--points", "none.npy"],
        ["data", "make", "burgers1d", "--out", "a.h5/o.h5", "--samples", "1", "--seed", "0"],
        ["board", "--runs-dir", "none", "--csv", "a.h5/board.csv"],
        ["push", "run", "name"],
        ["watch", "none", "--once"],
        ["report", "none"],
        ["report", "n" * 300],
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


def test_a_path_that_cannot_be_looked_at_is_named_with_why(cli: Ups, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    done = cli("report", "closed/run")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: closed/run/config.yaml: Permission denied; check the path and its permissions\n"


AT_ONCE = [
    ["run", "settings.yaml", "--nope"],
    ["run", "settings.yaml", "operator.seconds=5"],
    ["run", "settings.yaml", "task=burger1d"],
    ["run", "settings.yaml", "data.files=none.h5"],
    ["run", "settings.yaml", "--force", "trainn"],
    ["run", "settings.yaml", "--force", "steady_prior"],
    ["train", "settings.yaml", "--stage", "diff_residual"],
    ["train", "settings.yaml", "--stage", "steady_prior"],
    ["check", "settings.yaml", "task=burger1d"],
    ["evaluate", "none"],
    ["evaluate", "run", "--data", "none.h5"],
    ["rollout", "none", "a.h5", "--steps", "1", "--out", "o.h5"],
    ["rollout", "run", "none.h5", "--steps", "1", "--out", "o.h5"],
    ["rollout", "run", "a.h5", "--steps", "1", "--out", "a.h5/o.h5"],
    ["report", "none"],
    ["watch", "none"],
    ["board", "--runs-dir", "none"],
    ["push", "none", "owner/name"],
    ["data", "make", "burger1d", "--out", "o.h5", "--samples", "1", "--seed", "0"],
    ["data", "make", "burgers1d", "--out", "a.h5/o.h5", "--samples", "1", "--seed", "0"],
    ["data", "inspect", "none.h5"],
]
SLOW_MODULES = """
import sys
from ups.cli import main
for command in COMMANDS:
    sys.argv = ["ups", *command]
    try:
        main()
    except SystemExit as end:
        print(end.code, [name for name in ("torch", "matplotlib", "scipy") if name in sys.modules], *command)
"""


def test_what_is_typed_wrongly_is_told_without_waiting_for_pytorch(config: Path) -> None:
    (config.parent / "run").mkdir()
    (config.parent / "run/config.yaml").touch()
    script = SLOW_MODULES.replace("COMMANDS", repr(AT_ONCE))
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=config.parent, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == [" ".join(["2 []", *command]) for command in AT_ONCE]


def test_every_missing_data_file_is_listed(cli: Ups, config: Path) -> None:
    done = cli("run", config, "data.files=[none.h5, a.h5, no*.h5]")
    assert done.code == 2
    assert "none.h5: no such file" in done.err
    assert "no*.h5: no file matches" in done.err
    assert "a.h5: no such" not in done.err


def test_a_missing_data_file_is_one_of_the_problems_that_check_lists(cli: Ups, config: Path) -> None:
    done = cli("check", config, "data.files=none.h5", f"runs_dir={config.parent}")
    assert (done.code, done.err) == (1, "")
    assert "no such file" in done.out


def test_files_that_are_to_be_made_are_not_missing(cli: Ups, config: Path, stand_in: Any) -> None:
    stand_in("ups.pipeline.run", "run_pipeline", OUTCOME)
    assert cli("run", config, "data.files=none.h5", "data.generate.samples=2").code == 0


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["run", "x.yaml", "--nope"], ["data", "make", "burgers1d"]])
def test_wrong_usage_exits_2(cli: Ups, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_wrong_settings_exit_2(cli: Ups, config: Path) -> None:
    done = cli("run", config, "training.batch_sise=3")
    assert (done.code, done.out) == (2, "")
    assert "did you mean training.batch_size?" in done.err
