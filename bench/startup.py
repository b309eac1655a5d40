"""What starting costs: help against bare Python and PyTorch, the way to the first optimizer step, and a whole run.

    python bench/startup.py [--rounds 7] [--out bench/results]

Every measurement is of a new process, from before it is started. The first step is compared with what no training can
do without: `import torch` and reading every frame of the data file. `first_step` begins a run, its checks included;
`first_step_again` continues one whose checks are done. `run_overhead` is what `ups run --profile` says is neither
training nor evaluation, imports included; `run_finished` is the same command once more, when nothing is left to do.
Rounds are interleaved; the tables show medians of seconds and of CPU seconds, which a busy machine spoils less, the
JSON line ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median

import h5py
import numpy as np

TRAJECTORIES, FRAMES, CELLS = 200, 41, 256
PAIRS = [
    ("help", "python"),
    ("help", "torch"),
    ("first_step", "torch_and_data"),
    ("first_step_again", "torch_and_data"),
    ("run_overhead", "torch"),
    ("run_finished", "torch"),
]
Times = tuple[float, float]  # seconds, CPU seconds

READ = """
import sys, time
import torch, h5py
stamp, data = sys.argv[1:]
with h5py.File(data) as file:
    file["tensor"][:]
open(stamp, "w").write(f"{time.monotonic()} {time.process_time()}")
"""
FIRST_STEP = """
import sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
from ups.cli import main
stamp = sys.argv.pop(1)

def stop(*_):
    open(stamp, "w").write(f"{time.monotonic()} {time.process_time()}")
    raise SystemExit

register_optimizer_step_post_hook(stop)
main()
"""


def write_data(path: Path) -> None:
    """Decaying waves in the layout of PDEBench's Burgers files, and of a small run's size."""
    rng = np.random.default_rng(0)
    x, t = (np.arange(CELLS) + 0.5) / CELLS, np.linspace(0, 2, FRAMES)[:, None]
    u = np.zeros((TRAJECTORIES, FRAMES, CELLS))
    for k in range(1, 5):
        size, phase = rng.normal(size=(2, TRAJECTORIES, 1, 1))
        u += size * np.exp(-k * t / 4) * np.sin(2 * np.pi * k * (x - 0.1 * t) + 6 * phase)
    with h5py.File(path, "w") as file:
        file.attrs["Nu"] = 0.01
        file["tensor"] = u.astype(np.float32)
        file["x-coordinate"], file["t-coordinate"] = x.astype(np.float32), t[:, 0].astype(np.float32)


def run(command: list[str]) -> float:
    """Run a process to its end, and return its CPU seconds; one that fails ends the bench with what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def whole(command: list[str]) -> Times:
    """Seconds and CPU seconds from before a process starts until it has ended."""
    began = time.monotonic()
    cpu = run(command)
    return time.monotonic() - began, cpu


def until_stamp(code: str, stamp: Path, arguments: list[str]) -> Times:
    """Seconds from before a process starts until its code writes clock and CPU clock (system-wide) to `stamp`."""
    stamp.unlink(missing_ok=True)
    began = time.monotonic()
    run([sys.executable, "-c", code, str(stamp), *arguments])
    if not stamp.exists():
        raise SystemExit("the training ended without an optimizer step")
    ended, cpu = map(float, stamp.read_text().split())
    return ended - began, cpu


def overhead(command: list[str], runs: Path) -> Times:
    """Seconds and CPU seconds of a run that are neither training nor evaluation, by its own profile."""
    run(command)
    (profile,) = runs.glob("*/profile.json")
    found = json.loads(profile.read_text())["sums"]["overhead"]
    return found["seconds"], found["cpu"]


def measure(folder: Path, rounds: int) -> dict[str, Times]:
    """Median seconds and CPU seconds of every case."""
    data, config, stamp = folder / "1D_Burgers_Sols_Nu0.01.hdf5", folder / "startup.yaml", folder / "stamp"
    write_data(data)
    config.write_text(
        f"task: burgers1d\ndata: {{root: {json.dumps(str(folder))}, files: {data.name}}}\n"
        "stages: {codec: {epochs: 0}, operator: {steps: 1}}\ngates: {first_champion: true}\n"
        "evaluation: {small: {max_samples: 2, steps: 4}, full: {max_samples: 2, steps: 4}, solver_reference: false}\n"
    )
    number = count()
    ups = str(Path(sys.executable).with_name("ups"))

    def place(fresh: bool, known: str) -> Path:
        return folder / "runs" / (str(next(number)) if fresh else known)

    def first_step(fresh: bool) -> Times:
        return until_stamp(FIRST_STEP, stamp, ["train", str(config), f"runs_dir={place(fresh, 'begun')}"])

    def whole_run(fresh: bool) -> Times:
        runs = place(fresh, "finished")
        command = [ups, "run", str(config), f"runs_dir={runs}"]
        return overhead([*command, "--profile"], runs) if fresh else whole(command)

    cases: dict[str, Callable[[], Times]] = {
        "python": lambda: whole([sys.executable, "-c", "pass"]),
        "help": lambda: whole([ups, "--help"]),
        "torch": lambda: whole([sys.executable, "-c", "import torch"]),
        "torch_and_data": lambda: until_stamp(READ, stamp, [str(data)]),
        "first_step": lambda: first_step(fresh=True),
        "first_step_again": lambda: first_step(fresh=False),
        "run_overhead": lambda: whole_run(fresh=True),
        "run_finished": lambda: whole_run(fresh=False),
    }
    for case in cases.values():  # files are read, byte code is written and a run is made once before anything counts
        case()
    times: dict[str, list[Times]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            times[name].append(case())
    return {name: (median(one for one, _ in found), median(cpu for _, cpu in found)) for name, found in times.items()}


def main() -> None:
    """Measures, prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder for startup.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), arguments.rounds)
    print("| case | seconds | CPU seconds |\n| --- | ---: | ---: |")
    for name, (value, cpu) in seconds.items():
        print(f"| {name} | {value:.3f} | {cpu:.3f} |")
    results: dict[str, object] = {"bench": "startup", "rounds": arguments.rounds}
    for index, kind in enumerate(("", "cpu_")):
        of = {name: found[index] for name, found in seconds.items()}
        results[f"{kind}ratios"] = {f"{name}_over_{base}": round(of[name] / of[base], 3) for name, base in PAIRS}
        results[f"{kind}seconds"] = {name: round(value, 4) for name, value in of.items()}
    result = json.dumps(results)
    print(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "startup.json").write_text(result + "\n")


if __name__ == "__main__":
    main()
