"""What training tells: records to its sinks, progress to a person, and what went wrong when steps were not finite.

Losses and gradient norms stay on the device until they are logged; a step of training never waits for the host.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ups.data.fields import Batch
from ups.errors import UpsError
from ups.health import score_of
from ups.runtime import Progress, SilentProgress
from ups.training.memory import peak_memory
from ups.training.sinks import PLACE, Beside, Record, Sink, without_secrets
from ups.training.sinks import JsonlSink as JsonlSink
from ups.training.sinks import NullSink as NullSink

LOSS, GRAD_NORM = "loss", "grad_norm"
_SECONDS_BETWEEN_UPDATES = 0.25
_NAMED = 3  # parameters that a diagnosis names


class DivergedError(UpsError):
    """Steps are not finite, and going back did not help; the message says from which step on, and what to change."""


@dataclass(frozen=True)
class Moment:
    """Where training stands: steps and epochs done, seconds of training, rate of the last step, part of the budget."""

    step: int
    epoch: float
    elapsed: float
    lr: float
    fraction: float = 0.0


@dataclass(frozen=True, eq=False)
class BatchTrace:
    """What is kept of a batch until its step is judged: where it was, its loss, and one number that is NaN if it is."""

    task: str
    epoch: float
    params: Tensor
    total: Tensor
    losses: Mapping[str, Tensor]


@dataclass(eq=False)
class StepTrace:
    """What is kept of a step until it is judged: its batches, and the norm of every parameter's gradient."""

    batches: list[BatchTrace] = field(default_factory=list)
    norms: Tensor | None = None
    evidence: Any = math.nan


