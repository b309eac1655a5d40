"""`ups run` and `ups train`: what they pass on and print. The pipeline behind them is a stand-in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.outcome import OUTCOME, Outcome, Ups, cells

from ups.config import load_settings


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
