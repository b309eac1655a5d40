"""The whole way from settings to report: data, check, train, evaluate, gates and promotion, report.

Every step is done once, and again when what it depends on changes.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ups.config.load import resolved
from ups.config.schema import Settings, StageName
from ups.errors import UpsError
from ups.evaluation.leaderboard import Standing
from ups.files import held, write_remedy
from ups.health import findings_of, score_of
from ups.models.emulator import Emulator
from ups.pipeline.baselines import train_baseline
from ups.pipeline.before import STAGES, STEPS, require_possible
from ups.pipeline.check_report import CheckReport
from ups.pipeline.checks import ChecksFailed, check_everything
from ups.pipeline.finished import RunOutcome, changed_since, remember
from ups.pipeline.judge import evaluate_in_steps, poor_ensembles, read_table
from ups.pipeline.promote import decide
from ups.pipeline.records import digest, leaderboard_of
from ups.pipeline.threads import settle_threads
from ups.pipeline.tracking import publish
from ups.pipeline.train import train_stages
from ups.pipeline.workspace import Workspace
from ups.runtime import Progress
from ups.timing import Timings
from ups.training.builders import require_form
from ups.versions import SCORES


def run_pipeline(
    settings: Settings,
    *,
    progress: Progress,
    force: tuple[str, ...] = (),
    skip_checks: bool = False,
    timings: Timings | None = None,
) -> RunOutcome:
    """Runs every step that is not done yet, and those of `force`.

    A run whose gates fail is whole all the same: scored, reported, and not promoted.

    Args:
        timings: where the steps tell what they cost.

    Raises:
        UsageError: `force` names a step that does not exist.
        UpsError: a check failed, or a step met something the user has to mend; what was done stays done.
    """
    with prepared(settings, progress, force=force, skip_checks=skip_checks, timings=timings) as workspace:
        return _run(workspace)


def _run(workspace: Workspace) -> RunOutcome:
    settings = workspace.settings
    emulators: dict[str, Emulator] = {"ups": train_stages(workspace)}
    for name in settings.evaluation.baselines:
        emulators[name] = train_baseline(workspace, name)
    trained = [workspace.records.key(name) for name in (*STAGES, *(f"baselines-{name}" for name in emulators))]
    when = [workspace.records.note(name, "finished_at", None) for name in STAGES]  # trained again is another model
    key = digest(trained, when, resolved(settings)["evaluation"], workspace.data_hash, SCORES)
    small = evaluate_in_steps(workspace, emulators, key)
    with workspace.timings.part("gates and promotion"):
        board = leaderboard_of(settings)
        decision = decide(workspace.run_dir, workspace.records, workspace.data_hash, settings.gates, board, small)
    workspace.write_metadata()
    with workspace.timings.part("report"):
        report = _report(workspace, digest(key, decision.content()))
    table = read_table(workspace.run_dir)
    messages = (
        *_ailments(workspace),
        *poor_ensembles(table),
        *decision.messages,
        *_doubts(workspace),
        f"report: {report}",
    )
    outcome = RunOutcome(workspace.run_dir, table, messages, decision.promoted, workspace.timings)
    _note_end(workspace, outcome, decision.standing)
    return outcome


def _doubts(workspace: Workspace) -> tuple[str, ...]:
    """What the checks of these settings and data warned of, also where they are not done again."""
    checked = workspace.records.done("check", _key_of_check(workspace))
    found = workspace.records.note("check", "doubts", ()) if checked else ()
    return tuple(f"warning: {doubt}" for doubt in found)


def _ailments(workspace: Workspace) -> tuple[str, ...]:
    """What the log says of what the stages left behind; how they trained is for `ups watch` and the report."""
    return tuple(f"{one.stage}: {one}" for one in findings_of(workspace.run_dir) if one.kind == "ensemble")


def _note_end(workspace: Workspace, outcome: RunOutcome, standing: Standing | None) -> None:
    """Notes how the run ended, so that it need not look again: where the data stayed as it was, and was checked."""
    changed = changed_since(workspace.data_seen, workspace.settings.data)
    if changed:
        workspace.progress.say(f"changed while the run was under way: {', '.join(changed)}; run again to use them")
    elif workspace.records.done("check", _key_of_check(workspace)):
        remember(workspace.settings, workspace.data_seen, outcome, standing)


def _key_of_check(workspace: Workspace) -> str:
    """What a check holds for: the settings, and the data as it was before it was read."""
    return digest(resolved(workspace.settings), workspace.data_seen)


def _report(workspace: Workspace, key: str) -> Path:
    """Writes the report, unless it is of what it would be made from now, and hands it on."""
    report = workspace.run_dir / "report.html"
    if workspace.records.done("report", key, report):
        return report
    from ups.evaluation.report import write_report  # matplotlib and jinja2, which training does not wait for

    began = time.perf_counter()
    write_report(workspace.run_dir)
    workspace.records.finish("report", key, time.perf_counter() - began)
    publish(workspace.settings, workspace.run_dir, workspace.progress)
    return report


def train_pipeline(settings: Settings, *, progress: Progress, stage: StageName | None = None) -> RunOutcome:
    """Trains one stage, after those it needs, or all of them (None); without evaluation.

    Raises:
        UsageError: the stage has no budget, or is none of the tasks'.
        UpsError: as `run_pipeline`.
    """
    require_possible(settings, stage=stage)
    with prepared(settings, progress) as workspace:
        return _train(workspace, stage)


def _train(workspace: Workspace, stage: StageName | None) -> RunOutcome:
    train_stages(workspace, stage)
    workspace.write_metadata()
    asked = STAGES if stage is None else (stage,)
    done = [name for name in asked if workspace.records.key(name)]
    rows = [
        {
            "stage": name,
            "validation": f"{score_of(name)} {workspace.records.note(name, 'best_valid', math.nan):.3g}",
            "steps": str(workspace.records.note(name, "steps", 0)),
        }
        for name in done
    ]
    return RunOutcome(workspace.run_dir, rows, (*_doubts(workspace), *_ailments(workspace)), timings=workspace.timings)


def check_pipeline(settings: Settings, *, progress: Progress) -> CheckReport:
    """Every problem of a run, and its figures; nothing is written but data that is to be generated."""
    workspace = open_workspace(settings, progress)
    workspace.generate_missing()
    return check_everything(workspace)


def open_workspace(settings: Settings, progress: Progress, timings: Timings | None = None) -> Workspace:
    """The workspace of settings that fit their tasks; nothing is written.

    Raises:
        UsageError: there is no such task, or a stage or a baseline is asked for that the tasks have not, or a
            form of the step that an equation has not.
    """
    workspace = Workspace(settings, progress, timings)
    _ = workspace.steady
    require_form(settings)
    return workspace


@contextmanager
def alone(run_dir: Path, progress: Progress) -> Iterator[None]:
    """The run's folder is there, and no other process works on it inside; where that cannot be told, it is said.

    Raises:
        UpsError: one does already, or the folder cannot be made.
    """
    with ExitStack() as stack:
        while True:
            try:
                run_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UpsError(f"{run_dir} cannot be made: {error.strerror}; {write_remedy(error)}") from error
            try:
                stack.enter_context(held(run_dir, patience=0.5))  # `ups watch` holds it for a moment, too
            except BlockingIOError:
                raise UpsError(
                    f"{run_dir} is being worked on by another process: `ups watch {run_dir}` shows it; "
                    "wait for its end or stop it, or give this run another name"
                ) from None
            except FileNotFoundError:  # whose checks failed, and who removed it
                continue
            except OSError as error:
                why = f"{run_dir} cannot be locked ({error.strerror})"
                progress.say(f"warning: {why}; start no second process on this run while this one works")
            break
        yield


@contextmanager
def prepared(
    settings: Settings,
    progress: Progress,
    *,
    force: tuple[str, ...] = (),
    skip_checks: bool = False,
    timings: Timings | None = None,
) -> Iterator[Workspace]:
    """The workspace of a run whose data is there and passed its checks; no other process works on it inside.

    Raises:
        UpsError: another process does already, or something the user has to mend.
    """
    require_possible(settings, force=force)
    run_dir = open_workspace(settings, progress).run_dir  # what is refused at once leaves no folder
    with alone(run_dir, progress):
        new = not any(run_dir.iterdir())
        workspace = open_workspace(settings, progress, timings)  # its records as the last process left them
        try:
            workspace.open()
            _check_and_settle(workspace, force, skip_checks)
        except UpsError:
            if new and not workspace.records.key("data"):  # nothing was done: no folder to wonder at shall stay
                shutil.rmtree(run_dir, ignore_errors=True)
            raise
        yield workspace


def _check_and_settle(workspace: Workspace, force: tuple[str, ...], skip_checks: bool) -> None:
    """Data that are to be made, checks, and the number of threads, as far as they are not done."""
    for step in STEPS[min(map(STEPS.index, force)) :] if force else ():  # what comes after depends on it
        workspace.discard(step)
    began = time.perf_counter()
    with workspace.timings.part("generate data"):
        made = workspace.generate_missing(overwrite="data" in force)
    if made:
        workspace.records.finish("data", digest(resolved(workspace.settings)["data"]), time.perf_counter() - began)
    key = _key_of_check(workspace)  # before anything is read
    if skip_checks or workspace.records.done("check", key):
        settle_threads(workspace)
        return
    began = time.perf_counter()
    report = check_everything(workspace)
    if report.problems:
        raise ChecksFailed(report.problems)
    for doubt in report.doubts:
        workspace.progress.say(f"warning: {doubt}")
    workspace.records.finish("check", key, time.perf_counter() - began, doubts=report.doubts)
