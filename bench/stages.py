"""What each stage is worth: operator alone, residual diffusion on it, and the student of a few steps.

    python bench/stages.py run --tasks burgers ks diffusion_reaction2d --seeds 0 1 2 --data FOLDER
    python bench/stages.py table

`run` trains what is missing through the pipeline's own stages, for the seconds of the newest rows (or `--seconds`) of
this process's CPU time on one thread, scores ensembles of 8 members (or `--members`) on the test trajectories, from
one true frame to the end of the file, and appends a JSON line to bench/results/stages.jsonl. `table` draws
bench/results/stages.md from the lines. Tasks, files and splits are those of `bench/accuracy.py`; made test files go on
for twice the training horizon.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is first imported

from accuracy_bench.results import Cell, Line, append, commit, read_lines, source_hash
from common import markdown, run_or_table, say

HERE = Path(__file__).parent
LINES, TABLE = HERE / "results" / "stages.jsonl", HERE / "results" / "stages.md"
TIMED_FRAMES, TIMED_ROUNDS = 4, 7  # of the roll-outs by which teacher and student are timed
MEMBERS = 8  # of an ensemble; 16 in lines that do not say
STAGES = ("operator", "diff_residual", "consistency_distill")
SECONDS = {"ks": [100.0, 120.0, 240.0], "diffusion_reaction2d": [200.0, 240.0, 160.0]}  # of the stages
SHORT = [100.0, 120.0, 80.0]  # of other tasks
SCORES = ("nrmse", "ensemble_nrmse", "mae", "crps", "spread_skill", "ece", "wall_clock", "ensemble_wall_clock")


def compute(task: str, seed: int, of_stages: list[float], arguments: argparse.Namespace) -> Line:
    """Trains the three stages of one task for so many seconds each and scores them."""
    from accuracy_bench.cells import Places, open_workspace, settings_of
    from accuracy_bench.models import get_model
    from accuracy_bench.tasks import get_task
    from ups.models.store import save_model
    from ups.pipeline.train import fit_closed_form, train_stage
    from ups.training.schedule import Budget

    seconds = dict(zip(STAGES, of_stages, strict=True))
    places = Places(arguments.data, arguments.work / "data", arguments.work / "stages")
    get_task(task).prepare(places.cache, say)
    cell = Cell(task, "ups", seconds["operator"], seed)
    budgets = [f"stages.{stage}.seconds={seconds[stage]}" for stage in STAGES]
    chosen = ("operator.cutoff=auto", *(arguments.set or ()))
    settings = settings_of(cell, get_model("ups"), places, (*budgets, *chosen))
    workspace = open_workspace(cell, settings, say)
    simulator = workspace.new_simulator().to(workspace.device)
    key = fit_closed_form(workspace, simulator)
    steps = {}
    for stage in STAGES:
        key = train_stage(workspace, stage, simulator, key, Budget("seconds", seconds[stage]))
        steps[stage] = workspace.records.note(stage, "steps", 0)
    save_model(simulator, workspace.run_dir / "model")
    say(f"{task} {seed}: model in {workspace.run_dir / 'model'}")
    return {
        "task": task,
        "seed": seed,
        "seconds": of_stages,
        "settings": list(arguments.set or ()),
        "steps": steps,
        **score(simulator, workspace, arguments.members),
        "members": arguments.members,
        "commit": commit(),
        "source": source_hash(),
    }


def score(simulator: Any, workspace: Any, members: int) -> Line:
    """How far members of the simulator are apart, and scores of its ensembles by the teacher and by its student."""
    corrector = simulator.corrector
    (scale,) = corrector.scales.values()
    student, corrector.student = corrector.student, None
    teacher = scores_of(simulator, workspace, members)
    corrector.student = student
    return {
        "widen": float(scale.widen),
        "contract": float(scale.contract),
        "teacher": teacher,
        "student": scores_of(simulator, workspace, members),
        "speed_up": speed_up(simulator, workspace, members),
    }


def scores_of(simulator: Any, workspace: Any, members: int) -> dict[str, float | None]:
    """Scores of the simulator and its ensemble on the test split."""
    from ups.evaluation.evaluate import Protocol, evaluate

    protocol = Protocol("test", None, None, "latent", 16 * members, members)
    found = evaluate(
        {"ups": simulator}, workspace.splits["test"], protocol=protocol, device=workspace.device, showcases=False
    )
    task = next(iter(found.tasks))
    return {name: found.scores(task)[name].value for name in SCORES}


def speed_up(simulator: Any, workspace: Any, members: int) -> float:
    """Time per frame of an ensemble by the teacher over that by the student: median of rounds in turns."""
    import torch

    corrector, (task, test) = simulator.corrector, next(iter(workspace.splits["test"].items()))
    student, first = corrector.student, torch.zeros(1, dtype=torch.int64)
    given = test.gather(first, first, simulator.context)
    step = {"task": task, "dt": torch.full((1,), float(test.dt)), "params": test.params[:1], "members": members}

    def seconds(flow: Any) -> float:
        corrector.student = flow
        began = time.process_time()
        simulator.rollout_members(given, TIMED_FRAMES, rng=torch.Generator().manual_seed(0), **step)
        return time.process_time() - began

    with torch.no_grad():
        rounds = [(seconds(None), seconds(student)) for _ in range(TIMED_ROUNDS + 1)][1:]
    return median(teacher / own for teacher, own in rounds)


def run(arguments: argparse.Namespace) -> None:
    """Computes what is missing."""
    for seed in arguments.seeds:
        for task in arguments.tasks:
            seconds = list(arguments.seconds or SECONDS.get(task, SHORT))
            wanted = (task, seconds, arguments.set or [], arguments.members, seed)
            if not arguments.redo and any(wanted == key_of(line) for line in read_lines(arguments.out)):
                say(f"{task} {seed}: done")
                continue
            line = compute(task, seed, seconds, arguments)
            append(line, arguments.out)
            say(f"{task} {seed}: {row_of([line])}")


def key_of(line: Line) -> tuple[str, list[float], list[str], int, int]:
    """What a line is of: task, seconds, settings, members, seed."""
    return line["task"], line["seconds"], line["settings"], line.get("members", 16), line["seed"]


def row_of(lines: list[Line]) -> dict[str, str]:
    """The columns of the table for the seeds of a task: medians, and their range where there are several."""

    def shown(values: list[float]) -> str:
        return f"{median(values):.3g}" + (f" [{min(values):.3g} - {max(values):.3g}]" if len(values) > 1 else "")

    def ratio(who: str, over: str, under: str, base: str = "teacher") -> str:
        return shown([line[who][over] / line[base][under] for line in lines])

    return {
        "operator nrmse": shown([line["teacher"]["nrmse"] for line in lines]),
        "mean / operator": ratio("teacher", "ensemble_nrmse", "nrmse"),
        "CRPS / error": ratio("teacher", "crps", "mae"),
        "spread / skill": shown([line["teacher"]["spread_skill"] for line in lines]),
        "ECE": shown([line["teacher"]["ece"] for line in lines]),
        "student CRPS / teacher": ratio("student", "crps", "crps"),
        "student mean / operator": ratio("student", "ensemble_nrmse", "nrmse"),
        "teacher s / student s": shown([line.get("speed_up") or by_scoring(line) for line in lines]),
        "seeds": str(len(lines)),
        "commits": ", ".join(sorted({line["commit"] or "unknown" for line in lines})),
    }


def by_scoring(line: Line) -> float:
    """Teacher's time over the student's, of lines that hold no more: of roll-outs that were scored minutes apart."""
    ratio: float = line["teacher"]["ensemble_wall_clock"] / line["student"]["ensemble_wall_clock"]
    return ratio


def table(arguments: argparse.Namespace) -> None:
    """Draws the table of every (task, seconds, settings, members) by one commit."""
    groups: dict[tuple[str, ...], dict[int, Line]] = {}
    for line in read_lines(arguments.out):
        task, seconds, settings, members, seed = key_of(line)
        settled = (task, "/".join(f"{s:g}" for s in seconds), " ".join(settings) or "defaults", str(members))
        key = (*settled, line["commit"] or "unknown")
        groups.setdefault(key, {})[seed] = line
    rows = [
        {**dict(zip(("task", "seconds", "settings", "members"), key[:4], strict=True)), **row_of(list(seeds.values()))}
        for key, seeds in groups.items()
    ]
    text = [
        "# What each stage is worth",
        "",
        "Test trajectories, from one true frame to the end of the file, physical units; median [least - greatest] of",
        "the seeds. `seconds` are CPU seconds of one thread of operator / residual diffusion / distillation.",
        "`mean / operator`: nrmse of the members' mean over that of the operator alone. `CRPS / error`: CRPS of",
        "the ensemble over the mean absolute error of the operator. The teacher takes 16 steps of Heun's method, the",
        "student 2. Made test files (ks) go on for twice the training horizon. Lines",
        "of a commit before 831f8fd are of another sampler, which shrank small spreads; in those before 8e367cf",
        "the student's spread was calibrated by itself, and its own and the teacher's more coarsely; in those before",
        "13d5748 members drew noise anew at every step, and calibrations were of other widenings; in those before",
        "57d8ce0 a calibration saw half or a quarter of the trajectories, and samples spread less than the teacher's.",
        "On diffusion_reaction2d, lines before 85c6714 have a noisier linear base; of that commit's, seeds 0 and 2",
        "were scored from saved models, not in the process that trained them. Before eaa8154 no step saw the fields in",
        "another view (`operator.symmetrize`), in it all members saw the same ones; calibrations before d2f38ce did",
        "not know how far views alone set members apart, and in that commit's one trajectory of large errors decided.",
        "Those of 3b92745 were calibrated anew and scored from the saved models of b24eb34's lines (stages are trained",
        "as before). From e090ebc on members that are too far apart after all are moved towards their mean, from",
        "eb85f77 on a calibration measures how far views set them apart: its lines were calibrated anew and scored",
        "from the saved models of those of e090ebc.",
        "A row is made again by `run` with its `--tasks`, `--seconds`, `--members` and `--seeds 0 1 2`.",
        "The operator alone has the first of the seconds; what the others would bring to it is not measured. In some",
        "hours a second bought twice as many steps as in others (`stages.jsonl` has them).",
        "Times are of rounds in turns; of earlier lines, of scorings minutes apart. Drawn by `bench/stages.py`.",
        "",
        *markdown(rows),
    ]
    TABLE.write_text("\n".join(text) + "\n")
    say(f"{TABLE}: {len(rows)} rows")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Those of the command `run`."""
    command.add_argument("--tasks", nargs="+", required=True)
    command.add_argument(
        "--seconds", nargs=3, type=float, metavar="S", help="of each stage; as the newest rows if left out"
    )
    command.add_argument("--data", type=Path, help="folder of the published files")
    command.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder of made data and runs")
    command.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="settings, in a row of their own")
    command.add_argument("--members", type=int, default=MEMBERS, help="of the ensembles that are scored")
    command.add_argument("--redo", action="store_true")


if __name__ == "__main__":
    sys.exit(run_or_table(__doc__, LINES, add_arguments, run, table))
