"""What a promotion must survive: edited files, eight at once, a kill in a transaction, hostile names."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.layouts import write_task
from tests.pipeline.small_run import run, write_config
from tests.pipeline.toy_run import decide_run, write_run

from ups.config.load import load_settings
from ups.errors import CheckpointError, SettingsError, UpsError, UsageError
from ups.evaluation.board import Board
from ups.evaluation.leaderboard import Leaderboard
from ups.evaluation.report import write_report

SCRIPT = Path(__file__).with_name("promotion_faults.py")
STATEMENTS = ("INSERT INTO runs", "UPDATE champions", "INSERT INTO champions", "COMMIT")
ALL = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
HOSTILE = "<script>alert('owned')"


def race(folder: Path, *statements: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), str(folder), *statements]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def hold_together(found: dict[str, Any], errors: list[float]) -> None:
    """Every row is there, the one champion is the best, and each champion was better than the one before."""
    assert found["rows"] == errors
    assert found["champions"] == errors[:1]
    assert found["reigns"] == sorted(found["reigns"], reverse=True)
    assert found["reigns"][-1] == errors[0]
    assert found["promoted"] == found["crowned"], "gates.json and leaderboard agree"


def test_eight_promotions_at_once_leave_the_best_as_the_one_champion(tmp_path: Path) -> None:
    for found in race(tmp_path, *["none"] * 5):
        assert found["ends"] == [0] * 8
        hold_together(found["after"], ALL)
        assert found["repeated"] == found["after"]


def test_one_killed_in_its_transaction_takes_nothing_with_it(tmp_path: Path) -> None:
    for found in race(tmp_path, *STATEMENTS):
        assert found["ends"] == [-9, *[0] * 7]
        hold_together(found["after"], ALL[1:])
        hold_together(found["repeated"], ALL)


def test_what_is_edited_after_the_evaluation_of_a_real_run_is_not_promoted(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    write_task(tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", "burgers1d", num=12, frames=8, resolution=32)
    config = write_config(
        tmp_path, "burgers1d", ["1D_Burgers_Sols_Nu0.01.hdf5"], gates={"first_champion": True, "min_delta": 0.01}
    )
    first = run(config)
    assert first.passed
    scores = first.run_dir / "evaluation" / "full.json"
    whole = scores.read_text()
    content = json.loads(whole)
    content["tasks"]["burgers1d"]["nrmse"] = 1e-9
    scores.write_text(json.dumps(content))
    edited = run(config)
    assert not edited.passed
    assert "the evaluation has changed since the run was evaluated: hashes do not match" in " ".join(edited.messages)
    scores.write_text(whole)
    assert run(config).passed, "as it was"
    weights = first.run_dir / "checkpoints" / "operator" / "model" / "weights.safetensors"
    tensors = load_file(weights)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel())
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"the SHA-256 of weights\.safetensors is not the one"):
        run(config)
    described = weights.with_name("config.json")
    content = json.loads(described.read_text())
    described.write_text(json.dumps({**content, "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}))
    changed = run(config)
    assert not changed.passed
    assert "the model has changed since the run was evaluated: hashes do not match" in " ".join(changed.messages)
    (board,) = Leaderboard(tmp_path / "runs" / "leaderboard.sqlite").entries()
    assert board.scored.value("burgers1d", "nrmse") == json.loads(whole)["tasks"]["burgers1d"]["nrmse"]


@pytest.mark.parametrize("name", [HOSTILE, "../../x", "two\nlines", "..", "a/b", ""])
def test_settings_refuse_a_name_that_is_no_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps({"task": "burgers1d", "name": name}))
    with pytest.raises(SettingsError, match="name"):
        load_settings(path)


def test_a_hostile_folder_is_escaped_wherever_it_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", HOSTILE)
    assert decide_run(folder).promoted
    board = Board.read(tmp_path / "runs" / "leaderboard.sqlite")
    board.write_html(tmp_path / "board.html")
    (folder / "evaluation" / "full.json").unlink()
    (folder / "evaluation" / "small.json").unlink()
    for page in (tmp_path / "board.html", write_report(folder)):
        html = page.read_text()
        assert "<script>alert" not in html
        assert "&lt;script&gt;alert" in html
    board.write_csv(tmp_path / "board.csv")
    with (tmp_path / "board.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == [HOSTILE]
    assert all(len(line.splitlines()) == 1 for row in board.rows() for line in row.values())


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[2Jgone"])
def test_a_folder_that_breaks_a_line_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UpsError) as refused:
        decide_run(write_run(tmp_path / "runs", name))
    assert str(refused.value).isprintable()
    with pytest.raises(UsageError):
        Leaderboard(tmp_path / "runs" / "leaderboard.sqlite").entries()


def test_a_run_is_looked_up_and_never_opened(tmp_path: Path) -> None:
    decide_run(write_run(tmp_path / "runs", "a"))
    board = Board.read(tmp_path / "runs" / "leaderboard.sqlite")
    for name in ("../../x", "/etc/passwd", HOSTILE, "two\nlines"):
        with pytest.raises(UsageError, match="no run called") as refused:
            board.compare("a", name)
        assert str(refused.value).isprintable()
