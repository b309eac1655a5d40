"""One model for three equations against three models for one each, with the same training per task.

    python bench/multitask.py run --seconds 100 --seeds 0 1 2
    python bench/multitask.py table

Advection (four values of beta), Burgers (four of nu) and reaction-diffusion (four of nu) in 1D on 256 points, from our
own solvers. A single-task model trains for `--seconds` of this process's CPU time on one thread, the model of all three
for three times as long. Both are scored on the same test trajectories, from the first frame to the last, at the values
trained on and at one value in between that training never saw. Lines go to bench/results/multitask.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is first imported

from accuracy_bench.results import Line, append, commit, read_lines, source_hash
from common import run_or_table, say

HERE = Path(__file__).parent
LINES, TABLE = HERE / "results" / "multitask.jsonl", HERE / "results" / "multitask.md"
VALUES = {
    "advection1d": ("beta", (0.2, 0.4, 0.8, 1.0), 0.6),
    "burgers1d": ("nu", (0.005, 0.01, 0.03, 0.05), 0.017),
    "reaction_diffusion1d": ("nu", (0.3, 0.5, 0.8, 1.2), 0.65),
}
"""Parameter that varies, its values in training, and the one in between."""
COUNTS = {"train": 40, "valid": 4, "test": 6}  # trajectories of each value
BOTH = "all three"


def make(folder: Path) -> dict[str, dict[str, list[str]]]:
    """The files of every task and split, made where they are missing; `between` holds the value never trained on."""
    from ups.data.generate import generate

    found: dict[str, dict[str, list[str]]] = {}
    for task, (name, values, between) in VALUES.items():
        files: dict[str, list[str]] = {}
        wanted = [(split, value, COUNTS[split]) for split in COUNTS for value in values]
        for split, value, count in [*wanted, ("between", between, 12)]:
            path = folder / f"{task}_{split}_{value:g}.hdf5"
            if not path.exists():
                say(f"making {path}")
                seed = 100 * list(VALUES).index(task) + 10 * [*COUNTS, "between"].index(split) + len(files)
                generate(task, path, count, seed, {name: value}, resolution=256)
            files.setdefault(split, []).append(path.name)
        found[task] = files
    return found


def train(
    tasks: list[str], seconds: float, seed: int, arguments: argparse.Namespace
) -> tuple[dict[str, dict[str, float]], int]:
    """nrmse by task, at the values trained on and in between, of one model of these tasks; and its training steps."""
    from ups.config.load import load_settings
    from ups.config.schema import Settings
    from ups.evaluation.evaluate import Protocol, evaluate
    from ups.pipeline.evaluate import load_sets
    from ups.pipeline.train import fit_closed_form, train_stage
    from ups.pipeline.workspace import Workspace
    from ups.terminal import LineProgress
    from ups.training.schedule import Budget

    folder = arguments.work / "multitask"
    folder.mkdir(parents=True, exist_ok=True)
    files = make(folder)
    split = {f"{name}_files": {task: files[task][name] for task in tasks} for name in COUNTS}
    path = folder / f"{'-'.join(tasks)}.json"  # JSON is YAML
    path.write_text(
        json.dumps(
            {
                "task": tasks,
                "seed": seed,
                "threads": 1,
                "runs_dir": str(folder / "runs"),
                "data": {"root": str(folder), "split": split},
                "training": {"clock": "process"},
                "stages": {"codec": {"epochs": 1}, "operator": {"seconds": seconds}},
            }
        )
    )
    settings: Settings = load_settings(path)
    workspace = Workspace(settings, LineProgress(say, every=60.0))
    workspace.open()
    simulator = workspace.new_simulator()
    key = fit_closed_form(workspace, simulator)
    train_stage(workspace, "operator", simulator, key, Budget("seconds", seconds))
    protocol = Protocol("test", members=0)
    between = load_sets(
        [folder / name for task in tasks for name in files[task]["between"]], simulator.tasks, settings.data
    )
    scores: dict[str, dict[str, float]] = {task: {} for task in tasks}
    for name, sets in (("seen", workspace.splits["test"]), ("between", between)):
        found = evaluate({"ups": simulator.eval()}, sets, protocol=protocol, showcases=False)
        for task in tasks:
            value: Any = found.scores(task)["nrmse"].value
            scores[task][name] = value
    return scores, workspace.records.note("operator", "steps", 0)


def run(arguments: argparse.Namespace) -> None:
    """Computes what is missing."""
    models = {**{task: [task] for task in VALUES}, BOTH: list(VALUES)}
    for seed in arguments.seeds:
        for name in arguments.models:
            tasks = models[name]
            wanted = {"model": name, "seed": seed, "seconds": arguments.seconds}
            if any({key: line[key] for key in wanted} == wanted for line in read_lines(arguments.out)):
                say(f"{name} {seed}: done")
                continue
            scores, steps = train(tasks, arguments.seconds * len(tasks), seed, arguments)
            append(
                {**wanted, "nrmse": scores, "steps": steps, "commit": commit(), "source": source_hash()}, arguments.out
            )
            say(f"{name} {seed}: {scores}")


def compared(pairs: list[tuple[Line, Line]], task: str, where: str) -> str:
    """The cells of a task's own model and of the shared one: medians of nrmse, of its ratio, and of steps per task."""
    alone, shared = ([line["nrmse"][task][where] for line in side] for side in zip(*pairs, strict=True))
    ratio = median(both / one for one, both in zip(alone, shared, strict=True))
    steps = [median(line["steps"] for line in side) for side in zip(*pairs, strict=True)]
    return f"{median(alone):.3g} | {median(shared):.3g} | {ratio:.2f} | {steps[0]:.0f} | {steps[1] / len(VALUES):.0f}"


