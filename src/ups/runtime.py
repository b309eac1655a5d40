"""The process a run lives in: device, threads, seeds, determinism, rank, the run's name, and how progress is told.

PyTorch is imported by what needs it: a command that turns out to have nothing to do does not wait for it.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from ups.errors import SettingsError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class World:
    """This process among those that train together; a single process is a world of one."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and tells progress."""
        return self.rank == 0


def world() -> World:
    """The world that the launcher announced in `RANK` and `WORLD_SIZE`; a world of one without a launcher."""
    return World(rank=int(os.environ.get("RANK", "0")), size=int(os.environ.get("WORLD_SIZE", "1")))


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to compute on; `auto` is the GPU where there is one.

    Raises:
        SettingsError: `cuda` was asked for and PyTorch finds no GPU.
    """
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise SettingsError(
            "device is cuda, but PyTorch finds no GPU here; set device=cpu, or device=auto (of a run that is there "
            "already: --device cpu)"
        )
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and PyTorch on all devices, and return a CPU generator of the same seed for explicit draws.

    Args:
        seed: a whole number from 0; each rank passes the same one and draws its own stream from the sampler.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries that draw from the global state must be seeded too)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def prepare_process(*, threads: int | None, deterministic: bool, benchmark: bool) -> None:
    """Set what PyTorch keeps per process.

    Args:
        threads: threads of one operation; None leaves PyTorch's choice.
        deterministic: refuse operations that have no deterministic form, and let cuBLAS reduce in a fixed order.
        benchmark: let cuDNN time its algorithms and keep the fastest; ignored when `deterministic`.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if deterministic != torch.are_deterministic_algorithms_enabled():  # setting it imports the compiler: seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark and not deterministic
    torch.backends.cudnn.allow_tf32 = False  # convolutions in float32 are that, as on a CPU; `training.amp` is faster


def run_id(name: str | None, tasks: tuple[str, ...], settings_hash: str) -> str:
    """The name of a run's folder: the same settings give the same folder, so that running again continues.

    Args:
        name: the user's name for the run, a safe path component; None leaves it out.
        tasks: names of the tasks; more than three are counted instead of listed.
        settings_hash: hexadecimal digest of the resolved settings; its first eight digits are used.
    """
    task = "+".join(tasks) if len(tasks) <= 3 else f"{len(tasks)}tasks"
    return "-".join([*([name] if name else []), task, settings_hash[:8]])


@runtime_checkable
class Progress(Protocol):
    """Tells a person how far the work is. One piece of work at a time."""

    def start(self, name: str, total: float | None = None, unit: str = "") -> None:
        """Begin a piece of work of `total` units; None when the end is not known."""

    def update(self, done: float, note: str = "") -> None:
        """Say that `done` units are done in all, with a short note such as the loss."""

    def finish(self, note: str = "") -> None:
        """End the piece of work."""

    def say(self, line: str) -> None:
        """Say a line that stays."""


class SilentProgress:
    """Tells nothing: for tests, libraries, and every rank but the first."""

    def start(self, name: str, total: float | None = None, unit: str = "") -> None:
        """Tell nothing."""

    def update(self, done: float, note: str = "") -> None:
        """Tell nothing."""

    def finish(self, note: str = "") -> None:
        """Tell nothing."""

    def say(self, line: str) -> None:
        """Tell nothing."""
