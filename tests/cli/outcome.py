"""What a command left behind, and what stands in what it printed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Ups = Callable[..., Outcome]


OUTCOME = SimpleNamespace(
    run_dir=Path("runs/demo-burgers1d-0123abcd"),
    table=[{"model": "ups", "nrmse": "0.002"}, {"model": "persistence", "nrmse": "0.63", "note": "last"}],
    messages=("report: runs/x/report.html",),
    passed=True,
)


def cells(printed: str) -> list[list[str]]:
    """What stands in the lines of a table and after it, rules left out."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines() if re.search(r"\w", line)]
    return [[cell for cell in line if cell] for line in lines]
