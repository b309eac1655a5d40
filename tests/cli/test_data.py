"""`ups data make` and `ups data inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.cli.outcome import Ups
from tests.layouts import write_task


def test_data_make_passes_parameters_and_keeps_what_exists(cli: Ups, stand_in: Any, tmp_path: Path) -> None:
    calls = stand_in("ups.data.generate", "generate")
    out = tmp_path / "a.h5"
    make = ["data", "make", "burgers1d", "--out", out, "--samples", "2", "--seed", "1"]
    assert cli(*make, "nu=1e-2", "--time", "0.5").out == f"{out}\n"
    arguments, keywords = calls[0]
    assert arguments == ("burgers1d", out, 2, 1, {"nu": 0.01})
    assert (keywords["time"], keywords["resolution"], keywords["frames"]) == (0.5, None, None)
    out.touch()
    kept = cli(*make)
    assert kept.code == 2
    assert "--overwrite" in kept.err
    assert len(calls) == 1
    assert cli(*make, "--overwrite").code == 0
    for pair in ("nu", "nu=", "nu=soon", "=3"):
        assert cli(*make, "--overwrite", pair).code == 2
    assert "twice" in cli(*make, "--overwrite", "nu=1", "nu=2").err
    assert len(calls) == 2
    assert "is a folder" in cli(*make, "--overwrite", "--out", tmp_path).err
    wrong = cli(*make, "--out", tmp_path / "a.npy")
    assert (wrong.code, "name it" in wrong.err) == (2, True)
    assert cli(*make, "--overwrite", "--seed", 2**63).code == 2
    assert len(calls) == 2
    assert cli(*make, "--overwrite", "--seed", 2**63 - 1).code == 0


def test_inspect_is_written_for_a_person(cli: Ups, tmp_path: Path) -> None:
    path = write_task(tmp_path / "a.h5", "burgers1d", Nu=np.linspace(0.01, 0.02, 6))
    with h5py.File(path, "r+") as file:
        file["tensor"][2, 0, 0] = np.nan
        low, high = np.nanmin(file["tensor"][:]), np.nanmax(file["tensor"][:])
    shown = cli("data", "inspect", path)
    lines = [line.strip() for line in shown.out.splitlines()]
    assert shown.code == 1
    assert "nu: 0.01 to 0.02 (6 values)" in lines
    assert "tensor: 6 x 11 x 32" in lines
    assert any(line.startswith(f"u: {low:.4g} to {high:.4g}, mean ") and line.endswith(", 1 NaN") for line in lines)
    assert f"{path}: 1 value is NaN or Inf (trajectory 2, field u, first in frame 0); " in shown.out
    assert "DataProblem" not in shown.out
    assert not [line for line in lines if line.endswith(("()", ",)"))]


@pytest.mark.parametrize(("task", "attributes"), [("burgers1d", {"Nu": None}), ("cfd1d", {})])
def test_inspect_says_why_a_file_cannot_be_trained_on(cli: Ups, tmp_path: Path, task: str, attributes: Any) -> None:
    shown = cli("data", "inspect", write_task(tmp_path / "a.h5", task, resolution=8, **attributes))
    assert shown.code == 1
    assert "cannot be trained on: " in shown.out
