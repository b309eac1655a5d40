"""What training tells: a line of JSON per record, progress to a person, and an error when it diverges.

Losses and gradient norms stay on the device until they are logged; a step of training never waits for the host.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

import torch
from torch import Tensor

from ups.errors import UpsError
from ups.runtime import Progress, SilentProgress

Record = Mapping[str, str | int | float | None]

LOSS, GRAD_NORM = "loss", "grad_norm"
_SECONDS_BETWEEN_UPDATES = 0.25


class DivergedError(UpsError):
    """The loss or the gradient is no longer finite; the message says from which step on, and what to change."""


@dataclass(frozen=True)
class Moment:
    """Where training stands: steps and epochs done, seconds of training, and the rate of the last step."""

    step: int
    epoch: float
    elapsed: float
    lr: float


@runtime_checkable
class Sink(Protocol):
    """Where records go."""

    def write(self, record: Record) -> None:
        """Keeps one record."""

    def rewind(self, stage: str, step: int) -> None:
        """Forgets the records of a stage after `step`, from which it now continues."""

    def close(self) -> None:
        """No more records come."""


class NullSink:
    """Keeps nothing."""

    def write(self, record: Record) -> None:
        """Keeps nothing."""

    def rewind(self, stage: str, step: int) -> None:
        """Has nothing to forget."""

    def close(self) -> None:
        """Has nothing to close."""


class JsonlSink:
    """One line of JSON per record, on the disk as soon as written; numbers that are not finite become null.

    Args:
        path: the file, shared by the stages of a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def write(self, record: Record) -> None:
        """Appends a record."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps({key: _finite(item) for key, item in record.items()}, allow_nan=False) + "\n")
        self._file.flush()

    def rewind(self, stage: str, step: int) -> None:
        """Drops the stage's records after `step`, and a line torn by a kill: a resumed curve has no step twice."""
        self.close()
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _is_record(line) and not _is_after(json.loads(line), stage, step)]
        if kept != lines:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            os.replace(temporary, self.path)

    def close(self) -> None:
        """Closes the file; a later record opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _finite(item: str | int | float | None) -> str | int | float | None:
    return None if isinstance(item, float) and not math.isfinite(item) else item


def _is_record(line: str) -> bool:
    try:
        return line.endswith("\n") and isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _is_after(record: dict[str, Any], stage: str, step: int) -> bool:
    return record.get("stage") == stage and record.get("step", 0) > step


class Monitor:
    """Gathers what the steps of a stage produce, and passes it on at each log point.

    Args:
        stage: name of the stage, in every record.
        sinks: where records go.
    """

    def __init__(self, stage: str, sinks: Sequence[Sink] = ()) -> None:
        self.stage, self.sinks = stage, tuple(sinks)
        self.progress: Progress = SilentProgress()
        self._series: dict[str, list[Any]] = defaultdict(list)  # tensors and numbers since the last log point
        self._samples = self._points = 0
        self._waited = self._since = 0.0
        self._told = -math.inf
        self._notes: dict[str, float] = {}

    def start(self, progress: Progress, *, total: int | float, unit: str, step: int) -> None:
        """Begins at optimizer step `step` of a stage of `total` units."""
        self.progress = progress
        for sink in self.sinks:
            sink.rewind(self.stage, step)
        progress.start(f"train {self.stage}", total, unit)

    def record_batch(
        self, loss: Tensor, components: Mapping[str, Tensor], *, samples: int, points: int, waited: float
    ) -> None:
        """Takes one batch's loss and components, how much it held, and the seconds that its data took."""
        self._series[LOSS].append(loss.detach())
        for name, component in components.items():
            self._series[name].append(component.detach())
        self._samples += samples
        self._points += points
        self._waited += waited

    def record_step(self, grad_norm: Tensor) -> None:
        """Takes the gradient's norm before clipping."""
        self._series[GRAD_NORM].append(grad_norm)

    def tell(self, done: float) -> None:
        """Updates the progress bar, a few times a second at most."""
        now = time.perf_counter()
        if now - self._told >= _SECONDS_BETWEEN_UPDATES:
            self._told = now
            self.progress.update(done, "  ".join(f"{name} {value:.3g}" for name, value in self._notes.items()))

    def check(self, moment: Moment, *, gradients: bool = True) -> None:
        """Fetches what was gathered and makes sure that it is finite.

        Args:
            moment: now.
            gradients: whether gradients must be finite too; a loss scaler looks after its own.

        Raises:
            DivergedError: some loss or gradient since the last log point is not finite.
        """
        self._fetch()
        losses, norms = self._series[LOSS], self._series[GRAD_NORM]
        batches = len(losses) // max(len(norms), 1)
        for i, norm in enumerate(norms):
            step_losses = losses[i * batches : (i + 1) * batches]
            if all(map(math.isfinite, step_losses)) and (math.isfinite(norm) or not gradients):
                continue
            step = moment.step - len(norms) + 1 + i
            before = f", after a loss of {losses[i * batches - 1]:.3g} in the step before" if i else ""
            raise DivergedError(
                f"stage {self.stage} diverged in step {step}: loss {step_losses[-1]:.3g}, gradient norm {norm:.3g}, "
                f"learning rate {moment.lr:.3g}{before}. What was saved before is intact. Lower optimizer.lr or "
                "training.grad_clip, raise the warmup of optimizer.scheduler, and look at the data with `ups check`"
            )

    def log(self, moment: Moment, *, epochs_since_improvement: float, device: torch.device) -> None:
        """Writes a record of the steps since the last one; call `check` before."""
        self._fetch()
        means = {name: math.fsum(values) / len(values) for name, values in self._series.items() if values}
        seconds = max(moment.elapsed - self._since, 1e-9)
        self._write(
            moment,
            {
                **means,
                "lr": moment.lr,
                "samples_per_second": self._samples / seconds,
                "points_per_second": self._points / seconds,
                "data_wait": self._waited / seconds,
                "memory_peak_mb": peak_memory(device) / 2**20,
                "epochs_since_improvement": epochs_since_improvement,
            },
        )
        self._notes[LOSS] = means[LOSS]
        self._series.clear()
        self._samples = self._points = 0
        self._waited, self._since = 0.0, moment.elapsed

    def log_validation(self, moment: Moment, metric: float, *, best: float, best_step: int) -> None:
        """Writes a record of a validation."""
        self._write(moment, {"valid_nrmse": metric, "best_nrmse": best, "best_step": best_step})
        self._notes["valid"] = metric

    def finish(self) -> None:
        """Ends the stage's progress and closes the sinks."""
        self.progress.finish("  ".join(f"{name} {value:.3g}" for name, value in self._notes.items()))
        self.close()

    def close(self) -> None:
        """Closes the sinks."""
        for sink in self.sinks:
            sink.close()

    def state_dict(self) -> dict[str, Any]:
        """What was gathered since the last log point, so that a resumed run logs the same curve."""
        self._fetch()
        counts = {"samples": self._samples, "points": self._points, "waited": self._waited, "since": self._since}
        series = {name: list(values) for name, values in self._series.items()}
        return {"series": series, "notes": dict(self._notes), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self._series = defaultdict(list, {name: list(values) for name, values in state["series"].items()})
        self._samples, self._points = state["samples"], state["points"]
        self._waited, self._since, self._notes = state["waited"], state["since"], dict(state["notes"])

    def _write(self, moment: Moment, values: Mapping[str, float]) -> None:
        reserved = ("stage", "step", "epoch", "elapsed")
        if not values.keys().isdisjoint(reserved):
            raise ValueError(f"a metric is named one of {', '.join(reserved)}, which the log uses itself; rename it")
        place = (self.stage, moment.step, round(moment.epoch, 4), round(moment.elapsed, 3))
        for sink in self.sinks:
            sink.write({**dict(zip(reserved, place, strict=True)), **values})

    def _fetch(self) -> None:
        """Turns everything still on the device into numbers with one transfer."""
        places = [
            (values, i) for values in self._series.values() for i, item in enumerate(values) if isinstance(item, Tensor)
        ]
        if places:
            numbers = torch.stack([values[i].float() for values, i in places]).tolist()
            for (values, i), number in zip(places, numbers, strict=True):
                values[i] = number


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocations at their highest, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
