"""A few trajectories kept to look at: true, as every emulator predicts them, thinned to what a page shows."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ups.data.trajectories import TrajectorySet
from ups.errors import DataError
from ups.evaluation.protocol import Protocol
from ups.evaluation.rollout import rollout_ensembles, rollout_trajectories
from ups.files import write_whole
from ups.models.emulator import Emulator

MOST_FRAMES = 64
MOST_POINTS = {1: 128, 2: 64}
"""Points kept along each axis, by number of axes."""

BAND = {"low": 0.1, "high": 0.9}
"""Quantiles of the members between which a one-dimensional field's band is drawn."""

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Showcase:
    """One trajectory with what every emulator made of it, in physical units.

    Args:
        task: name of the equation.
        role: why it was chosen: `worst`, `median` or `best`.
        index: its number in the split.
        fields: name of each channel.
        params: PDE parameters by name.
        times: time of each frame since the initial one, which comes first.
        extent: first and last coordinate of each axis.
        truth: (time, channel, *grid).
        predictions: by emulator, shaped as the truth; the initial frame is the given one.
        ensemble: of the emulator under judgement: `mean` and `spread` (standard deviation) of the members, and in one
            dimension `low` and `high`, the ends of their middle 80 %; shaped as the truth. Empty where it draws none.
    """

    task: str
    role: str
    index: int
    fields: tuple[str, ...]
    params: Mapping[str, float]
    times: tuple[float, ...]
    extent: tuple[tuple[float, float], ...]
    truth: Array
    predictions: Mapping[str, Array]
    ensemble: Mapping[str, Array] = field(default_factory=dict)


def choose(per_sample: Mapping[int, float | None]) -> dict[str, int]:
    """Indices of the worst, the median and the best trajectory by their error; one that diverged is worse than any."""
    ranked = sorted(per_sample, key=lambda index: float("inf") if (error := per_sample[index]) is None else error)
    chosen = {"worst": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "best": ranked[0]}
    return {role: index for role, index in chosen.items() if role == "worst" or index != chosen["worst"]}


def take(
    emulators: Mapping[str, Emulator],
    trajectories: TrajectorySet,
    chosen: Mapping[str, int],
    *,
    protocol: Protocol,
    device: torch.device,
) -> tuple[Showcase, ...]:
    """Rolls every emulator out over the chosen trajectories and keeps a thinned copy; of the first its ensemble too."""
    subject = next(iter(emulators.values()))
    context = subject.tasks[trajectories.task].context
    kept = []
    equation, grid = trajectories.equation, trajectories.grid
    for role, index in chosen.items():
        predictions: dict[str, Array] = {}
        for name, emulator in emulators.items():
            batch = next(
                rollout_trajectories(
                    emulator,
                    trajectories,
                    [index],
                    context=context,
                    steps=protocol.steps,
                    mode=protocol.mode,
                    batch_size=1,
                    device=device,
                )
            )
            predictions[name] = _thin(torch.cat([batch.initial[:, None], batch.prediction], dim=1)[0])
        truth = _thin(torch.cat([batch.initial[:, None], batch.truth], dim=1)[0])
        frames = _kept_frames(batch.truth.shape[1] + 1)
        kept.append(
            Showcase(
                task=trajectories.task,
                role=role,
                index=index,
                fields=tuple(one.name for one in equation.fields),
                params={p.name: float(v) for p, v in zip(equation.parameters, trajectories.params[index], strict=True)},
                times=tuple(float(frame * trajectories.dt) for frame in frames),
                extent=tuple((float(axis[0]), float(axis[-1])) for axis in grid.axes),
                truth=truth,
                predictions=predictions,
                ensemble=_ensemble(subject, trajectories, index, protocol, device),
            )
        )
    return tuple(kept)


