"""What starting costs: help against bare Python and PyTorch, and the way to the first optimizer step.

    python bench/startup.py [--rounds 7] [--out bench/results]

Every measurement is of a new process, from before it is started. The first step is compared with what no training can
do without: `import torch` and reading every frame of the data file. `first_step` begins a run, its checks included;
`first_step_again` continues one whose checks are done. Rounds are interleaved; the table shows medians, the JSON line
ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
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
]

READ = """
import sys, time
import torch, h5py
stamp, data = sys.argv[1:]
with h5py.File(data) as file:
    file["tensor"][:]
open(stamp, "w").write(str(time.monotonic()))
"""
FIRST_STEP = """
import sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
from ups.cli import main
stamp = sys.argv.pop(1)

def stop(*_):
    open(stamp, "w").write(str(time.monotonic()))
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


def run(command: list[str]) -> None:
    """Run a process to its end; one that fails ends the bench with what it said."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stderr}")


def whole(command: list[str]) -> float:
    """Seconds from before a process starts until it has ended."""
    began = time.monotonic()
    run(command)
    return time.monotonic() - began


def until_stamp(code: str, stamp: Path, arguments: list[str]) -> float:
    """Seconds from before a process starts until its code writes the (system-wide) monotonic clock to `stamp`."""
    stamp.unlink(missing_ok=True)
    began = time.monotonic()
    run([sys.executable, "-c", code, str(stamp), *arguments])
    if not stamp.exists():
        raise SystemExit("the training ended without an optimizer step")
    return float(stamp.read_text()) - began


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Median seconds of every case."""
    data, config, stamp = folder / "1D_Burgers_Sols_Nu0.01.hdf5", folder / "startup.yaml", folder / "stamp"
    write_data(data)
    config.write_text(
        f"task: burgers1d\ndata: {{root: {json.dumps(str(folder))}, files: {data.name}}}\n"
        "stages: {codec: {epochs: 0}, operator: {steps: 1}}\n"
    )
    number = count()

    def first_step(fresh: bool) -> float:
        place = folder / "runs" / (str(next(number)) if fresh else "again")
        return until_stamp(FIRST_STEP, stamp, ["train", str(config), f"runs_dir={place}"])

    cases: dict[str, Callable[[], float]] = {
        "python": lambda: whole([sys.executable, "-c", "pass"]),
        "help": lambda: whole([str(Path(sys.executable).with_name("ups")), "--help"]),
        "torch": lambda: whole([sys.executable, "-c", "import torch"]),
        "torch_and_data": lambda: until_stamp(READ, stamp, [str(data)]),
        "first_step": lambda: first_step(fresh=True),
        "first_step_again": lambda: first_step(fresh=False),
    }
    for case in cases.values():  # files are read and byte code is written once before anything counts
        case()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            times[name].append(case())
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    """Measures, prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder for startup.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), arguments.rounds)
    print("| case | seconds |\n| --- | ---: |")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} |")
    ratios = {f"{name}_over_{base}": round(seconds[name] / seconds[base], 3) for name, base in PAIRS}
    medians = {name: round(value, 4) for name, value in seconds.items()}
    result = json.dumps({"bench": "startup", "rounds": arguments.rounds, "ratios": ratios, "seconds": medians})
    print(result)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "startup.json").write_text(result + "\n")


if __name__ == "__main__":
    main()
