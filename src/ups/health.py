"""How healthy a training is, judged by its log alone: findings, each with what to do about it.

Pure functions on the records of `log.jsonl`; nothing of the stack is imported, so that the report of a run and the
terminal that watches one say the same.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ups.errors import UpsError

Record = Mapping[str, Any]

VANISHING, HEALTHY, EXPLODING = 1e-3, 1.0, 10.0  # gradient norms before clipping
RECENT = 20  # records that count as now
FEWEST = 8  # records below which a trend is not judged
SPIKE, SPIKE_SPREADS = 2.0, 6.0  # a loss this many times the median of those before, and so many deviations above it
FLAT = 0.01  # improvement over the recent validations, of the best score, that counts as none
FLAT_VALIDATIONS = 6
RISE, FALL = 1.1, 0.9  # of validation and train loss, that together are over-fitting
RISEN = 5  # validations in a row that have to be above the best by RISE: fewer may be chance, or a rate still high
MOSTLY = 0.5  # share of clipped steps
WAITING = 0.3  # share of the time that data was waited for
NEARLY_DONE = 0.9  # part of the budget after which a plateau is what a schedule ends in

Severity = Literal["bad", "warning", "good"]

SCORES = {"diff_residual": "crps", "consistency_distill": "distance"}
"""What validations score in stages where it is no nrmse: the CRPS of ensembles over the size of the truth, and the
student's distance to its teacher's samples, in spreads, squared."""


@dataclass(frozen=True)
class Finding:
    """One thing that the log says about a stage.

    Args:
        kind: `gradients`, `spikes`, `plateau`, `overfitting`, `not finite`, `data` or `ensemble`.
        remedy: what to do about it; empty where there is nothing to do.
    """

    stage: str
    kind: str
    severity: Severity
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log that may be being written: a last line without its end is left out.

    Raises:
        UpsError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise UpsError(f"{path} cannot be read: {error.strerror}; is this the folder of a run that trains?") from error
    records = []
    for line in lines:
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # torn by a kill, and written over by what came after
            continue
        if isinstance(record, dict) and "stage" in record:
            records.append(record)
    return records


def findings_of(folder: Path) -> list[Finding]:
    """What the log of a run's folder says of its stages; nothing where there is no log.

    Raises:
        UpsError: the log cannot be read.
    """
    path = folder / "log.jsonl"
    return judge(read_log(path)) if path.is_file() else []


def by_stage(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of every stage, stages in the order in which they began."""
    stages: dict[str, list[Record]] = {}
    for record in records:
        stages.setdefault(str(record["stage"]), []).append(record)
    return stages


def judge(records: Sequence[Record]) -> list[Finding]:
    """All findings of a log, stage by stage; what is bad comes first within its stage."""
    rank = {"bad": 0, "warning": 1, "good": 2}
    found = []
    for stage, own in by_stage(records).items():
        here = [finding for check in CHECKS if (finding := check(stage, own)) is not None]
        found += sorted(here, key=lambda finding: rank[finding.severity])
    return found


def score_of(stage: str) -> str:
    """What the validations of a stage score; their records hold `valid_` and `best_` of it."""
    return SCORES.get(stage, "nrmse")


def validations(records: Sequence[Record]) -> list[tuple[int, float]]:
    """Step and score of every validation of one stage that has a finite one; older logs call every score `nrmse`."""
    found = []
    for record in records:
        value = record.get(f"valid_{score_of(str(record['stage']))}", record.get("valid_nrmse"))
        if isinstance(value, int | float) and math.isfinite(value):
            found.append((int(record["step"]), float(value)))
    return found


def series(records: Sequence[Record], name: str) -> list[float]:
    """The finite values of a metric, in order."""
    values = (record.get(name) for record in records)
    return [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]


