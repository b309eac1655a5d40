"""What is scored, and how: the protocol, and the record of how it was carried out."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ups.data.trajectories import TrajectorySet
from ups.versions import SCORES

MODES = ("latent", "physical")
"""Ways to roll out: staying in latent space between steps, or decoding and encoding at each."""


@dataclass(frozen=True)
class Protocol:
    """How emulators are judged.

    Args:
        split: name of the split, for the record.
        max_samples: trajectories per task, spread evenly over the split; None takes all.
        steps: frames to predict; None goes to the end of each trajectory.
        mode: `latent` stays in latent space between steps; `physical` decodes and encodes at each.
        batch_size: trajectories rolled out together, which is also what the wall clock is taken of; of ensembles, as
            many trajectories as have so many members together.
        members: roll-outs in the ensemble of each trajectory, by emulators that draw; 0 or 1 rolls no ensemble.
        seed: of the members' draws.
        views: that the simulator was told to make a step the mean over; None is as trained. For the record.
    """

    split: str = "test"
    max_samples: int | None = None
    steps: int | None = None
    mode: str = "latent"
    batch_size: int = 32
    members: int = 8
    seed: int = 0
    views: int | None = None

    def choose(self, trajectories: TrajectorySet) -> list[int]:
        """Numbers of the trajectories of a set that are scored."""
        return spread_evenly(trajectories.num, self.max_samples)


def spread_evenly(num: int, wanted: int | None) -> list[int]:
    """Numbers of at most `wanted` of `num` trajectories, evenly over them: files stand one after the other in a split.

    None takes all.
    """
    wanted = num if wanted is None else min(num, wanted)
    return [place * num // wanted for place in range(wanted)]


def describe(
    protocol: Protocol,
    sets: Mapping[str, TrajectorySet],
    chosen: Mapping[str, Sequence[int]],
    contexts: Mapping[str, int],
    device: torch.device,
) -> dict[str, Any]:
    """The protocol as it was carried out. Its hash is of what was asked, not of the machine that answered."""
    tasks = {
        task: {
            "num_samples": len(chosen[task]),
            "indices": _hash(list(chosen[task])),
            "context": contexts[task],
            "data_hash": trajectories.content_hash,
            "grid": list(trajectories.grid.shape),
            "dt": float(trajectories.dt),
        }
        for task, trajectories in sets.items()
    }
    asked = {
        "scores_version": SCORES,
        "split": protocol.split,
        "steps": protocol.steps,
        "rollout_mode": protocol.mode,
        "members": protocol.members,
        "members_seed": protocol.seed,
        "tasks": tasks,
        **({} if protocol.views is None else {"views": protocol.views}),  # not in the hash of those as trained
    }
    machine = {
        "device": _device_name(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "batch_size": protocol.batch_size,
    }
    return {**asked, **machine, "hash": _hash(asked)}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def processor() -> str:
    """The name of this machine's processor, or what kind it is of where the system does not say."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
