"""What cached latents save: the data path of one epoch of operator training, from windows to latents.

    python bench/latents.py [--rounds 9] [--out bench/results]

Fields are noise, in the sizes of a small run; batches are those that training takes by default. Four ways to the same
latents are measured in turns in one process, on one thread, by its CPU time:

    encode   every batch is gathered, normalised and encoded, as without a cache
    cached   float16 latents are gathered from RAM and made float32
    mapped   the same from the memory-mapped file, which the system has in its own memory by then
    decoded  as `cached`; then the frames to predict are decoded, which every loss term but `lambda_forward` needs

The table shows medians over the rounds, and ratios of `encode` to each: the medians of each round's own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from common import publish
from ups.data.fields import Batch, Grid
from ups.data.latents import LatentStore
from ups.data.trajectories import MemoryFrames, TrajectorySet
from ups.data.windows import WindowLoader
from ups.models.codec import Codec
from ups.physics.equations import get_equation

SHAPES = {"burgers1d": (200, 41, (256,), 8, 32), "reaction_diffusion2d": (24, 21, (64, 64), 4, 8)}
"""Trajectories, frames, grid, cells per token and axis, windows per batch."""
CODECS = {"default": None, "exact": 1.0, "lossy": 0.25}
"""Latents per value of a token's cells; the default is 64 of them whatever the values."""
WAYS = ("encode", "cached", "mapped", "decoded")


def noise(task: str) -> TrajectorySet:
    """Trajectories of random values in memory."""
    num, length, shape, _, _ = SHAPES[task]
    equation = get_equation(task)
    frames = torch.randn(num * length, len(equation.fields), *shape, generator=torch.Generator().manual_seed(0))
    return TrajectorySet(
        task,
        equation,
        Grid(tuple((np.arange(size) + 0.5) / size for size in shape), tuple(equation.periodic)),
        0.05,
        torch.zeros(num, len(equation.parameters)),
        torch.full((num,), length),
        [str(number) for number in range(num)],
        MemoryFrames(frames, torch.arange(num) * length),
    )


@torch.no_grad()
def epoch(loader: WindowLoader, work: Callable[[Batch], Tensor]) -> float:
    """CPU seconds of all batches of an epoch."""
    begun = time.process_time()
    for _ in range(loader.steps_per_epoch):
        work(loader.next_batch())
    return time.process_time() - begun


def measure(task: str, codec_name: str, folder: Path, rounds: int) -> dict[str, float | str]:
    """Milliseconds per batch of each way, and the ratios."""
    _, _, shape, patch, batch_size = SHAPES[task]
    trajectories = noise(task)
    channels = len(trajectories.equation.fields)
    share, values = CODECS[codec_name], channels * patch ** len(shape)
    codec = Codec(channels, 64 if share is None else int(share * values), patch, trajectories.equation.periodic)
    codec.requires_grad_(False)
    mean, std = torch.full((channels, *[1] * len(shape)), 0.1), torch.full((channels, *[1] * len(shape)), 1.3)

    def encode(frames: Tensor) -> Tensor:
        return codec.encode((frames - mean) / std)

    def by_encoding(batch: Batch) -> Tensor:
        return encode(batch.frames.flatten(0, 1)).unflatten(0, batch.frames.shape[:2])

    def from_cache(batch: Batch) -> Tensor:
        assert batch.latents is not None
        return batch.latents.float()

    def decoded(batch: Batch) -> Tensor:
        return codec.decode(from_cache(batch)[:, batch.context :].flatten(0, 1))

    held, mapped = (
        {
            task: LatentStore(folder / codec_name, preload=preload).load(
                "train", trajectories, encode, codec.state_dict()
            )
        }
        for preload in (True, False)
    )
    make = partial(WindowLoader, {task: trajectories}, batch_size, 1, 1, 0, workers=0)
    ways = {
        "encode": (make(), by_encoding),
        "cached": (make(latents=held), from_cache),
        "mapped": (make(latents=mapped), from_cache),
        "decoded": (make(latents=held), decoded),
    }
    for loader, work in ways.values():
        epoch(loader, work)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds):
        for step in range(len(WAYS)):  # each goes first in turn
            name = WAYS[(turn + step) % len(WAYS)]
            seconds[name].append(epoch(*ways[name]))
    batches = ways["encode"][0].steps_per_epoch
    row: dict[str, float | str] = {"task": task, "codec": codec_name, "latents_per_value": codec.latent_dim / values}
    row |= {f"{name}_ms": 1e3 * median(of_name) / batches for name, of_name in seconds.items()}
    for name in WAYS[1:]:
        ratios = [slow / fast for slow, fast in zip(seconds["encode"], seconds[name], strict=True)]
        row[f"encode_over_{name}"] = median(ratios)
    return row


def main() -> None:
    """Measures all cases and prints a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="folder for latents.json and latents.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(task, codec, Path(folder), arguments.rounds) for task in SHAPES for codec in CODECS]
    found = {
        f"{row['task']}/{row['codec']}": {
            name: round(value, 3) for name, value in row.items() if "_over_" in name and not isinstance(value, str)
        }
        for row in rows
    }
    publish("latents", rows, {"target": 3.0, "ratios": found}, arguments.out)


if __name__ == "__main__":
    main()
