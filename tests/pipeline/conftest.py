"""Set-up of the tests of whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.layouts import write_task
from tests.pipeline.small_run import write_config


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bits are compared: sums must be made in one order."""
    torch.set_num_threads(1)


@pytest.fixture
def burgers(tmp_path: Path) -> Path:
    """The settings of a run of twelve steps on Burgers data, beside which the data is."""
    write_task(tmp_path / "1D_Burgers_Sols_Nu0.01.hdf5", "burgers1d", num=12, frames=8, resolution=32)
    return write_config(tmp_path, "burgers1d", ["1D_Burgers_Sols_Nu0.01.hdf5"])
