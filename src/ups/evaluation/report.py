"""Writes a run's report: one HTML file that a person can look at anywhere, with nothing loaded from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ups.errors import UpsError, UsageError
from ups.evaluation import pictures, plots, readings, showcase
from ups.evaluation.charts import Charts
from ups.evaluation.gallery import Gallery, make_gallery
from ups.evaluation.gates import Judgement
from ups.evaluation.readings import EnsembleView
from ups.evaluation.scores import SCHEMA_VERSION
from ups.evaluation.showcase import Showcase
from ups.evaluation.summary import Scores, number, plain, span, with_unit
from ups.files import require_writable, write_whole
from ups.health import findings_of, score_of, validations


@dataclass(frozen=True)
class StageCurve:
    """The training of one stage."""

    name: str
    chart: Markup
    steps: int
    seconds: float | None
    loss: float | None
    best: float | None
    score: str


@dataclass(frozen=True)
class GatesView:
    """How the run was judged, and against which champion."""

    judgement: Judgement
    promoted: bool
    run: str
    champion: str | None

    @property
    def rival(self) -> str | None:
        """The champion, where it was another run."""
        return None if self.champion == self.run else self.champion

    @property
    def sentence(self) -> str:
        """What came of it."""
        if self.promoted and self.champion == self.run:
            return "When it was judged, this run was the champion already, and stays so."
        if self.promoted:
            return "Promoted: when it was judged, this run became the champion."
        num = len(self.judgement.failures)
        return f"Not promoted: {'one gate' if num == 1 else f'{num} gates'} failed."


def write_report(run_dir: Path) -> Path:
    """Writes `report.html` into a run's folder, from what is there; what is not is said to be missing.

    Args:
        run_dir: a run's folder: `config.yaml`, and any of `metadata.json`, `log.jsonl`, `evaluation/full.json` (or
            `small.json`), `evaluation/fields.npz` and `gates.json`.

    Raises:
        UsageError: the folder is no run's.
        UpsError: the folder cannot be written, or a file in it is damaged.
    """
    if not (run_dir / "config.yaml").is_file():
        raise UsageError(f"{run_dir} is no run's folder: it has no config.yaml; give the folder that 'ups run' printed")
    target = run_dir / "report.html"
    require_writable(target)
    write_whole(target, render(Run(run_dir)))
    return target


def render(run: Run) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=PackageLoader("ups.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "plain": plain, "span": span}
    environment.globals |= {"with_unit": with_unit}
    page = environment.get_template("report.html.j2")
    return page.render(run=run, scores=run.scores, findings=findings_of(run.folder))


class Run:
    """What a run's folder holds, prepared for the page; parts that are missing are None or empty.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name

    @cached_property
    def config(self) -> str | None:
        """The resolved settings, as written."""
        return self._read("config.yaml")

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What is known of the run and the machine."""
        return self._json("metadata.json") or {}

    @cached_property
    def created(self) -> str | None:
        """When the run was made, for people."""
        text = self.metadata.get("created_at")
        return datetime.fromisoformat(text).strftime("%-d %B %Y, %H:%M %Z").strip() if isinstance(text, str) else None

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the checks warned of."""
        found = self.metadata.get("steps", {}).get("check", {}).get("doubts", ())
        return tuple(map(str, found))

    @cached_property
    def environment(self) -> list[tuple[str, str]]:
        """Metadata as lines of a table: what a reader asks for first, then the steps of the run, hashes last."""
        lines = [line for line in _lines(self.metadata, none="–") if not line[0].endswith((".key", ".doubts"))]
        return sorted(lines, key=lambda line: _rank(line[0]))

    @cached_property
    def scope(self) -> str:
        """Which evaluation is shown: `full`, `small` where there is no full one, or nothing."""
        scopes = [scope for scope in ("full", "small") if (self.folder / "evaluation" / f"{scope}.json").is_file()]
        return scopes[0] if scopes else ""

    @cached_property
    def scores(self) -> Scores | None:
        """The evaluation; None when there is none."""
        name = f"evaluation/{self.scope}.json"
        content = self._json(name) if self.scope else None
        if content is not None and content.get("schema_version") != SCHEMA_VERSION:
            raise UpsError(f"{self.folder / name} was written by another version of ups; evaluate the run again")
        return None if content is None else Scores(content)

    @cached_property
    def gates(self) -> GatesView | None:
        """How the run was judged; None when it was not."""
        content = self._json("gates.json")
        if content is None:
            return None
        try:
            judgement = Judgement.from_json(content["verdicts"])
            return GatesView(judgement, bool(content["promoted"]), content["run"], content["champion"])
        except (KeyError, TypeError) as error:
            raise UpsError(f"{self.folder / 'gates.json'} is damaged ({error}); judge again: --force gates") from error

    @cached_property
    def protocol(self) -> list[tuple[str, str]]:
        """The evaluation's protocol as lines of a table."""
        return [] if self.scores is None else list(_lines(self.scores.content["protocol"]))

    @cached_property
    def showcases(self) -> tuple[Showcase, ...]:
        """Trajectories to look at, of the full evaluation."""
        path = self.folder / "evaluation" / "fields.npz"
        if self.scope != "full" or not path.is_file():
            return ()
        kept, scores = showcase.load(path), self._scored()
        if not all(scores.knows(one.task, one.index) and scores.subject in one.predictions for one in kept):
            raise UpsError(f"{path} is of another evaluation than full.json beside it; evaluate the run again")
        return kept

    @property
    def has_lines(self) -> bool:
        """Whether some of the trajectories are of one dimension."""
        return any(one.truth.ndim == 3 for one in self.showcases)

    @property
    def has_planes(self) -> bool:
        """Whether some of the trajectories are of two dimensions."""
        return any(one.truth.ndim == 4 for one in self.showcases)

    @property
    def has_ensembles(self) -> bool:
        """Whether some emulator drew an ensemble."""
        return self.scores is not None and any(self.scores.ensembles(task) for task in self.scores.tasks)

    def of_task(self, task: str) -> tuple[Showcase, ...]:
        """Trajectories of one task."""
        return tuple(one for one in self.showcases if one.task == task)

    # --- charts ------------------------------------------------------------------------------------------------------

    def charts(self, task: str) -> Charts:
        """What the scores of a task look like."""
        return Charts(self._scored(), task)

    def ensembles(self, task: str) -> list[EnsembleView]:
        """What there is to say of the ensembles on a task."""
        return readings.view_ensembles(self._scored(), task)

    def reliability_chart(self, task: str) -> Markup:
        """Empirical against nominal coverage."""
        return readings.reliability_chart(self._scored(), task)

    def stages(self) -> list[StageCurve]:
        """Training curves of every stage in the log."""
        by_stage: dict[str, list[Mapping[str, Any]]] = {}
        for line in (self._read("log.jsonl") or "").splitlines(keepends=True):
            if line.endswith("\n"):  # a last line without its end was torn by a kill
                record = self._parse(line, "log.jsonl")
                by_stage.setdefault(str(record.get("stage", "")), []).append(record)
        return [_stage(name, records) for name, records in by_stage.items()]

    # --- pictures ----------------------------------------------------------------------------------------------------

    def galleries(self, one: Showcase) -> list[Gallery]:
        """Pictures of every field of a trajectory, as predicted by the emulator under judgement."""
        scores = self._scored()
        ours = one.predictions[scores.subject]
        best = scores.best_baseline(one.task)
        drawn = {0: ours}
        if best is not None and best[0] in one.predictions:
            drawn[scores.emulators.index(best[0])] = one.predictions[best[0]]
        return [make_gallery(one, channel, ours, drawn) for channel in range(len(one.fields))]

    def player(self) -> Markup:
        """The player's numbers as JSON that cannot end the script element it stands in."""
        scores = self._scored()
        ranked = sorted(scores.emulators[1:], key=lambda name: _average(scores, name))
        data = {"names": list(scores.emulators), **pictures.player_data(self.showcases, [scores.subject, *ranked])}
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))

    # --- files -------------------------------------------------------------------------------------------------------

    def _scored(self) -> Scores:
        if self.scores is None:
            raise UpsError(f"{self.folder} has no evaluation; continue the run with `ups run`")
        return self.scores

    def _read(self, name: str) -> str | None:
        path = self.folder / name
        if not path.is_file():
            return None
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UpsError(f"{path} cannot be read ({error}); repeat the step of the run that writes it") from error

    def _json(self, name: str) -> dict[str, Any] | None:
        text = self._read(name)
        return None if text is None else self._parse(text, name)

    def _parse(self, text: str, name: str) -> dict[str, Any]:
        damaged = f"{self.folder / name} is damaged; repeat the step of the run that writes it"
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise UpsError(f"{damaged} ({error})") from error
        if not isinstance(found, dict):
            raise UpsError(f"{damaged} (it holds no object)")
        return found


