"""What a run ends with, and whether it has ended already: told from the stamps of files alone, without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ups.config.data import DataSettings
from ups.config.load import resolved
from ups.config.schema import Settings
from ups.data.named import is_named_hdf5
from ups.evaluation.leaderboard import Standing
from ups.pipeline.records import digest, folder_of, leaderboard_of, write_json
from ups.timing import Timings
from ups.versions import MODEL_FORMAT, SCORES

FORMAT = 3
FINISHED = "finished.json"
LEFT = (
    *("config.yaml", "metadata.json", "data.json", "gates.json", "report.html", "log.jsonl", "model/*"),
    *("evaluation/small.json", "evaluation/full.json", "evaluation/fields.npz"),
    *("checkpoints/*/model/*", "baselines/*/model/*"),
)
"""What a run leaves in its folder, of which none may have changed."""

Stamps = dict[str, list[int] | None]


@dataclass(frozen=True)
class RunOutcome:
    """What a run leaves for its user: the folder, a table of scores, lines worth saying, and whether all gates held."""

    run_dir: Path
    table: list[dict[str, str]]
    messages: tuple[str, ...]
    passed: bool = True
    timings: Timings = field(default_factory=Timings, compare=False, repr=False)


def remember(settings: Settings, data: Stamps, outcome: RunOutcome, standing: Standing | None) -> None:
    """Notes in the run's folder how it ended, of which settings and data.

    Args:
        data: `data_stamps` of before any file was read: at the end they could be those of a file written since.
        standing: how the run was left on the leaderboard; None where it was not entered.
    """
    content = {
        "format": FORMAT,
        "key": _key(settings),
        "data": data,
        "left": stamps(files_left(outcome.run_dir)),
        "standing": None if standing is None else asdict(standing),
        "table": [list(row.items()) for row in outcome.table],  # columns in their order
        "messages": outcome.messages,
        "passed": outcome.passed,
    }
    write_json(outcome.run_dir / FINISHED, content)


def outcome_of_finished(settings: Settings) -> RunOutcome | None:
    """How the run of these settings ended, where nothing has changed since: they, files it read or left, the champion.

    Raises:
        UpsError: the leaderboard cannot be used.
    """
    folder = folder_of(settings)
    try:
        known: dict[str, Any] = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
        same = (
            known["format"] == FORMAT
            and known["key"] == _key(settings)
            and not changed_since(known["data"], settings.data)
            and known["left"] == stamps(files_left(folder))
            and (known["standing"] is None or leaderboard_of(settings).shows(Standing.from_json(known["standing"])))
        )
        table = [dict(row) for row in known["table"]]
        return RunOutcome(folder, table, tuple(known["messages"]), known["passed"]) if same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not there, or damaged: every step looks itself
        return None


def _key(settings: Settings) -> str:
    """Hash of the settings, and of the versions of what a run leaves: models that load, scores that compare."""
    return digest(resolved(settings), MODEL_FORMAT, SCORES)


def data_stamps(data: DataSettings, named: Iterable[Path]) -> Stamps:
    """Stamps of the data files as they are now: of those named, and of all that are found rather than named."""
    return stamps(dict.fromkeys([*named, *map(Path, found_by_pattern(data))]))


def changed_since(seen: Stamps, data: DataSettings) -> list[str]:
    """The data files that are not as they were when `data_stamps` saw them: written again, gone, or found since."""
    now = data_stamps(data, map(Path, seen))
    return [path for path, stamp in now.items() if path not in seen or stamp != seen[path]]


def found_by_pattern(data: DataSettings) -> list[str]:
    """The files that are found rather than named: those of a pattern, or all of the root folder where none is named."""
    given = (data.files, data.split.train_files, data.split.valid_files, data.split.test_files)
    lists = [names for one in given if one for names in (one.values() if isinstance(one, Mapping) else (one,))]
    root = Path(data.root)
    if not lists:
        return sorted(str(path) for path in root.glob("*") if is_named_hdf5(path))
    patterns = [name for names in lists for name in names if any(sign in name for sign in "*?[")]
    return sorted({str(path) for pattern in patterns for path in root.glob(pattern)})


def files_left(folder: Path) -> list[Path]:
    """The files of a run that its outcome rests on."""
    return sorted(path for pattern in LEFT for path in folder.glob(pattern))


def stamps(paths: Iterable[Path]) -> Stamps:
    """Size and time of change of each path; None where there is none."""
    found: Stamps = {}
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            found[str(path)] = None
        else:
            found[str(path)] = [state.st_size, state.st_mtime_ns]
    return found
