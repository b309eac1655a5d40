"""Which validation trajectories steer training."""

from __future__ import annotations

import pytest
import torch
from tests.evaluation.helpers import make_set, spec_of, travelling_sines

from ups.evaluation.metrics import nrmse
from ups.evaluation.validate import validation_error
from ups.models.baselines import Persistence


@pytest.mark.parametrize(("most", "moving"), [(5, 0), (10, 5), (None, 5), (20, 5)])
def test_validation_takes_trajectories_from_all_over_a_split(most: int | None, moving: int) -> None:
    """Every second one stands still, which persistence foresees: five of ten, spread evenly, are all of those."""
    trajectories = [u if number % 2 else u[:1].expand_as(u) for number, u in enumerate(travelling_sines(10))]
    sets = {"advection1d": make_set("advection1d", trajectories)}
    emulator = Persistence({"advection1d": spec_of(sets["advection1d"])})

    def missed(prediction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (nrmse(prediction, truth) > 0).double()

    found = validation_error(
        missed, emulator, sets, max_samples=most, steps=None, mode="physical", batch_size=3, device=torch.device("cpu")
    )
    assert found == pytest.approx(moving / min(10, most or 10))
