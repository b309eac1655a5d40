"""Ten minutes of training on real PDEBench files: the simulator beside its baselines, one thread, CPU seconds.

    python bench/real_data.py --data FOLDER [--runs runs/bench] [--tasks burgers1d advection1d] [--seconds 600]

Runs `configs/TASK.yaml` on the files in FOLDER and writes bench/results/real_data_SECONDS.{md,json}. A run that was
interrupted goes on, and one that is done is only read.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ups.config import load_settings
from ups.pipeline.judge import score_table
from ups.pipeline.run import run_pipeline
from ups.terminal import LineProgress

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parent.parent / "configs"
COLUMNS = ("task", "model", "nrmse", "one step", "codec", "s / trajectory")
KEPT = (
    "nrmse",
    "pdebench_nrmse",
    "one_step_nrmse",
    "codec_nrmse",
    "max_error",
    "conservation_gap",
    "solver_speedup",
    "wall_clock",
)


def collect(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself: scores, steps, parameters, and the other roll-out mode."""
    scores = json.loads((folder / "evaluation" / "full.json").read_text())
    steps = json.loads((folder / "steps.json").read_text())
    trained = {
        name.removeprefix("baselines-"): {
            key: record[key] for key in ("steps", "training_seconds", "parameters", "best_valid")
        }
        for name, record in steps.items()
        if "training_seconds" in record
    }
    models = {"ups": scores["tasks"], **scores["baselines"]}
    kept = {
        task: {name: {metric: of_task[task].get(metric) for metric in KEPT} for name, of_task in models.items()}
        for task in scores["tasks"]
    }
    modes = {mode: {task: of["nrmse"] for task, of in tasks.items()} for mode, tasks in scores["modes"].items()}
    solver = {task: details.get("solver") for task, details in scores["details"].items()}
    return {
        "protocol": scores["protocol"],
        "trained": trained,
        "scores": kept,
        "modes": modes,
        "solver": solver,
        "table": score_table(scores),
    }


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def write(found: dict[str, dict[str, Any]], seconds: float) -> None:
    """Prints the table and one JSON line, and writes both."""
    rows = [row for one in found.values() for row in one["table"]]
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- |" + " ---: |" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(row[column] for column in COLUMNS) + " |" for row in rows]
    print("\n".join(lines))
    result = {"bench": "real_data", "cpu_seconds": seconds, "threads": 1, "tasks": found}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"real_data_{seconds:g}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"real_data_{seconds:g}.md").write_text(
        f"# Real data, {seconds:g} CPU seconds of training each, one thread\n\n" + "\n".join(lines) + "\n"
    )
    ratios = {
        task: {
            name: scores["nrmse"] / one["scores"][task]["ups"]["nrmse"] for name, scores in one["scores"][task].items()
        }
        for task, one in found.items()
    }
    print(json.dumps({"bench": "real_data", "nrmse_over_ups": ratios}))


def main() -> None:
    """Runs, prints the table and one JSON line, and writes both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the PDEBench files")
    parser.add_argument("--runs", default="runs/bench")
    parser.add_argument("--tasks", nargs="+", default=["burgers1d", "advection1d"])
    parser.add_argument("--seconds", type=float, default=600.0)
    arguments = parser.parse_args()
    found = {}
    for task in arguments.tasks:
        overrides = [f"data.root={arguments.data}", "threads=1", "training.clock=process", f"runs_dir={arguments.runs}"]
        overrides += [] if arguments.seconds == 600 else [f"stages.operator.seconds={arguments.seconds}"]
        settings = load_settings(CONFIGS / f"{task}.yaml", overrides)
        outcome = run_pipeline(settings, progress=LineProgress(say, every=60.0))
        found[task] = collect(outcome.run_dir)
    write(found, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
