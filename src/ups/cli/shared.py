"""What all commands share: the programme they belong to, their arguments, and how they tell progress."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ups import __version__
from ups.terminal import LineProgress, RichProgress

if TYPE_CHECKING:
    from ups.config import Settings
    from ups.runtime import Progress

LARGEST_SEED = 2**63 - 1

app = typer.Typer(
    name="ups",
    help="Universal Physics Stack: fast neural simulators from PDE trajectories.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings file (YAML).", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that win over the file.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]


@contextmanager
def telling() -> Iterator[Progress]:
    """The way progress is told here: a bar, lines, or nothing on every rank but the first."""
    from ups.runtime import SilentProgress, world

    def say(line: str) -> None:
        typer.echo(line, err=True)

    if not world().is_first:
        yield SilentProgress()
    elif sys.stderr.isatty():
        bar = RichProgress()
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield LineProgress(say)


def settings_of(config: Path, overrides: Sequence[str] | None) -> Settings:
    """The settings of a file and what is given over it."""
    from ups.config import load_settings

    return load_settings(config, overrides or ())


def print_lines(lines: Iterable[str]) -> None:
    """Print lines, one by one."""
    for line in lines:
        typer.echo(line)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ups {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Universal Physics Stack: fast neural simulators from PDE trajectories."""
