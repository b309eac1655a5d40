"""Promotions at once, of which one is killed in its transaction, as a script: each is a child process of its own.

    python promotion_faults.py FOLDER [STATEMENT ...]

For every STATEMENT, eight runs are promoted at once into a leaderboard that does not exist yet; the best of them dies
where its transaction comes to that statement, and is then promoted again. `none` lets all of them live. The last line
printed is JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.pipeline.toy_run import decide_run, write_run

from ups.evaluation.leaderboard import Leaderboard

ERRORS = [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]


def die_at(statement: str) -> None:
    """From now on, this process dies where SQLite comes to a statement that begins so."""
    connect = sqlite3.connect

    def traced(*arguments: Any, **choices: Any) -> sqlite3.Connection:
        db = connect(*arguments, **choices)

        def before(sql: str) -> None:
            if db.in_transaction and sql.startswith(statement):
                os.kill(os.getpid(), signal.SIGKILL)

        db.set_trace_callback(before)
        return db

    sqlite3.connect = traced  # type: ignore[assignment]


def start(run: Path, gate: int, opener: int, statement: str | None) -> int:
    """A child that promotes a run as soon as every `opener` of the gate is closed: all children start together."""
    child = os.fork()
    if child:
        return child
    os.close(opener)
    os.read(gate, 1)
    if statement is not None:
        die_at(statement)
    decide_run(run)
    os._exit(0)


def look(runs: Path) -> dict[str, Any]:
    """What the leaderboard holds, and what the runs say of themselves."""
    board = Leaderboard(runs / "leaderboard.sqlite")
    error = {entry.number: entry.scored.value("burgers1d", "nrmse") for entry in board.entries()}
    said = [json.loads(path.read_text()) for path in runs.glob("*/gates.json")]
    return {
        "rows": sorted(value for value in error.values() if value is not None),
        "champions": [error[entry.number] for entry in board.entries() if entry.champion],
        "reigns": [error[reign.number] for reign in board.reigns()],
        "promoted": sorted(one["run"] for one in said if one["promoted"]),
        "crowned": sorted(reign.run for reign in board.reigns()),
    }


def race(runs: Path, statement: str | None, draw: random.Random) -> dict[str, Any]:
    """Eight promotions at once, the best of which dies at a statement, and is repeated."""
    order = draw.sample(ERRORS, len(ERRORS))
    folders = {error: write_run(runs, f"run{error}", nrmse=error) for error in order}
    gate, opener = os.pipe()
    best = min(ERRORS)
    children = [start(folders[error], gate, opener, statement if error == best else None) for error in order]
    os.close(opener)
    ends = [os.waitpid(child, 0)[1] for child in children]
    os.close(gate)
    found = {"ends": sorted(map(os.waitstatus_to_exitcode, ends)), "after": look(runs)}
    decide_run(folders[best])
    return {**found, "repeated": look(runs)}


def main() -> None:
    folder, *statements = sys.argv[1:]
    draw = random.Random(0)
    results = [
        race(Path(folder) / str(number), None if statement == "none" else statement, draw)
        for number, statement in enumerate(statements)
    ]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
