"""From an evaluated run to a champion, or not: gates, and a promotion that trusts no file it has not hashed itself.

Data, settings, model and evaluation are bound together by their hashes when the run is evaluated; `gates.json` holds
these and the verdicts under a seal. A promotion computes every hash again from the files as they are.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ups.config.gates import GateSettings
from ups.config.load import load_settings, resolved
from ups.errors import UpsError
from ups.evaluation.gates import Judgement, Scored, judge, judge_hashes
from ups.evaluation.leaderboard import Entry, Leaderboard, Standing
from ups.models.prior import SteadyPrior
from ups.models.store import CONFIG, WEIGHTS
from ups.physics.equations import Equation, get_equation
from ups.pipeline.records import StepRecords, digest, training_hash, write_json

GATES = "gates.json"
FORMAT = 2
OF_SMALL = ("data", "config", "model", "small evaluation")
"""What a small evaluation binds together."""

CHAIN = (*OF_SMALL, "evaluation")
"""What a promotion rests on, each made from those before it."""


@dataclass(frozen=True)
class Decision:
    """What `gates.json` says of a run.

    Args:
        run: its name.
        judgement: every verdict.
        promoted: whether it became the champion, or was it already.
        champion: the run it was judged against; None where there was none.
        hashes: of what it was judged on.
        settings: the gates.
        judged_at: when.
        standing: how it was left on the leaderboard; None where it was not entered.
    """

    run: str
    judgement: Judgement
    promoted: bool
    champion: str | None
    hashes: dict[str, str]
    settings: dict[str, Any]
    judged_at: str
    standing: Standing | None = None

    @property
    def messages(self) -> tuple[str, ...]:
        """What to tell a person."""
        if self.promoted:
            before = "" if self.champion in (None, self.run) else f" after {self.champion}"
            return (f"promoted: {self.run} became the champion{before}",)
        failures = self.judgement.failures
        if len(failures) == 1:
            return (f"not promoted: {failures[0].why if failures[0].gate == 'champion' else failures[0].line}",)
        return ("not promoted:", *(f"  {one.line}" for one in failures))

    def content(self) -> dict[str, Any]:
        """What is written, under its seal."""
        found = {
            "schema_version": FORMAT,
            "run": self.run,
            "judged_at": self.judged_at,
            "settings": self.settings,
            "hashes": self.hashes,
            "champion": self.champion,
            "verdicts": self.judgement.to_json(),
            "passed": self.judgement.passed,
            "promoted": self.promoted,
            "standing": None if self.standing is None else asdict(self.standing),
        }
        return {**found, "seal": digest(found)}


def current_hashes(run_dir: Path, data_hash: str) -> dict[str, str]:
    """Hashes of what a run's verdict rests on, from the files as they are; what is not there is left out.

    Args:
        data_hash: of the trajectories, as they were just read.

    Raises:
        SettingsError: the run's `config.yaml` is damaged.
    """
    found = {"data": data_hash}
    if (run_dir / "config.yaml").is_file():
        settings = load_settings(run_dir / "config.yaml")
        found["config"] = digest(training_hash(settings), resolved(settings)["evaluation"])
    model = model_hash(run_dir)
    if model is not None:
        found["model"] = model
    for name, scope in (("small evaluation", "small"), ("evaluation", "full")):
        path = run_dir / "evaluation" / f"{scope}.json"
        if path.is_file():
            found[name] = file_hash(path)
    return found


def model_hash(run_dir: Path) -> str | None:
    """Hash of a run's trained model; None where there is none."""
    parts = [run_dir / "model" / name for name in (WEIGHTS, CONFIG)]
    return digest([file_hash(part) for part in parts]) if all(part.is_file() for part in parts) else None


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decide(
    run_dir: Path, records: StepRecords, data_hash: str, settings: GateSettings, board: Leaderboard, small: Judgement
) -> Decision:
    """Judges an evaluated run, enters it on the leaderboard and promotes it where it passes; done once.

    What was decided is repeated as long as nothing that it rests on has changed, the champion included: against
    another one, or where its row is gone, the run is judged again.

    Args:
        small: how the small evaluation was judged; a run that failed there has no other, and is not entered.

    Raises:
        UpsError: `gates.json` is not what was written; the leaderboard cannot be used.
    """
    chosen, hashes, began = settings.model_dump(mode="json"), current_hashes(run_dir, data_hash), time.perf_counter()
    key, path = digest(FORMAT, chosen, hashes), run_dir / GATES
    if records.done("gates-promotion", key, path):
        known = read_decision(run_dir, records)
        if known.standing is None or board.shows(known.standing):
            return known
    if not records.done("gates", key, path):
        recorded = records.note("evaluate" if small.passed else "evaluate-small", "hashes", {})
        chain = judge_hashes(recorded, hashes, CHAIN if small.passed else OF_SMALL)
        judgement, champion = Judgement((*small.verdicts, *chain.verdicts)), None
        if judgement.passed:
            candidate = read_candidate(run_dir, hashes)
            champion = board.champion(entry_of(run_dir, board, candidate, hashes).group)
            verdicts = judge(candidate, champion.scored if champion else None, settings, _undefined(candidate)).verdicts
            judgement = Judgement((*judgement.verdicts, *verdicts))
        against = None if champion is None else champion.scored.run
        decision = Decision(run_dir.name, judgement, False, against, hashes, chosen, _now())
        _write(decision, run_dir, records, key, began)
    decision = promote(run_dir, records, data_hash, settings, board)
    records.finish("gates-promotion", key, time.perf_counter() - began)
    return decision


