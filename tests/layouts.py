"""Writes tiny files in the layouts that PDEBench publishes, with smooth fields."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

ATTRIBUTES = {
    "advection1d": {"beta": 0.4},
    "burgers1d": {"Nu": 0.01},
    "reaction_diffusion1d": {"Nu": 0.5, "Rho": 1.0},
    "cfd1d": {"Eta": 0.01, "Zeta": 0.01, "M": 0.1},
    "cfd2d": {"Eta": 0.01, "Zeta": 0.01, "M": 0.1},
    "darcy2d": {"beta": 1.0},
}
"""The parameters that stand in the attributes of published files."""

FINAL_TIME = 2.0


def cell_centres(low: float, high: float, cells: int) -> np.ndarray:
    """Centres of equal cells, float32 as published."""
    return (low + (high - low) * (np.arange(cells) + 0.5) / cells).astype(np.float32)


def travelling_waves(
    num: int, frames: int, resolution: int, dim: int, *, seed: int = 0, speed: float = 0.4
) -> np.ndarray:
    """(N, T, *grid) float32 on the unit torus: sums of two sines that travel along the first axis, u(x - speed t)."""
    rng = np.random.default_rng(seed)
    x = np.meshgrid(*[(np.arange(resolution) + 0.5) / resolution] * dim, indexing="ij")
    t = np.linspace(0, FINAL_TIME, frames)
    out = np.zeros((num, frames, *[resolution] * dim))
    for trajectory in out:
        for _ in range(2):
            wave, amplitude, phase = rng.integers(1, 4, dim), rng.uniform(0.2, 1), rng.uniform(0, 2 * np.pi)
            place = sum(k * axis for k, axis in zip(wave, x, strict=True))
            travelled = (wave[0] * speed * t).reshape(-1, *[1] * dim)
            trajectory += amplitude * np.sin(2 * np.pi * (place - travelled) + phase)
    return out.astype(np.float32)


def write_task(
    path: Path | str,
    task: str,
    num: int = 6,
    frames: int = 11,
    resolution: int = 32,
    seed: int = 0,
    *,
    lengths: Sequence[int] | None = None,
    **params: float | np.ndarray | None,
) -> Path:
    """Writes `num` trajectories in the layout that a task is published in.

    Args:
        path: the file to write.
        task: one of advection1d, burgers1d, reaction_diffusion1d, diffusion_sorption1d, reaction_diffusion2d,
            shallow_water2d, darcy2d, cfd1d, cfd2d, navier_stokes2d.
        num: trajectories.
        frames: per trajectory, over a time of 2; one-dimensional files have one time stamp more, as published.
        resolution: cells along each axis.
        seed: of the values; advection1d is an exact solution for its beta.
        lengths: frames of each trajectory instead (grouped layouts only).
        params: attributes by their published names (Nu=0.01); None leaves one out.
    """
    path = Path(path)
    attributes = {**ATTRIBUTES.get(task, {}), **params}
    speed = attributes.get("beta")
    speed = float(np.mean(speed)) if speed is not None else 0.4
    dim = 1 if task.endswith("1d") else 2
    u = travelling_waves(num, frames, resolution, dim, seed=seed, speed=speed)
    with h5py.File(path, "w") as file:
        for name, value in attributes.items():
            if value is not None:
                file.attrs[name] = value
        if task in ("advection1d", "burgers1d", "reaction_diffusion1d"):
            file["tensor"] = u if task != "reaction_diffusion1d" else 0.5 + u / 8
            write_axes(file, (0.0, 1.0), resolution, 1, frames + 1)
        elif task in ("cfd1d", "cfd2d"):
            for shift, name in enumerate(("density", "pressure", "Vx", "Vy")[: 3 + (dim == 2)]):
                file[name] = np.roll(u, shift, axis=-1) + 3
            write_axes(file, (0.0, 1.0), resolution, dim, frames + 1)
        elif task == "darcy2d":
            file["nu"] = (u[:, 0] > 0) * np.float32(0.9) + np.float32(0.1)
            file["tensor"] = u[:, :1]
            write_axes(file, (0.0, 1.0), resolution, 2, 0)
        elif task == "navier_stokes2d":
            file["velocity"] = np.stack([u, -u], axis=-1)
            file["particles"] = u[..., None] + 3
            file["force"] = np.stack([u[:, 0]] * 2, axis=-1)
            file["t"] = np.tile(np.linspace(0, FINAL_TIME, frames, dtype=np.float32), (num, 1))
        else:
            channels = 2 if task == "reaction_diffusion2d" else 1
            span = {"reaction_diffusion2d": (-1.0, 1.0), "shallow_water2d": (-2.5, 2.5)}.get(task, (0.0, 1.0))
            _write_groups(file, np.stack([u, u[:, ::-1]][:channels], axis=-1), span, lengths)
    return path


def write_axes(file: h5py.File, span: tuple[float, float], resolution: int, dim: int, stamps: int) -> None:
    """Coordinates at the top of a dense file; `stamps` time stamps, two of which span one step."""
    for axis in "xyz"[:dim]:
        file[f"{axis}-coordinate"] = cell_centres(*span, resolution)
    if stamps:
        step = FINAL_TIME / (stamps - 2)
        file["t-coordinate"] = (step * np.arange(stamps)).astype(np.float32)


def _write_groups(
    file: h5py.File, values: np.ndarray, span: tuple[float, float], lengths: Sequence[int] | None
) -> None:
    times = np.linspace(0, FINAL_TIME, values.shape[1], dtype=np.float32)
    for number, trajectory in enumerate(values):
        length = len(times) if lengths is None else lengths[number]
        group = file.create_group(f"{number:04d}")
        group["data"] = trajectory[:length]
        group["grid/t"] = times[:length]
        for axis, name in enumerate("xyz"[: trajectory.ndim - 2]):
            group[f"grid/{name}"] = cell_centres(*span, trajectory.shape[1 + axis])
