"""What is typed wrongly: exit code 2, one message, nothing done."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.outcome import Ups


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


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["run", "x.yaml", "--nope"], ["data", "make", "burgers1d"]])
def test_wrong_usage_exits_2(cli: Ups, arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_wrong_settings_exit_2(cli: Ups, config: Path) -> None:
    done = cli("run", config, "training.batch_sise=3")
    assert (done.code, done.out) == (2, "")
    assert "did you mean training.batch_size?" in done.err
