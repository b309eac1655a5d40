"""The command line: parses, calls, prints. Nothing else in the package prints.

Commands import what they call when they are called, so that help is instant.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ups import __version__
from ups.errors import UpsError, UsageError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ups.runtime import Progress

INTERRUPTED = 130
TERMINATED = 143

app = typer.Typer(
    name="ups",
    help="Universal Physics Stack: fast neural simulators from PDE trajectories.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make and look at data files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


class StageChoice(StrEnum):
    """Stages that can be trained by name."""

    codec = "codec"
    operator = "operator"
    all = "all"


class SplitChoice(StrEnum):
    """Splits that can be scored."""

    train = "train"
    valid = "valid"
    test = "test"


Config = Annotated[Path, typer.Argument(help="Settings file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the file.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]


class LineProgress:
    """Progress as sparse lines on standard error, for logs and pipes.

    Args:
        every: seconds between lines about the same piece of work.
    """

    def __init__(self, every: float = 10.0) -> None:
        self._every = every
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
        of = f" of {self._total:g}" if self._total is not None else ""
        self.say(" ".join(filter(None, [f"{self._name}: {done:g}{of}", self._unit, note])))

    def finish(self, note: str = "") -> None:
        """Say that the work is done, how long it took, and the note."""
        seconds = time.monotonic() - self._began
        self.say(" ".join(filter(None, [f"{self._name}: done in {seconds:.1f} s", note])))

    def say(self, line: str) -> None:
        """Say a line."""
        typer.echo(line, err=True)


class RichProgress(LineProgress):
    """Progress as a bar with the time left, on a terminal."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}", markup=False),
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
        self._bar = self._bars.add_task(name, total=total, unit=unit, note="")
        self._bars.start()

    def update(self, done: float, note: str = "") -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bars.update(self._bar, completed=done, note=note)

    def finish(self, note: str = "") -> None:
        """Replace the bar by a line."""
        self.close()
        super().finish(note)

    def say(self, line: str) -> None:
        """Say a line above the bar."""
        self._bars.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = None
        self._bars.stop()


@contextmanager
def _telling() -> Iterator[Progress]:
    """The way progress is told here: a bar, lines, or nothing on every rank but the first."""
    from ups.runtime import SilentProgress, world

    if not world().is_first:
        yield SilentProgress()
    elif sys.stderr.isatty():
        bar = RichProgress()
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield LineProgress()


def _print_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows in aligned columns; a row that lacks a column leaves it empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return
    lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _parameters(pairs: Sequence[str]) -> dict[str, float]:
    """Numbers given as `name=value`.

    Raises:
        UsageError: a pair is not of that form, or names a parameter again.
    """
    values: dict[str, float] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            number = float(text)
        except ValueError as error:
            raise UsageError(f"{pair!r} is not a parameter; write it as name=number, such as nu=0.01") from error
        if not name or name in values:
            raise UsageError(f"{pair!r} " + ("names no parameter" if not name else "gives that parameter twice"))
        values[name] = number
    return values


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


def _run_pipeline(config: Path, overrides: Sequence[str] | None, **choices: Any) -> None:
    from ups.config import load_settings

    settings = load_settings(config, overrides or ())

    from ups.pipeline.run import run_pipeline
    from ups.runtime import world

    with _telling() as progress:
        outcome = run_pipeline(settings, progress=progress, **choices)
    if world().is_first:
        _print_table(outcome.table)
        for message in outcome.messages:
            typer.echo(message)
        typer.echo(str(outcome.run_dir))


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STEP", help="Do a step again; may be repeated.")] = None,
    skip_checks: Annotated[bool, typer.Option("--skip-checks", help="Do not check first.")] = False,
) -> None:
    """Check, train, evaluate and report. Running again does only what is missing; the last line is the run's folder."""
    _run_pipeline(config, overrides, force=tuple(force or ()), skip_checks=skip_checks, stages="all")


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    stage: Annotated[StageChoice, typer.Option(help="The stage to train, after those it needs.")] = StageChoice.all,
) -> None:
    """Train one stage, or all of them, without the evaluation."""
    _run_pipeline(config, overrides, stages=stage.value)


