"""Watching a training from another process: what is drawn is read from its log, and whether it runs from its lock."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ups.errors import UsageError
from ups.files import is_held
from ups.health import Record, read_log
from ups.pipeline.records import StepRecords
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
    records = read_log(log) if log.exists() else []
    age = time.time() - (log if log.exists() else run).stat().st_mtime
    return frame(run.resolve().name, records, max(0.0, age), state=_state(run, records))


def _state(run: Path, records: Sequence[Record]) -> str:
    """What to say of a run that no process works on; nothing where one does, or where that cannot be told."""
    if is_held(run) is not False:
        return ""
    ended = bool(records) and StepRecords(run).key(str(records[-1]["stage"])) is not None
    return "no longer running" if ended else "stopped: run it again to go on"
