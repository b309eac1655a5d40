"""A trained run as others may use it: its model, its scores and a model card that is written from its records."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ups
from ups.errors import CheckpointError
from ups.files import write_whole
from ups.hub import MODEL_FILES, require_repository, upload
from ups.pipeline.before import require_run
from ups.pipeline.promote import GATES, file_hash, model_hash, read_decision
from ups.pipeline.records import StepRecords, read_record

FULL = "evaluation/full.json"
SCORES = {
    "nrmse": "error of the roll-out over the size of the field (nrmse)",
    "one_step_nrmse": "the same of a single step",
    "crps": "CRPS of the ensemble",
    "conservation_gap": "what conserved integrals lose",
    "wall_clock": "seconds per trajectory and step",
}
"""Scores of the card, with what they mean."""


def push_run(run: Path, repository: str, *, private: bool) -> str:
    """Uploads a run's model, its scores and its model card, which holds the verdict; returns the repository's address.

    Raises:
        UsageError: the folder is no run, or the repository's name is none.
        CheckpointError: the run has no model yet.
        UpsError: the run's records or its verdict are damaged, or the upload failed.
    """
    require_repository(repository)
    require_run(run)
    with tempfile.TemporaryDirectory() as folder:
        stage_run(run, Path(folder), repository)
        message = f"ups {ups.__version__}: {run.resolve().name}"
        return upload(Path(folder), repository, private=private, message=message, replaces=(FULL, GATES))


def stage_run(run: Path, folder: Path, repository: str) -> None:
    """Copies what is uploaded into an empty folder: no settings, paths, logs or checkpoints of the machine.

    Scores are those of this very model or none. The verdict is in the card alone: `gates.json` holds settings and, of
    the leaderboard, a path.

    Raises:
        CheckpointError: the run has no model yet.
        UpsError: its records or its verdict are damaged.
    """
    missing = [name for name in MODEL_FILES if not (run / name).is_file()]
    if missing:
        raise CheckpointError(f"{run / missing[0]} is missing: this run has no trained model yet; run it to its end")
    known = _why_no_scores(run) is None
    for name in (*MODEL_FILES, *((FULL,) if known else ())):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run / name, folder / name)
    write_whole(folder / "README.md", model_card(run, repository))


def model_card(run: Path, repository: str) -> str:
    """The card in Markdown: what was trained on what, scores beside baselines, the verdict, how to use it, limits.

    Raises:
        UpsError: the run's records or its verdict are damaged.
    """
    model = read_record(run / "model" / "config.json")
    unknown = _why_no_scores(run)
    scores = {} if unknown else read_record(run / FULL)
    tasks: dict[str, Any] = model["tasks"]
    tags = ["physics", "pde", "surrogate", *tasks]
    lines = ["---", "library_name: ups", "tags:", *(f"  - {tag}" for tag in tags), "---", ""]
    lines += [f"# {repository.partition('/')[2]}", ""]
    lines += [
        f"A neural simulator of {', '.join(tasks)}, trained by `ups` {_version(run)} (run `{run.resolve().name}`).",
        "",
    ]
    lines += ["## Use", "", "```python", "import ups", "", f'sim = ups.load("hf://{repository}")']
    lines += [
        f"u = sim.rollout(u0, steps={1 if _steady(tasks) else 40})  # (batch, field, *grid), physical units",
        "```",
        "",
    ]
    lines += ["## Trained on", "", *_trained_on(run, tasks), ""]
    lines += ["## Scores", "", *([unknown] if unknown else _scores(scores)), ""]
    lines += ["## Verdict", "", *_verdict(run), ""]
    lines += ["## Limits", "", *_limits(tasks, model, scores)]
    return "\n".join(lines) + "\n"


def _trained_on(run: Path, tasks: Mapping[str, Any]) -> Iterator[str]:
    hashes = read_record(run / "data.json")
    for task, spec in tasks.items():
        splits = ", ".join(f"{len(of[task])} {split}" for split, of in hashes.items() if task in of)
        grid = " x ".join(map(str, spec["lattice"]))
        step = "" if spec.get("given") else f", time step {spec['dt']:.6g}"
        fields = ", ".join(spec["fields"])
        yield f"- {task}: trajectories {splits or 'not recorded'}; fields {fields}; grid {grid}{step}"
        for name, low, high in zip(spec["param_names"], spec["param_low"], spec["param_high"], strict=False):
            yield f"  - {name}: {low:.4g}" + (f" to {high:.4g}" if high != low else ", no other")


def _why_no_scores(run: Path) -> str | None:
    """Why a run's full evaluation says nothing of its model; None where it is of this model, as it was written."""
    if not (run / FULL).is_file():
        return "Not evaluated in full."
    evaluated = StepRecords(run).note("evaluate", "hashes", {})
    if evaluated.get("model") != model_hash(run):
        return "Not evaluated: the scores of this run are those of another model."
    if evaluated.get("evaluation") != file_hash(run / FULL):
        return "Not evaluated: the scores of this run are not what its evaluation wrote."
    return None


