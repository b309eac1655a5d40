"""Train statistics of every field, by which models scale what they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ups.data.trajectories import TrajectorySet
from ups.errors import DataError


@dataclass(frozen=True, eq=False)
class FieldStatistics:
    """Mean and standard deviation of each field over trajectories, time and space, in the field's unit."""

    mean: Float64[Tensor, " channel"]
    std: Float64[Tensor, " channel"]

    def to_json(self) -> dict[str, list[float]]:
        """As plain numbers; `from_json` restores them bit for bit."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @staticmethod
    def from_json(values: Mapping[str, Sequence[float]]) -> FieldStatistics:
        """The statistics that `to_json` wrote."""
        return FieldStatistics(*(torch.tensor(values[name], dtype=torch.float64) for name in ("mean", "std")))


def compute_statistics(trajectories: TrajectorySet) -> FieldStatistics:
    """Mean and (population) standard deviation of each field, trajectory by trajectory in float64.

    Groups are merged by the update of Chan, Golub and LeVeque 1983, which stays accurate where the mean is far larger
    than the deviation.

    Raises:
        DataError: a field that is constant over the whole set.
    """
    count = 0
    mean = square = torch.zeros(len(trajectories.equation.fields), dtype=torch.float64)
    for number in range(trajectories.num):
        frames = trajectories.trajectory(number).cpu().double()
        variance, their_mean = torch.var_mean(frames, dim=[0, *range(2, frames.ndim)], correction=0)
        more = frames.numel() // frames.shape[1]
        total = count + more
        delta = their_mean - mean
        square = square + variance * more + delta.square() * (count * more / total)
        mean = mean + delta * (more / total)
        count = total
    std = (square / count).sqrt()
    for field, deviation in zip(trajectories.equation.fields, std.tolist(), strict=True):
        if deviation == 0:
            what = f"{trajectories.task}: field {field.name} is constant over the training trajectories"
            raise DataError(f"{what}; check the data")
    return FieldStatistics(mean, std)
