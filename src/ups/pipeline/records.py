"""What a run has already done: one record per step, keyed by the hash of everything the step depends on."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ups.config.load import resolved
from ups.config.schema import Settings
from ups.errors import CheckpointError, UpsError
from ups.evaluation.leaderboard import Leaderboard
from ups.files import write_whole
from ups.runtime import run_id

AFTER_TRAINING = ("name", "runs_dir", "device", "threads", "benchmark", "evaluation", "gates", "logging")
"""Settings that may change without another folder. Of `evaluation`, those by which weights are chosen or ensembles
corrected are in the stages' keys: such a stage is trained again, in the same folder."""


def digest(*parts: Any) -> str:
    """SHA-256 of the canonical JSON of `parts`."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def training_hash(settings: Settings) -> str:
    """Hash of the settings that a run is told apart by: others may change without another folder."""
    return digest({key: value for key, value in resolved(settings).items() if key not in AFTER_TRAINING})


def folder_of(settings: Settings) -> Path:
    """The folder of a run of these settings."""
    return Path(settings.runs_dir) / run_id(settings.name, settings.data.task, training_hash(settings))


def leaderboard_of(settings: Settings) -> Leaderboard:
    """The leaderboard that runs of these settings are entered into."""
    return Leaderboard(Path(settings.gates.leaderboard or Path(settings.runs_dir) / "leaderboard.sqlite"))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that `path` appears whole or not at all.

    Raises:
        UpsError: the folder cannot be written, or the disk is full.
    """
    write_whole(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """A record of the run; nothing where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); run 'ups run' on its settings again") from error
    return found


class StepRecords:
    """The steps a run has finished, kept in `steps.json`.

    A step is done when its record holds the key it would have now; a record with another key is stale, and so is every
    step whose key is made from it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "steps.json"
        self.records: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            try:
                self.records = json.loads(self.path.read_text(encoding="utf-8"))
                damaged = not all(isinstance(record, dict) for record in self.records.values())
            except (ValueError, AttributeError):
                damaged = True
            if damaged:
                raise UpsError(f"{self.path} is damaged; delete it to run every step again")

    def done(self, step: str, key: str, *left: Path) -> bool:
        """Whether `step` was finished from exactly what it would start from now, and what it left is still there."""
        return self.records.get(step, {}).get("key") == key and all(path.exists() for path in left)

    def key(self, step: str) -> str | None:
        """What `step` was last finished from; None if it never was."""
        key = self.records.get(step, {}).get("key")
        return None if key is None else str(key)

    def note(self, step: str, name: str, otherwise: Any) -> Any:
        """A value that `finish` noted; `otherwise` where the step was not done or noted nothing of that name."""
        return self.records.get(step, {}).get(name, otherwise)

    def finish(self, step: str, key: str, seconds: float, **notes: Any) -> None:
        """Notes that `step` is finished."""
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        self.records[step] = {"key": key, "finished_at": finished, "seconds": round(seconds, 3), **notes}
        write_json(self.path, self.records)

    def forget(self, step: str) -> None:
        """Makes `step` count as never done, and so the parts of it, `step-...`."""
        kept = {
            name: record for name, record in self.records.items() if name != step and not name.startswith(f"{step}-")
        }
        if len(kept) < len(self.records):
            self.records = kept
            write_json(self.path, self.records)
