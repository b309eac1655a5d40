"""A trained run as others may use it: its model, its scores and a model card that is written from its records."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ups
from ups.errors import CheckpointError, UsageError
from ups.files import write_whole
from ups.hub import MODEL_FILES, require_repository, upload
from ups.pipeline.promote import model_hash

SCORES = {
    "nrmse": "error of the roll-out over the size of the field (nrmse)",
    "one_step_nrmse": "the same of a single step",
    "crps": "CRPS of the ensemble",
    "conservation_gap": "what conserved integrals lose",
    "wall_clock": "seconds per trajectory and step",
}
"""Scores of the card, with what they mean."""


def push_run(run: Path, repository: str, *, private: bool) -> str:
    """Uploads a run's model, scores, verdict and model card; returns the repository's address.

    Raises:
        UsageError: the folder is no run, or the repository's name is none.
        CheckpointError: the run has no model yet.
        UpsError: the upload failed.
    """
    require_repository(repository)
    if not (run / "config.yaml").is_file():
        raise UsageError(f"{run} is no run's folder: it has no config.yaml; give the folder that 'ups run' printed")
    with tempfile.TemporaryDirectory() as folder:
        stage_run(run, Path(folder), repository)
        return upload(Path(folder), repository, private=private, message=f"ups {ups.__version__}: {run.resolve().name}")


def stage_run(run: Path, folder: Path, repository: str) -> None:
    """Copies what is uploaded into an empty folder: no settings, paths, logs or checkpoints of the machine.

    Raises:
        CheckpointError: the run has no model yet.
    """
    missing = [name for name in MODEL_FILES if not (run / name).is_file()]
    if missing:
        raise CheckpointError(f"{run / missing[0]} is missing: this run has no trained model yet; run it to its end")
    for name in (*MODEL_FILES, "evaluation/full.json", "gates.json"):
        if (run / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run / name, folder / name)
    write_whole(folder / "README.md", model_card(run, repository))


def model_card(run: Path, repository: str) -> str:
    """The card in Markdown: what was trained on what, scores beside baselines, the verdict, how to use it, limits."""
    model = _read(run / "model" / "config.json")
    scores, gates = _read(run / "evaluation" / "full.json"), _read(run / "gates.json")
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
    lines += ["## Scores", "", *_scores(scores), ""]
    lines += ["## Verdict", "", *_verdict(run, gates), ""]
    lines += ["## Limits", "", *_limits(tasks, model, scores)]
    return "\n".join(lines) + "\n"


def _trained_on(run: Path, tasks: Mapping[str, Any]) -> Iterator[str]:
    hashes = _read(run / "data.json")
    for task, spec in tasks.items():
        splits = ", ".join(f"{len(of[task])} {split}" for split, of in hashes.items() if task in of)
        grid = " x ".join(map(str, spec["lattice"]))
        step = "" if spec.get("given") else f", time step {spec['dt']:.6g}"
        fields = ", ".join(spec["fields"])
        yield f"- {task}: trajectories {splits or 'not recorded'}; fields {fields}; grid {grid}{step}"
        for name, low, high in zip(spec["param_names"], spec["param_low"], spec["param_high"], strict=False):
            yield f"  - {name}: {low:.4g}" + (f" to {high:.4g}" if high != low else ", no other")


def _scores(scores: Mapping[str, Any]) -> Iterator[str]:
    if not scores:
        yield "Not evaluated in full."
        return
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


def _verdict(run: Path, gates: Mapping[str, Any]) -> Iterator[str]:
    if not gates:
        yield "Not judged."
    elif gates["hashes"].get("model") != model_hash(run):
        yield "The model has changed since it was judged: no verdict."
    else:
        against = f"against {gates['champion']}" if gates["champion"] else "with no champion before it"
        yield f"{'Promoted' if gates['promoted'] else 'Not promoted'}; judged {gates['judged_at']}, {against}:"
        yield ""
        for one in gates["verdicts"]:
            word = {True: "passed", False: "failed"}.get(one["passed"], "not judged")
            yield f"- {one['gate']}: {word}" + (f" ({one['why']})" if one.get("why") else "")


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
    return str(_read(run / "metadata.json").get("versions", {}).get("ups", ups.__version__))


def _read(path: Path) -> dict[str, Any]:
    """A record of the run; nothing where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); run 'ups run' on its settings again") from error
    return found
