"""Commands that make runs, and those that use a finished one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ups.cli.choices import DeviceChoice, GuardChoice, ModeChoice, SplitChoice, StageChoice
from ups.cli.shared import LARGEST_SEED, Config, Overrides, Run, app, print_lines, settings_of, telling
from ups.errors import CheckpointError, DataError, SettingsError, UpsError, UsageError
from ups.files import require_files, require_writable
from ups.hub import require_repository
from ups.terminal import grouped, problem_lines, table
from ups.timing import BEGAN, Timings

if TYPE_CHECKING:
    from ups.config import Settings
    from ups.pipeline.check_report import CheckReport
    from ups.pipeline.finished import RunOutcome
    from ups.runtime import Progress

STEPS_HELP = (
    "Do a step again, and all that come after it; may be repeated. "
    "The steps are data, check, the stages that the run trains (codec, operator, diff_residual, consistency_distill; "
    "steady_prior), baselines, evaluate, gates and report."
)

VIEWS_HELP = (
    "Mirrored and moved views a step is the mean over (operator.symmetrize): 2 or 4 are often more accurate and take 2 "
    "or 4 times as long; 0 sees the fields as they are. Default: as trained."
)

Device = Annotated[DeviceChoice | None, typer.Option(help="Where to compute. Default: as the run was.")]


def _show(outcome: RunOutcome, more: Iterable[str] = ()) -> None:
    """Print a run's table, what is worth saying, and last its folder."""
    from ups.runtime import world

    if world().is_first:
        print_lines([*table(outcome.table), *more, *outcome.messages, str(outcome.run_dir)])


@app.command()
def run(
    config: Config,
    overrides: Overrides = None,
    force: Annotated[list[str] | None, typer.Option(metavar="STEP", help=STEPS_HELP)] = None,
    skip_checks: Annotated[bool, typer.Option("--skip-checks", help="Do not check first.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show the seconds of every step, and write them to profile.json.")
    ] = False,
) -> None:
    """Check, train, evaluate, judge and report. Running again does only what is missing.

    The last line is the run's folder. Exit code 1 says that a gate failed: the run is whole, but not the champion.
    """
    timings = Timings("imports", BEGAN)
    import ups.config  # noqa: F401 (so that it does not count as reading the settings)

    with timings.part("settings"):
        settings = settings_of(config, overrides)
    from ups.pipeline.before import require_possible

    with telling() as progress:
        outcome = None if force else _ended_before(settings, progress, timings)
        if outcome is None:
            require_possible(settings, force=tuple(force or ()))
            from ups.pipeline.run import run_pipeline

            with timings.part("rest"):
                outcome = run_pipeline(
                    settings, progress=progress, force=tuple(force or ()), skip_checks=skip_checks, timings=timings
                )
    _show(outcome, _profile(timings, outcome.run_dir) if profile else ())
    raise typer.Exit(0 if outcome.passed else 1)


def _ended_before(settings: Settings, progress: Progress, timings: Timings) -> RunOutcome | None:
    """How a run ended that has nothing left to do."""
    from ups.pipeline.finished import outcome_of_finished

    with timings.part("look what is done"):
        outcome = outcome_of_finished(settings)
    if outcome is not None:
        progress.say(
            "nothing to do: every step is done, and neither settings, data, results nor champion have changed since"
        )
    return outcome


def _profile(timings: Timings, folder: Path) -> list[str]:
    """The table of what the steps took, which is also left in the run's folder."""
    from ups.pipeline.records import write_json

    write_json(folder / "profile.json", timings.to_json())
    return ["", *table(timings.rows()), ""]


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    stage: Annotated[StageChoice, typer.Option(help="The stage to train, after those it needs.")] = StageChoice.all,
) -> None:
    """Train one stage, or all of them, without the evaluation."""
    settings = settings_of(config, overrides)
    from ups.pipeline.before import require_possible

    chosen: Any = None if stage is StageChoice.all else stage.value  # the names are those of the stages
    require_possible(settings, stage=chosen)
    from ups.pipeline.run import train_pipeline

    with telling() as progress:
        outcome = train_pipeline(settings, progress=progress, stage=chosen)
    _show(outcome)


@app.command()
def evaluate(
    run: Run,
    more: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="Further files for --data.")] = None,
    data: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Score these files instead.")] = None,
    split: Annotated[
        SplitChoice | None, typer.Option(help="Split of the run's own data to score; default: test.")
    ] = None,
    members: Annotated[
        int | None,
        typer.Option(min=0, help="Roll-outs in an ensemble; 0 and 1 draw none. Default: as in the settings."),
    ] = None,
    views: Annotated[int | None, typer.Option(min=0, metavar="N", help=VIEWS_HELP)] = None,
    device: Device = None,
) -> None:
    """Score a trained run on a split of its data, or on other files."""
    if more and not data:
        raise UsageError(f"{more[0]} is not expected here; name files to score with --data")
    if data and split:
        raise UsageError("--split and --data exclude each other: files that are named are scored whole")
    files = (*(data or ()), *(more or ()))
    from ups.pipeline.before import require_run

    require_run(run)
    require_files(*files)
    require_writable(run / "evaluation" / "scores.json")
    from ups.pipeline.evaluate import evaluate_run

    with telling() as progress:
        rows = evaluate_run(
            run,
            files,
            (split or SplitChoice.test).value,
            progress,
            device and device.value,
            members=members,
            views=views,
        )
    print_lines(table(rows))


