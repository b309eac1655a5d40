"""Makes trajectories with the reference solvers and writes them in PDEBench's layout."""

from __future__ import annotations

import difflib
import errno
import glob
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ups.errors import UpsError, UsageError
from ups.files import held, write_remedy
from ups.physics.description import Equation
from ups.physics.equations import get_equation
from ups.physics.solvers import one_thread, solve, solver_of
from ups.physics.solvers.transforms import resample_periodic
from ups.runtime import Progress, SilentProgress

_CHUNK_VALUES = 1 << 24  # float64 values computed at once (128 MiB): frames at the solver's own resolution
_MIN_RESOLUTION, _MIN_FRAMES = 8, 2
_LARGEST_SEED = 2**63 - 1  # what an attribute of a file holds
_TRAJECTORY_OVERHEAD = 8 << 10  # bytes of HDF5's own for each trajectory, at most


def generate(
    equation_name: str,
    out: Path,
    samples: int,
    seed: int,
    params: Mapping[str, float],
    resolution: int | None = None,
    frames: int | None = None,
    time: float | None = None,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
    marks: Mapping[str, str] | None = None,
) -> None:
    """Make trajectories from random initial states and write them; the file appears whole or not at all.

    Each trajectory has its own stream of random numbers: it depends on the seed and on its number alone, not on how
    many others are made, and the same initial state can be had on any grid. Values are those of the equation's exact
    solution where there is one in closed form. Otherwise they are computed on a finer grid. Where it is finer by an odd
    factor, every so many of its cell centres are those of the file's grid; where by an even one (periodic smooth
    solutions), the file has their trigonometric interpolant, less the waves that its grid does not resolve.

    Trajectories of an equation with a spin-up begin when it is over; `time` does not count it. Such equations are
    chaotic: from the same initial state, another grid, version of a library or device gives another trajectory in the
    end, of the same statistics.

    A steady problem has samples instead: what is given, drawn at random, and what the solver finds.

    Args:
        equation_name: such as `burgers1d`.
        out: HDF5 file; its folder is made.
        samples: trajectories, at least 1.
        seed: of the initial states, from 0 to 2**63 - 1.
        params: values by the parameter's name; the others keep their defaults.
        resolution: cells along each axis; None is the equation's `make_resolution`.
        frames: the first included; None is the equation's `make_frames`. A steady problem takes none.
        time: of the last frame; None is that of the published data. A steady problem takes none.
        progress: told how many trajectories are done.
        overwrite: replace `out` if it exists.
        marks: more attributes of the file.

    Raises:
        UsageError: an equation unknown or without a reference solver yet, an unknown parameter, a value out of bounds,
            or `out` exists or is a folder.
        UpsError: the file does not fit on its disk, or it cannot be written.
    """
    equation = get_equation(equation_name)
    solver_of(equation)
    values = _parameter_values(equation, params)
    points = equation.make_resolution if resolution is None else resolution
    steps = equation.make_frames if frames is None else frames
    end = equation.time if time is None else time
    timeless = frames is None and time is None
    _check(timeless or not equation.steady, f"{equation_name} has no time; leave out frames and time")
    _check(samples >= 1, f"samples is {samples}; at least 1 is needed")
    _check(0 <= seed <= _LARGEST_SEED, f"seed is {seed}; it must be a whole number from 0 to 2**63 - 1")
    _check(points >= _MIN_RESOLUTION, f"resolution is {points}; at least {_MIN_RESOLUTION} cells are needed")
    _check(steps >= _MIN_FRAMES, f"frames is {steps}; at least {_MIN_FRAMES} are needed")
    _check(0 < end < np.inf, f"time is {end:g}; it must be positive")
    _check(not out.is_dir(), f"{out} is a folder; name the file to write")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; allow overwriting it (--overwrite), or choose another name")
    progress = progress or SilentProgress()
    needed = samples * (4 * steps * len(equation.fields) * points**equation.dim + _TRAJECTORY_OVERHEAD)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(out)
        _require_space(out, needed)
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder, held(Path(folder)):
            partial = Path(folder) / out.name
            with _new_file(partial) as file:
                file.attrs.update(marks or {})
                _write(file, equation, values, samples, seed, points, np.linspace(0.0, end, steps), progress)
            os.replace(partial, out)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "writing failed"
        raise UpsError(f"{out} cannot be written ({reason}); {write_remedy(error)}") from error


