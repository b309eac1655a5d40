"""The command line: parses, calls, prints. Nothing else in the package prints.

Commands import what they call when they are called, so that help is instant.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ups import __version__
from ups.errors import SettingsError, UpsError, UsageError
from ups.terminal import LineProgress, RichProgress, grouped, table, tree

if TYPE_CHECKING:
    from ups.config import Settings
    from ups.pipeline.run import RunOutcome
    from ups.runtime import Progress

CONTINUING = ("run", "train")
LARGEST_SEED = 2**63 - 1
STEPS_HELP = (
    "Do a step again, and all that come after it; may be repeated. "
    "The steps are data, check, codec, operator, diff_residual, consistency_distill, baselines, evaluate and report."
)

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
    diff_residual = "diff_residual"
    consistency_distill = "consistency_distill"
    all = "all"


class SplitChoice(StrEnum):
    """Splits that can be scored."""

    train = "train"
    valid = "valid"
    test = "test"


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Settings file (YAML).", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that win over the file.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]


@contextmanager
def _telling() -> Iterator[Progress]:
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


def _settings(config: Path, overrides: Sequence[str] | None) -> Settings:
    from ups.config import load_settings

    return load_settings(config, overrides or ())


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


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


def _show(outcome: RunOutcome) -> None:
    """Print a run's table, what is worth saying, and last its folder."""
    from ups.runtime import world

    if world().is_first:
        _print_lines([*table(outcome.table), *outcome.messages, str(outcome.run_dir)])


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STEP", help=STEPS_HELP)] = None,
    skip_checks: Annotated[bool, typer.Option("--skip-checks", help="Do not check first.")] = False,
) -> None:
    """Check, train, evaluate and report. Running again does only what is missing; the last line is the run's folder."""
    settings = _settings(config, overrides)
    from ups.pipeline.run import run_pipeline

    with _telling() as progress:
        outcome = run_pipeline(settings, progress=progress, force=tuple(force or ()), skip_checks=skip_checks)
    _show(outcome)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    stage: Annotated[StageChoice, typer.Option(help="The stage to train, after those it needs.")] = StageChoice.all,
) -> None:
    """Train one stage, or all of them, without the evaluation."""
    settings = _settings(config, overrides)
    from ups.pipeline.run import train_pipeline

    with _telling() as progress:
        chosen: Any = None if stage is StageChoice.all else stage.value  # the names are those of the stages
        outcome = train_pipeline(settings, progress=progress, stage=chosen)
    _show(outcome)


@app.command()
def evaluate(
    run: Run,
    more: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="Further files for --data.")] = None,
    data: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Score these files instead.")] = None,
    split: Annotated[SplitChoice, typer.Option(help="Split of the run's own data to score.")] = SplitChoice.test,
) -> None:
    """Score a trained run on a split of its data, or on other files."""
    if more and not data:
        raise UsageError(f"{more[0]} is not expected here; name files to score with --data")
    from ups.pipeline.evaluate import evaluate_run

    with _telling() as progress:
        rows = evaluate_run(run, (*(data or ()), *(more or ())), split.value, progress)
    _print_lines(table(rows))


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the problems as JSON.")] = False,
) -> None:
    """Check settings, data and a dry run; list every problem."""
    try:
        settings = _settings(config, overrides)
        from ups.pipeline.run import check_pipeline

        with _telling() as progress:
            problems = check_pipeline(settings, progress=progress)
    except (SettingsError, UsageError) as error:
        if not as_json:
            raise
        wrong = {"kind": "settings", "where": str(config), "remedy": "correct the settings"}
        whats = [line.strip() for line in str(error).splitlines() if line.startswith("  ")] or [str(error)]
        typer.echo(json.dumps([{**wrong, "what": what} for what in whats], indent=2))
        raise typer.Exit(error.exit_code) from error
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(problem) for problem in problems], indent=2))
    else:
        _print_lines(grouped([(problem.where, problem.what, str(problem)) for problem in problems]))
        num = len(problems)
        typer.echo(f"{num} problem{'s' if num != 1 else ''} found" if num else "no problems found")
    raise typer.Exit(1 if problems else 0)


@app.command()
def rollout(
    run: Run,
    source: Annotated[Path, typer.Argument(metavar="INPUT.h5", help="Initial frames, as PDEBench HDF5.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps to predict.")],
    out: Annotated[Path, typer.Option(metavar="FILE.h5", help="File to write.")],
    points: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Coordinates (N, dim) to decode at, instead of the grid.")
    ] = None,
    members: Annotated[int | None, typer.Option(min=1, help="Roll-outs in an ensemble of each trajectory.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the ensemble's draws.")] = 0,
) -> None:
    """Predict from the first frames of a file, and write it."""
    from ups.pipeline.rollout import rollout_file

    rollout_file(run, source, steps, out, points, members, seed)
    typer.echo(str(out))


@app.command()
def report(run: Run) -> None:
    """Write the HTML report of a run."""
    from ups.evaluation.report import write_report

    typer.echo(str(write_report(run)))


@data_app.command("make")
def data_make(
    equation: Annotated[
        str, typer.Argument(metavar="EQUATION", help="Name of the equation, such as burgers1d.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="HDF5 file to write.")],
    samples: Annotated[int, typer.Option(min=1, help="Trajectories.")],
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the initial conditions.")],
    params: Annotated[
        list[str] | None, typer.Argument(metavar="PARAM=VALUE", help="PDE parameters, such as nu=0.01.")
    ] = None,
    resolution: Annotated[int | None, typer.Option(min=8, help="Points per axis.")] = None,
    frames: Annotated[int | None, typer.Option(min=2, help="Frames, the first included.")] = None,
    duration: Annotated[float | None, typer.Option("--time", help="Time of the last frame.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Make a file in PDEBench's layout with the reference solver."""
    values = _parameters(params or ())
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name the file to write")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; give --overwrite to replace it, or another name to --out")
    from ups.data.generate import generate

    with _telling() as progress:
        generate(
            equation,
            out,
            samples,
            seed,
            values,
            resolution=resolution,
            frames=frames,
            time=duration,
            overwrite=overwrite,
            progress=progress,
        )
    typer.echo(str(out))


@data_app.command("inspect")
def data_inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="HDF5 file to look at.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Show what is in a file; exit 1 when something is wrong.

    Layout, fields, shapes, ranges, NaNs, parameters, content hash, and what makes it unfit for training.
    """
    from ups.data.inspect import inspect_file, readable

    summary = inspect_file(file)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(summary), indent=2, default=str))
    else:
        _print_lines(tree(readable(summary)))
    raise typer.Exit(1 if summary.problems else 0)


def main() -> None:
    """Run the command line. An error that the user can mend is one message; its code is the exit code.

    Whatever surfaces after SIGINT or SIGTERM is its consequence: an import that is cut short can raise anything.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        app(prog_name="ups")
    except UpsError as error:
        stopped = error.exit_code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        if received and not stopped:
            _stopped(received[0])
        typer.echo(f"{error}" if stopped else f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == 128 + signal.SIGINT and not received:
            received.append(signal.SIGINT)
        if received and end.code:
            _stopped(received[0])
        raise
    except BaseException:
        if received:
            _stopped(received[0])
        raise


def _stopped(number: int) -> NoReturn:
    """Say that a signal ended the command, and exit as a shell expects."""
    for further in (signal.SIGINT, signal.SIGTERM):
        signal.signal(further, signal.SIG_IGN)
    continues = sys.argv[1:2] and sys.argv[1] in CONTINUING
    typer.echo("interrupted, run again to continue" if continues else "interrupted", err=True)
    sys.exit(128 + number)