def judge_gradients(stage: str, records: Sequence[Record]) -> Finding | None:
    """The recent gradient norms before clipping: vanishing, healthy, clipped in most steps, or exploding."""
    norms = series(records, "grad_norm")[-RECENT:]
    if not norms:
        return None
    norm, clipped = statistics.median(norms), series(records, "clipped")[-RECENT:]
    share = statistics.fmean(clipped) if clipped else 0.0

    def finding(severity: Severity, what: str, remedy: str = "") -> Finding:
        return Finding(stage, "gradients", severity, what, remedy)

    if norm < VANISHING:
        return finding(
            "warning", f"gradients vanish (norm {norm:.2g})",
            "raise optimizer.lr or the weight of the loss; done, if the loss is as low as it should be",
        )  # fmt: skip
    if norm > EXPLODING:
        return finding(
            "bad", f"gradients explode (norm {norm:.3g})",
            "lower optimizer.lr, raise the warmup of optimizer.scheduler, keep training.grad_clip at 1 or below",
        )  # fmt: skip
    if share > MOSTLY:
        return finding(
            "warning", f"gradients are clipped in {100 * share:.0f} % of the steps (norm {norm:.2g})",
            "training.grad_clip sets the pace: raise it, or lower optimizer.lr; Adam and Muon mind it little",
        )  # fmt: skip
    if norm > HEALTHY:
        return finding("good", f"gradients are large (norm {norm:.2g}), and seldom clipped")
    return finding("good", f"gradients are healthy (norm {norm:.2g})")


def judge_spikes(stage: str, records: Sequence[Record]) -> Finding | None:
    """Losses far above those just before them."""
    logged = [record for record in records if series([record], "loss")]
    losses, terms = series(logged, "loss"), [_terms(record) for record in logged]
    spikes, since = [], 0
    for i in range(len(losses)):
        since = i if terms[i] != terms[i - 1] else since  # a term that joins makes another loss
        before = losses[max(since, i - RECENT) : i]
        if len(before) < FEWEST:
            continue
        middle = statistics.median(before)
        spread = 1.4826 * statistics.median(abs(value - middle) for value in before)
        if losses[i] > max(SPIKE * middle, middle + SPIKE_SPREADS * spread):
            spikes.append(i)
    if not spikes:
        return None
    last = spikes[-1]
    over = since > last or losses[-1] <= SPIKE * statistics.median(losses[max(since, last - RECENT) : last])
    return Finding(
        stage, "spikes", "warning" if over else "bad",
        f"the loss jumped in {_times(len(spikes))}, last at step {logged[last]['step']}, "
        f"and {'fell' if over else 'did not fall'} again",
        "lower optimizer.lr or training.grad_clip, or raise the warmup of optimizer.scheduler",
    )  # fmt: skip


def judge_plateau(stage: str, records: Sequence[Record]) -> Finding | None:
    """Validations that have stopped improving while much of the budget is left."""
    scores = [score for _, score in validations(records)]
    done = series(records, "progress")
    if len(scores) < 2 * FLAT_VALIDATIONS or (done and done[-1] > NEARLY_DONE):
        return None
    before, now = min(scores[:-FLAT_VALIDATIONS]), min(scores[-FLAT_VALIDATIONS:])
    if now < (1 - FLAT) * before:
        return None
    return Finding(
        stage, "plateau", "warning",
        f"no better for {FLAT_VALIDATIONS} validations (best {min(before, now):.3g})",
        "end it with training.patience, let the rate fall sooner (scheduler wsd or plateau), or give the network more "
        "width or data",
    )  # fmt: skip


