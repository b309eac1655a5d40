"""Train statistics of every field, by which models scale what they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from ups.data.trajectories import TrajectorySet
from ups.errors import DataError
from ups.physics.description import Field


@dataclass(frozen=True, eq=False)
class FieldStatistics:
    """Mean and standard deviation of each field over trajectories, time and space, in the field's unit.

    Of a steady problem, `mean` and `std` are those of what is sought, `given_mean` and `given_std` those of what is
    given; the latter are empty elsewhere.
    """

    mean: Float64[Tensor, " channel"]
    std: Float64[Tensor, " channel"]
    given_mean: Float64[Tensor, " given"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    given_std: Float64[Tensor, " given"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def to_json(self) -> dict[str, list[float]]:
        """As plain numbers; `from_json` restores them bit for bit."""
        values: dict[str, list[float]] = {name: getattr(self, name).tolist() for name in _NAMES}
        return {name: of_name for name, of_name in values.items() if of_name}

    @staticmethod
    def from_json(values: Mapping[str, Sequence[float]]) -> FieldStatistics:
        """The statistics that `to_json` wrote."""
        given = {name: values.get(name, ()) for name in _NAMES[2:]}
        lists = {"mean": values["mean"], "std": values["std"], **given}
        return FieldStatistics(**{name: torch.tensor(of_name, dtype=torch.float64) for name, of_name in lists.items()})


_NAMES = ("mean", "std", "given_mean", "given_std")


def compute_statistics(trajectories: TrajectorySet) -> FieldStatistics:
    """Mean and (population) standard deviation of each field, trajectory by trajectory in float64.

    Raises:
        DataError: a field that is constant over the whole set.
    """
    *given, sought = trajectories.equation.roles
    mean, std = _moments(trajectories, sought, slice(len(given), None))
    return FieldStatistics(mean, std, *(_moments(trajectories, given[0], slice(0, 1)) if given else ()))


def _moments(trajectories: TrajectorySet, fields: Sequence[Field], part: slice) -> tuple[Tensor, Tensor]:
    """Mean and deviation of some frames of every trajectory.

    Groups are merged by the update of Chan, Golub and LeVeque 1983, which stays accurate where the mean is far larger
    than the deviation.
    """
    count = 0
    mean = square = torch.zeros(len(fields), dtype=torch.float64)
    for number in range(trajectories.num):
        frames = trajectories.trajectory(number)[part].cpu().double()
        variance, their_mean = torch.var_mean(frames, dim=[0, *range(2, frames.ndim)], correction=0)
        more = frames.numel() // frames.shape[1]
        total = count + more
        delta = their_mean - mean
        square = square + variance * more + delta.square() * (count * more / total)
        mean = mean + delta * (more / total)
        count = total
    std = (square / count).sqrt()
    for one, deviation in zip(fields, std.tolist(), strict=True):
        if deviation == 0:
            what = f"{trajectories.task}: field {one.name} is constant over the training trajectories"
            raise DataError(f"{what}; check the data")
    return mean, std