def promote(
    run_dir: Path, records: StepRecords, data_hash: str, settings: GateSettings, board: Leaderboard
) -> Decision:
    """Enters a judged run on the leaderboard, and makes it the champion if it passes against that of this moment.

    Raises:
        UpsError: the run was not judged, or anything that its verdict rests on has changed since.
    """
    decision = read_decision(run_dir, records)
    hashes = current_hashes(run_dir, data_hash)
    changed = sorted(name for name in {*hashes, *decision.hashes} if hashes.get(name) != decision.hashes.get(name))
    if changed or decision.settings != settings.model_dump(mode="json"):
        what = " and ".join(changed or ["gates"])
        raise UpsError(f"{run_dir}: {what} changed since the run was judged: hashes do not match; run it again")
    before = tuple(one for one in decision.judgement.verdicts if one.gate in ("small", "hashes"))
    if not Judgement(before).passed:
        return decision  # what was evaluated is not what is there, or not worth a full evaluation
    candidate = read_candidate(run_dir, hashes)
    undefined = _undefined(candidate)

    def judge_again(champion: Entry | None) -> Judgement:
        verdicts = judge(candidate, None if champion is None else champion.scored, settings, undefined).verdicts
        return Judgement((*before, *verdicts))

    entry = entry_of(run_dir, board, candidate, hashes)
    judgement, champion = board.submit(entry, judge_again)
    against = None if champion is None else champion.scored.run
    after = entry if judgement.passed else champion
    standing = Standing(entry.group, entry.row, None if after is None else after.row)
    final = Decision(run_dir.name, judgement, judgement.passed, against, hashes, decision.settings, _now(), standing)
    _write(final, run_dir, records, str(records.key("gates")), time.perf_counter())
    return final


def read_candidate(run_dir: Path, hashes: dict[str, str]) -> Scored:
    """A run's scores, from an evaluation with the hash that is expected of it.

    Raises:
        UpsError: the evaluation is damaged, or has just changed.
    """
    path = run_dir / "evaluation" / "full.json"
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != hashes["evaluation"]:
            raise UpsError(f"{path} changed while it was judged; run it again")
        model = json.loads((run_dir / "model" / CONFIG).read_text(encoding="utf-8"))
        draws = model.get("corrector") is not None or model["kind"] == SteadyPrior.name
        return Scored.of(run_dir.name, hashes["model"], json.loads(content), draws=draws)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UpsError(f"{path} is damaged ({error}); evaluate again with 'ups run --force evaluate'") from error


def entry_of(run_dir: Path, board: Leaderboard, candidate: Scored, hashes: dict[str, str]) -> Entry:
    """A run's row, with its folder relative to the leaderboard's where it lies below."""
    folder, root = run_dir.resolve(), board.path.parent.resolve()
    place = folder.relative_to(root) if folder.is_relative_to(root) else folder
    return Entry(candidate, str(place), hashes["evaluation"])


def read_decision(run_dir: Path, records: StepRecords) -> Decision:
    """What `gates.json` says, if it is what was written.

    Raises:
        UpsError: it is missing, damaged or was changed.
    """
    path = run_dir / GATES
    again = "judge the run again: 'ups run' with --force gates"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        seal = found.pop("seal")
        if seal != digest(found) or seal != records.note("gates", "seal", None):
            raise UpsError(f"{path} is not what was decided: its hashes do not match; {again}")
        judgement = Judgement.from_json(found["verdicts"])
        kept = {name: found[name] for name in ("run", "promoted", "champion", "hashes", "settings", "judged_at")}
        standing = None if found["standing"] is None else Standing.from_json(found["standing"])
        return Decision(judgement=judgement, standing=standing, **kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UpsError(f"{path} is missing or damaged ({error}); {again}") from error


def _write(decision: Decision, run_dir: Path, records: StepRecords, key: str, began: float) -> None:
    """Writes `gates.json` and then the record of its seal; without the record, as after a kill, it is judged again."""
    content = decision.content()
    records.forget("gates")
    write_json(run_dir / GATES, content)
    records.finish("gates", key, time.perf_counter() - began, seal=content["seal"])


def undefined_metrics(equation: Equation) -> dict[str, str]:
    """Metrics that an equation itself has no meaning for, with the reason."""
    reasons = {}
    if not any(field.conserved for field in equation.fields):
        reasons["conservation_gap"] = f"{equation.name} conserves no integral"
    if all(equation.periodic):
        reasons["bc_violation"] = "the domain is periodic: there is no boundary"
    return reasons


def _undefined(candidate: Scored) -> dict[str, dict[str, str]]:
    return {task: undefined_metrics(get_equation(task)) for task in candidate.tasks}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