def _average(scores: Scores, name: str) -> float:
    """Mean nrmse over the tasks, infinite where one is missing."""
    values = [scores.of(name, task).get("nrmse") for task in scores.tasks]
    return float(np.mean([np.inf if value is None else value for value in values]))


_FIRST = ("machine.", "threads", "world_size", "versions.", "created_at", "")
"""How names of metadata begin that come first, in their order; all others but steps and hashes are alike."""


def _rank(name: str) -> int:
    """Place of a line of metadata among the others."""
    if name.endswith("hash") or name == "architecture":
        return len(_FIRST) + 1
    if name.startswith("steps."):
        return len(_FIRST)
    return next(place for place, start in enumerate(_FIRST) if name.startswith(start))


def _label(stage: str) -> str:
    """What a stage of the log is called on the page."""
    name = stage.removeprefix("baselines-")
    return stage if name == stage else f"{name} (baseline)"


def _stage(name: str, records: Sequence[Mapping[str, Any]]) -> StageCurve:
    trained = [record for record in records if "loss" in record]
    scores = validations(records)
    chart = plots.losses(
        [record["step"] for record in trained],
        [record["loss"] for record in trained],
        [step for step, _ in scores],
        [score for _, score in scores],
    )
    return StageCurve(
        name=_label(name),
        chart=chart,
        steps=max((int(record["step"]) for record in records), default=0),
        seconds=max((record["elapsed"] for record in records if record.get("elapsed") is not None), default=None),
        loss=trained[-1]["loss"] if trained else None,
        best=min((score for _, score in scores), default=None),
        score=score_of(name),
    )


def _lines(values: Mapping[str, Any], prefix: str = "", none: str = "all") -> list[tuple[str, str]]:
    """Nested values as pairs of dotted name and text; `none` is what None means there."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _lines(value, f"{prefix}{key}.", none)
        else:
            found.append((f"{prefix}{key}", none if value is None else str(value)))
    return found
