"""What can be known to be wrong before any work: names, paths and budgets, told without PyTorch and so at once."""

from __future__ import annotations

from pathlib import Path

from ups.config.schema import Settings, StageName
from ups.data.named import missing_files
from ups.errors import UsageError
from ups.files import require_files, unwritable
from ups.physics.names import STEADY, require_equation

STAGES: tuple[StageName, ...] = ("codec", "operator", "diff_residual", "consistency_distill", "steady_prior")
PREDICTING: tuple[StageName, ...] = ("codec", "operator", "steady_prior")
"""The stages that train what predicts; the others add ensembles to it."""

STEPS = ("data", "check", *STAGES, "baselines", "evaluate", "gates", "report")


def require_possible(settings: Settings, *, force: tuple[str, ...] = (), stage: StageName | None = None) -> None:
    """Refuses a run that has nothing to begin with.

    Args:
        force: steps to do again.
        stage: the one stage to train; None is all.

    Raises:
        UsageError: no equation of a task's name, no step of a name in `force` or a stage that the run does not train, a
            `stage` without a budget, a folder of runs that refuses, or data files that are named and not there; of
            these, all are listed.
    """
    require_equations(settings)
    unknown = [step for step in force if step not in STEPS]
    if unknown:
        raise UsageError(f"--force {unknown[0]}: the steps are {', '.join(STEPS)}")
    of_run = [step for step in STAGES if is_trained(settings, step)]
    absent = [step for step in force if step in STAGES and step not in of_run]
    if absent:
        raise UsageError(f"--force {absent[0]}: this run does not train that stage; its stages are {', '.join(of_run)}")
    if stage is not None and settings.stage(stage).skipped:
        raise UsageError(
            f"stages.{stage}.epochs is 0: there is nothing to train; give the stage a budget, such as "
            f"stages.{stage}.seconds=60"
        )
    why = unwritable(Path(settings.runs_dir) / "run")
    if why is not None:
        raise UsageError(f"runs_dir is {settings.runs_dir}: {why}")
    missing = missing_files(settings.data)
    if missing:
        raise UsageError("\n".join(map(str, missing)))


def is_trained(settings: Settings, stage: StageName) -> bool:
    """Whether a run trains a stage: problems without time have one of their own, and a stage needs a budget."""
    without_time = set(settings.data.task) <= STEADY
    return (stage == "steady_prior") == without_time and not settings.stage(stage).skipped


def require_equations(settings: Settings) -> None:
    """Refuses tasks that there are no equations of.

    Raises:
        UsageError: there is none of that name.
    """
    for task in settings.data.task:
        require_equation(task)


def require_run(run: Path) -> Path:
    """The settings' file of a run that exists.

    Raises:
        UsageError: the folder is no run.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise UsageError(f"{run} is no run's folder: it has no config.yaml; give the folder that 'ups run' printed")
    return config


def require_output(path: Path) -> None:
    """Refuses a file to write that could not be written.

    Raises:
        UsageError: it is a folder, or its place refuses.
    """
    why = unwritable(path)
    if why is not None:
        raise UsageError(why)


def require_rollout(run: Path, source: Path, out: Path, points: Path | None) -> None:
    """Refuses a roll-out from what is not there, or to where it cannot be written.

    Raises:
        UsageError: `run` is no run, `source` or `points` no file, or `out` exists or cannot be written.
    """
    require_run(run)
    require_files(source, *([] if points is None else [points]))
    if out.exists():
        raise UsageError(f"{out} exists; name another file with --out, or remove it")
    require_output(out)
