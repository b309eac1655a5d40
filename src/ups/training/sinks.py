"""Where the records of training go: a file of JSON lines, and TensorBoard. Weights & Biases is in `wandb_sink`."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO, runtime_checkable

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Record = Mapping[str, str | int | float | None]
Beside = Callable[[], Mapping[str, float]]

PLACE = ("stage", "step", "epoch", "elapsed", "progress")
"""Keys of every record that say where it belongs; all others are metrics, or texts."""

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 5


@runtime_checkable
class Sink(Protocol):
    """Where records go. Whatever a sink raises ends that sink and never training: see `Monitor`."""

    def write(self, record: Record) -> None:
        """Keeps one record."""

    def rewind(self, stage: str, step: int, rollbacks: int | float = math.inf) -> None:
        """Forgets the records of a stage after `step`, from which it now continues, and all but so many roll-backs."""

    def end_stage(self, stage: str, summary: Record) -> None:
        """The stage is done; its best validation and what stopped it."""

    def close(self) -> None:
        """No more records come from this stage."""


class NullSink:
    """Keeps nothing."""

    def write(self, record: Record) -> None:
        """Keeps nothing."""

    def rewind(self, stage: str, step: int, rollbacks: int | float = math.inf) -> None:
        """Has nothing to forget."""

    def end_stage(self, stage: str, summary: Record) -> None:
        """Tells nobody."""

    def close(self) -> None:
        """Has nothing to close."""


class JsonlSink(NullSink):
    """One line of JSON per record, on the disk as soon as written; numbers that are not finite become null.

    Args:
        path: the file, shared by the stages of a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def __str__(self) -> str:
        return str(self.path)

    def write(self, record: Record) -> None:
        """Appends a record."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps({key: _finite(item) for key, item in record.items()}, allow_nan=False) + "\n")
        self._file.flush()

    def rewind(self, stage: str, step: int, rollbacks: int | float = math.inf) -> None:
        """Drops the stage's records after `step`, and a line torn by a kill: a resumed curve has no step twice.

        A roll-back is recorded at the step to which it goes, before that is saved again: where a kill came between,
        it is done again, and its number says that the record is dropped.
        """
        self.close()
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _is_record(line) and not _is_after(json.loads(line), stage, step, rollbacks)]
        if kept != lines:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            os.replace(temporary, self.path)

    def close(self) -> None:
        """Closes the file; a later record opens it again."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


class TensorBoardSink(NullSink):
    """Event files for TensorBoard, in a folder per stage; the package is imported with the first record.

    Args:
        folder: gets one folder per stage.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None
        self._purge: int | None = None

    def __str__(self) -> str:
        return "TensorBoard"

    def write(self, record: Record) -> None:
        """Adds every metric as `{stage}/{metric}` at the record's step."""
        stage, step = str(record["stage"]), int(record["step"] or 0)
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / stage), purge_step=self._purge)
            self._purge = None
        for name, value in metrics_of(record).items():
            self._writer.add_scalar(f"{stage}/{name}", value, step)

    def rewind(self, stage: str, step: int, rollbacks: int | float = math.inf) -> None:
        """Lets TensorBoard hide what the stage had written after `step`."""
        self.close()
        self._purge = step + 1

    def close(self) -> None:
        """Closes the event file; a later record opens another."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


def metrics_of(record: Record) -> dict[str, int | float]:
    """The finite numbers of a record that are not its place."""
    return {
        name: value
        for name, value in record.items()
        if name not in PLACE and isinstance(value, int | float) and math.isfinite(value)
    }


def without_secrets(text: str) -> str:
    """The text, stars in place of the value of every environment variable whose name says key, token or the like."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def _finite(item: str | int | float | None) -> str | int | float | None:
    return None if isinstance(item, float) and not math.isfinite(item) else item


def _is_record(line: str) -> bool:
    try:
        return line.endswith("\n") and isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _is_after(record: dict[str, Any], stage: str, step: int, rollbacks: int | float) -> bool:
    return record.get("stage") == stage and (record.get("step", 0) > step or record.get("rollbacks", 0) > rollbacks)