class Monitor:
    """Gathers what the steps of a stage produce, judges it, and passes it on at each log point.

    A sink that fails is told of once and left out from then on, whatever it fails of; training goes on.

    Args:
        stage: name of the stage, in every record.
        sinks: where records go.
        per_task: whether the loss and its components are logged for each task, too.
        beside: scores that are logged with those of every validation.
    """

    def __init__(
        self, stage: str, sinks: Sequence[Sink] = (), *, per_task: bool = False, beside: Beside = dict
    ) -> None:
        self.stage, self.sinks, self.per_task, self.beside = stage, list(sinks), per_task, beside
        self.progress: Progress = SilentProgress()
        self._parameters: tuple[str, ...] = ()
        self._series: dict[str, list[Any]] = defaultdict(list)  # tensors and numbers since the last log point
        self._trace, self._pending = StepTrace(), list[StepTrace]()
        self._samples = self._points = self._flops = self._skipped = self._in_a_row = self._row = 0
        self._waited = self._stalled = self._since = self._since_epoch = 0.0
        self._diagnosis = self.wrong = ""
        self._told, self._notes = -math.inf, dict[str, float]()

    def start(
        self,
        progress: Progress,
        *,
        total: int | float,
        unit: str,
        step: int,
        rollbacks: int = 0,
        parameters: Sequence[str] = (),
    ) -> None:
        """Begins a stage of `total` units, which trains the named parameters, after so many steps and roll-backs."""
        self.progress, self._parameters = progress, tuple(parameters)
        self._each(lambda sink: sink.rewind(self.stage, step, rollbacks))
        progress.start(f"train {self.stage}", total, unit)

    # --- steps -------------------------------------------------------------------------------------------------------

    def record_batch(
        self,
        batch: Batch,
        loss: Tensor,
        components: Mapping[str, Tensor],
        *,
        epoch: float = math.nan,
        waited: float,
        flops: int = 0,
    ) -> None:
        """Takes one batch's loss and components, the epoch it is of, and what it cost: seconds of data, operations."""
        losses = {LOSS: loss.detach(), **{name: component.detach() for name, component in components.items()}}
        for name, value in losses.items():
            self._series[name].append(value)
            if self.per_task:
                self._series[f"{batch.task}/{name}"].append(value)
        values = batch.frames if batch.latents is None else batch.latents
        total = values.sum(dtype=torch.float32)
        self._trace.batches.append(BatchTrace(batch.task, epoch, batch.params, total, losses))
        self._samples += len(batch)
        self._points += batch.frames.numel() // batch.frames.shape[2]  # in space and time
        self._waited += waited
        self._flops += flops

    def record_step(self, grad_norm: Tensor, norms: Tensor) -> Tensor:
        """Takes the gradient's norm before clipping, and that of every parameter.

        Returns:
            A number that is finite when the losses of the step's batches and the norm all are.
        """
        self._series[GRAD_NORM].append(grad_norm)
        evidence = sum((batch.losses[LOSS] for batch in self._trace.batches), grad_norm)
        self._trace.norms, self._trace.evidence = norms, evidence
        self._pending.append(self._trace)
        self._trace = StepTrace()
        return evidence

    def record_save(self, stalled: float) -> None:
        """Takes the seconds that training stood still for a checkpoint."""
        self._stalled += stalled

    def tell(self, done: float) -> None:
        """Updates the progress bar, a few times a second at most."""
        now = time.perf_counter()
        if now - self._told >= _SECONDS_BETWEEN_UPDATES:
            self._told = now
            self.progress.update(done, self._note())

    def judge(self, moment: Moment, *, most: int) -> None:
        """Fetches what was gathered, and counts the steps that were skipped because they were not finite.

        Once `most` or more in a row were not, `wrong` says what went wrong first, until `log_rollback`.
        """
        self._fetch()
        first = moment.step - len(self._pending) + 1
        for number, step in enumerate(self._pending, start=first):
            if math.isfinite(step.evidence):
                self._in_a_row = 0
                continue
            self._diagnosis = self._diagnosis if self._in_a_row else self._diagnose(number, step)
            self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
            if self._in_a_row >= most:
                self.wrong, self._row = self._diagnosis, self._in_a_row
        self._pending.clear()

    @property
    def last_was_good(self) -> bool:
        """Whether the last step that was judged was finite."""
        return self._in_a_row == 0

    def _diagnose(self, number: int, step: StepTrace) -> str:
        """Which batch and which parameters were not finite first, and what to do about it."""
        bad = next((b for b in step.batches if not math.isfinite(float(sum(b.losses.values())))), step.batches[-1])
        losses = ", ".join(f"{name} {float(value):.3g}" for name, value in bad.losses.items())
        text = f"step {number}, a batch of {bad.task} in epoch {bad.epoch:.2f}"
        if bad.params.numel():
            low, high = (_listed(bad.params.aminmax(dim=0)[i].tolist()) for i in (0, 1))
            text += f" with PDE parameters from {low} to {high}"
        text += f": {losses}, gradient norm {float(self._norm_of(step)):.3g}"
        names = self._not_finite(step)
        if names:
            text += f"; not finite are the gradients of {', '.join(names[:_NAMED])}"
            text += f" and {len(names) - _NAMED} more of {len(self._parameters)}" if len(names) > _NAMED else ""
        if not math.isfinite(float(bad.total)):
            return f"{text}. The batch itself is not finite: look at the data with `ups check` and `ups data inspect`"
        if math.isfinite(float(bad.losses[LOSS])):
            return (
                f"{text}. The loss is finite, its derivative is not (a root or a norm at zero, an overflow): give the "
                "training.lambda_* terms 0 one by one to find which it is, and make training.amp false if it is true"
            )
        return (
            f"{text}. The network's output overflowed: lower optimizer.lr or training.grad_clip, raise the warmup of "
            "optimizer.scheduler, or shorten training.rollout_horizon"
        )

    def _norm_of(self, step: StepTrace) -> Tensor:
        return torch.zeros(()) if step.norms is None else torch.linalg.vector_norm(step.norms)

    def _not_finite(self, step: StepTrace) -> list[str]:
        flags = [] if step.norms is None else step.norms.isfinite().tolist()
        return [name for name, good in zip(self._parameters, flags, strict=False) if not good]

    # --- records -----------------------------------------------------------------------------------------------------

    def log(
        self,
        moment: Moment,
        *,
        epochs_since_improvement: float,
        device: torch.device,
        grad_clip: float | None = None,
        utilisation: Callable[[int, float], float | None] = lambda flops, seconds: None,
    ) -> None:
        """Writes a record of the steps since the last one; call `judge` before.

        Means are over what was finite, null where nothing was.

        Args:
            grad_clip: of the share `clipped` of steps whose gradient was longer; null without.
            utilisation: (operations, seconds) -> part of the device's peak.
        """
        self._fetch()
        means = {name: _mean(values) for name, values in self._series.items() if values}
        seconds, epochs = max(moment.elapsed - self._since, 1e-9), moment.epoch - self._since_epoch
        norms = [norm for norm in self._series[GRAD_NORM] if math.isfinite(norm)]
        clipped = None if grad_clip is None or not norms else sum(norm > grad_clip for norm in norms) / len(norms)
        self._write(
            moment,
            {
                **means,
                "lr": moment.lr,
                "clipped": clipped,
                "skipped_steps": self._skipped,
                "samples_per_second": self._samples / seconds,
                "points_per_second": self._points / seconds,
                "data_wait": self._waited / seconds,
                "checkpoint_stall": self._stalled,
                "epoch_seconds": seconds / epochs if epochs > 0 else None,
                "memory_peak_mb": peak_memory(device) / 2**20,
                "mfu": utilisation(self._flops, seconds),
                "epochs_since_improvement": epochs_since_improvement,
            },
        )
        loss = means[LOSS]
        self._notes[LOSS] = math.nan if loss is None else loss
        self._series.clear()
        self._samples = self._points = self._flops = self._skipped = 0
        self._waited, self._stalled, self._since, self._since_epoch = 0.0, 0.0, moment.elapsed, moment.epoch

    def log_validation(self, moment: Moment, metric: float, *, best: float, best_step: int) -> None:
        """Writes a record of a validation, under the name of what the stage's validations score."""
        score = score_of(self.stage)
        self._write(moment, {f"valid_{score}": metric, f"best_{score}": best, "best_step": best_step, **self.beside()})
        self._notes[f"valid {score}"] = metric

    def log_rollback(self, moment: Moment, *, rollbacks: int) -> None:
        """Forgets the records after the step to which training went back, and writes what it went back for.

        The record's `skipped_steps` are those in a row that it went back for.
        """
        self._each(lambda sink: sink.rewind(self.stage, moment.step, rollbacks - 1))
        self._write(moment, {"rollbacks": rollbacks, "skipped_steps": self._row, "diagnosis": self.wrong})
        self.progress.say(f"stage {self.stage} went back to step {moment.step}, at half the rate: {self.wrong}")
        self.wrong = ""
        self._series.clear()
        self._samples = self._points = self._flops = self._skipped = self._in_a_row = 0
        self._waited, self._since, self._since_epoch = 0.0, moment.elapsed, moment.epoch

    def finish(self, **summary: str | int | float) -> None:
        """Ends the stage's progress with the validation whose weights are kept; tells the sinks, and closes them."""
        self.progress.finish(f"best {score_of(self.stage)} {summary['best_metric']:.3g} at step {summary['best_step']}")
        self._each(lambda sink: sink.end_stage(self.stage, summary))
        self.close()

    def close(self) -> None:
        """Closes the sinks."""
        self._each(lambda sink: sink.close())

    def state_dict(self) -> dict[str, Any]:
        """What was gathered since the last log point, to log the same curve when resumed; call `judge` before."""
        self._fetch()
        series = {name: list(values) for name, values in self._series.items()}
        return {"series": series, "notes": dict(self._notes), **{name: getattr(self, name) for name in _COUNTS}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        self._series = defaultdict(list, {name: list(values) for name, values in state["series"].items()})
        self._notes = dict(state["notes"])
        for name in _COUNTS:
            setattr(self, name, state[name])

    def _write(self, moment: Moment, values: Record) -> None:
        if not values.keys().isdisjoint(PLACE):
            raise ValueError(f"a metric is named one of {', '.join(PLACE)}, which the log uses itself; rename it")
        numbers = (round(moment.epoch, 4), round(moment.elapsed, 3), round(moment.fraction, 5))
        place = (self.stage, moment.step, *numbers)
        self._each(lambda sink: sink.write({**dict(zip(PLACE, place, strict=True)), **values}))

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in tuple(self.sinks):
            try:
                act(sink)
            # A log must never end a training of days: a full disk, a network or a package can fail in any way at all.
            except Exception as error:  # noqa: BLE001
                self.sinks.remove(sink)
                with suppress(Exception):
                    sink.close()
                what = without_secrets(f"{type(error).__name__}: {error}".splitlines()[0])
                self.progress.say(f"stage {self.stage}: {sink} is written no more ({what}); training goes on without")

    def _note(self) -> str:
        return "  ".join(f"{name} {value:.3g}" for name, value in self._notes.items())

    def _fetch(self) -> None:
        """Turns everything still on the device into numbers with one transfer."""
        places = [
            (values, i) for values in self._series.values() for i, item in enumerate(values) if isinstance(item, Tensor)
        ]
        waiting = [step for step in self._pending if isinstance(step.evidence, Tensor)]
        items = [*(values[i] for values, i in places), *(step.evidence for step in waiting)]
        if items:
            numbers = torch.stack([item.float() for item in items]).tolist()
            for (values, i), number in zip(places, numbers, strict=False):
                values[i] = number
            for step, number in zip(waiting, numbers[len(places) :], strict=True):
                step.evidence = number


_COUNTS = (
    *("_samples", "_points", "_flops", "_skipped", "_in_a_row", "_row"),
    *("_waited", "_since", "_since_epoch", "_diagnosis", "wrong"),
)


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def _listed(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4g}" for value in values) + "]"
