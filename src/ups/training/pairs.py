"""Pairs of neighbouring train frames, which the parts of a model that have a closed form are fitted to."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Int64
from torch import Tensor

from ups.data.trajectories import TrajectorySet
from ups.errors import DataError

FIT_PAIRS = 8192  # pairs of frames the closed-form parts are fitted to, at most
FIT_VALUES = 2**24  # grid values of those pairs' first frames, at most: what is fitted at once stays small in memory
FIT_BATCH = 256
SHUFFLED_PAIRS = 2**22  # pairs up to which the choice is made without putting any back


class FramePairs:
    """Pairs of neighbouring frames in batches of (u_t, u_{t+dt}, params), gathered anew at every pass over them.

    Args:
        trajectory, start: number of the trajectory and first frame of every pair.
    """

    def __init__(self, train: TrajectorySet, trajectory: Tensor, start: Tensor) -> None:
        self.train, self.trajectory, self.start = train, trajectory, start

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for trajectory, start in zip(self.trajectory.split(FIT_BATCH), self.start.split(FIT_BATCH), strict=True):
            frames = self.train.gather(trajectory, start, 2)
            yield frames[:, 0], frames[:, 1], self.train.params[trajectory]


def fit_pairs(train: TrajectorySet, rng: torch.Generator) -> FramePairs:
    """Random pairs of neighbouring train frames for the parts that have a closed form.

    They are distinct, except where there are so many that a draw hardly ever meets one twice.

    Raises:
        DataError: no trajectory holds two frames.
    """
    counts = (train.lengths - 1).clamp(min=0)
    ends = counts.cumsum(0)
    total = int(counts.sum())
    if total == 0:
        raise DataError(f"{train.task}: no train trajectory has two frames, so there is no step to learn")
    num = max(2, min(FIT_PAIRS, FIT_VALUES // (len(train.equation.fields) * math.prod(train.grid.shape))))
    if total <= SHUFFLED_PAIRS:
        chosen = torch.randperm(total, generator=rng)[:num]
    else:
        chosen = torch.randint(total, (num,), generator=rng)
    trajectory = torch.searchsorted(ends, chosen, right=True)
    order = halved(trajectory, rng)
    chosen, trajectory = chosen[order], trajectory[order]
    return FramePairs(train, trajectory, chosen - (ends - counts)[trajectory])


def halved(trajectory: Int64[Tensor, " pair"], rng: torch.Generator) -> Int64[Tensor, " pair"]:
    """An order of pairs in which the first half of a batch is of even trajectories and the second of odd ones.

    This holds as far as there are pairs of both kinds: of what one kind has more, half lies on the other's side, in the
    last batches (none is dropped, which could lose the parameters of a trajectory altogether). Neighbouring
    trajectories are alike (of one file and its parameters), so that the halves are too, but independent. Batches come
    in random order.
    """
    order = trajectory.argsort(stable=True)
    even, odd = (order[trajectory[order] % 2 == parity] for parity in (0, 1))
    half = FIT_BATCH // 2
    batches = [
        torch.cat([even[low : low + half], odd[low : low + half]]) for low in range(0, max(len(even), len(odd)), half)
    ]
    whole = [batch for batch in batches if len(batch) == FIT_BATCH]
    shuffled = [whole[number] for number in torch.randperm(len(whole), generator=rng).tolist()]
    return torch.cat([*shuffled, *(batch for batch in batches if len(batch) < FIT_BATCH)])
