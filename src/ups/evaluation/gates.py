"""Judges a run against the champion. The gates fail closed: whatever is missing, not finite or not comparable fails."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ups.config.gates import GateSettings

ROUNDING = {"conservation_gap": 1e-5, "bc_violation": 1e-5}
"""Relative errors that models keep by construction: below this they are rounding, and their ratio says nothing."""

AUTO_LIMIT = 1.0
"""Ratio that `auto` stands for."""

AGAIN = "'ups run' with --force evaluate"

FIRST = "there is no champion yet; gates.first_champion: true makes this run the first"
NO_CHAMPION = "no champion to compare with"


@dataclass(frozen=True)
class Scored:
    """A run as its evaluation has it.

    Args:
        run: its name.
        model: hash of its model.
        protocol: hash of what was asked of it.
        tasks: by task, scores by metric; None where a metric could not be computed.
        reasons: by task and metric, why.
        draws: whether the model draws ensembles.
        machine: what times depend on besides the model.
    """

    run: str
    model: str
    protocol: str
    tasks: Mapping[str, Mapping[str, Any]]
    reasons: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    draws: bool = False
    machine: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: str, model: str, scores: Mapping[str, Any], *, draws: bool) -> Scored:
        """From what `evaluation/full.json` holds.

        Raises:
            KeyError: the file lacks its protocol or its tasks.
        """
        protocol = scores["protocol"]
        machine = {key: protocol.get(key) for key in ("device", "processor", "threads", "batch_size")}
        reasons = scores.get("reasons", {}).get("tasks", {})
        return cls(run, model, protocol["hash"], scores["tasks"], reasons, draws, machine)

    def value(self, task: str, metric: str) -> float | None:
        """A score; None where it is missing or not a finite number."""
        found = self.tasks.get(task, {}).get(metric)
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            return None
        return float(found)

    def reason(self, task: str, metric: str) -> str:
        """Why there is no value."""
        if self.tasks.get(task, {}).get(metric) is not None:
            return f"it is {self.tasks[task][metric]}"
        return str(self.reasons.get(task, {}).get(metric, "it was not measured"))


@dataclass(frozen=True)
class Verdict:
    """One line of the table of gates.

    Args:
        gate: `champion`, `small`, `protocol`, `hashes`, or a metric.
        task: empty where the gate is of the run as a whole.
        value: of the candidate.
        limit: largest value that passes.
        champion: value of the champion.
        passed: None where there is nothing to judge.
        why: the reason, in words.
    """

    gate: str
    task: str
    value: float | None
    limit: float | None
    champion: float | None
    passed: bool | None
    why: str

    @property
    def line(self) -> str:
        """The verdict in one line."""
        return ": ".join(filter(None, [" ".join(filter(None, [self.gate, self.task])), self.why]))


@dataclass(frozen=True)
class Judgement:
    """All verdicts of one run."""

    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether something was judged and nothing failed."""
        return any(one.passed for one in self.verdicts) and all(one.passed is not False for one in self.verdicts)

    @property
    def failures(self) -> tuple[Verdict, ...]:
        """The verdicts that failed."""
        return tuple(one for one in self.verdicts if one.passed is False)

    def to_json(self) -> list[dict[str, Any]]:
        """The table as plain values."""
        return [asdict(one) for one in self.verdicts]

    @classmethod
    def from_json(cls, rows: list[dict[str, Any]]) -> Judgement:
        """The table that `to_json` wrote.

        Raises:
            TypeError: the rows are not verdicts.
        """
        return cls(tuple(Verdict(**row) for row in rows))


def judge(
    candidate: Scored,
    champion: Scored | None,
    settings: GateSettings,
    undefined: Mapping[str, Mapping[str, str]] | None = None,
) -> Judgement:
    """Judges a candidate against the champion, task by task.

    The champion itself, evaluated again, must only still have all its scores.

    Args:
        champion: of the same tasks and protocol; None where there is none.
        undefined: by task, metrics that the equation itself has no meaning for, with the reason.
    """
    undefined = undefined or {}
    itself = champion is not None and (champion.run, champion.model) == (candidate.run, candidate.model)
    rival = None if itself else champion
    verdicts = []
    if itself:
        verdicts.append(Verdict("champion", "", None, None, None, True, "this run is the champion"))
    elif rival is None:
        why = "the first champion: gates.first_champion is true" if settings.first_champion else FIRST
        verdicts.append(Verdict("champion", "", None, None, None, settings.first_champion, why))
    elif rival.protocol != candidate.protocol or set(rival.tasks) != set(candidate.tasks):
        why = f"{rival.run} was scored on other tasks, trajectories or steps: the two cannot be compared"
        verdicts.append(Verdict("protocol", "", None, None, None, False, why))
    if not candidate.tasks:
        verdicts.append(Verdict(settings.metric, "", None, None, None, False, "no task was scored"))
    for task in candidate.tasks:
        verdicts.append(_improvement(task, candidate, rival, settings))
        verdicts += _ratios(task, candidate, rival, settings, undefined.get(task, {}))
    return Judgement(tuple(verdicts))


def _improvement(task: str, candidate: Scored, champion: Scored | None, settings: GateSettings) -> Verdict:
    metric, value = settings.metric, candidate.value(task, settings.metric)
    best = None if champion is None else champion.value(task, metric)
    limit = None if best is None else best * (1 - settings.min_delta)
    if value is None:
        return Verdict(metric, task, None, limit, best, False, f"missing: {candidate.reason(task, metric)}")
    if champion is None:
        return Verdict(metric, task, value, None, None, True, NO_CHAMPION)
    if best is None or limit is None:
        why = f"the champion, {champion.run}, has none: {champion.reason(task, metric)}"
        return Verdict(metric, task, value, None, None, False, why)
    passed = value < best and value <= limit
    by = f" by {settings.min_delta:.3g} of it" if settings.min_delta else ""
    why = f"{value:.3g} {'beats' if passed else 'does not beat'} the champion's {best:.3g}{by}"
    return Verdict(metric, task, value, limit, best, passed, why)


