"""Watching a training from another process: what is drawn is read from its log, and from nothing else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ups.errors import UsageError
from ups.files import is_held
from ups.health import read_log
from ups.terminal_watch import as_text, frame, show_live

if TYPE_CHECKING:
    from rich.console import RenderableType


def watch(run: Path, *, every: float = 2.0) -> None:
    """Shows a run on the terminal, drawn anew every so many seconds, until Ctrl-C.

    Raises:
        UsageError: there is no such run.
    """
    show_live(lambda: _draw(run), every=every)


def watch_once(run: Path, *, width: int = 100) -> str:
    """One frame as plain text, `width` columns wide.

    Raises:
        UsageError: there is no such run.
    """
    return as_text(_draw(run), width)


def _draw(run: Path) -> RenderableType:
    if not run.is_dir():
        raise UsageError(f"{run} is not a folder; name that of a run, which `ups run` prints last")
    log = run / "log.jsonl"
    if not log.exists() and not (run / "config.yaml").exists():
        raise UsageError(f"{run} is no run's folder: it holds neither config.yaml nor log.jsonl")
    name, busy = run.resolve().name, is_held(run)
    if not log.exists():  # before its first record
        return frame(name, [], time.time() - run.stat().st_mtime, busy=busy)
    return frame(name, read_log(log), max(0.0, time.time() - log.stat().st_mtime), busy=busy)
