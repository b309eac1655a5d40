"""Weights & Biases: one run per pipeline run, which all of its stages write to."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ups.config.tracking import WandbSettings
from ups.files import write_whole
from ups.training.sinks import NullSink, Record, metrics_of

_RUNS: dict[Path, Any] = {}
"""Open runs by folder: a run belongs to the process, as its package has it, and outlives the stages."""

_REFUSED: set[Path] = set()
"""Folders whose run could not be opened: asking again at every stage would wait for the network every time."""


class WandbSink(NullSink):
    """Metrics as `{stage}/{metric}` over `{stage}/step`, an alert at the end of each stage, artifacts at the end.

    The package is imported, and its run opened or continued, with the first record; the key is its own affair. What it
    had of a stage that is rewound stays, and is written over at the same steps.

    Args:
        settings: mode, project and how the run is filed.
        folder: the pipeline run's; gets `wandb/`, with the identifier under which a continued run is found again.
        config: of the run, nested.
    """

    def __init__(self, settings: WandbSettings, folder: Path, config: Mapping[str, Any]) -> None:
        self.settings, self.folder, self.config = settings, folder, dict(config)
        self._stages: set[str] = set()

    def __str__(self) -> str:
        return "Weights & Biases"

    @property
    def refused(self) -> bool:
        """Whether the run could not be opened before, by this process."""
        return self.folder.resolve() in _REFUSED

    def write(self, record: Record) -> None:
        """Logs every metric of a record, and alerts to a roll-back."""
        run, stage = self._run(), str(record["stage"])
        if stage not in self._stages:
            run.define_metric(f"{stage}/step")
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        place = {f"{stage}/{name}": record[name] for name in ("step", "epoch", "elapsed")}
        run.log({**place, **{f"{stage}/{name}": value for name, value in metrics_of(record).items()}})
        if isinstance(diagnosis := record.get("diagnosis"), str):
            run.alert(title=f"{self.folder.name}: {stage} rolled back", text=diagnosis, level="WARN")

    def end_stage(self, stage: str, summary: Record) -> None:
        """Writes the stage's summary and tells that it is done."""
        run = self._run()
        run.summary.update({f"{stage}/{name}": value for name, value in summary.items()})
        text = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                         for name, value in summary.items())  # fmt: skip
        run.alert(title=f"{self.folder.name}: {stage} is done", text=text, level="INFO")

    def publish(self, scores: Record, artifacts: Mapping[str, Path]) -> None:
        """Ends the run, with scores in its summary and files or folders as artifacts of the types that name them."""
        import wandb

        run = self._run()
        run.summary.update(dict(scores))
        for kind, path in artifacts.items():
            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", f"{kind}-{self.folder.name}"), type=kind)
            for file in [path] if path.is_file() else sorted(part for part in path.rglob("*") if part.is_file()):
                artifact.add_file(str(file), name=file.name if file == path else str(file.relative_to(path)))
            run.log_artifact(artifact)
        del _RUNS[self.folder.resolve()]
        run.finish()

    def _run(self) -> Any:
        place = self.folder.resolve()
        if place not in _RUNS:
            _REFUSED.add(place)  # until it is open
            import wandb

            chosen = self.settings
            _RUNS[place] = wandb.init(
                mode=chosen.mode,
                project=chosen.project,
                entity=chosen.entity,
                group=chosen.group,
                tags=list(chosen.tags),
                name=self.folder.name,
                id=self._identifier(),
                resume="allow" if chosen.mode == "online" else None,
                reinit="create_new",  # a run that the caller has open is not ours
                dir=str(self.folder),
                config=self.config,
                # It would print, record what the terminal shows, ask for a key, and copy the program and git's remote.
                settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
            )
            _REFUSED.discard(place)
        return _RUNS[place]

    def _identifier(self) -> str:
        """Drawn once and kept, so that the same settings in another folder are another run."""
        place = self.folder / "wandb" / "run_id"
        if not place.exists():
            write_whole(place, secrets.token_hex(8))
        return place.read_text(encoding="utf-8").strip()