def judge_overfitting(stage: str, records: Sequence[Record]) -> Finding | None:
    """A train loss that falls while validations rise from their best and stay there.

    The best is the lowest median of three validations in a row, so that a single lucky one sets no mark.
    """
    scored = validations(records)
    if len(scored) < FEWEST:
        return None
    scores = [score for _, score in scored]
    medians = [statistics.median(scores[i - 1 : i + 2]) for i in range(1, len(scores) - 1)]
    best = min(medians)
    first = medians.index(best)
    place = min(range(first, first + 3), key=lambda i: scores[i])
    step, since = scored[place][0], scores[place + 1 :]
    if len(since) < RISEN or min(since[-RISEN:]) < RISE * best:
        return None
    rise = statistics.median(since[-RISEN:]) / max(best, 1e-30)
    losses = [(r["step"], float(r["loss"])) for r in records if series([r], "loss")]
    then, now = [loss for at, loss in losses if at <= step][-3:], [loss for at, loss in losses if at > step][-3:]
    if not then or not now or statistics.fmean(now) > FALL * statistics.fmean(then):
        return None
    return Finding(
        stage, "overfitting", "warning",
        f"over-fitting: since step {step} the train loss fell and the validation rose by {100 * (rise - 1):.0f} %, "
        f"in the last {RISEN} validations by {100 * (RISE - 1):.0f} % or more",
        "set training.patience, keep training.augment true, raise optimizer.weight_decay, or add trajectories; the "
        "weights of the best validation are the ones that are kept",
    )  # fmt: skip


def judge_skipped(stage: str, records: Sequence[Record]) -> Finding | None:
    """Steps that were skipped because loss or gradient was not finite, and roll-backs after many of them."""
    skipped, rollbacks = int(sum(series(records, "skipped_steps"))), max(series(records, "rollbacks"), default=0)
    if not skipped and not rollbacks:
        return None
    told = [str(record["diagnosis"]) for record in records if record.get("diagnosis")]
    what = f"{_times(skipped, 'step')} skipped: loss or gradient not finite"
    if rollbacks:
        what += f"; {_times(int(rollbacks), 'roll-back')} to a checkpoint"
    severity: Severity = "bad" if rollbacks else "warning"
    remedy = f"the last: {told[-1]}" if told else "now and then is harmless; often: lower optimizer.lr, `ups check`"
    return Finding(stage, "not finite", severity, what, remedy)


def judge_data(stage: str, records: Sequence[Record]) -> Finding | None:
    """Time spent waiting for data."""
    waits = series(records, "data_wait")[-RECENT:]
    if not waits or (share := statistics.median(waits)) < WAITING:
        return None
    return Finding(
        stage, "data", "warning", f"{100 * share:.0f} % of the time is spent waiting for data",
        "raise training.num_workers or training.prefetch_factor, or put the files on a faster disk",
    )  # fmt: skip


def judge_ensemble(stage: str, records: Sequence[Record]) -> Finding | None:
    """Validation ensembles that are no better than the operator alone, whose CRPS is its absolute error."""
    alone = series(records, "operator_crps")
    if not alone:
        return None
    scores, name = [score for _, score in validations(records)], f"valid_{score_of(stage)}"
    best, diverged = min(scores, default=math.inf), sum(name in record for record in records) - len(scores)
    if best < alone[-1]:
        return None
    what = "every validation ensemble diverged"
    if scores:
        what = f"the best validation ensemble (crps {best:.3g}) is no better than the operator alone ({alone[-1]:.3g})"
        what += f", and {diverged} of {diverged + len(scores)} diverged" if diverged else ""
    return Finding(
        stage, "ensemble", "warning", what,
        f"give stages.operator and stages.{stage} more seconds (large errors grow where they are corrected step by "
        f"step), or stages.{stage}.epochs=0, which predicts without members",
    )  # fmt: skip


CHECKS: tuple[Callable[[str, Sequence[Record]], Finding | None], ...] = (
    *(judge_skipped, judge_gradients, judge_spikes, judge_overfitting, judge_plateau, judge_data, judge_ensemble),
)


def _terms(record: Record) -> frozenset[str]:
    """What a loss was made of, by the names of a record that are not of a single task."""
    return frozenset(name for name in record if "/" not in name)


def _times(count: int, what: str = "place") -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"
