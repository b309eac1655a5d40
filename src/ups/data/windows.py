"""Cuts windows from trajectories and serves them in batches, endlessly, in an order that resumes exactly."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ups.data.fields import Batch
from ups.data.trajectories import Cut, Frames, TrajectorySet
from ups.errors import DataError

Place = tuple[int, int, int]
"""Epoch, position in it, horizon."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of one task.

    Args:
        start: first frame of each.
        length: frames of each.
        params: of the trajectory of each.
        values: gathers their frames, or the latents that stand for them.
    """

    task: str
    start: Int64[Tensor, " window"]
    length: int
    params: Float[Tensor, "window parameter"]
    values: Cut


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The windows of one epoch, in order.

    Args:
        windows: all of them, task by task.
        batches: the task of each batch, and the range of that task's windows.
    """

    windows: dict[str, Windows]
    batches: tuple[tuple[str, int, int], ...]


class WindowLoader:
    """Batches of windows of one or more tasks: each window of the horizon once per epoch, each batch of one task.

    A task's windows are cut into as few batches of at most `batch_size` (per rank) as hold them all, of sizes that
    differ by at most one (a batch size of one is exceeded by one where ranks would go empty); the batches of all tasks
    are shuffled together, so that tasks come in proportion to their windows. Order is a function of (seed, epoch,
    horizon, weights) alone: the position in the epoch is all the state there is.

    Where a task has weights, an epoch holds as many of its windows as there are, drawn by the weight of their first
    frame: heavy ones come more than once, light ones not in every epoch.

    Args:
        sets: the trajectories of each task.
        batch_size: windows per batch and rank.
        context: given frames per window.
        horizon: frames to predict per window.
        seed: of the order.
        shuffle: False keeps the order of trajectories and tasks.
        weights: of the windows of some tasks, by the number of their first frame in the trajectory; positive.
        latents: of all frames of some tasks, (frame, latent, *tokens); their batches hold these instead of frames.
        rank: which share of every batch this process takes.
        world_size: how many processes share every batch.
        workers: threads that read ahead when a set is not in memory.
        prefetch: batches read ahead by them.

    Raises:
        DataError: a task without a window of this length, or with fewer windows than ranks.
    """

    def __init__(
        self,
        sets: Mapping[str, TrajectorySet],
        batch_size: int,
        context: int,
        horizon: int,
        seed: int,
        *,
        shuffle: bool = True,
        weights: Mapping[str, Float[Tensor, " start"]] | None = None,
        latents: Mapping[str, Frames] | None = None,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 1,
        prefetch: int = 4,
    ) -> None:
        if not sets:
            raise DataError("no trajectories to cut windows from; name a task in data.task")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} ranks")
        self.sets, self.latents = dict(sets), dict(latents or {})
        self.batch_size, self.context, self.horizon = batch_size, context, horizon
        self.seed, self.shuffle, self.weights = seed, shuffle, dict(weights or {})
        self.rank, self.world_size = rank, world_size
        self.epoch, self._position = 0, 0
        self._plans: dict[tuple[int, int], EpochPlan] = {}
        self._constants: dict[tuple[str, int, int], tuple[Tensor, Tensor | None]] = {}
        read = [self.latents.get(task, one) for task, one in self.sets.items()]
        read_ahead = prefetch > 0 and workers > 0 and not all(source.in_memory for source in read)
        self._pool = ThreadPoolExecutor(workers, "read-ahead") if read_ahead else None
        self._prefetch = prefetch
        self._ahead: deque[tuple[Place, Future[Batch]]] = deque()
        self._plan()

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch of the current horizon."""
        return len(self._plan().batches)

    @property
    def epochs(self) -> float:
        """Epochs handed out, with the part of the current one at the current horizon."""
        return self.epoch + self._position / self.steps_per_epoch

    @property
    def num_windows(self) -> int:
        """Windows of the current horizon, over all tasks and ranks."""
        return sum(one.num_windows(self.context + self.horizon) for one in self.sets.values())

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next_batch()

    def next_batch(self) -> Batch:
        """The next batch; the position moves on, into the next epoch after the last."""
        place = (self.epoch, self._position, self.horizon)
        batch = self._gather(*self._share(*place)) if self._pool is None else self._read_ahead(place, self._pool)
        self.epoch, self._position, _ = self._following(*place)
        return batch

    def set_horizon(self, horizon: int) -> None:
        """Changes how many frames there are to predict, from the next batch on.

        In the middle of an epoch, the order of the new horizon is taken up at the same fraction of the epoch.
        """
        if horizon == self.horizon:
            return
        before = self.steps_per_epoch
        old, self.horizon = self.horizon, horizon
        try:
            steps = self.steps_per_epoch
        except DataError:
            self.horizon = old
            raise
        self._position = min(math.ceil(self._position * steps / before), steps - 1)

    def set_weights(self, weights: Mapping[str, Float[Tensor, " start"]]) -> None:
        """Changes how often windows come, from the next batch on; the place in the epoch stays."""
        self.weights, self._plans = dict(weights), {}
        self._drop_ahead()

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands; what was read ahead does not count."""
        place = {"epoch": self.epoch, "position": self._position, "horizon": self.horizon, "seed": self.seed}
        return {**place, "weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises:
            DataError: the state is of another seed, or of data with fewer batches.
        """
        if state["seed"] != self.seed:
            raise DataError(f"the batches were drawn from seed {state['seed']}, not {self.seed}; resume with that")
        if "weights" not in state:
            raise DataError("the state of the batches is of another version of ups; train anew")
        if not 0 <= state["position"] < len(self._plan(state["epoch"], state["horizon"]).batches):
            raise DataError(f"there is no batch {state['position']} in this data; resume with the data trained on")
        self.set_weights(state["weights"])
        self.epoch, self._position, self.horizon = state["epoch"], state["position"], state["horizon"]

    def __enter__(self) -> WindowLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops reading ahead and waits for its threads to end; closing again does nothing."""
        self._drop_ahead()
        if self._pool is not None:
            self._pool.shutdown()

    def _plan(self, epoch: int | None = None, horizon: int | None = None) -> EpochPlan:
        """The plan of an epoch; those of the current and the next one are kept."""
        key = (self.epoch if epoch is None else epoch, self.horizon if horizon is None else horizon)
        if key not in self._plans:
            self._plans = {kept: plan for kept, plan in self._plans.items() if kept[0] >= self.epoch}
            self._plans[key] = self._make_plan(*key)
        return self._plans[key]

    def _make_plan(self, epoch: int, horizon: int) -> EpochPlan:
        windows: dict[str, Windows] = {}
        batches: list[tuple[str, int, int]] = []
        length = self.context + horizon
        for task, trajectories in self.sets.items():
            num = trajectories.num_windows(length)
            if num < self.world_size:
                what = f"{num} window(s) of {self.context} + {horizon} frames for {self.world_size} rank(s)"
                longest = f"the longest trajectory has {int(trajectories.lengths.max())} frames"
                raise DataError(f"{task}: {what}, {longest}; shorten the horizon or data.context")
            counts = (trajectories.lengths - length + 1).clamp(min=0)
            order = self._order(task, counts, epoch)
            trajectory = torch.arange(trajectories.num).repeat_interleave(counts)[order]
            first = (counts.cumsum(0) - counts)[trajectory]
            start, source = order - first, self.latents.get(task, trajectories)
            params = trajectories.params[trajectory].to(source.device, non_blocking=True)
            windows[task] = Windows(task, start, length, params, source.cut(trajectory, start, length))
            steps = min(math.ceil(num / (self.batch_size * self.world_size)), num // self.world_size)
            edges = [num * step // steps for step in range(steps + 1)]
            batches += [(task, low, high) for low, high in pairwise(edges)]
        turns = self._permutation(len(batches), f"{epoch}").tolist()
        return EpochPlan(windows, tuple(batches[turn] for turn in turns))

    def _order(self, task: str, counts: Int64[Tensor, " trajectory"], epoch: int) -> Int64[Tensor, " window"]:
        """The windows of an epoch, of `counts` in every trajectory, by their number."""
        num = int(counts.sum())
        order = self._permutation(num, f"{epoch}/{task}")
        if task not in self.weights:
            return order
        start = torch.arange(num) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        edges = self.weights[task].double()[start].cumsum(0)
        # Systematic sampling: one draw for all, so that every trajectory gets its share to within one window.
        offset = torch.rand((), generator=self._generator(f"{epoch}/{task}/offset"), dtype=torch.float64)
        drawn = torch.searchsorted(edges, (torch.arange(num) + offset) / num * edges[-1], right=True)
        return drawn.clamp_(max=num - 1)[order]

    def _permutation(self, num: int, purpose: str) -> Int64[Tensor, " item"]:
        return torch.randperm(num, generator=self._generator(purpose)) if self.shuffle else torch.arange(num)

    def _generator(self, purpose: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed}/{purpose}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest))

    def _following(self, epoch: int, position: int, horizon: int) -> tuple[int, int, int]:
        last = position + 1 == len(self._plan(epoch, horizon).batches)
        return (epoch + 1, 0, horizon) if last else (epoch, position + 1, horizon)

    def _share(self, epoch: int, position: int, horizon: int) -> tuple[Windows, slice]:
        """The windows of an epoch's task, and which of them are this rank's share of one place in the order."""
        plan = self._plan(epoch, horizon)
        task, low, high = plan.batches[position]
        return plan.windows[task], slice(low + self.rank, high, self.world_size)

    def _gather(self, windows: Windows, mine: slice) -> Batch:
        task, grid, values = windows.task, self.sets[windows.task].grid, windows.values(mine)
        size = (task, len(values), windows.length)
        if size not in self._constants:
            self._constants[size] = self._make_constants(*size)
        dt, shape = self._constants[size]
        if shape is None:
            return Batch(task, values, dt, windows.params[mine], grid, self.context)
        return Batch(task, shape, dt, windows.params[mine], grid, self.context, values)

    def _make_constants(self, task: str, num: int, length: int) -> tuple[Tensor, Tensor | None]:
        """What batches of one size share: dt, and frames without values where there are latents in their place."""
        trajectories, latents = self.sets[task], self.latents.get(task)
        dt = torch.full((num,), trajectories.dt, device=trajectories.device if latents is None else latents.device)
        frame = (len(trajectories.equation.fields), *trajectories.grid.shape)
        return dt, None if latents is None else torch.empty(num, length, *frame, device="meta")

    def _read_ahead(self, place: Place, pool: ThreadPoolExecutor) -> Batch:
        """The batch of a place, from what was read ahead; reading of the following ones is set going.

        Threads only gather: which windows come next is decided here, so that they cannot change the order.
        """
        if self._ahead and self._ahead[0][0] != place:
            self._drop_ahead()
        upcoming = self._following(*self._ahead[-1][0]) if self._ahead else place
        while len(self._ahead) <= self._prefetch:
            self._ahead.append((upcoming, pool.submit(self._gather, *self._share(*upcoming))))
            upcoming = self._following(*upcoming)
        return self._ahead.popleft()[1].result()

    def _drop_ahead(self) -> None:
        for _, future in self._ahead:
            future.cancel()
        self._ahead.clear()
