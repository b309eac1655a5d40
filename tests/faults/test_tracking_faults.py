"""A key in the environment stays there, and a run that runs out of memory says what to change."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from tests.layouts import write_task

from ups.config.load import load_settings
from ups.pipeline.checks import ChecksFailed
from ups.pipeline.run import train_pipeline
from ups.runtime import SilentProgress
from ups.training.memory import OutOfMemory
from ups.training.objectives import OperatorObjective

SCRIPT = Path(__file__).with_name("training_faults.py")
CANARY = "canary0123456789canary0123456789canary01"
HAS_WANDB, HAS_TENSORBOARD = (importlib.util.find_spec(name) is not None for name in ("wandb", "tensorboard"))


def write_config(folder: Path) -> Path:
    """A run of twelve steps that tracks itself in every way there is."""
    write_task(folder / "1D_Burgers_Sols_Nu0.01.hdf5", "burgers1d", num=12, frames=8, resolution=32)
    settings = {
        "task": "burgers1d",
        "threads": 1,
        "runs_dir": str(folder / "runs"),
        "data": {"root": str(folder), "files": ["1D_Burgers_Sols_Nu0.01.hdf5"]},
        "latent": {"dim": 16, "patch": 4},
        "operator": {"pdet": {"hidden_dim": 16, "depths": 1, "heads": 2, "stem_width": 8}},
        "training": {"batch_size": 4, "log_every": 4, "log_per_task_metrics": True},
        "stages": {"codec": {"epochs": 0}, "operator": {"steps": 12}},
        "evaluation": {"baselines": ["persistence"], "solver_reference": False},
        "gates": {"first_champion": True},
        "logging": {"wandb": {"mode": "offline" if HAS_WANDB else "disabled"}, "tensorboard": HAS_TENSORBOARD},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def run_with_canary(folder: Path, *command: str) -> tuple[int, str, str]:
    """Runs Python with the key in its environment; returns exit code, all it said, and all argument lists meanwhile."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    places = {"HOME": str(home), "TMPDIR": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)}
    environment = {**os.environ, **places, "WANDB_API_KEY": CANARY, "OMP_NUM_THREADS": "1"}
    environment.pop("WANDB_MODE", None)
    arguments: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            for place in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    arguments.add(place.read_bytes().decode(errors="replace"))
                except OSError:  # it has ended
                    continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        done_process = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=240, check=False
        )
    finally:
        done.set()
        watcher.join()
    return done_process.returncode, done_process.stdout + done_process.stderr, "\n".join(arguments)


def files_with_canary(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_key_is_in_no_file_line_or_argument_of_a_run(tmp_path: Path) -> None:
    code, said, arguments = run_with_canary(tmp_path, "-m", "ups", "run", str(write_config(tmp_path)))
    assert code == 0, said
    assert CANARY not in said
    assert CANARY not in arguments
    assert files_with_canary(tmp_path) == []
    (run,) = (tmp_path / "runs").glob("burgers1d-*")
    assert (run / "report.html").exists()
    logged = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("burgers1d/loss" in record for record in logged)
    if HAS_WANDB:
        assert "wandb" in arguments
        (offline,) = run.glob("wandb/offline-run-*/*.wandb")
        assert b"operator/burgers1d/loss" in offline.read_bytes()
    if HAS_TENSORBOARD:
        assert list(run.glob("tensorboard/operator/events.*"))


def test_the_key_is_in_no_traceback_and_not_in_what_a_failed_sink_had_to_say(tmp_path: Path) -> None:
    code, said, arguments = run_with_canary(tmp_path, str(SCRIPT), "crash", str(tmp_path))
    assert code == 1
    assert "RuntimeError: the objective failed" in said
    assert "Traceback" in said
    assert said.count("is written no more (RuntimeError: 401 unauthorized: ***); training goes on") == 1
    assert CANARY not in said
    assert CANARY not in arguments
    assert files_with_canary(tmp_path) == []
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) >= 5


def test_a_sink_whose_package_is_missing_is_an_error_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(write_config(tmp_path), ("logging.wandb.mode=online", "logging.tensorboard=true"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ChecksFailed, match=r"ups\[wandb\]") as told:
        train_pipeline(settings, progress=SilentProgress())
    assert "ups[tensorboard]" in str(told.value)
    assert not list(tmp_path.rglob("log.jsonl"))


def test_out_of_memory_names_batch_tokens_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, whole = [], OperatorObjective.__call__

    def run_out(self: OperatorObjective, *arguments: object) -> object:
        calls.append(1)
        if len(calls) == 7:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(OperatorObjective, "__call__", run_out)
    settings = load_settings(write_config(tmp_path), ("logging.wandb.mode=disabled", "logging.tensorboard=false"))
    with pytest.raises(OutOfMemory) as told:
        train_pipeline(settings, progress=SilentProgress())
    text = str(told.value)
    assert "stage operator ran out of memory with 4 windows a batch of 4 tokens a frame, 16 in all (CUDA out of" in text
    for remedy in (
        "training.batch_size=2 training.accum_steps=2",
        "use_activation_checkpoint=true",
        "operator.pdet.coarsen",
    ):
        assert remedy in text
    assert len(calls) == 7
