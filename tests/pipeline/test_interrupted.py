"""`ups run`, interrupted when a step has done its work and not yet noted it, goes on where it was."""

from __future__ import annotations

import errno
import fcntl
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.pipeline.small_run import run, write_config

from ups.cli import main
from ups.config.load import load_settings
from ups.errors import UpsError
from ups.files import held, is_held
from ups.pipeline.records import StepRecords, folder_of
from ups.pipeline.run import alone, prepared
from ups.runtime import Progress, SilentProgress

STEPS = ["data", "check", "codec", "operator", "evaluate-small", "evaluate", "gates", "gates-promotion", "report"]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run of twelve steps that makes its own data and may become the first champion."""
    path = write_config(tmp_path, "burgers1d", ["made.hdf5"])
    settings = json.loads(path.read_text())
    settings["data"]["generate"] = {"samples": 12, "seed": 1, "params": {"nu": 0.05}, "resolution": 32, "frames": 8}
    settings["gates"] = {"first_champion": True}
    settings["evaluation"]["baselines"] = ["persistence"]
    path.write_text(json.dumps(settings))
    return path


def test_a_run_that_is_interrupted_at_every_step_ends_as_one_that_is_not(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted: list[str] = []
    finish = StepRecords.finish

    def interrupt(self: StepRecords, step: str, key: str, seconds: float, **notes: Any) -> None:
        if step not in interrupted:
            interrupted.append(step)
            signal.raise_signal((signal.SIGTERM, signal.SIGINT)[len(interrupted) % 2])
        finish(self, step, key, seconds, **notes)

    monkeypatch.setattr(sys, "argv", ["ups", "run", str(config)])
    monkeypatch.setattr(StepRecords, "finish", interrupt)
    codes: list[object] = []
    while not codes or codes[-1] in (130, 143):
        with pytest.raises(SystemExit) as end:
            main()
        codes.append(end.value.code)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        if codes[-1] in (130, 143):
            assert said.err.splitlines()[-1] == "interrupted, run again to continue"
    assert interrupted == STEPS
    assert codes == [*(143 if index % 2 else 130 for index in range(len(STEPS))), 0]
    folder = Path(said.out.splitlines()[-1])

    monkeypatch.setattr(StepRecords, "finish", finish)
    whole = run(config, f"runs_dir={config.parent / 'whole'}").run_dir
    for name in ("model/weights.safetensors", "model/config.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    found, wanted = (json.loads((one / "evaluation" / "full.json").read_text())["tasks"] for one in (folder, whole))
    assert found["burgers1d"]["nrmse"] == wanted["burgers1d"]["nrmse"]
    assert json.loads((folder / "gates.json").read_text())["promoted"] is True
    for name in ("report.html", "metadata.json"):
        assert (folder / name).is_file()
    steps = [
        [json.loads(line)["step"] for line in (one / "log.jsonl").read_text().splitlines()] for one in (folder, whole)
    ]
    assert steps[0] == steps[1], "nothing was trained twice"


def test_a_run_that_another_process_works_on_is_left_alone(config: Path) -> None:
    settings = load_settings(config)
    folder = folder_of(settings)
    folder.mkdir(parents=True)
    with (
        held(folder),
        pytest.raises(UpsError, match="is being worked on by another process: `ups watch"),
    ):
        run(config)
    assert list(folder.iterdir()) == []
    assert run(config).run_dir == folder


def test_a_folder_that_another_process_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tries = tmp_path / "runs" / "run", []
    flock = fcntl.flock

    def removed_once(handle: int, operation: int) -> None:
        if not tries:
            folder.rmdir()  # by one whose checks failed, just before it let go
        tries.append(operation)
        flock(handle, operation)

    monkeypatch.setattr("fcntl.flock", removed_once)
    with alone(folder, SilentProgress()):
        assert is_held(folder) is True
    assert len(tries) == 3


def test_where_there_are_no_locks_a_run_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Told(SilentProgress):
        def say(self, line: str) -> None:
            said.append(line)

    def no_locks(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with alone(tmp_path / "run", Told()):
        assert (tmp_path / "run").is_dir()
    assert len(said) == 1
    assert "cannot be locked (No locks available); start no second process" in said[0]


def test_a_run_goes_on_from_what_a_process_noted_that_ended_while_it_waited(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def waiting(run_dir: Path, progress: Progress) -> Iterator[None]:
        with alone(run_dir, progress):
            StepRecords(run_dir).finish("codec", "of the other", 0.0)
            yield

    monkeypatch.setattr("ups.pipeline.run.alone", waiting)
    with prepared(load_settings(config), SilentProgress(), skip_checks=True) as workspace:
        assert workspace.records.key("codec") == "of the other"