def _ratios(
    task: str, candidate: Scored, champion: Scored | None, settings: GateSettings, undefined: Mapping[str, str]
) -> Iterator[Verdict]:
    for metric, setting in settings.ratios.model_dump().items():
        value = candidate.value(task, metric)
        theirs = None if champion is None else champion.value(task, metric)
        if setting is None:
            yield Verdict(metric, task, value, None, theirs, None, f"not judged: gates.ratios.{metric} is null")
            continue
        without = undefined.get(metric) or (_no_ensembles(candidate, champion) if metric == "ece" else None)
        if setting == "auto" and without:
            yield Verdict(metric, task, value, None, theirs, None, f"not judged: {without}")
            continue
        yield _ratio(task, metric, AUTO_LIMIT if setting == "auto" else setting, candidate, champion)


def _no_ensembles(candidate: Scored, champion: Scored | None) -> str | None:
    """Why calibration has no meaning here; None where it has. What a champion has must not be lost."""
    if champion is not None and not champion.draws and candidate.draws:
        return "the champion is deterministic: it has no calibration to compare with"
    if not candidate.draws and (champion is None or not champion.draws):
        return "the model is deterministic: there is no ensemble to score"
    return None


def _ratio(task: str, metric: str, ratio: float, candidate: Scored, champion: Scored | None) -> Verdict:
    value = candidate.value(task, metric)
    theirs = None if champion is None else champion.value(task, metric)
    limit = None if theirs is None else max(ratio * theirs, ROUNDING.get(metric, -math.inf))
    if value is None:
        why = f"missing: {candidate.reason(task, metric)}"
        return Verdict(metric, task, None, limit, theirs, False, why)
    if champion is None:
        return Verdict(metric, task, value, None, None, True, NO_CHAMPION)
    if theirs is None or limit is None:
        why = f"the champion, {champion.run}, has none: {champion.reason(task, metric)}"
        return Verdict(metric, task, value, None, None, False, why)
    if metric == "wall_clock" and champion.machine != candidate.machine:
        why = (
            f"not comparable: the champion was timed on {_machine(champion)}, this run on {_machine(candidate)}; "
            "gates.ratios.wall_clock=null leaves it out"
        )
        return Verdict(metric, task, value, limit, theirs, False, why)
    passed = value <= limit
    if passed and value > ratio * theirs:
        why = f"{value:.3g} is rounding"
    elif theirs > 0:
        why = f"{value / theirs:.3g} times the champion's; at most {ratio:g} is asked for"
    else:
        why = f"{value:.3g} against the champion's {theirs:.3g}"
    return Verdict(metric, task, value, limit, theirs, passed, why)


def _machine(run: Scored) -> str:
    machine = run.machine
    where = f"{machine.get('device')} ({machine.get('processor') or 'an earlier version did not note which processor'})"
    return f"{where} with {machine.get('threads')} threads, {machine.get('batch_size')} together"


def judge_small(scores: Mapping[str, Any]) -> Judgement:
    """Judges the small evaluation: is the full one worth its time? Finite in every task, and better than persistence.

    Args:
        scores: as `evaluation/small.json` has them. Where persistence is no baseline, finite is enough.
    """
    found = Scored("", "", "", scores.get("tasks", {}), scores.get("reasons", {}).get("tasks", {}))
    baselines = scores.get("baselines", {})
    standing = Scored("", "", "", baselines.get("persistence", {}))
    verdicts = []
    for task in found.tasks:
        value, limit = found.value(task, "nrmse"), standing.value(task, "nrmse")
        if value is None:
            passed, why = False, f"missing: {found.reason(task, 'nrmse')}"
        elif "persistence" not in baselines:
            passed, why = True, "finite"
        elif limit is None:
            passed, why = False, "persistence has no nrmse to compare with"
        else:
            passed = value < limit
            why = f"nrmse {value:.3g} {'beats' if passed else 'does not beat'} persistence's {limit:.3g}"
        verdicts.append(Verdict("small", task, value, limit, None, passed, why))
    return Judgement(tuple(verdicts) or (Verdict("small", "", None, None, None, False, "no task was scored"),))


def judge_hashes(recorded: Mapping[str, str], found: Mapping[str, str], names: tuple[str, ...]) -> Judgement:
    """Judges whether what is there now is what was evaluated.

    Args:
        recorded: hashes of when the run was evaluated.
        found: the same as they are now; one that is absent is of something that is gone.
        names: which of them must be there.
    """
    verdicts = []
    for name in names:
        was, now = recorded.get(name), found.get(name)
        if was is None:
            why = f"there is no record of the {name} of when the run was evaluated; evaluate it again: {AGAIN}"
        elif now is None:
            why = f"the {name} is gone; make it again: {AGAIN}"
        elif was != now:
            why = f"the {name} has changed since the run was evaluated: hashes do not match; evaluate again: {AGAIN}"
        else:
            continue
        verdicts.append(Verdict("hashes", "", None, None, None, False, why))
    fine = f"{', '.join(names)}: as they were when the run was evaluated"
    return Judgement(tuple(verdicts) or (Verdict("hashes", "", None, None, None, True, fine),))
