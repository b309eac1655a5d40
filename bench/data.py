"""What serving windows costs: a batch against the bare `index_select` under it, and reading against copying.

    python bench/data.py [--repeats 400] [--out bench/results]

Each pair is measured interleaved in one run; the table shows medians, the JSON line the ratios of each pair.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import torch

from common import publish
from ups.config.data import DataSettings
from ups.data.split import load_files
from ups.data.trajectories import TrajectorySet
from ups.data.windows import WindowLoader

BATCH, CONTEXT, HORIZON = 32, 1, 1
CASES = {"burgers1d": (200, 41, (256,), 1), "reaction_diffusion2d": (24, 21, (64, 64), 2)}
"""Trajectories, frames, grid and channels of each case: those of a small run."""


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of two pieces of work, called in turns after a warm-up."""
    for _ in range(max(3, repeats // 10)):
        first(), second()
    times = [(seconds(first), seconds(second)) for _ in range(repeats)]
    mine, theirs = zip(*times, strict=True)
    return median(mine), median(theirs)


def write(path: Path, task: str) -> None:
    """A file of noise in the published layout and with its chunks."""
    num, frames, grid, channels = CASES[task]
    values = np.random.default_rng(0).normal(size=(num, frames, *grid, channels)).astype(np.float32)
    axes = [((np.arange(size) + 0.5) / size).astype(np.float32) for size in grid]
    times = np.linspace(0, 2, frames, dtype=np.float32)
    with h5py.File(path, "w") as file:
        if len(grid) == 1:
            file.attrs["Nu"] = 0.01
            file.create_dataset("tensor", data=values[..., 0], compression="gzip", compression_opts=1)
            file["x-coordinate"], file["t-coordinate"] = axes[0], times
            return
        for number, trajectory in enumerate(values):
            group = file.create_group(f"{number:04d}")
            group["data"], group["grid/t"] = trajectory, times
            for name, axis in zip("xy", axes, strict=False):
                group[f"grid/{name}"] = axis


def load(path: Path, task: str, memory_budget_gb: float) -> TrajectorySet:
    """The file as one set, in memory or lazily."""
    return load_files([path], task, DataSettings(task=(task,), memory_budget_gb=memory_budget_gb))


def measure(task: str, folder: Path, repeats: int) -> dict[str, float | str]:
    """Milliseconds per batch (loader, bare index_select, lazy loader), MB/s of loading, and their ratios."""
    path = folder / f"{task}.h5"
    write(path, task)
    held, lazy = load(path, task, 4.0), load(path, task, 1e-6)
    loader = WindowLoader({task: held}, BATCH, CONTEXT, HORIZON, seed=0)
    reader = WindowLoader({task: lazy}, BATCH, CONTEXT, HORIZON, seed=0)
    frames = torch.cat([held.trajectory(number) for number in range(held.num)])
    indices = cycle(torch.randint(len(frames), (1000, BATCH * (CONTEXT + HORIZON))))  # fresh ones: caches stay as cold
    batch, bare = interleaved(loader.next_batch, lambda: frames.index_select(0, next(indices)), repeats)
    from_disk, _ = interleaved(reader.next_batch, lambda: None, max(5, repeats // 20))
    reader.close()
    loading, copying = interleaved(lambda: load(path, task, 4.0), frames.clone, max(5, repeats // 40))
    megabytes = frames.numel() * 4 / 1e6
    return {
        "case": task,
        "batch_ms": 1e3 * batch,
        "index_select_ms": 1e3 * bare,
        "batch_over_index_select": batch / bare,
        "lazy_batch_ms": 1e3 * from_disk,
        "lazy_over_memory": from_disk / batch,
        "load_mb_per_s": megabytes / loading,
        "load_over_copy": loading / copying,
    }


def main() -> None:
    """Measures both cases and prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--out", type=Path, help="folder for data.json and data.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(task, Path(folder), arguments.repeats) for task in CASES]
    ratios = {row["case"]: {name: value for name, value in row.items() if "_over_" in name} for row in rows}
    publish("data", rows, {"batch": BATCH, "ratios": ratios}, arguments.out)


if __name__ == "__main__":
    main()
