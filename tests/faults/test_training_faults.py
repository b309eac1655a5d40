"""What a training must survive: kills, signals, a full disk, a folder that cannot be written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.training.toy_training import ToyObjective, train

from ups.errors import CheckpointError
from ups.training.checkpoint import CheckpointStore

SCRIPT = Path(__file__).with_name("training_faults.py")


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def result_of(*arguments: object) -> dict:
    out, err = start(*arguments).communicate(timeout=600)
    assert out, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_killed_ten_times_equals_never_killed(tmp_path: Path, optimizer: str) -> None:
    found = result_of("kill", tmp_path, optimizer)
    assert found == {"kills": 10, "same weights": True, "same outcome": True, "same curve": True}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_killed_around_skipped_steps_and_a_roll_back_equals_never_killed(tmp_path: Path, optimizer: str) -> None:
    found = result_of("bad", tmp_path, optimizer)
    assert found.pop("kills") >= 8
    assert found == {
        "same weights": True,
        "same outcome": True,
        "same curve": True,
        "rollbacks": 1,
        "skipped besides": True,
    }


@pytest.mark.parametrize("how", ["here", "background"])
def test_killed_inside_a_save_the_previous_checkpoint_loads(tmp_path: Path, how: str) -> None:
    found = result_of("save", tmp_path, how)
    assert found["kills"] > 10
    assert found["loaded"] == sorted(found["loaded"])  # once committed, always found
    assert set(found["loaded"]) == {2, 100}


@pytest.mark.parametrize("how", ["back", "only"])
def test_killed_inside_a_save_that_goes_back_what_it_leaves_is_found_until_that_is_there(
    tmp_path: Path, how: str
) -> None:
    found = result_of("save", tmp_path, how)
    assert found["kills"] > 10
    in_order = [3, 100]  # what it goes back from, and where it went with what has changed since: never nothing
    assert found["loaded"] == sorted(found["loaded"], key=in_order.index)
    assert set(found["loaded"]) == set(in_order)


def test_sigterm_saves_and_exits_143_and_a_second_one_changes_nothing(tmp_path: Path) -> None:
    process = start("term", tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert (out, err.count("\n")) == ("", 1)
    assert "stopped by SIGTERM in stage toy" in err
    assert not list((tmp_path / "checkpoints" / "toy").glob(".tmp-*"))
    store = CheckpointStore(tmp_path / "checkpoints" / "toy", fingerprint={})
    state = store.load()
    assert state is not None
    assert state["step"] == store.steps()[-1]


def test_a_disk_that_fills_up_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    train(tmp_path, ToyObjective(), steps=8)  # checkpoints at steps 7 and 8
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("state.pt"))
    size = next(tmp_path.rglob("state.pt")).stat().st_size
    (tmp_path / "checkpoints" / "toy" / "step-00000008").rename(tmp_path / "set-aside")
    found = result_of("full", tmp_path, size // 2)
    assert "could not be written (File too large). Earlier checkpoints are intact" in found["error"]
    assert 7 < found["batches"] < 12  # the first save, at step 14, is refused
    store = CheckpointStore(tmp_path / "checkpoints" / "toy", fingerprint={})
    assert store.steps() == [7]
    assert store.load() is not None
    assert not list((tmp_path / "checkpoints" / "toy").glob(".tmp-*"))
    assert before == sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("state.pt"))


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    objective = ToyObjective()
    with pytest.raises(CheckpointError, match="cannot be written here"):
        train(tmp_path, objective)
    assert objective.batches == 0


def test_a_folder_whose_permissions_refuse_is_refused_before_the_first_step() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # others than its owner must come as far as that
        found = result_of("closed", folder)
    for place in ("empty", "begun"):
        message, batches = found[place]
        assert f"{folder}/{place}/checkpoints/toy: checkpoints cannot be written here (Permission denied)" in message
        assert "runs_dir" in message
        assert batches == 0
