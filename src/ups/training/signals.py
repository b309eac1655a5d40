"""Stopping on Ctrl-C and SIGTERM between two steps, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from ups.errors import UpsError

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Interrupted(UpsError):
    """Training was asked to stop, and its state is on the disk. Exits with 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, message: str, received: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + received


class StopSignals:
    """Inside the context, the first SIGINT or SIGTERM is noted for the loop to act on; further ones are ignored.

    In a thread other than the main one Python delivers no signals, and nothing is ever noted.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _NAMES}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number

    def raise_if_received(self, stage: str, step: int) -> None:
        """Raises `Interrupted` once the loop has saved."""
        if self.received is not None:
            name = _NAMES[signal.Signals(self.received)]
            message = f"stopped by {name} in stage {stage} after step {step}; saved, run again to continue"
            raise Interrupted(message, self.received)
