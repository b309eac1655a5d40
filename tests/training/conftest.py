"""Set-up of the tests of training."""

from __future__ import annotations

from typing import runtime_checkable

import pytest
import torch

from ups.runtime import Progress

runtime_checkable(Progress)  # beartype checks it at run time


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bits are compared: sums must be made in one order."""
    torch.set_num_threads(1)
