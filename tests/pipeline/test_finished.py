"""A run that has ended is known to have: nothing is computed, not even imported, unless something has changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
from tests.layouts import write_task
from tests.pipeline.small_run import run, write_config

from ups.config import Settings
from ups.config.load import load_settings
from ups.evaluation.gates import Judgement, Verdict
from ups.evaluation.leaderboard import Leaderboard
from ups.pipeline import run as pipeline
from ups.pipeline.finished import found_by_pattern, outcome_of_finished
from ups.pipeline.records import StepRecords
from ups.pipeline.run import RunOutcome
from ups.runtime import SilentProgress


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    """A run of twelve steps, and how it ended."""
    folder = tmp_path_factory.mktemp("ended")
    write_task(folder / "b.hdf5", "burgers1d", num=12, frames=8, resolution=32, Nu=0.01)
    config = write_config(folder, "burgers1d", ["b.hdf5"])
    return config, run(config)


def end(config: Path, *overrides: str) -> RunOutcome | None:
    return outcome_of_finished(load_settings(config, overrides))


def test_a_finished_run_says_again_how_it_ended(ended: tuple[Path, RunOutcome]) -> None:
    config, outcome = ended
    found = end(config)
    assert found == outcome
    assert [list(row) for row in found.table] == [list(row) for row in outcome.table], "columns in their order"
    assert end(config, "seed=3") is None
    assert end(config, "evaluation.full.steps=2") is None, "the same folder, another evaluation"


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "gates.json", "report.html", "evaluation/full.json", "model/weights.safetensors", "metadata.json"],
)
def test_a_result_that_was_touched_or_deleted_is_looked_at_again(ended: tuple[Path, RunOutcome], name: str) -> None:
    config, outcome = ended
    path = outcome.run_dir / name
    content, stamp = path.read_bytes(), path.stat()
    path.write_bytes(content + b" ")
    assert end(config) is None
    path.unlink()
    assert end(config) is None
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert end(config) == outcome


def test_another_champion_or_leaderboard_is_looked_at_again(
    ended: tuple[Path, RunOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, outcome = ended
    board = outcome.run_dir.parent / "leaderboard.sqlite"
    whole = shutil.copy2(board, tmp_path / "whole.sqlite")
    ours = Leaderboard(board).entries()[0]
    better = replace(ours, scored=replace(ours.scored, run="better"), folder="better")
    Leaderboard(board).submit(better, lambda _: Judgement((Verdict("nrmse", "", 0.0, None, None, True, ""),)))
    assert end(config) is None
    board.unlink()
    assert end(config) is None
    shutil.copy2(whole, board)
    assert end(config) == outcome
    monkeypatch.setattr(Leaderboard, "shows", lambda *_: pytest.fail("its settings alone are others"))
    assert end(config, "gates.min_delta=0.5") is None


def test_changed_or_further_data_is_looked_at_again(ended: tuple[Path, RunOutcome], tmp_path: Path) -> None:
    config, outcome = ended
    data = config.parent / "b.hdf5"
    kept = tmp_path / "kept"
    shutil.copytree(config.parent, kept, copy_function=shutil.copy2)
    with h5py.File(data, "r+") as file:
        file["tensor"][0, 0, 0] += 1.0
    assert end(config) is None
    shutil.copy2(kept / "b.hdf5", data)
    assert end(config) == outcome
    (config.parent / "another.hdf5").write_bytes(b"")
    assert end(config) == outcome, "it is not named"


@pytest.mark.parametrize("named", [True, False])
def test_data_that_changes_during_a_run_is_used_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    for name, num in (("b.hdf5", 12), ("later.hdf5", 14)):
        write_task(tmp_path / name, "burgers1d", num=num, frames=8, resolution=32, Nu=0.01)
    later = (tmp_path / "later.hdf5").rename(tmp_path / "later")
    config = write_config(tmp_path, "burgers1d", ["b.hdf5"] if named else ["*.hdf5"])
    evaluate = pipeline.evaluate_in_steps
    said: list[str] = []

    def meanwhile(*arguments: Any) -> Any:
        if later.exists():
            later.rename(tmp_path / ("b.hdf5" if named else "c.hdf5"))
        return evaluate(*arguments)

    monkeypatch.setattr(pipeline, "evaluate_in_steps", meanwhile)
    monkeypatch.setattr(SilentProgress, "say", lambda progress, line: said.append(line))
    first = run(config)
    assert end(config) is None
    assert any(line.startswith("changed while the run was under way: ") for line in said)
    before = json.loads((first.run_dir / "metadata.json").read_text())["data_hash"]
    second = run(config)
    assert json.loads((second.run_dir / "metadata.json").read_text())["data_hash"] != before
    assert end(config) == second


def test_a_run_whose_checks_were_skipped_is_checked_by_the_next(ended: tuple[Path, RunOutcome]) -> None:
    config, outcome = ended
    records = StepRecords(outcome.run_dir)
    records.forget("check")
    (outcome.run_dir / "finished.json").unlink()
    unchecked = tuple(line for line in outcome.messages if not line.startswith("warning: "))
    assert run(config, skip_checks=True).messages == unchecked != outcome.messages
    assert end(config) is None
    assert run(config) == outcome
    assert StepRecords(outcome.run_dir).key("check") is not None
    assert end(config) == outcome
    (outcome.run_dir / "finished.json").unlink()
    run(config, skip_checks=True)
    assert end(config) == outcome, "it was checked before"


def test_files_that_a_pattern_or_the_folder_would_find_are_looked_for(tmp_path: Path) -> None:
    for name in ("a.h5", "b.hdf5", "notes.txt"):
        (tmp_path / name).touch()

    def found(**data: Any) -> list[str]:
        settings = Settings.model_validate({"data": {"task": "burgers1d", "root": str(tmp_path), **data}})
        return [Path(path).name for path in found_by_pattern(settings.data)]

    assert found() == ["a.h5", "b.hdf5"]
    assert found(files="a.h5") == []
    assert found(files=["a.h5", "b*"]) == ["b.hdf5"]
    assert found(split={"train_files": ["a.h5"], "test_files": ["*.hdf5"]}) == ["b.hdf5"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "key": 3}'])
def test_a_damaged_note_is_no_note(ended: tuple[Path, RunOutcome], content: str) -> None:
    config, outcome = ended
    path = outcome.run_dir / "finished.json"
    whole = path.read_text()
    path.write_text(content)
    assert end(config) is None
    path.write_text(whole)
    assert end(config) == outcome


def test_the_command_says_so_without_importing_pytorch(ended: tuple[Path, RunOutcome]) -> None:
    config, outcome = ended
    script = (
        "import sys; from ups.cli import main\ntry: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, "run", str(config), "--profile"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == (0 if outcome.passed else 1)
    said, imported = done.stderr.splitlines()
    assert said.startswith("nothing to do: ")
    assert imported == "False"
    assert done.stdout.splitlines()[-1] == str(outcome.run_dir)
    steps = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert {"imports", "settings", "look what is done", "overhead", "all"} <= set(steps)
    profile = json.loads((outcome.run_dir / "profile.json").read_text())
    assert profile["sums"]["compute"]["seconds"] == 0
