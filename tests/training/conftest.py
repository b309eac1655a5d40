"""Set-up of the tests of training."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Bits are compared: sums must be made in one order."""
    torch.set_num_threads(1)