def _require_space(out: Path, needed: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if needed > free:
        sizes = f"it needs {needed / 2**20:,.1f} MiB and {free / 2**20:,.1f} MiB are free"
        raise UpsError(f"{out} cannot be written: {sizes}; make space, make fewer, or choose another place")


def _remove_leftovers(out: Path) -> None:
    """Removes the folders that killed processes left behind while they made this file; living ones hold theirs."""
    for folder in out.parent.glob(f".{glob.escape(out.stem)}-*"):
        ours = re.fullmatch("[a-z0-9_]{8}", folder.name.removeprefix(f".{out.stem}-")) and folder.is_dir()
        if ours and {path.name for path in folder.iterdir()} <= {out.name}:
            try:
                with held(folder):
                    shutil.rmtree(folder)
            except BlockingIOError:
                continue


@contextmanager
def _new_file(path: Path) -> Iterator[h5py.File]:
    """A new file, which is given up when an error leaves the context."""
    file = h5py.File(path, "w")
    try:
        yield file
    except BaseException:
        _give_up(file)
        raise
    finally:
        file.close()


def _give_up(file: h5py.File) -> None:
    """Lets HDF5 write what is left of a file to memory: with writes that fail it cannot close, and crashes at exit."""
    if sys.platform == "linux":
        memory = os.memfd_create("given-up")
        os.dup2(memory, file.id.get_vfd_handle(), inheritable=False)
        os.close(memory)
        with suppress(OSError, RuntimeError):  # a flush that failed makes the next one fail too, whatever it writes to
            file.flush()


def _check(fine: bool, message: str) -> None:
    if not fine:
        raise UsageError(message)


def _parameter_values(equation: Equation, given: Mapping[str, float]) -> tuple[float, ...]:
    names = [parameter.name for parameter in equation.parameters]
    for name in given:
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
            known = f"it has {', '.join(names)}" if names else "it has none"
            hint = f"did you mean {nearest[0]}?" if nearest else known
            raise UsageError(f"{equation.name} has no parameter {name!r}; {hint}")
    values = []
    for parameter in equation.parameters:
        value = float(given.get(parameter.name, parameter.default))
        if not parameter.lower <= value <= parameter.upper:
            bounds = f"[{parameter.lower:g}, {parameter.upper:g}]"
            raise UsageError(f"{equation.name}: {parameter.name} is {value:g}; choose a value in {bounds}")
        values.append(value)
    return tuple(values)


def _write(
    file: h5py.File,
    equation: Equation,
    values: tuple[float, ...],
    samples: int,
    seed: int,
    resolution: int,
    times: Float64[np.ndarray, " time"],
    progress: Progress,
) -> None:
    layout = _SteadyLayout if equation.steady else _TensorLayout if equation.dim == 1 else _GroupLayout
    writer = layout(file, equation, samples, resolution, times)
    file.attrs["task"] = equation.name
    file.attrs["seed"] = seed
    for parameter, value in zip(equation.parameters, values, strict=True):
        file.attrs[parameter.keys[0]] = value
    factor = 1 if equation.exact is not None else solver_of(equation).refinement(resolution, values)
    sample_values = len(times) * len(equation.fields) * (resolution * factor) ** equation.dim
    chunk = max(1, _CHUNK_VALUES // sample_values)
    what = "samples" if equation.steady else "trajectories"
    progress.start(f"make {equation.name}", float(samples), what)
    for first in range(0, samples, chunk):
        numbers = range(first, min(first + chunk, samples))

        def report(share: float, first: int = first, length: int = len(numbers)) -> None:
            progress.update(first + share * length)

        with one_thread():
            frames = _trajectories(equation, values, seed, numbers, resolution, factor, times, report)
        try:
            writer.put(numbers, frames.to(torch.float32).numpy())
            file.flush()
        except RuntimeError as error:  # h5py's; the system's error stands in its text
            number = re.search(r"errno = (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, "a write failed") from error
        progress.update(float(numbers.stop))
    frames_each = "" if equation.steady else f" of {len(times)} frames"
    progress.finish(f"{samples} {what}{frames_each} on {' x '.join([str(resolution)] * equation.dim)}")


def _trajectories(
    equation: Equation,
    values: tuple[float, ...],
    seed: int,
    numbers: range,
    resolution: int,
    factor: int,
    times: Float64[np.ndarray, " time"],
    report: Callable[[float], None],
) -> Tensor:
    """Trajectories of the given numbers, (number, time, channel, *grid) float64."""
    params = torch.tensor(values, dtype=torch.float64)
    axes = equation.centres(resolution * factor)
    streams = [_stream(seed, number) for number in numbers]
    if equation.exact is not None:
        stamps = torch.from_numpy(times)
        return torch.cat([equation.exact(1, axes, params, stamps, stream) for stream in streams])
    if equation.initial_condition is None:
        raise UpsError(f"{equation.name} has no random initial states yet; download its data")
    u0 = torch.cat([equation.initial_condition(1, axes, params, stream) for stream in streams])
    many = params.expand(len(numbers), -1)
    before = equation.spin_up / (equation.spin_up + times[-1])  # share of the work
    if equation.spin_up > 0:
        start = np.array([0.0, equation.spin_up])
        u0 = solve(equation, u0, many, start, progress=lambda share: report(before * share))[:, -1]
    frames = solve(equation, u0, many, times, progress=lambda share: report(before + (1 - before) * share))
    return _coarsen(equation, frames, factor)


def _coarsen(equation: Equation, frames: Tensor, factor: int) -> Tensor:
    """Frames on a grid coarser by a factor: the values at the centres that both grids share, or interpolated ones."""
    for dim in range(3, frames.ndim):
        if factor % 2:
            frames = frames[(slice(None),) * dim + (slice(factor // 2, None, factor),)]
        elif equation.boundary == "periodic":
            frames = resample_periodic(frames, frames.shape[dim] // factor, dim)
        else:
            raise UpsError(f"{equation.name}: between walls the solver's grid must be finer by an odd factor")
    return frames


def _stream(seed: int, number: int) -> torch.Generator:
    """The random numbers of one trajectory."""
    state = np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


class _TensorLayout:
    """`tensor` (N, T, X) with `x-coordinate` and `t-coordinate`."""

    def __init__(self, file: h5py.File, equation: Equation, samples: int, resolution: int, times: np.ndarray) -> None:
        shape = (samples, len(times), resolution)
        self._tensor = file.create_dataset("tensor", shape, "f4", chunks=(1, *shape[1:]))
        file["x-coordinate"] = equation.centres(resolution)[0].numpy().astype(np.float32)
        file["t-coordinate"] = times.astype(np.float32)

    def put(self, numbers: range, frames: np.ndarray) -> None:
        """Write trajectories (number, time, 1, x)."""
        self._tensor[numbers.start : numbers.stop] = frames[:, :, 0]


class _GroupLayout:
    """`0000/data` (T, X, Y, C) with `0000/grid/{x,y,t}`, one group for each trajectory."""

    def __init__(self, file: h5py.File, equation: Equation, samples: int, resolution: int, times: np.ndarray) -> None:
        self._file, self._digits = file, max(4, len(str(samples - 1)))
        axes = dict(zip("xy", equation.centres(resolution), strict=True))
        self._grid = {name: axis.numpy().astype(np.float32) for name, axis in axes.items()}
        self._grid["t"] = times.astype(np.float32)

    def put(self, numbers: range, frames: np.ndarray) -> None:
        """Write trajectories (number, time, channel, x, y)."""
        for number, trajectory in zip(numbers, frames, strict=True):
            group = self._file.create_group(f"{number:0{self._digits}d}")
            group["data"] = np.moveaxis(trajectory, 1, -1)
            for name, values in self._grid.items():
                group[f"grid/{name}"] = values


class _SteadyLayout:
    """`nu` (N, *grid), what is given, and `tensor` (N, 1, *grid), what is sought, with `x-coordinate`..."""

    def __init__(self, file: h5py.File, equation: Equation, samples: int, resolution: int, times: np.ndarray) -> None:
        grid = (resolution,) * equation.dim
        self._given = file.create_dataset("nu", (samples, *grid), "f4", chunks=(1, *grid))
        self._sought = file.create_dataset("tensor", (samples, 1, *grid), "f4", chunks=(1, 1, *grid))
        for name, axis in zip("xyz", equation.centres(resolution), strict=False):
            file[f"{name}-coordinate"] = axis.numpy().astype(np.float32)

    def put(self, numbers: range, frames: np.ndarray) -> None:
        """Write samples (number, 2, 1, *grid)."""
        self._given[numbers.start : numbers.stop] = frames[:, 0, 0]
        self._sought[numbers.start : numbers.stop] = frames[:, 1]
