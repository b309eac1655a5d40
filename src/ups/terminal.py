"""What the command line shows: progress as a bar or as lines, tables, trees. Rich is imported when it is needed."""

from __future__ import annotations

import io
import re
import shutil
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID

PIPE_WIDTH = 100  # characters of a line that is written to a pipe or a file


class LineProgress:
    """Progress as sparse lines, for logs and pipes.

    Args:
        say: takes each line.
        every: seconds between lines about the same piece of work.
    """

    def __init__(self, say: Callable[[str], None], every: float = 10.0) -> None:
        self._say, self._every = say, every
        self._name = self._unit = ""
        self._total: float | None = None
        self._began = self._told = 0.0

    def start(self, name: str, total: float | None = None, unit: str = "") -> None:
        """Begin a piece of work; nothing is said until it lasts."""
        self._name, self._total, self._unit = name, total, unit
        self._began = self._told = time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        """Say how far the work is, when the last line is old enough."""
        if time.monotonic() - self._told < self._every:
            return
        self._told = time.monotonic()
        self.say(" ".join(filter(None, [f"{self._name}: {self._amount(done)}", note])))

    def finish(self, note: str = "") -> None:
        """Say that the work is done, how long it took, and the note."""
        seconds = time.monotonic() - self._began
        self.say(" ".join(filter(None, [f"{self._name}: done in {seconds:.1f} s", note])))

    def say(self, line: str) -> None:
        """Say a line."""
        self._say(line)

    def _amount(self, done: float) -> str:
        """How much is done, of how much, of what."""
        of = f" of {self._total:.6g}" if self._total is not None else ""
        return f"{done if done == int(done) else round(done, 1):.6g}{of} {self._unit}".rstrip()


class RichProgress(LineProgress):
    """Progress as a bar with the time left, on a terminal."""

    def __init__(self) -> None:
        super().__init__(self._above_the_bar)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar: TaskID | None = None

    def start(self, name: str, total: float | None = None, unit: str = "") -> None:
        """Show a bar for the work."""
        super().start(name, total, unit)
        self.close()
        self._bar = self._bars.add_task(name, total=total, amount=self._amount(0), note="")
        self._bars.start()

    def update(self, done: float, note: str = "") -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bars.update(self._bar, completed=done, amount=self._amount(done), note=note)

    def finish(self, note: str = "") -> None:
        """Replace the bar by a line."""
        self.close()
        super().finish(note)

    def _above_the_bar(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away, also when the work ended with an error."""
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
        self._bars.stop()


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a table with aligned columns; a row that lacks a column leaves it empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return []
    lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def problem_lines(problems: Sequence[tuple[str, str, str]], stream: TextIO) -> list[str]:
    """Problems as a table on a terminal; in pipes and files one below the other, in lines of at most `PIPE_WIDTH`.

    Args:
        problems: (where, what is wrong, what to do) of each.
    """
    if stream.isatty():
        return wrapped(("where", "problem", "what to do"), problems)
    lines = []
    for where, what, remedy in problems:
        lines += _broken(f"{where}: {what}", "")
        lines += _broken(remedy, "  ")
    return lines


def _broken(text: str, indent: str) -> list[str]:
    """A text in lines between words: paths stay whole."""
    return textwrap.wrap(
        text,
        PIPE_WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def wrapped(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose cells are broken to fit the terminal."""
    if not rows:
        return []
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, box=None, padding=(0, 2, 1, 0), pad_edge=False)
    for row in rows:
        shown.add_row(*(_escaped(cell) for cell in row))
    console = Console(file=io.StringIO(), width=shutil.get_terminal_size().columns, color_system=None)
    with console.capture() as capture:
        console.print(shown, highlight=False)
    return [line.rstrip() for line in capture.get().splitlines()]


def _escaped(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)


def grouped(problems: Sequence[tuple[str, str, str]], most: int = 5) -> list[tuple[str, str, str]]:
    """Problems, of which those alike in one file are counted from the sixth on.

    Args:
        problems: (file, what is wrong, what to do) of each; numbers and places in brackets do not make two unlike.
        most: of a kind.
    """
    alike: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for problem in problems:
        file, what, _ = problem
        alike.setdefault((file, re.sub(r"\([^)]*\)|[-+.\d]+", "", what)), []).append(problem)
    rows = []
    for (file, _), of_a_kind in alike.items():
        rows += of_a_kind[:most]
        if len(of_a_kind) > most:
            rows.append((file, f"... and {len(of_a_kind) - most} more like it", of_a_kind[0][2]))
    return rows


def tree(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """The lines of nested values, one value per line; a list is one line for each of its items."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}:", *tree(value, f"{indent}  ")]
        elif isinstance(value, tuple | list):
            lines += [f"{indent}{name}:", *(f"{indent}  {item}" for item in value)]
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines
