"""The lines of finished cells: one JSON object each, appended whole; the newest line of a key counts."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ups

REPOSITORY = Path(__file__).parent.parent.parent
RESULTS = REPOSITORY / "bench" / "results" / "accuracy"

Line = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One number of the table: who is trained on what, for how long.

    Args:
        seconds: of training.
        seed: of weights and batches; the split does not depend on it.
        device: `cpu` (process seconds, one thread) or `cuda` (wall seconds).
        train: trajectories that training is cut to; None takes all.
    """

    task: str
    model: str
    seconds: float
    seed: int
    device: str = "cpu"
    train: int | None = None

    @property
    def slug(self) -> str:
        """A file name of its own."""
        cut = "" if self.train is None else f"-train{self.train}"
        return f"{self.task}-{self.model}-{self.seconds:g}s-{self.seed}-{self.device}{cut}"


def cell_of(line: Mapping[str, Any]) -> Cell:
    """The cell that a line is of."""
    return Cell(**{name: line[name] for name in ("task", "model", "seconds", "seed", "device", "train")})


def append(line: Mapping[str, Any], path: Path) -> None:
    """Appends a line in one write, so that processes side by side do not mix theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(rounded(line), allow_nan=False) + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        written = os.write(handle, text)
    finally:
        os.close(handle)
    if written != len(text):
        raise OSError(f"{path}: only {written} of {len(text)} bytes were written; remove its last line")


def rounded(value: Any) -> Any:
    """Numbers to six digits, and None for what is not finite."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def read_lines(path: Path) -> list[Line]:
    """Every line of a file, oldest first; none where there is no file."""
    return [json.loads(text) for text in path.read_text().splitlines() if text] if path.exists() else []


def newest(lines: Iterable[Line]) -> dict[Cell, Line]:
    """The last line of each cell."""
    return {cell_of(line): line for line in lines}


def read_cells(folder: Path = RESULTS) -> dict[Cell, Line]:
    """The newest line of every cell of every task."""
    paths = sorted(path for path in folder.glob("*.jsonl") if path.stem not in ("search", "solvers"))
    return newest(line for path in paths for line in read_lines(path))


@contextmanager
def claimed(cell: Cell, locks: Path) -> Iterator[bool]:
    """Whether the cell is this process's to compute; another one's that is dead is free again."""
    locks.mkdir(parents=True, exist_ok=True)
    handle = os.open(locks / f"{cell.slug}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def source_hash(folder: Path = Path(ups.__file__).parent) -> str:
    """Of everything that may change a number: the package's modules."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:10]


def commit() -> str:
    """The commit that is checked out, in short; empty outside of a repository."""
    command = ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def stale(cells: Mapping[Cell, Line], now: str) -> list[Cell]:
    """Cells that were computed by other code than the present one."""
    return [cell for cell, line in cells.items() if line["source"] != now]


def key_of(cell: Cell) -> dict[str, Any]:
    """The cell as the first entries of its line."""
    return asdict(cell)
