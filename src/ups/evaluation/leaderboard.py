"""The leaderboard: every run that was judged, and the champion of each set of tasks under each protocol.

A SQLite file, which several processes may write at once. A promotion is one transaction: the champion is read, the
candidate judged against it, its row written and, where it passes, the champion replaced; a process that dies within
leaves nothing. The file itself refuses a second champion.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ups.errors import UpsError, UsageError
from ups.evaluation.gates import Judgement, Scored

VERSION = 1
TIMEOUT = 60.0  # seconds to wait for another process
SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY,
    folder TEXT NOT NULL,
    tasks TEXT NOT NULL,
    protocol TEXT NOT NULL,
    model TEXT NOT NULL,
    evaluation TEXT NOT NULL,
    scored TEXT NOT NULL,
    verdicts TEXT NOT NULL,
    passed INTEGER NOT NULL CHECK (passed IN (0, 1)),
    judged_at TEXT NOT NULL,
    UNIQUE (folder, tasks, protocol, model, evaluation)
);
CREATE TABLE IF NOT EXISTS champions (
    id INTEGER PRIMARY KEY,
    tasks TEXT NOT NULL,
    protocol TEXT NOT NULL,
    run INTEGER NOT NULL REFERENCES runs (id),
    since TEXT NOT NULL,
    until TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS one_champion ON champions (tasks, protocol) WHERE until IS NULL;
"""
Row = tuple[str, str, str]
"""What tells a row from others of its group: the run's folder, and the hashes of its model and its evaluation."""

COLUMNS = "runs.id, folder, evaluation, scored, verdicts, passed, judged_at"


@dataclass(frozen=True)
class Entry:
    """One row: a run under one protocol.

    Args:
        scored: the run and its scores.
        folder: where the run is; relative to the leaderboard's folder where it lies below.
        evaluation: hash of the evaluation's file.
        judgement: how it was judged when it was entered; empty before.
        judged_at: when.
        champion: whether it is the champion of its tasks and protocol.
        number: of the row.
    """

    scored: Scored
    folder: str
    evaluation: str
    judgement: Judgement = field(default_factory=lambda: Judgement(()))
    judged_at: str = ""
    champion: bool = False
    number: int = 0

    @property
    def tasks(self) -> str:
        """The set of tasks, as it is written in the file."""
        return json.dumps(sorted(self.scored.tasks))

    @property
    def group(self) -> tuple[str, str]:
        """What there is one champion of: the tasks and the protocol."""
        return self.tasks, self.scored.protocol

    @property
    def row(self) -> Row:
        """What its row is known by within its group."""
        return self.folder, self.scored.model, self.evaluation


@dataclass(frozen=True)
class Standing:
    """How a run was left on the leaderboard: with a row of its own, and under a champion.

    Args:
        group: its tasks and protocol.
        run: its row.
        champion: the row of the champion, itself where it was promoted; None where there was none.
    """

    group: tuple[str, str]
    run: Row
    champion: Row | None

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Standing:
        """The standing whose fields were written as JSON.

        Raises:
            KeyError, TypeError: it is none.
        """
        champion = found["champion"]
        return cls(tuple(found["group"]), tuple(found["run"]), None if champion is None else tuple(champion))


@dataclass(frozen=True)
class Reign:
    """A run's time as the champion; `until` is None while it lasts."""

    group: tuple[str, str]
    number: int
    run: str
    since: str
    until: str | None


