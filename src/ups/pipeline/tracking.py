"""Where a run's log goes: the sinks of a stage, and what Weights & Biases is handed at the end of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ups.config.load import resolved
from ups.config.schema import Settings
from ups.errors import SettingsError
from ups.runtime import Progress, world
from ups.training.sinks import JsonlSink, Sink, TensorBoardSink, without_secrets
from ups.training.wandb_sink import WandbSink


def open_sinks(settings: Settings, folder: Path) -> list[Sink]:
    """The sinks of a run in `folder`: its `log.jsonl`, and those that are asked for; none on ranks but the first.

    Raises:
        SettingsError: a sink's package is not installed.
    """
    missing = settings.logging.missing()
    if missing:
        raise SettingsError("\n".join(f"{setting}: {what}" for setting, what in missing.items()))
    if not world().is_first:
        return []
    sinks: list[Sink] = [JsonlSink(folder / "log.jsonl")]
    if settings.logging.tensorboard:
        sinks.append(TensorBoardSink(folder / "tensorboard"))
    wandb = WandbSink(settings.logging.wandb, folder, resolved(settings))
    if settings.logging.wandb.mode != "disabled" and not wandb.refused:
        sinks.append(wandb)
    return sinks


def publish(settings: Settings, folder: Path, progress: Progress) -> None:
    """Hands a finished run's scores, model and report to Weights & Biases and ends its run there; else does nothing.

    A failure is told of; the run is done whatever becomes of its copy.
    """
    sink = WandbSink(settings.logging.wandb, folder, resolved(settings))
    if settings.logging.wandb.mode == "disabled" or sink.refused or not world().is_first:
        return
    artifacts = {"model": folder / "model", "report": folder / "report.html"}
    try:
        sink.publish(
            _scores(folder / "evaluation" / "full.json"),
            {kind: path for kind, path in artifacts.items() if path.exists()},
        )
    # The network, the disk or the package can fail in any way at all, and everything has been written already.
    except Exception as error:  # noqa: BLE001
        what = without_secrets(f"{type(error).__name__}: {error}".splitlines()[0])
        progress.say(f"Weights & Biases did not take model and report ({what}); they are in {folder}")


def _scores(path: Path) -> dict[str, float]:
    """The model's scores as `test/{task}/{metric}`."""
    if not path.exists():
        return {}
    tasks: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    return {
        f"test/{task}/{metric}": value
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
        if isinstance(value, int | float)
    }
