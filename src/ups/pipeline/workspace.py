"""One run's folder and what its steps share: settings, device, data, task descriptions; each read when first needed."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch

import ups
from ups.config.load import dump_settings, resolved, settings_hash
from ups.config.schema import Settings, StageName
from ups.data.normalize import compute_statistics
from ups.data.split import load_splits
from ups.data.trajectories import TrajectorySet
from ups.errors import UpsError
from ups.models.emulator import TaskSpec
from ups.models.simulator import Simulator
from ups.pipeline.records import StepRecords, digest, write_json
from ups.runtime import Progress, choose_device, prepare_process, run_id, seed_everything
from ups.training.stages import build_simulator, choose_batch_size, describe_task

Sets = dict[str, TrajectorySet]


class Workspace:
    """Everything the steps of one run share.

    Args:
        settings: the resolved settings.
        progress: where the steps tell what they do.
    """

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings, self.progress = settings, progress
        self.run_dir = Path(settings.runs_dir) / run_id(settings.name, settings.data.task, settings_hash(settings))
        self.records = StepRecords(self.run_dir)
        prepare_process(threads=settings.threads, deterministic=settings.deterministic, benchmark=settings.benchmark)
        self.device = choose_device(settings.device)

    def open(self) -> None:
        """Makes the run's folder and writes its resolved settings.

        Raises:
            UpsError: the folder cannot be written.
        """
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            (self.run_dir / "config.yaml").write_text(dump_settings(self.settings), encoding="utf-8")
        except OSError as error:
            raise UpsError(f"{self.run_dir} cannot be written: {error.strerror}; choose another runs_dir") from error

    # --- data --------------------------------------------------------------------------------------------------------

    def generate_missing(self, *, overwrite: bool = False) -> bool:
        """Makes the data files that are absent, where `data.generate` says how; returns whether any was made."""
        wanted, data = self.settings.data.generate, self.settings.data
        if wanted is None:
            return False
        from ups.data.generate import generate  # the solvers are imported only where data is made

        named = data.files if isinstance(data.files, dict) else {data.task[0]: data.files or ()}
        missing = [(task, Path(data.root) / name) for task, names in named.items() for name in names]
        missing = [(task, path) for task, path in missing if overwrite or not path.exists()]
        for task, path in missing:
            generate(
                task,
                path,
                wanted.samples,
                wanted.seed,
                dict(wanted.params),
                resolution=wanted.resolution,
                frames=wanted.frames,
                overwrite=overwrite,
                progress=self.progress,
            )
        return bool(missing)

    @cached_property
    def splits(self) -> dict[str, Sets]:
        """`train`, `valid` and `test`, each a set of trajectories per task."""
        return load_splits(self.settings.data)

    @cached_property
    def data_hash(self) -> str:
        """Hash of the content of every trajectory of every split."""
        return digest(
            {split: {task: part.content_hash for task, part in sets.items()} for split, sets in self.splits.items()}
        )

    @cached_property
    def specs(self) -> dict[str, TaskSpec]:
        """What a model is told of each task, from the train split alone."""
        return {
            task: describe_task(self.settings, train, compute_statistics(train))
            for task, train in self.splits["train"].items()
        }

    # --- models ------------------------------------------------------------------------------------------------------

    def new_simulator(self) -> Simulator:
        """The untrained simulator of these settings, the same at every call."""
        seed_everything(self.settings.seed)
        return build_simulator(self.settings, self.specs)

    def batch_size(self, stage: StageName) -> int:
        """Windows per batch of a stage."""
        return choose_batch_size(self.settings.batch_size_of(stage), self.specs)

    def write_metadata(self, *, trained: bool) -> None:
        """Writes `metadata.json`: what was run, on what, with which versions."""
        finished = {step: record["finished_at"] for step, record in self.records.records.items()}
        versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "h5py", "pydantic")}
        write_json(
            self.run_dir / "metadata.json",
            {
                "schema_version": 1,
                "created_at": min(finished.values(), default=None),
                "config_hash": settings_hash(self.settings),
                "data_hash": self.data_hash,
                "architecture": digest(
                    {task: asdict(spec) for task, spec in self.specs.items()}, resolved(self.settings)["operator"]
                ),
                "versions": {"ups": ups.__version__, "python": platform.python_version(), **versions},
                "machine": {"processor": platform.machine(), "device": str(self.device)},
                "threads": torch.get_num_threads(),
                "world_size": 1,
                "trained": trained,
                "trained_at": finished.get("operator") if trained else None,
                "last_small_eval": finished.get("evaluate"),
                "last_full_eval": finished.get("evaluate"),
                "steps": self.records.records,
            },
        )
