"""Where the time of a command goes: seconds of each of its parts, every moment counted once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

BEGAN = time.perf_counter() - time.process_time()
"""About when this process began, of which this module is one of the first imports."""


@dataclass
class Part:
    """Seconds of one part, and of them those that this process computed; `compute` is what the command is run for."""

    compute: bool
    seconds: float = 0.0
    cpu: float = 0.0


class Timings:
    """Gathers the seconds of parts. A part inside another is not counted in that other.

    Args:
        first: what the time before and between parts is spent on.
        began: when the clock was started, by `time.perf_counter`; None is now.
    """

    def __init__(self, first: str = "rest", began: float | None = None) -> None:
        self.parts: dict[str, Part] = {}
        self._thread = threading.get_ident()
        self._stack = [first]
        self._told = time.perf_counter() if began is None else began
        self._cpu = time.process_time() if began is None else 0.0
        self.parts[first] = Part(compute=False)

    @contextmanager
    def part(self, name: str, *, compute: bool = False) -> Iterator[None]:
        """What is done inside belongs to `name`, together with what else does.

        In another thread than the one that made the timings it is not counted: that one goes on meanwhile.

        Args:
            compute: whether it is training or evaluation itself, rather than what comes with it.
        """
        if threading.get_ident() != self._thread:
            yield
            return
        self._charge()
        self.parts.setdefault(name, Part(compute))
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def _charge(self) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        part = self.parts[self._stack[-1]]
        part.seconds += now - self._told
        part.cpu += cpu - self._cpu
        self._told, self._cpu = now, cpu

    def total(self, *, compute: bool | None = None) -> Part:
        """The sum of all parts so far; of those that compute, or of the others, where it is said."""
        self._charge()
        chosen = [part for part in self.parts.values() if compute in (None, part.compute)]
        return Part(bool(compute), sum(part.seconds for part in chosen), sum(part.cpu for part in chosen))

    def to_json(self) -> dict[str, Any]:
        """Every part, and the sums of overhead, compute and all."""
        sums = {"overhead": self.total(compute=False), "compute": self.total(compute=True), "all": self.total()}
        return {
            "parts": {name: asdict(part) for name, part in self.parts.items()},
            "sums": {name: {"seconds": part.seconds, "cpu": part.cpu} for name, part in sums.items()},
        }

    def rows(self) -> list[dict[str, str]]:
        """A table: every part in order, then the overhead (all that does not compute) and the sum."""
        sums = {"overhead": self.total(compute=False), "all": self.total()}
        return [
            {
                "step": name,
                "seconds": f"{part.seconds:.3f}",
                "CPU seconds": f"{part.cpu:.3f}",
                "kind": "" if name == "all" else "compute" if part.compute else "overhead",
            }
            for name, part in {**self.parts, **sums}.items()
        ]