@app.command()
def check(
    config: Config,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all of it as JSON: problems, data, dry run, memory, disk.")
    ] = False,
) -> None:
    """Check settings, data and a dry run; list every problem.

    The dry run sends one real batch forward and backward through every stage that has a budget, and says what each will
    take: parameters, time, memory, disk. Exit code 1 says that there are problems, 2 that the settings are wrong.
    """
    try:
        settings = settings_of(config, overrides)
        from ups.pipeline.before import require_equations

        require_equations(settings)
        from ups.pipeline.run import check_pipeline

        with telling() as progress:
            report = check_pipeline(settings, progress=progress)
    except UpsError as error:
        if not as_json:
            raise
        typer.echo(json.dumps(_not_checked(config, error), indent=2))
        raise typer.Exit(error.exit_code) from error
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        print_lines(_report_lines(report))
    raise typer.Exit(1 if report.problems else 0)


def _not_checked(config: Path, error: UpsError) -> dict[str, Any]:
    """What `--json` prints where an error kept everything else from being looked at."""
    from ups.pipeline.check_report import Problem, failed_before

    remedy = "do as it says, and check again"
    match error:
        case SettingsError() | UsageError():
            kind, remedy = "settings", "correct the settings"
        case DataError():
            kind = "data"
        case CheckpointError():
            kind = "model"
        case _:
            kind = "folder"
    whats = [line.strip() for line in str(error).splitlines() if line.startswith("  ")] or [str(error)]
    return failed_before([Problem(kind, str(config), what, remedy) for what in whats])


def _report_lines(report: CheckReport) -> Iterator[str]:
    """What passed, what the dry run says, every problem, and how many there are."""
    for part in (table(report.rows()), table(report.training_rows())):
        yield from [*part, ""] if part else []
    num = len(report.problems)
    rows = [(problem.where, problem.what, problem.remedy) for problem in report.problems]
    yield from problem_lines(grouped(rows), sys.stdout)
    yield from (f"warning: {doubt}" for doubt in report.doubts)
    warnings = len(report.doubts)
    beside = f", {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
    yield (f"{num} problem{'s' if num != 1 else ''} found" if num else "no problems found") + beside


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
    guard: Annotated[
        list[GuardChoice] | None,
        typer.Option(help="End every step with this guard; may be repeated. Default: those trained with."),
    ] = None,
    no_guards: Annotated[bool, typer.Option("--no-guards", help="End steps with no guard.")] = False,
    corrector_every: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Correct members at every K-th step. Default: as trained.")
    ] = None,
    views: Annotated[int | None, typer.Option(min=0, metavar="N", help=VIEWS_HELP)] = None,
    mode: Annotated[
        ModeChoice | None,
        typer.Option(help="Stay in latent space between steps, or decode and encode. Default: as evaluated."),
    ] = None,
    device: Device = None,
) -> None:
    """Predict from the first frames of a file, and write it."""
    if guard and no_guards:
        raise UsageError("--guard and --no-guards exclude each other")
    from ups.pipeline.before import require_rollout

    require_rollout(run, source, out, points)
    from ups.pipeline.rollout import rollout_file

    with telling() as progress:
        rollout_file(
            run, source, steps, out, points, members, seed, progress,
            mode=mode and mode.value,
            guards=() if no_guards else tuple(one.value for one in guard) if guard else None,
            corrector_every=corrector_every,
            views=views,
            device=device and device.value,
        )  # fmt: skip
    typer.echo(str(out))


@app.command()
def watch(run: Run, once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False) -> None:
    """Watch a training from its log, here or in another process."""
    from ups.watching import watch as show
    from ups.watching import watch_once

    if once:
        typer.echo(watch_once(run))
    else:
        show(run)


@app.command()
def report(run: Run) -> None:
    """Write the HTML report of a run."""
    from ups.pipeline.before import require_run

    require_run(run)
    from ups.evaluation.report import write_report

    typer.echo(str(write_report(run)))


@app.command()
def push(
    run: Run,
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make it private, if it is made.")] = False,
) -> None:
    """Put a run's model on the Hugging Face Hub, with a model card from its records."""
    from ups.pipeline.before import require_run

    require_repository(repository)
    require_run(run)
    from ups.pipeline.card import push_run

    typer.echo(push_run(run, repository, private=private))


@app.command()
def board(
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every score of every run here, as CSV.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the leaderboard as one HTML page.")] = None,
    runs_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the runs, or the file that gates.leaderboard names.")
    ] = Path("runs"),
    compare: Annotated[
        tuple[str, str] | None, typer.Option(metavar="RUN RUN", help="Show the scores of two runs side by side.")
    ] = None,
) -> None:
    """Show every run that was judged, and the champions."""
    from ups.evaluation.board import Board
    from ups.pipeline.before import require_output

    for out in filter(None, (csv, html)):
        require_output(out)
    shown = Board.read(runs_dir if runs_dir.is_file() else runs_dir / "leaderboard.sqlite")
    if compare is not None:
        rows, note = shown.compare(*compare)
        print_lines([*table(rows), *note])
    elif csv is None and html is None:
        print_lines(table(shown.rows()))
    for path, write in ((csv, shown.write_csv), (html, shown.write_html)):
        if path is not None:
            write(path)
            typer.echo(str(path))
