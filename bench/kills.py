"""SIGKILL at random times over a whole `ups run`, again and again until it has ended, against one that was left alone.

    python bench/kills.py [--kills 50] [--every SECONDS] [--seed 0] [--out bench/results]

A small run of every stage: data, checks, codec, operator, diff_residual, consistency_distill, an FNO beside them,
evaluation, gates, promotion, report. It is started, killed after a random time (exponential, so that the kills are a
Poisson process over all that a run does, starting included), and started again; where it ends before all kills are
spent, another one begins. Then weights, checkpoints, losses and scores must be those of the run that was left alone,
bit for bit: all but what a clock says, and the FNO, whose budget is the seconds that the simulator took. Every start is
a fork of this process, in which packages are imported already.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # by the first step of an optimizer, which takes longer than all that is imported before

from accuracy_bench.results import commit, source_hash
from ups.cli import main as main_of_ups
from ups.evaluation.report import write_report as write_report  # so that no start has to import it
from ups.pipeline.run import run_pipeline as run_pipeline
from ups.training.checkpoint import CheckpointStore

STAGES = ("codec", "operator", "diff_residual", "consistency_distill")
STEPS = ("data", "check", *STAGES, "baselines-fno", "evaluate-small", "evaluate", "gates", "gates-promotion", "report")
TIMED = (
    *("elapsed", "samples_per_second", "points_per_second", "data_wait", "checkpoint_stall"),
    *("epoch_seconds", "memory_peak_mb", "mfu"),
)
SCORES = ("nrmse", "one_step_nrmse", "max_error", "codec_nrmse", "conservation_gap", "ensemble_nrmse", "crps", "ece")

SETTINGS: dict[str, Any] = {
    "task": "burgers1d",
    "name": "kills",
    "threads": 1,
    "data": {
        "files": "burgers.hdf5",
        "generate": {"samples": 32, "seed": 1, "resolution": 64, "frames": 11, "params": {"nu": 0.01}},
    },
    "latent": {"dim": 4, "patch": 8},
    "operator": {"pdet": {"hidden_dim": 16, "depths": 1, "heads": 2, "stem_width": 8}},
    "diffusion": {"hidden_dim": 16, "depth": 1, "stem_width": 8, "sampler_steps": 2},
    "training": {"batch_size": 8, "checkpoint_interval": 6, "log_every": 2, "validate_every": 40, "clock": "process"},
    "stages": {
        "codec": {"steps": 120},
        "operator": {"steps": 80},
        "diff_residual": {"steps": 50},
        "consistency_distill": {"steps": 30, "teacher_steps": 3, "distill_num_taus": 2},
    },
    "evaluation": {"members": 3, "baselines": ["persistence", "linear", "fno"]},
    "gates": {"first_champion": True},
}


@dataclass(frozen=True)
class Kill:
    """Where a run was killed.

    Args:
        after: seconds from its start.
        step: the first that was not done.
        logged: the last optimizer step that is in the log of it.
        starting: whether it had not come to open its folder yet.
    """

    after: float
    step: str
    logged: int | None
    starting: bool


def write_config(folder: Path, settings: dict[str, Any] | None = None) -> Path:
    """The settings of a run in a folder of its own, data included."""
    folder.mkdir(parents=True)
    chosen = settings or SETTINGS
    own = {"runs_dir": str(folder / "runs"), "data": {**chosen["data"], "root": str(folder)}}
    path = folder / "config.yaml"
    path.write_text(json.dumps({**chosen, **own}))  # JSON is YAML
    return path


def run_dir(config: Path) -> Path:
    """The one run of a settings file; its folder of runs where it has not begun."""
    return next((path.parent for path in (config.parent / "runs").glob("*/config.yaml")), config.parent / "runs")


def start(config: Path) -> int:
    """`ups run` in a forked process on one thread; its number. What it prints goes to a file beside its settings."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        told = os.open(config.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(told, 1)
        os.dup2(told, 2)
        sys.argv = ["ups", "run", str(config)]
        main_of_ups()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(config: Path, status: int) -> None:
    """Goes on only where a run has ended well."""
    if os.waitstatus_to_exitcode(status):
        told = config.with_suffix(".log").read_text()
        raise SystemExit(f"the run ended with exit code {os.waitstatus_to_exitcode(status)}:\n{told}")


def left_alone(config: Path) -> float:
    """Runs to the end; the seconds it took."""
    began = time.monotonic()
    ended(config, os.waitpid(start(config), 0)[1])
    return time.monotonic() - began


def killed_after(config: Path, seconds: float) -> Kill | None:
    """Starts a run and kills it; None where it ended before."""
    began, child, end = time.time(), start(config), time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            ended(config, status)
            return None
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return where(config, began, seconds)


def where(config: Path, began: float, after: float) -> Kill:
    """Where a run stands that began at a time and was killed some seconds after."""
    folder = run_dir(config)
    records = json.loads((folder / "steps.json").read_text()) if (folder / "steps.json").exists() else {}
    step = next((name for name in STEPS if name not in records), "end")
    logged = [record["step"] for record in log(folder) if record["stage"] == step]
    opened = folder / "config.yaml"
    starting = not opened.exists() or opened.stat().st_mtime < began
    return Kill(round(after, 2), step, max(logged, default=None), starting)