def commits(pairs: list[tuple[Line, Line]]) -> str:
    """What each seed was measured with: one commit, or that of a task's own model and that of the shared one."""
    of_seeds = [(own["commit"], both["commit"]) for own, both in sorted(pairs, key=lambda pair: pair[0]["seed"])]
    return ", ".join(own if own == both else f"{own} / {both}" for own, both in of_seeds)


def table(arguments: argparse.Namespace) -> None:
    """Draws the table."""
    lines: dict[tuple[str, int], Line] = {(line["model"], line["seed"]): line for line in read_lines(arguments.out)}
    rows = []
    for task in VALUES:
        for where in ("seen", "between"):
            pairs = [
                (line, lines[BOTH, seed])
                for (model, seed), line in lines.items()
                if model == task and (BOTH, seed) in lines
            ]
            if pairs:
                rows.append(f"| {task} | {where} | {compared(pairs, task, where)} | {len(pairs)} | {commits(pairs)} |")
    seconds = ", ".join(f"{one:g}" for one in sorted({line["seconds"] for line in lines.values()}))
    text = [
        "# One model for three equations",
        "",
        f"nrmse of roll-outs over test trajectories, medians of the seeds; {seconds} CPU seconds per task. `seen`: at",
        "the values trained on; `between`: at one that training never saw. Drawn by `bench/multitask.py` from",
        "`multitask.jsonl`; of lines of the same model and seed, the last counts. Commits: one for each seed. Two",
        "are that of the model of its own and that of the one of all: their ratio is of two versions of the code, too.",
        "",
        "| task | values | a model of its own | one of all | ratio | its steps | of all, per task | seeds | commits |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        *rows,
    ]
    TABLE.write_text("\n".join(text) + "\n")
    say(f"{TABLE}: {len(rows)} rows")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Those of the command `run`."""
    command.add_argument("--models", nargs="+", choices=(*VALUES, BOTH), default=[*VALUES, BOTH])
    command.add_argument("--seconds", type=float, default=100.0, help="of training per task")
    command.add_argument("--work", type=Path, default=Path("runs"), help="folder of made data and runs")


if __name__ == "__main__":
    sys.exit(run_or_table(__doc__, LINES, add_arguments, run, table))
