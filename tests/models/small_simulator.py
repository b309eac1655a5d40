"""A simulator of one small task, with weights that are not those it starts from."""

from __future__ import annotations

import torch
from tests.models.helpers import make_spec

from ups.models.architecture import Architecture
from ups.models.simulator import Simulator

SMALL = Architecture(latent_dim=16, patch=4, hidden_dim=16, heads=2, depths=(1,), stem_width=8)


def make_simulator(**changes: object) -> Simulator:
    """Of the task of `make_spec` with these changes; in evaluation mode."""
    torch.manual_seed(0)
    simulator = Simulator({"task": make_spec(**changes)}, SMALL)  # type: ignore[arg-type]
    for p in simulator.operator.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return simulator.eval()


def arguments(batch: int, parameters: int = 0) -> dict[str, object]:
    """What a roll-out of `batch` samples takes besides fields: steps of 0.1, every parameter 1."""
    return {"task": "task", "dt": torch.full((batch,), 0.1), "params": torch.ones(batch, parameters)}