@app.command()
def evaluate(
    run: Run,
    more: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further files for --data.")] = None,
    data: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Score these files instead.")] = None,
    split: Annotated[SplitChoice, typer.Option(help="Split of the run's own data to score.")] = SplitChoice.test,
) -> None:
    """Score a trained run on a split of its data, or on other files."""
    if more and not data:
        raise UsageError(f"{more[0]} is not expected here; name files to score with --data")
    from ups.pipeline.evaluate import evaluate_run

    with _telling() as progress:
        rows = evaluate_run(run, tuple([*(data or ()), *(more or ())]), split.value, progress)
    _print_table(rows)


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the problems as JSON.")] = False,
) -> None:
    """Check settings, data and a dry run of every stage; list every problem."""
    from ups.config import load_settings

    settings = load_settings(config, overrides or ())

    from ups.pipeline.checks import run_checks
    from ups.pipeline.dry_run import dry_run

    with _telling() as progress:
        problems = run_checks(settings, progress, dry_run=lambda: dry_run(settings, progress))
    rows = [dataclasses.asdict(problem) for problem in problems]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print_table(rows)
        typer.echo(f"{len(rows)} problem{'s' if len(rows) != 1 else ''} found" if rows else "no problems found")
    raise typer.Exit(1 if rows else 0)


@app.command()
def rollout(
    run: Run,
    source: Annotated[Path, typer.Argument(metavar="INPUT.h5", help="Initial frames, as PDEBench HDF5.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps to predict.")],
    out: Annotated[Path, typer.Option(metavar="FILE.h5", help="File to write.")],
    points: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Coordinates (N, dim) to decode at, instead of the grid.")
    ] = None,
) -> None:
    """Predict from the first frames of a file and write the trajectories."""
    from ups.pipeline.rollout import rollout_file

    rollout_file(run, source, steps, out, points)
    typer.echo(str(out))


@app.command()
def report(run: Run) -> None:
    """Write the HTML report of a run."""
    from ups.evaluation.report import write_report

    typer.echo(str(write_report(run)))


@data_app.command("make")
def data_make(
    equation: Annotated[str, typer.Argument(help="Name of the equation, such as burgers1d.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FILE", help="HDF5 file to write.")],
    samples: Annotated[int, typer.Option(min=1, help="Trajectories.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial conditions.")],
    params: Annotated[
        list[str] | None, typer.Argument(metavar="[PARAM=VALUE]...", help="PDE parameters, such as nu=0.01.")
    ] = None,
    resolution: Annotated[int | None, typer.Option(min=8, help="Points per axis.")] = None,
    frames: Annotated[int | None, typer.Option(min=2, help="Frames, the first included.")] = None,
    duration: Annotated[float | None, typer.Option("--time", help="Time of the last frame.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Make trajectories with the reference solver, in PDEBench's layout."""
    values = _parameters(params or ())
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; give --overwrite to replace it, or another name to --out")
    from ups.data.generate import generate

    with _telling() as progress:
        generate(
            equation, out, samples, seed, values, resolution=resolution, frames=frames, time=duration, progress=progress
        )
    typer.echo(str(out))


@data_app.command("inspect")
def data_inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="HDF5 file to look at.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Show a file's layout, fields, shapes, ranges, NaNs, parameters and hash; exit 1 when something is wrong."""
    from ups.data.inspect import inspect_file

    summary = inspect_file(file)
    values = dataclasses.asdict(summary)
    if as_json:
        typer.echo(json.dumps(values, indent=2, default=str))
    else:
        _print_tree(values)
    raise typer.Exit(1 if summary.problems else 0)


def _print_tree(values: Mapping[str, Any], indent: str = "") -> None:
    """Print nested values, one per line."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            typer.echo(f"{indent}{name}:")
            _print_tree(value, f"{indent}  ")
        elif isinstance(value, tuple | list) and any(isinstance(item, Mapping) for item in value):
            typer.echo(f"{indent}{name}:")
            for item in value:
                typer.echo(f"{indent}  " + ", ".join(f"{key} {inner}" for key, inner in item.items()))
        else:
            typer.echo(f"{indent}{name}: {value}")


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)


def main() -> None:
    """Run the command line. An error that the user can mend is one message; its code is the exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(prog_name="ups")
    except UpsError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("interrupted, run again to continue", err=True)
        raise
