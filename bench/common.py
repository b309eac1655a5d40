"""What benches share: a table and a JSON line of what was measured, and the command line of those that keep lines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, float | str]


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def markdown(rows: Sequence[Row]) -> list[str]:
    """The lines of a table: a column for each name in the first row, numbers with three digits."""
    lines = ["| " + " | ".join(rows[0]) + " |", "| " + " | ".join("---" for _ in rows[0]) + " |"]
    for row in rows:
        cells = (value if isinstance(value, str) else f"{value:.3g}" for value in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def publish(name: str, rows: Sequence[Row], found: Mapping[str, Any], out: Path | None) -> None:
    """Prints a table of `rows` and what was found as one JSON line; writes both into `out`, NAME.md and NAME.json."""
    table, result = "\n".join(markdown(rows)), json.dumps({"bench": name, **found})
    print(table)
    print(result)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{name}.json").write_text(result + "\n")
        (out / f"{name}.md").write_text(table + "\n")


def run_or_table(
    description: str | None,
    lines: Path,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], None],
    table: Callable[[argparse.Namespace], None],
) -> int:
    """The command line of a bench that appends lines to a file and draws a table of them; returns the exit code.

    Args:
        lines: the file, unless `--out` names another.
        add_arguments: adds those of the command `run`, beside `--seeds` and `--out`.
        run, table: the two commands.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one, two = commands.add_parser("run", help="compute what is missing"), commands.add_parser("table", help="draw it")
    one.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add_arguments(one)
    for command in (one, two):
        command.add_argument("--out", type=Path, default=lines, help="file of the lines")
    arguments = parser.parse_args()
    (run if arguments.command == "run" else table)(arguments)
    return 0
