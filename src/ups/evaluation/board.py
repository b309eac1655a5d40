"""The leaderboard for people: a table, a CSV file, an HTML page, and two runs side by side."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ups.errors import UsageError
from ups.evaluation.leaderboard import Entry, Leaderboard, Reign
from ups.evaluation.summary import GROUPS, number, with_unit
from ups.files import write_whole

METRICS = tuple(metric.key for _, metrics in GROUPS for metric in metrics)
"""Every metric that has a name for people, in the order in which they are shown."""

COLUMNS = {
    "nrmse": "nrmse",
    "one step": "one_step_nrmse",
    "codec": "codec_nrmse",
    "conservation": "conservation_gap",
    "crps": "crps",
    "s / step": "wall_clock",
}
"""Columns of the table, with the metric in each; those that no run has a value of are left out."""

FORMULA = ("=", "+", "-", "@")
"""How a text begins that a spreadsheet would compute."""


@dataclass(frozen=True)
class Group:
    """What there is one champion of: runs on the same tasks under the same protocol, the best first."""

    tasks: tuple[str, ...]
    protocol: str
    entries: tuple[Entry, ...]
    reigns: tuple[Reign, ...]

    @property
    def champion(self) -> Entry | None:
        """The run that nothing has beaten yet."""
        return next((entry for entry in self.entries if entry.champion), None)

    def standing(self, entry: Entry) -> str:
        """What a run is or was."""
        if entry.champion:
            return "champion"
        was = any(reign.number == entry.number for reign in self.reigns)
        return "was champion" if was else "not promoted"


class Board:
    """What a leaderboard holds.

    Args:
        entries: every row.
        reigns: every champion there ever was.
    """

    def __init__(self, entries: list[Entry], reigns: list[Reign]) -> None:
        self.entries, self.reigns = entries, reigns

    @classmethod
    def read(cls, path: Path) -> Board:
        """What is in a leaderboard's file.

        Raises:
            UsageError: there is no such file.
        """
        board = Leaderboard(path)
        return cls(board.entries(), board.reigns())

    @cached_property
    def groups(self) -> list[Group]:
        """Runs by tasks and protocol, in the order in which these came."""
        found: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.group, []).append(entry)
        return [
            Group(
                tuple(sorted(entries[0].scored.tasks)),
                key[1],
                tuple(sorted(entries, key=_error)),
                tuple(reign for reign in self.reigns if reign.group == key),
            )
            for key, entries in found.items()
        ]

    def rows(self) -> list[dict[str, str]]:
        """A line per run and task."""
        columns = self.columns(self.entries)
        several = len(self.groups) > 1
        return [
            {
                "run": printable(Path(entry.folder).name),
                "task": printable(task),
                **{title: _plain(entry.scored.value(task, metric)) for title, metric in columns.items()},
                "standing": group.standing(entry),
                "judged": _when(entry.judged_at),
                **({"protocol": group.protocol[:8]} if several else {}),
            }
            for group in self.groups
            for entry in group.entries
            for task in group.tasks
        ]

    def columns(self, entries: list[Entry] | tuple[Entry, ...]) -> dict[str, str]:
        """The columns of which any of the runs has a value, and the first in any case."""
        return {
            title: metric
            for title, metric in COLUMNS.items()
            if metric == "nrmse"
            or any(entry.scored.value(task, metric) is not None for entry in entries for task in entry.scored.tasks)
        }

    # --- files -------------------------------------------------------------------------------------------------------

    def write_csv(self, path: Path) -> None:
        """Writes a line per run and task with every score; a text that a spreadsheet would compute is quoted.

        Raises:
            UpsError: the file cannot be written.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["run", "folder", "task", "tasks", "protocol", "model", "standing", "judged_at", *METRICS])
        for group in self.groups:
            for entry in group.entries:
                for task in group.tasks:
                    values = [entry.scored.value(task, metric) for metric in METRICS]
                    texts = (Path(entry.folder).name, entry.folder, task, "+".join(group.tasks), group.protocol)
                    about = (*texts, entry.scored.model, group.standing(entry), entry.judged_at)
                    scores = ["" if value is None else repr(value) for value in values]
                    writer.writerow([*map(_cell, about), *scores])
        write_whole(path, text.getvalue())

    def write_html(self, path: Path) -> None:
        """Writes one page that loads nothing from elsewhere.

        Raises:
            UpsError: the file cannot be written.
        """
        environment = Environment(
            loader=PackageLoader("ups.evaluation"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"number": number, "when": _when, "printable": printable}
        environment.globals |= {"with_unit": with_unit, "name_of": lambda entry: printable(Path(entry.folder).name)}
        write_whole(path, environment.get_template("board.html.j2").render(board=self))

    # --- two runs ----------------------------------------------------------------------------------------------------

    def compare(self, first: str, second: str) -> tuple[list[dict[str, str]], list[str]]:
        """The scores of two runs side by side, and what is to be said of that.

        Args:
            first: name or folder of a run.
            second: the same of another, whose scores are divided by those of the first.

        Raises:
            UsageError: no run of that name was judged, or they have no task in common.
        """
        a, b = self._pair(first, second)
        tasks = [task for task in a.scored.tasks if task in b.scored.tasks]
        if not tasks:
            raise UsageError(f"{first} and {second} have no task in common")
        names = [printable(Path(entry.folder).name) for entry in (a, b)]
        if names[0] == names[1]:
            names = [f"{name} ({_when(entry.judged_at)})" for name, entry in zip(names, (a, b), strict=True)]
        rows = []
        for task in tasks:
            for metric in METRICS:
                ours, theirs = a.scored.value(task, metric), b.scored.value(task, metric)
                if ours is None and theirs is None:
                    continue
                ratio = theirs / ours if ours and theirs is not None else None
                values: Mapping[str, str] = dict(zip(names, map(_plain, (ours, theirs)), strict=True))
                rows.append({"task": printable(task), "metric": metric, **values, "second / first": _plain(ratio)})
        notes = []
        if a.scored.protocol != b.scored.protocol:
            notes.append("not one protocol: the scores are of other trajectories or steps, and do not compare")
        if a.scored.machine != b.scored.machine:
            notes.append("not one machine: the times do not compare")
        return rows, notes

    def _pair(self, first: str, second: str) -> tuple[Entry, Entry]:
        """The latest rows of two runs under one protocol; where there is none, the latest of each."""
        found = [self._of(name) for name in (first, second)]
        pairs = [(a, b) for a in found[0] for b in found[1]]
        return max(pairs, key=lambda pair: (pair[0].group == pair[1].group, pair[0].number, pair[1].number))

    def _of(self, name: str) -> list[Entry]:
        found = [entry for entry in self.entries if name.rstrip("/") in (entry.folder, Path(entry.folder).name)]
        if not found:  # a folder as the shell completes it
            found = [entry for entry in self.entries if Path(name).name == Path(entry.folder).name and "/" in name]
        if not found:
            known = sorted({Path(entry.folder).name for entry in self.entries})
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "'ups board' lists those that were"
            raise UsageError(f"no run called {printable(name)} was judged; {hint}")
        return found


def printable(text: str) -> str:
    """The text in one line, with what would not show, or would move the cursor, written out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _error(entry: Entry) -> float:
    """Geometric mean of nrmse over the tasks; infinite where one is missing."""
    values = [entry.scored.value(task, "nrmse") for task in entry.scored.tasks]
    found = [value for value in values if value is not None]
    if not values or len(found) < len(values):
        return math.inf
    return math.exp(math.fsum(math.log(max(value, 1e-300)) for value in found) / len(found))


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _when(stamp: str) -> str:
    """A time for people, in UTC."""
    return datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M")


def _cell(text: str) -> str:
    shown = printable(text)
    return f"'{shown}" if shown.startswith(FORMULA) else shown
