"""Whole runs that are killed end as if they had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("run_faults.py")


def result_of(*arguments: object) -> dict:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("stage", ["codec", "steady_prior"])
def test_killed_twice_in_a_stage_a_run_goes_on_to_the_same_bits(tmp_path: Path, stage: str) -> None:
    found = result_of("stage", tmp_path, stage)
    assert found == {"statuses": [0, signal.SIGKILL, signal.SIGKILL, 0], "differences": []}


def test_killed_at_random_times_a_whole_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    found = result_of("kills", tmp_path, 5)
    assert found["kills"] >= 3  # fewer than five where the machine has become faster meanwhile
    assert found["differences"] == []
