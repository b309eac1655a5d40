"""What can be known to be wrong before any work: names, paths and budgets, told without PyTorch and so at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ups.config.schema import Settings, StageName
from ups.data.named import is_named_hdf5, missing_files
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
        UsageError: no equation of a task's name; in `force` no step of a name, or a stage that the run does not train;
            a `stage` that is none of the tasks' or has no budget; a folder of runs that refuses; or data files that are
            named and not there: of these, all are listed.
    """
    require_equations(settings)
    unknown = [step for step in force if step not in STEPS]
    if unknown:
        raise UsageError(f"--force {unknown[0]}: the steps are {', '.join(STEPS)}")
    trained = [step for step in stages_of(settings.data.task) if not settings.stage(step).skipped]
    absent = [step for step in force if step in STAGES and step not in trained]
    if absent:
        known = ", ".join(trained) or "none: give one a budget"
        raise UsageError(f"--force {absent[0]}: this run does not train that stage; those that it trains are {known}")
    require_stage(settings, stage)
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


def stages_of(tasks: Iterable[str]) -> tuple[StageName, ...]:
    """The stages that there are for some tasks, in order: problems without time have one of their own."""
    return STAGES[-1:] if set(tasks) <= STEADY else STAGES[:-1]


def require_stage(settings: Settings, stage: StageName | None) -> None:
    """Refuses a stage that there is not for these tasks; None is all that there are.

    Raises:
        UsageError: so it is.
    """
    stages = stages_of(settings.data.task)
    if stage is not None and stage not in stages:
        raise UsageError(f"{stage} is no stage of {', '.join(settings.data.task)}: those are {', '.join(stages)}")


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


def require_hdf5_name(out: Path) -> None:
    """Refuses a name for an HDF5 file that says another kind, or none.

    Raises:
        UsageError: so it is.
    """
    if not is_named_hdf5(out):
        whole = out.with_name(f"{out.name}.h5")
        raise UsageError(f"{out} would hold HDF5, which its name does not say; name it {whole}")


def require_rollout(run: Path, source: Path, out: Path, points: Path | None) -> None:
    """Refuses a roll-out from what is not there, or to where it cannot be written.

    Raises:
        UsageError: `run` is no run, `source` or `points` no file, or `out` is no HDF5 file's name, exists or cannot be
            written.
    """
    require_run(run)
    require_files(source, *([] if points is None else [points]))
    require_hdf5_name(out)
    if out.exists():
        raise UsageError(f"{out} exists; name another file with --out, or remove it")
    require_output(out)