class Leaderboard:
    """The file of runs and champions.

    Args:
        path: of the file, on a local disk (SQLite's locks do not hold on network file systems).
        timeout: seconds to wait for other processes that write.
    """

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        self.path, self.timeout = path, timeout

    # --- writing -----------------------------------------------------------------------------------------------------

    def submit(self, entry: Entry, judge: Callable[[Entry | None], Judgement]) -> tuple[Judgement, Entry | None]:
        """Judges a run against the champion of this moment, enters it, and makes it the champion where it passes.

        Args:
            entry: the run.
            judge: called within the transaction with the champion of the run's tasks and protocol, or None.

        Returns:
            the judgement, and the champion that it was judged against.

        Raises:
            UpsError: a name that would break a line; a file that is damaged, locked or cannot be written.
        """
        for name in (entry.scored.run, entry.folder):
            if not name.isprintable():
                raise UpsError(f"the run's folder {name!r} has a name that cannot be shown in one line; rename it")
        with self._transaction() as db:
            champion = self._champion(db, entry.group)
            judgement = judge(champion)
            found = replace(entry, judgement=judgement, judged_at=_now())
            number = self._enter(db, found, champion)
            if judgement.passed and (champion is None or champion.number != number):
                self._crown(db, found, number)
        return judgement, champion

    def _enter(self, db: sqlite3.Connection, entry: Entry, champion: Entry | None) -> int:
        """Writes the row, or how it was judged anew; the champion's keeps how it became that."""
        values = (
            json.dumps(asdict(entry.scored)),
            json.dumps(entry.judgement.to_json()),
            int(entry.judgement.passed),
            entry.judged_at,
        )
        known = self._number(db, entry.group, entry.row)
        if known is None:
            sql = (
                "INSERT INTO runs (tasks, protocol, folder, model, evaluation, scored, verdicts, passed, judged_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            )
            return int(db.execute(sql, (*entry.group, *entry.row, *values)).lastrowid or 0)
        if champion is None or champion.number != known:
            sql = "UPDATE runs SET scored = ?, verdicts = ?, passed = ?, judged_at = ? WHERE id = ?"
            db.execute(sql, (*values, known))
        return known

    def _crown(self, db: sqlite3.Connection, entry: Entry, number: int) -> None:
        """Ends the champion's reign and begins that of a row."""
        db.execute(
            "UPDATE champions SET until = ? WHERE tasks = ? AND protocol = ? AND until IS NULL",
            (entry.judged_at, *entry.group),
        )
        db.execute(
            "INSERT INTO champions (tasks, protocol, run, since) VALUES (?, ?, ?, ?)",
            (*entry.group, number, entry.judged_at),
        )

    # --- reading -----------------------------------------------------------------------------------------------------

    def champion(self, group: tuple[str, str]) -> Entry | None:
        """The champion of a set of tasks under a protocol; None where there is none."""
        if not self.path.exists():
            return None
        with self._open() as db:
            return self._champion(db, group)

    def shows(self, standing: Standing) -> bool:
        """Whether a run is still as it was left: its row is there, and the champion is the same."""
        if not self.path.exists():
            return False
        with self._open_existing() as db:
            champion = self._champion(db, standing.group)
            there = self._number(db, standing.group, standing.run) is not None
        return there and standing.champion == (None if champion is None else champion.row)

    def entries(self) -> list[Entry]:
        """Every row, in the order in which they were entered.

        Raises:
            UsageError: there is no leaderboard.
        """
        with self._open_existing() as db:
            rows = db.execute(
                f"SELECT {COLUMNS}, champions.id IS NOT NULL FROM runs "
                "LEFT JOIN champions ON champions.run = runs.id AND until IS NULL ORDER BY runs.id"
            ).fetchall()
        return [_entry(row) for row in rows]

    def reigns(self) -> list[Reign]:
        """Every champion there ever was, in the order in which they came.

        Raises:
            UsageError: there is no leaderboard.
        """
        with self._open_existing() as db:
            rows = db.execute(
                "SELECT champions.tasks, champions.protocol, runs.id, folder, since, until "
                "FROM champions JOIN runs ON runs.id = champions.run ORDER BY champions.id"
            ).fetchall()
        return [Reign((row[0], row[1]), row[2], Path(row[3]).name, row[4], row[5]) for row in rows]

    def _number(self, db: sqlite3.Connection, group: tuple[str, str], row: Row) -> int | None:
        sql = "SELECT id FROM runs WHERE tasks = ? AND protocol = ? AND folder = ? AND model = ? AND evaluation = ?"
        found = db.execute(sql, (*group, *row)).fetchone()
        return None if found is None else int(found[0])

    def _champion(self, db: sqlite3.Connection, group: tuple[str, str]) -> Entry | None:
        row = db.execute(
            f"SELECT {COLUMNS}, 1 FROM runs JOIN champions ON champions.run = runs.id "
            "WHERE champions.tasks = ? AND champions.protocol = ? AND until IS NULL",
            group,
        ).fetchone()
        return None if row is None else _entry(row)

    # --- the file ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _open_existing(self) -> Iterator[sqlite3.Connection]:
        if not self.path.is_file():
            raise UsageError(f"there is no leaderboard at {self.path}; 'ups run' makes it, or name another --runs-dir")
        if os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK):
            with self._open() as db:
                yield db
            return
        try:  # somebody else's: it is read as it stands in the file
            with closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
                yield db
        except sqlite3.Error as error:
            raise UpsError(f"the leaderboard {self.path} cannot be read: {error}") from error

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection without a transaction; the file and its tables are made where they are missing."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=self.timeout, isolation_level=None)) as db:
                self._prepare(db)
                yield db
        except (OSError, sqlite3.Error) as error:
            raise UpsError(
                f"the leaderboard {self.path} cannot be used: {error}; see that its folder is on a local disk, can be "
                "written to and has space, or name another file with gates.leaderboard"
            ) from error

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Sets what SQLite keeps per connection, and makes the tables of a new file."""
        self._use_wal(db)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version != VERSION:
            raise UpsError(
                f"the leaderboard {self.path} is of version {version}, this is ups of version {VERSION}; use the ups "
                "that wrote it, or name another file with gates.leaderboard"
            )

    def _use_wal(self, db: sqlite3.Connection) -> None:
        """Switches a new file to a write-ahead log, for which SQLite itself does not wait for other processes."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                if mode != "wal":
                    raise UpsError(f"the leaderboard {self.path} cannot keep a write-ahead log here; use a local disk")
                return

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection that holds the right to write from the start; what is done in it is kept whole or not at all."""
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")


def _entry(row: tuple[int, str, str, str, str, int, str, int]) -> Entry:
    number, folder, evaluation, scored, verdicts, _, judged_at, champion = row
    try:
        judgement = Judgement.from_json(json.loads(verdicts))
        return Entry(Scored(**json.loads(scored)), folder, evaluation, judgement, judged_at, bool(champion), number)
    except (ValueError, TypeError) as error:
        raise UpsError(f"row {number} of the leaderboard is damaged ({error}); restore the file from a copy") from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