def _scores(scores: Mapping[str, Any]) -> Iterator[str]:
    names = ["this model", *scores["baselines"]]
    protocol = scores["protocol"]
    split = protocol.get("split", "test")
    yield f"On held-out trajectories ({split} split), rolled out from their first frames without the truth."
    for task, ours in scores["tasks"].items():
        held = protocol.get("tasks", {}).get(task, {}).get("num_samples")
        yield from ["", f"{task}" + ("" if held is None else f", {held} trajectories:"), ""]
        yield from [f"| score | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
        for metric, meaning in SCORES.items():
            values = [ours.get(metric), *(of[task].get(metric) for of in scores["baselines"].values())]
            if any(value is not None for value in values):
                yield f"| {meaning} | {' | '.join('-' if value is None else f'{value:.3g}' for value in values)} |"


def _verdict(run: Path) -> Iterator[str]:
    if not (run / GATES).is_file():
        yield "Not judged."
        return
    decision = read_decision(run, StepRecords(run))
    judged_on = [decision.hashes.get(name) for name in ("model", "evaluation")]
    if judged_on != [model_hash(run), file_hash(run / FULL) if (run / FULL).is_file() else None]:
        yield "The model or its evaluation has changed since it was judged: no verdict."
        return
    against = f"against {decision.champion}" if decision.champion else "with no champion before it"
    yield f"{'Promoted' if decision.promoted else 'Not promoted'}; judged {decision.judged_at}, {against}:"
    yield ""
    for one in decision.judgement.verdicts:
        word = "not judged" if one.passed is None else "passed" if one.passed else "failed"
        yield f"- {one.gate}: {word}" + (f" ({one.why})" if one.why else "")


def _limits(tasks: Mapping[str, Any], model: Mapping[str, Any], scores: Mapping[str, Any]) -> Iterator[str]:
    steady = _steady(tasks)
    yield (
        "- It solves on its own grid and on whole multiples of it."
        if steady
        else "- It makes its own time steps on its own grid; it decodes anywhere, and refuses other grids and steps."
    )
    yield "- Outside the range of parameters and the kind of initial fields above, nothing was measured."
    if model.get("corrector") is None and not steady:
        yield "- It draws no ensemble: it says nothing of its own error."
    for task, reasons in scores.get("reasons", {}).get("tasks", {}).items():
        for metric, reason in reasons.items():
            if metric in SCORES and reason:
                yield f"- {task}, {metric}: {reason}"


def _steady(tasks: Mapping[str, Any]) -> bool:
    return any(spec.get("given") for spec in tasks.values())


def _version(run: Path) -> str:
    return str(read_record(run / "metadata.json").get("versions", {}).get("ups", ups.__version__))
