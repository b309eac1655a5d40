"""Sets, codecs and folders for tests of cached latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv1d

from ups.data.fields import Grid
from ups.data.latents import LatentStore
from ups.data.trajectories import MemoryFrames, TrajectorySet, hash_frames
from ups.physics.equations import get_equation

LENGTHS = (8, 3, 5, 2, 7)
CACHE = ["burgers1d-train.latents", "burgers1d-train.latents.json"]


def make_set(lengths: tuple[int, ...] = LENGTHS, seed: int = 0, dt: float = 0.1, size: int = 16) -> TrajectorySet:
    """Noise of Burgers' equation in memory."""
    counts = torch.tensor(lengths)
    frames = torch.randn(sum(lengths), 1, size, generator=torch.Generator().manual_seed(seed))
    return TrajectorySet(
        "burgers1d",
        get_equation("burgers1d"),
        Grid(((np.arange(size) + 0.5) / size,), (True,)),
        dt,
        torch.linspace(0.1, 0.5, len(lengths))[:, None],
        counts,
        [hash_frames(part.numpy()) for part in frames.split(list(lengths))],
        MemoryFrames(frames, counts.cumsum(0) - counts),
    )


def make_weight(seed: int = 0) -> Tensor:
    return torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(seed))


class Codec:
    """A linear encoder of four cells; counts the frames it encodes."""

    def __init__(self, seed: int = 0) -> None:
        self.weights, self.encoded = {"encoder": make_weight(seed)}, 0

    def __call__(self, frames: Tensor) -> Tensor:
        self.encoded += len(frames)
        return conv1d(frames, self.weights["encoder"], stride=4)


def load(store: LatentStore, trajectories: TrajectorySet, codec: Codec) -> Tensor:
    return store.load("train", trajectories, codec, codec.weights).frames


def exact(trajectories: TrajectorySet, codec: Codec) -> Tensor:
    """The latents of all frames, one frame at a time."""
    frames = torch.cat([trajectories.trajectory(number) for number in range(trajectories.num)])
    return torch.cat([conv1d(frame[None], codec.weights["encoder"], stride=4) for frame in frames])


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