def seconds_between(kills: int, whole: float, starting: float) -> float:
    """Mean time to a kill with which a run is killed about `kills` times before it ends.

    A start that lives for exponential time of mean m gets on by m exp(-starting / m) seconds on average; half of that
    is taken as lost to what a kill undoes.
    """
    wanted, mean = 2 * (whole - starting) / kills, 1.0
    while mean * math.exp(-starting / mean) < wanted:
        mean *= 1.02
    return mean


def log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's log; a torn line at the end is left out."""
    path = folder / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


# --- comparison ------------------------------------------------------------------------------------------------------


def differences(whole: Path, parts: Path, stages: tuple[str, ...] = STAGES) -> list[str]:
    """What two run folders do not have in common of what must be equal, one line each."""
    found = [name for name in weights_of(whole, stages) if (whole / name).read_bytes() != (parts / name).read_bytes()]
    for stage in stages:
        first, second = (CheckpointStore(folder / "checkpoints" / stage, fingerprint={}) for folder in (whole, parts))
        if first.steps()[-1] != second.steps()[-1]:
            found.append(f"checkpoints of {stage}: {first.steps()} and {second.steps()}")
            continue
        last = f"step-{first.steps()[-1]:08d}/state.pt"
        states = [untimed(torch.load(store.folder / last, weights_only=True)) for store in (first, second)]
        found += [f"checkpoint of {stage}: {place}" for place in unequal(*states)]
    curves = [[untimed(record) for record in log(folder) if record["stage"] in stages] for folder in (whole, parts)]
    return found + (["log"] if curves[0] != curves[1] else [])


def other_scores(whole: Path, parts: Path) -> list[str]:
    """The scores that differ between two evaluated runs."""
    tasks = [json.loads((folder / "evaluation" / "full.json").read_text())["tasks"] for folder in (whole, parts)]
    found = {name: [[scores.get(name) for scores in each.values()] for each in tasks] for name in SCORES}
    return [f"score {name}: {one} and {other}" for name, (one, other) in found.items() if one != other]


def weights_of(folder: Path, stages: tuple[str, ...]) -> list[str]:
    """The weight files of a run, relative to its folder."""
    return ["model/weights.safetensors", *(f"checkpoints/{stage}/model/weights.safetensors" for stage in stages)]


def untimed(state: dict[str, Any]) -> dict[str, Any]:
    """A record or a checkpoint without what a clock has said."""
    kept = {name: value for name, value in state.items() if name not in (*TIMED, "seconds")}
    if "parts" in kept:
        kept["parts"] = {name: part for name, part in kept["parts"].items() if name != "monitor"}
    return kept


def unequal(first: Any, second: Any, place: str = "") -> list[str]:
    """The places at which two nested values are not the same, bit for bit."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return [where for key in first for where in unequal(first[key], second[key], f"{place}.{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        return [where for i, (a, b) in enumerate(pairs) for where in unequal(a, b, f"{place}[{i}]")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [place]
    return [] if first == second else [place]


def main() -> None:
    """Prints every kill, a table of where they fell, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--every", type=float, help="mean seconds to a kill; by default, for one run to take them all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw, kills, found = random.Random(options.seed), list[Kill](), list[str]()
    with tempfile.TemporaryDirectory() as place:
        whole = write_config(Path(place) / "whole")
        took, again = left_alone(whole), left_alone(whole)
        mean = options.every or seconds_between(options.kills, took, again)
        print(f"left alone {took:.1f} s, of which starting takes {again:.1f} s: a kill after {mean:.1f} s on average")
        for runs in count(1):
            parts = write_config(Path(place) / f"parts-{runs}")
            while len(kills) < options.kills:
                kill = killed_after(parts, draw.expovariate(1 / mean))
                if kill is None:
                    break
                kills.append(kill)
                place_in_step = "starting" if kill.starting else kill.logged or ""
                print(f"{len(kills):3d}  after {kill.after:5.1f} s  in {kill.step}  {place_in_step}", flush=True)
            left_alone(parts)
            folders = run_dir(whole), run_dir(parts)
            found += [f"run {runs}: {line}" for line in (*differences(*folders), *other_scores(*folders))]
            if len(kills) == options.kills:
                break
    fell = Counter("starting" if kill.starting else kill.step for kill in kills)
    for step, number in fell.items():
        print(f"{step:20s} {number:3d}")
    print("\n".join(found) or "equal, bit for bit")
    result = {
        "bench": "kills",
        "kills": len(kills),
        "runs": runs,
        "equal": not found,
        "differences": found,
        "killed_in": dict(fell),
        "first_step_not_done": dict(Counter(kill.step for kill in kills)),
        "seconds_left_alone": round(took, 1),
        "seconds_of_starting": round(again, 1),
        "seconds_between_kills": round(mean, 1),
        "seed": options.seed,
        "commit": commit(),
        "source": source_hash(),
    }
    print(json.dumps(result))
    if options.out is not None:
        with (options.out / "kills.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
