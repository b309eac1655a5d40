"""`ups evaluate`: scores a trained run on one of its splits, or on any files of a supported layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ups.config.load import load_settings
from ups.data.split import load_files
from ups.errors import UsageError
from ups.evaluation.evaluate import Protocol, evaluate
from ups.models.baselines import make_baseline
from ups.models.store import load_model
from ups.pipeline.judge import Row, score_table
from ups.pipeline.records import digest, write_json
from ups.pipeline.workspace import Workspace
from ups.runtime import Progress


def open_run(run: Path, progress: Progress) -> Workspace:
    """The workspace of a run that exists.

    Raises:
        UsageError: the folder is no run.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise UsageError(f"{run} is no run's folder: it has no config.yaml; give the folder that 'ups run' printed")
    workspace = Workspace(load_settings(config), progress)
    workspace.run_dir = run
    return workspace


def evaluate_run(run: Path, files: Sequence[Path], split: str, progress: Progress) -> list[Row]:
    """Scores the run's model and persistence; writes `evaluation/<split>.json`, or `evaluation/files-<hash>.json` for files.

    Args:
        files: trajectories to score instead of the run's own; all of one task of the model.
    """
    workspace = open_run(run, progress)
    simulator = load_model(run / "model", workspace.device)
    if files:
        tasks = tuple(simulator.tasks)
        sets = load_files(files, tasks, workspace.settings.data)
    else:
        sets = workspace.splits[split]
    settings = workspace.settings.evaluation
    protocol = Protocol(
        "files" if files else split, settings.full.max_samples, settings.full.steps, settings.rollout_mode, settings.batch_size
    )
    emulators = {"ups": simulator, "persistence": make_baseline("persistence", simulator.tasks)}
    found = evaluate(emulators, sets, protocol=protocol, device=workspace.device, progress=progress, showcases=False)
    name = f"files-{digest([str(path) for path in files])[:8]}" if files else f"split-{split}"
    write_json(run / "evaluation" / f"{name}.json", found.to_json())
    progress.say(f"scores: {run / 'evaluation' / f'{name}.json'}")
    return score_table(found)
