"""Checkpoints that are written while training goes on.

The training thread copies the state, which takes milliseconds; another thread serialises, hashes and writes the copy. A
run is one process so far. Where it is several, this is the place that `torch.distributed.checkpoint` takes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ups.errors import CheckpointError
from ups.training.checkpoint import CheckpointStore, require_plain
from ups.training.signals import Interrupted


class BackgroundSaver:
    """Saves to a store in a thread of its own, one checkpoint at a time; a context, left when the last is on the disk.

    The process does not end before, either, unless it is killed. While a save is under way, one more copy of the state
    is in memory, on the host.

    Args:
        store: where to; nobody else writes to it meanwhile.

    Attributes:
        stalled: seconds that the training thread has spent here, copying and waiting.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self.store, self.stalled = store, 0.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._under_way: Future[Path] | None = None

    def save(self, step: int, state: Mapping[str, Any]) -> float:
        """Begins to save a copy of `state`; waits first for the save before this one.

        Returns:
            Seconds that this took.

        Raises:
            CheckpointError: the save before this one failed.
            TypeError: the state holds something that could not be loaded.
        """
        before, began = self.wait(), time.perf_counter()
        with self.store.part():
            require_plain(state)
            self._under_way = self._thread.submit(self.store.save, step, copied(state))
        took = time.perf_counter() - began
        self.stalled += took
        return before + took

    def poll(self) -> None:
        """Raises what went wrong with the last save, if it has ended.

        Raises:
            CheckpointError: it failed.
        """
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> float:
        """Waits until nothing is under way, and returns the seconds that it took.

        Raises:
            CheckpointError: the save failed.
        """
        if self._under_way is None:
            return 0.0
        began = time.perf_counter()
        with self.store.part():
            wait([self._under_way])
        took = time.perf_counter() - began
        self.stalled += took
        ended, self._under_way = self._under_way, None
        ended.result()
        return took

    def load(self) -> dict[str, Any] | None:
        """What the store loads, the save under way included.

        Raises:
            CheckpointError: that save failed, or see `CheckpointStore.load`.
        """
        self.wait()
        return self.store.load()

    def __enter__(self) -> BackgroundSaver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except CheckpointError as failure:
            if error is None or isinstance(error, Interrupted):  # which says that the state was saved
                raise
            error.add_note(str(failure))
        finally:
            self._thread.shutdown()


def copied(state: Any) -> Any:
    """A copy of nested dicts, lists and tuples that shares no memory with them; its tensors are on the host."""
    if isinstance(state, dict):
        twin = copy.copy(state)  # with the versions that the state of a module carries
        twin.update({key: copied(item) for key, item in state.items()})
        return twin
    if isinstance(state, (list, tuple)):
        return type(state)(map(copied, state))
    return state.detach().to("cpu", copy=True) if isinstance(state, Tensor) else state
