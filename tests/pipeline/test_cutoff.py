"""Which waves a step keeps: chosen by validation roll-outs, kept with the model, or set."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.layouts import write_task
from tests.pipeline.small_run import write_config

from ups.config.load import load_settings
from ups.models.simulator import Simulator
from ups.models.store import adopt, load_model, save_model
from ups.pipeline.run import open_workspace
from ups.pipeline.train import CUTOFFS, choose_cutoff, fit_closed_form
from ups.pipeline.workspace import Workspace
from ups.runtime import SilentProgress


def opened(folder: Path, *overrides: str) -> tuple[Workspace, Simulator]:
    """The workspace of a small Burgers run, and a simulator that is not trained."""
    write_task(folder / "b.hdf5", "burgers1d", num=12, frames=12, resolution=32, Nu=0.01)
    workspace = open_workspace(
        load_settings(write_config(folder, "burgers1d", ["b.hdf5"]), overrides), SilentProgress()
    )
    workspace.open()
    simulator = workspace.new_simulator()
    fit_closed_form(workspace, simulator)
    return workspace, simulator


@pytest.mark.parametrize(("scores", "chosen"), [
    ((1.0, 0.99, 0.995), 1.0), ((1.0, 0.9, 0.95), 2 / 3), ((math.inf, 2.0, 1.0), 0.5), ((0.5, 1.0, 2.0), 1.0)
])  # fmt: skip
def test_waves_are_left_out_where_that_brings_more_than_chance_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, ...], chosen: float
) -> None:
    workspace, simulator = opened(tmp_path)
    by_cutoff = dict(zip(CUTOFFS, scores, strict=True))
    monkeypatch.setattr("ups.pipeline.train.validation_of", lambda *_: lambda: by_cutoff[simulator.architecture.cutoff])
    choose_cutoff(workspace, simulator)
    assert simulator.architecture.cutoff == chosen


def test_waves_that_grow_are_left_out(tmp_path: Path) -> None:
    workspace, simulator = opened(tmp_path, "operator.base=persistence", "operator.symmetrize=0")
    short = torch.cos(2 * math.pi * 14 * torch.arange(32) / 32)
    exact = simulator.advance_normalized

    def grows(u_hat: torch.Tensor, **given: object) -> torch.Tensor:
        part = (u_hat[:, -1] * short).mean(-1, keepdim=True) * 2
        return exact(u_hat, **given) + (part + 1e-3) * short  # doubles at every step

    simulator.advance_normalized = grows  # type: ignore[method-assign]
    choose_cutoff(workspace, simulator)
    assert simulator.architecture.cutoff == pytest.approx(2 / 3)


def test_the_choice_is_saved_and_taken_over_with_the_model(tmp_path: Path) -> None:
    _, simulator = opened(tmp_path)
    whole = Simulator(simulator.tasks, simulator.architecture)
    simulator.architecture = replace(simulator.architecture, cutoff=0.5)
    save_model(simulator, tmp_path / "model")
    adopt(whole, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded, Simulator)
    assert whole.architecture.cutoff == loaded.architecture.cutoff == 0.5


def test_a_cutoff_that_is_set_is_not_chosen(tmp_path: Path) -> None:
    _, simulator = opened(tmp_path, "operator.cutoff=0.75", "operator.base=persistence")
    assert simulator.architecture.cutoff == 0.75
    dt, params = torch.tensor([0.05]), torch.tensor([[0.01]])
    with torch.no_grad():
        found = simulator.step(torch.randn(1, 1, 1, 32), task="burgers1d", dt=dt, params=params)
    waves = torch.fft.rfft(found).abs()[0, 0]
    assert float(waves[13:].max()) < 1e-4 < float(waves[1:13].min())
