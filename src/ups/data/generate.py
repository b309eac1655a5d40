"""Makes data with the reference solvers, in the HDF5 layout that PDEBench publishes (M. Takamoto et al., NeurIPS 2022).

Trajectory i of a seed is the same however many are made. A value is the mean over its cell of a solution on a finer
grid (`Solver.refinement`): what an equation conserves, the data conserves to rounding, even where a shock is thinner
than a cell. A solution that is known in closed form, as for advection, is evaluated on the finer grid instead of solved
for. Where the initial state is noise in the grid's own cells, nothing is refined.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from ups.errors import DataError, UsageError
from ups.physics.description import Report
from ups.physics.equations import Equation, Parameter, get_equation
from ups.physics.solvers import solve, solver_of
from ups.runtime import Progress, SilentProgress

_CHUNK_VALUES = 1 << 24  # float64 values of a solution held at once
_CELLS_OF_EXACT = 9  # points of a cell at which a solution in closed form is evaluated


@dataclass(frozen=True)
class Recipe:
    """What is to be made, checked and complete.

    Args:
        equation: its description.
        samples: number of trajectories.
        seed: of the initial states.
        params: value of each parameter, in the order of the description.
        resolution: cells along each axis.
        frames: per trajectory, the first included.
        time: of the last frame.
        device: to compute on.
    """

    equation: Equation
    samples: int
    seed: int
    params: tuple[float, ...]
    resolution: int
    frames: int
    time: float
    device: torch.device

    @property
    def times(self) -> np.ndarray:
        """Times of the frames, float64."""
        return np.linspace(0.0, self.time, self.frames)

    @property
    def values_per_trajectory(self) -> int:
        """Values that a trajectory has in the file."""
        return self.frames * len(self.equation.fields) * math.prod((self.resolution,) * self.equation.dim)


def generate(
    equation_name: str,
    out: Path,
    samples: int,
    seed: int,
    params: Mapping[str, float],
    resolution: int | None = None,
    frames: int | None = None,
    time: float | None = None,
    *,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    """Write trajectories of an equation to a file that appears complete or not at all.

    Without `resolution` and `frames` the data is small enough for a laptop (256 cells and 41 frames in one dimension,
    64 x 64 and 21 in two); the published sizes are those of the description (1024 and 201, or 101; 128 x 128 and 101).

    Args:
        equation_name: such as burgers1d.
        out: the HDF5 file to write; missing folders are made.
        samples: number of trajectories, at least 1.
        seed: of the initial states, at least 0.
        params: parameters by name or by the key of published files; those left out take the description's default.
        resolution: cells along each axis, at least 8.
        frames: per trajectory, the first included, at least 2.
        time: of the last frame; the published one by default.
        overwrite: replace `out` where it exists.
        device: to compute on, as PyTorch names it.
        progress: told how far the work is, in trajectories.

    Raises:
        UsageError: an argument makes no sense; the message names it.
        DataError: `out` cannot be written.
        UpsError: the equation has no reference solver.
    """
    equation = get_equation(equation_name)
    solver_of(equation)
    recipe = Recipe(
        equation=equation,
        samples=_at_least("samples", samples, 1),
        seed=_at_least("seed", seed, 0),
        params=parameter_values(equation, params),
        resolution=_at_least("resolution", equation.make_resolution if resolution is None else resolution, 8),
        frames=_at_least("frames", equation.make_frames if frames is None else frames, 2),
        time=_positive("time", equation.time if time is None else time),
        device=torch.device(device),
    )
    told = progress or SilentProgress()
    with _replacing(out, 4 * samples * recipe.values_per_trajectory, overwrite=overwrite) as part:
        told.start(f"make {equation.name}", samples, "trajectories")
        with _named_failures(out), h5py.File(part, "w") as file:
            _write(file, recipe, told)
        told.finish(str(out))


def parameter_values(equation: Equation, given: Mapping[str, float]) -> tuple[float, ...]:
    """The value of each parameter, in the order of the description.

    Args:
        equation: its description.
        given: values by name, or by one of the keys that published files use.

    Raises:
        UsageError: a name is unknown or given twice, or a value is out of bounds.
    """
    names = {key: parameter.name for parameter in equation.parameters for key in (parameter.name, *parameter.keys)}
    values: dict[str, float] = {}
    for key, value in given.items():
        if key not in names:
            raise UsageError(f"{equation.name} has no parameter {key!r}; {_hint(key, equation.parameters)}")
        if names[key] in values:
            raise UsageError(f"{equation.name}: parameter {names[key]} is given twice; give it once")
        values[names[key]] = value
    return tuple(_bounded(equation, p, float(values.get(p.name, p.default))) for p in equation.parameters)


def _bounded(equation: Equation, parameter: Parameter, value: float) -> float:
    if not parameter.lower <= value <= parameter.upper:
        bounds = f"{parameter.lower:g} to {parameter.upper:g}"
        raise UsageError(f"{equation.name}: parameter {parameter.name} is {value:g}; it must be from {bounds}")
    return value


def _hint(key: str, parameters: tuple[Parameter, ...]) -> str:
    known = [parameter.name for parameter in parameters]
    nearest = difflib.get_close_matches(key, known, n=1)
    if nearest:
        return f"did you mean {nearest[0]}?"
    return f"it has {', '.join(known)}" if known else "it has none"


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise UsageError(f"{name} is {value}; it must be at least {least}")
    return value


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} is {value:g}; it must be a positive number")
    return value


# --- solving ---------------------------------------------------------------------------------------------------------


def _trajectories(
    recipe: Recipe, told: Progress
) -> Iterator[tuple[int, Float32[np.ndarray, "num time channel *grid"]]]:
    """The trajectories in portions that fit in memory, each with the number of its first."""
    equation = recipe.equation
    factor = solver_of(equation).refinement(recipe.resolution, recipe.params)
    if equation.exact is not None:
        factor = _CELLS_OF_EXACT
    held = recipe.values_per_trajectory * math.prod((factor,) * equation.dim)
    portion = max(1, min(recipe.samples, _CHUNK_VALUES // held))
    for first in range(0, recipe.samples, portion):
        num = min(portion, recipe.samples - first)

        def report(share: float, first: int = first, num: int = num) -> None:
            told.update(first + share * num)

        fine = _solve(recipe, range(first, first + num), recipe.resolution * factor, report)
        yield first, _cell_means(fine, factor, equation.dim).cpu().numpy().astype(np.float32)


def _solve(recipe: Recipe, indices: range, resolution: int, report: Report) -> Tensor:
    """Trajectories `indices` at cell centres, float64; each from a stream of random numbers of its own."""
    equation, axes = recipe.equation, recipe.equation.centres(resolution)
    params = torch.tensor(recipe.params, dtype=torch.float64)
    streams = [np.random.SeedSequence((recipe.seed, index)).generate_state(1, np.uint64)[0] for index in indices]
    generators = [torch.Generator().manual_seed(int(stream)) for stream in streams]
    if equation.exact is not None:
        times = torch.from_numpy(recipe.times)
        return torch.cat([equation.exact(1, axes, params, times, generator) for generator in generators])
    draw = equation.initial_condition
    if draw is None:
        raise UsageError(f"{equation.name}: no random initial states are described yet, so its data cannot be made")
    u0 = torch.cat([draw(1, axes, params, generator) for generator in generators]).to(recipe.device)
    return solve(equation, u0, params.expand(len(u0), -1).to(recipe.device), recipe.times, progress=report)


def _cell_means(u: Tensor, factor: int, dim: int) -> Tensor:
    """Means over blocks of `factor` cells along each of the last `dim` axes."""
    for axis in range(u.ndim - dim, u.ndim):
        u = u.unflatten(axis, (-1, factor)).mean(dim=axis + 1)
    return u


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(file: h5py.File, recipe: Recipe, told: Progress) -> None:
    """One array for all in one dimension, one group for each trajectory in two, as published."""
    equation = recipe.equation
    file.attrs["task"] = equation.name
    for parameter, value in zip(equation.parameters, recipe.params, strict=True):
        file.attrs[parameter.keys[0]] = value
    axes = [axis.numpy().astype(np.float32) for axis in equation.centres(recipe.resolution)]
    stamps = recipe.times.astype(np.float32)
    if equation.dim == 1:
        file["x-coordinate"], file["t-coordinate"] = axes[0], stamps
        shape = (recipe.samples, recipe.frames, recipe.resolution)
        tensor = file.create_dataset("tensor", shape, dtype=np.float32)
        for first, frames in _trajectories(recipe, told):
            tensor[first : first + len(frames)] = frames[:, :, 0]
        return
    for first, frames in _trajectories(recipe, told):
        for index, trajectory in enumerate(frames, start=first):
            group = file.create_group(f"{index:04d}")
            group["data"] = np.moveaxis(trajectory, 1, -1)
            group["grid/x"], group["grid/y"], group["grid/t"] = axes[0], axes[1], stamps


@contextlib.contextmanager
def _replacing(out: Path, size: int, *, overwrite: bool) -> Iterator[Path]:
    """A temporary file beside `out` that takes its name when all went well, and is removed otherwise."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder; name a file in it")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; choose another name, or overwrite it")
    with _named_failures(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if size > free:
            raise DataError(f"{out} needs {size / 1e9:.2g} GB, but {free / 1e9:.2g} GB are free; make fewer samples")
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent)
        os.close(handle)
    part = Path(name)
    try:
        yield part
        with _named_failures(out):
            part.chmod(0o644)  # a temporary file is its owner's alone
            _sync(part)
            part.replace(out)
            _sync(out.parent)
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _named_failures(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{out} cannot be written: {reason}; free some space or choose another folder") from error
