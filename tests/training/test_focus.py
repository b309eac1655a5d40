"""Where training looks more often: the weights of windows follow the errors that are measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.helpers import make_spec

from ups.data.fields import Grid
from ups.data.trajectories import MemoryFrames, TrajectorySet
from ups.models.step import StepEmulator
from ups.physics.equations import get_equation
from ups.training import focus
from ups.training.focus import Focus

CPU = torch.device("cpu")


class Standstill(StepEmulator):
    """A step that learns all of the change, and has learned nothing."""

    def __init__(self, context: int = 1) -> None:
        spec = make_spec(size=16, name="burgers1d", mean=(0.0,), std=(1.0,), context=context)
        super().__init__({"burgers1d": spec}, base="persistence")

    def rest(self, u_hat: torch.Tensor, features: torch.Tensor, task: str) -> torch.Tensor | None:
        return None


def make_train(lengths: list[int]) -> TrajectorySet:
    """Trajectories u_t = 2 + 1 / (1 + t): the change, and with it the error of a standstill, falls with time."""
    frames = torch.cat([2 + (1 / (1 + torch.arange(float(n))))[:, None, None].expand(n, 1, 16) for n in lengths])
    counts = torch.tensor(lengths)
    return TrajectorySet(
        "burgers1d", get_equation("burgers1d"), Grid(((np.arange(16) + 0.5) / 16,), (True,)), 0.05,
        torch.full((len(lengths), 1), 0.01), counts, [str(n) for n in range(len(lengths))],
        MemoryFrames(frames, counts.cumsum(0) - counts),
    )  # fmt: skip


def errors(frames: int) -> torch.Tensor:
    u = 2 + 1 / (1 + torch.arange(float(frames), dtype=torch.float64))
    return (u[1:] - u[:-1]).abs() / u[1:]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_weights_follow_the_error_by_first_frame(power: float) -> None:
    found = Focus(Standstill(), {"burgers1d": make_train([7, 7])}, power=power, seed=0, device=CPU)
    wanted = (errors(7) / errors(7).mean()) ** power
    wanted = 0.9 * wanted / wanted.mean() + 0.1
    for weights in (found.by_base(), found.by_error()):
        torch.testing.assert_close(weights["burgers1d"], wanted, atol=1e-5, rtol=0)


def test_windows_of_longer_context_are_weighed_by_their_last_step() -> None:
    found = Focus(Standstill(context=3), {"burgers1d": make_train([7, 7])}, power=1.0, seed=0, device=CPU)
    assert len(found.by_error()["burgers1d"]) == 4
    wanted = errors(7)[2:]
    torch.testing.assert_close(found.by_error()["burgers1d"], 0.9 * wanted / wanted.mean() + 0.1, atol=1e-5, rtol=0)


def test_long_trajectories_are_weighed_by_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(focus, "PLACES", 3)
    found = Focus(Standstill(), {"burgers1d": make_train([10, 10, 3])}, power=1.0, seed=0, device=CPU)
    weights = found.by_error()["burgers1d"]
    assert len(weights) == 9
    assert len(set(weights.tolist())) == 3
    assert torch.equal(weights, weights.sort(descending=True).values)


def test_nothing_is_weighed_where_there_is_no_error() -> None:
    train = make_train([4])
    train._frames = MemoryFrames(torch.ones(4, 1, 16), torch.tensor([0]))
    assert Focus(Standstill(), {"burgers1d": train}, power=1.0, seed=0, device=CPU).by_base() == {}
