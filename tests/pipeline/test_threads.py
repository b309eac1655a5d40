"""How many threads a run takes: those that were measured to be faster, kept from then on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.layouts import write_task
from tests.pipeline.small_run import write_config
from torch import Tensor, nn

from ups.config.load import load_settings
from ups.pipeline import threads
from ups.pipeline.run import prepared
from ups.pipeline.workspace import Workspace
from ups.runtime import Progress, SilentProgress

MEASURED = ("threads=null",)


def prepare(config: Path, *overrides: str, progress: Progress | None = None, skip_checks: bool = False) -> Workspace:
    """The workspace as a run leaves it that ends before its first stage."""
    settings = load_settings(config, overrides)
    with prepared(settings, progress or SilentProgress(), skip_checks=skip_checks) as workspace:
        return workspace


class Timed:
    """An objective whose steps take 100 ms on one thread, and what the test says on two."""

    def __init__(self, on_two: float) -> None:
        self.module, self.on_two = nn.Linear(1, 1), on_two

    def plan(self, epoch: int, fraction: float) -> int:
        return 1

    def __call__(self, batch: Any, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        time.sleep(0.1 if torch.get_num_threads() == 1 else self.on_two)
        return self.module.weight.sum(), {}


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_task(tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", "burgers1d", num=12, frames=6, resolution=32)
    stages = {"codec": {"epochs": 1}, "operator": {"steps": 2}}
    return write_config(tmp_path, "burgers1d", ["1D_Burgers_Sols_Nu0.01.hdf5"], stages=stages)


@pytest.mark.parametrize(("on_two", "taken"), [(0.3, 1), (0.1, 1), (0.01, 2)])
def test_all_threads_are_taken_where_they_pay_and_the_run_keeps_to_it(
    config: Path, monkeypatch: pytest.MonkeyPatch, on_two: float, taken: int
) -> None:
    monkeypatch.setattr(threads, "_representative", lambda workspace: (Timed(on_two), 2))
    workspace = prepare(config, *MEASURED, skip_checks=True)
    assert torch.get_num_threads() == taken
    torch.set_num_threads(3 - taken)
    again = Workspace(load_settings(config, MEASURED), SilentProgress())  # as another process would find it
    assert torch.get_num_threads() == taken
    monkeypatch.setattr(threads, "_representative", lambda workspace: pytest.fail("measured twice"))
    threads.settle_threads(again)
    assert workspace.records.note("threads", "count", None) == taken


@pytest.mark.parametrize("who", ["settings", "environment"])
def test_who_names_the_threads_gets_them(config: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    monkeypatch.setattr(threads, "_representative", lambda workspace: pytest.fail("measured all the same"))
    if who == "environment":
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
    overrides = ("threads=2",) if who == "settings" else MEASURED
    prepare(config, *overrides, skip_checks=True)
    assert torch.get_num_threads() == 2


def test_a_run_keeps_to_the_threads_of_its_first_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_representative", lambda workspace: pytest.fail("measured all the same"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)  # as PyTorch does by itself in a new process
    prepare(config, *MEASURED)
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    prepare(config, *MEASURED)
    assert torch.get_num_threads() == 1


def test_the_real_step_is_timed(config: Path) -> None:
    said: list[str] = []

    class Told(SilentProgress):
        def say(self, line: str) -> None:
            said.append(line)

    prepare(config, *MEASURED, progress=Told())
    assert any(line.startswith("threads: ") and " ms with 2" in line for line in said)
