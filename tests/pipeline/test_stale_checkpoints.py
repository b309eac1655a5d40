"""Checkpoints of a stage that was interrupted, when what it was trained from has changed since."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from tests.layouts import write_task
from tests.pipeline.small_run import run, train, write_config

from ups.errors import CheckpointError
from ups.pipeline.records import StepRecords
from ups.runtime import SilentProgress

STAGES = {
    "codec": {"epochs": 1},
    "operator": {"steps": 6},
    "diff_residual": {"steps": 4},
    "consistency_distill": {"steps": 2, "teacher_steps": 3, "distill_num_taus": 2},
}
SMALL = {"hidden_dim": 16, "depth": 1, "stem_width": 8, "sampler_steps": 2}
FEWER = "evaluation.small.max_samples=1"


@pytest.fixture
def burgers(tmp_path: Path) -> Path:
    """The settings of a run of all stages, each of a few steps, beside which the data is."""
    write_task(tmp_path / "b.hdf5", "burgers1d", num=12, frames=6, resolution=32)
    return write_config(tmp_path, "burgers1d", ["b.hdf5"], stages=STAGES, diffusion=SMALL)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said from now on."""
    lines: list[str] = []
    monkeypatch.setattr(SilentProgress, "say", lambda progress, line: lines.append(line))
    return lines


def interrupt(folder: Path, step: str, *later: str) -> None:
    """As if the run had been killed at the end of a step, before that was noted and the later ones began."""
    records = StepRecords(folder)
    for name in (step, *later):
        records.forget(name)
    for name in later:
        shutil.rmtree(folder / "checkpoints" / name)


def other_settings(config: Path) -> tuple[str, ...]:
    return (FEWER,)


def other_data(config: Path) -> tuple[str, ...]:
    with h5py.File(config.parent / "b.hdf5", "r+") as file:
        file["tensor"][:] *= 1.5
    return ()


@pytest.mark.parametrize("change", [other_settings, other_data])
def test_checkpoints_of_what_follows_a_stage_that_is_trained_again_are_discarded(
    burgers: Path, said: list[str], change: Callable[[Path], tuple[str, ...]]
) -> None:
    folder = train(burgers).run_dir
    interrupt(folder, "diff_residual", "consistency_distill")
    overrides = change(burgers)
    train(burgers, *overrides)
    assert "operator: trained again, because what it depends on has changed" in said
    assert "diff_residual: its checkpoints are discarded, because operator is trained again" in said
    other = train(burgers, *overrides, f"runs_dir={burgers.parent / 'whole'}").run_dir
    weights = [one / "model" / "weights.safetensors" for one in (folder, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_stage_that_is_gone_on_with_shows_the_settings_that_differ(burgers: Path) -> None:
    folder = train(burgers).run_dir
    interrupt(folder, "diff_residual", "consistency_distill")
    trained = StepRecords(folder).records["operator"]
    with pytest.raises(CheckpointError) as refused:
        train(burgers, "evaluation.corrector_every=2")
    lines = [line for line in str(refused.value).splitlines() if line.startswith("  ")]
    assert lines == ["  settings.evaluation.corrector_every: 1 in the checkpoint, 2 now"]
    assert StepRecords(folder).records["operator"] == trained
    train(burgers)
    interrupt(folder, "operator", "diff_residual", "consistency_distill")
    with pytest.raises(CheckpointError) as refused:
        train(burgers, FEWER, "evaluation.rollout_mode=physical")
    lines = [line for line in str(refused.value).splitlines() if line.startswith("  ")]
    assert lines == [
        "  settings.evaluation.rollout_mode: latent in the checkpoint, physical now",
        "  settings.evaluation.small.max_samples: 16 in the checkpoint, 1 now",
    ]


WITHOUT_ENSEMBLES = ("stages.diff_residual.epochs=0", "stages.consistency_distill.epochs=0")


def test_an_interrupted_baseline_does_not_stop_a_run_whose_operator_is_trained_again(
    burgers: Path, said: list[str]
) -> None:
    overrides = ("evaluation.baselines=[fno]", *WITHOUT_ENSEMBLES)
    folder = run(burgers, *overrides).run_dir
    interrupt(folder, "baselines-fno")
    run(burgers, *overrides, FEWER)
    assert "baselines-fno: its checkpoints are discarded, because operator is trained again" in said
    assert StepRecords(folder).key("baselines-fno") is not None


def test_an_interrupted_baseline_outlives_a_corrector_that_is_trained_again(burgers: Path, said: list[str]) -> None:
    """It starts from the data, for as many seconds as what predicts was trained."""
    overrides = ("evaluation.baselines=[fno]", "evaluation.members=2")
    folder = run(burgers, *overrides).run_dir
    interrupt(folder, "baselines-fno")
    run(burgers, *overrides, "evaluation.corrector_every=2")
    assert "diff_residual: trained again, because what it depends on has changed" in said
    assert not any("discarded" in line for line in said)