def _ensemble(
    emulator: Emulator, trajectories: TrajectorySet, index: int, protocol: Protocol, device: torch.device
) -> dict[str, Array]:
    """Statistics of the ensemble of one trajectory, thinned; nothing where the emulator draws none."""
    if not emulator.draws or protocol.members < 2:
        return {}
    batch = next(
        rollout_ensembles(
            emulator,
            trajectories,
            [index],
            members=protocol.members,
            seed=protocol.seed,
            context=emulator.tasks[trajectories.task].context,
            steps=protocol.steps,
            mode=protocol.mode,
            batch_size=protocol.members,
            device=device,
        )
    )
    thinned = np.stack([_thin(torch.cat([batch.initial, member])) for member in batch.members[:, 0]]).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # of an ensemble that diverged
        statistics = {"mean": thinned.mean(axis=0), "spread": thinned.std(axis=0, ddof=1)}
        if thinned.ndim == 4:
            statistics |= {name: np.quantile(thinned, level, axis=0) for name, level in BAND.items()}
    return {name: values.astype(np.float32) for name, values in statistics.items()}


def _kept_frames(frames: int) -> list[int]:
    """Frames kept of a trajectory, the first and the last among them."""
    return [round(frame) for frame in np.linspace(0, frames - 1, min(frames, MOST_FRAMES)).tolist()]


def _thin(u: Tensor) -> Array:
    """At most so many frames and points per axis as a page shows."""
    values = u[_kept_frames(len(u))].cpu().numpy()
    most = MOST_POINTS.get(values.ndim - 2, 32)
    every = tuple(slice(None, None, -(-size // most)) for size in values.shape[2:])
    return np.ascontiguousarray(values[:, :, *every])


def save(path: Path, showcases: Sequence[Showcase]) -> None:
    """Writes showcases as one `.npz`: an index in JSON, and per trajectory the truth and the error of each emulator.

    Errors, and the spread of an ensemble, are kept in half precision: their own relative precision is 1e-3, whatever
    the field's size.
    """
    arrays: dict[str, Array] = {}
    index = []
    for number, one in enumerate(showcases):
        arrays[f"{number}.truth"] = one.truth.astype(np.float32)
        for place, prediction in enumerate(one.predictions.values()):
            with np.errstate(over="ignore", invalid="ignore"):
                arrays[f"{number}.{place}"] = (prediction - one.truth).astype(np.float16)
        for name, values in one.ensemble.items():
            with np.errstate(over="ignore", invalid="ignore"):
                arrays[f"{number}.{name}"] = (values if name == "spread" else values - one.truth).astype(np.float16)
        entry = {key: getattr(one, key) for key in ("task", "role", "index", "fields", "times", "extent")}
        entry |= {"params": dict(one.params), "emulators": list(one.predictions), "ensemble": list(one.ensemble)}
        index.append(entry)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, index=np.array(json.dumps(index)), **arrays)  # type: ignore[arg-type]
    write_whole(path, buffer.getvalue())


def load(path: Path) -> tuple[Showcase, ...]:
    """Reads what `save` wrote.

    Raises:
        DataError: the file is damaged.
    """
    damaged = f"{path} is damaged; evaluate the run again"
    if not zipfile.is_zipfile(path):
        raise DataError(damaged)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            index = json.loads(str(arrays["index"]))
            return tuple(_restore(entry, number, arrays) for number, entry in enumerate(index))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(damaged) from error  # numpy's own words speak of pickles


def _restore(entry: Mapping[str, Any], number: int, arrays: Mapping[str, Array]) -> Showcase:
    truth = arrays[f"{number}.truth"]
    predictions = {
        name: truth + arrays[f"{number}.{place}"].astype(np.float32) for place, name in enumerate(entry["emulators"])
    }
    ensemble = {
        name: (0 if name == "spread" else truth) + arrays[f"{number}.{name}"].astype(np.float32)
        for name in entry.get("ensemble", ())  # evaluations of before there were ensembles have none
    }
    return Showcase(
        task=entry["task"],
        role=entry["role"],
        index=entry["index"],
        fields=tuple(entry["fields"]),
        params=entry["params"],
        times=tuple(entry["times"]),
        extent=tuple((low, high) for low, high in entry["extent"]),
        truth=truth,
        predictions=predictions,
        ensemble=ensemble,
    )
