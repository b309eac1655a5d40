"""Decides, trajectory by trajectory, what trains, what chooses and what judges; and loads it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from ups.config.data import DataSettings
from ups.data.files import TaskFiles, find_files
from ups.data.pdebench import TrajectoryFile, open_trajectories
from ups.data.problems import BadDataError, DataProblem, bad, raise_if_any
from ups.data.trajectories import Source, TrajectorySet, build_set, time_step

SPLITS = ("train", "valid", "test")

__all__ = ["SPLITS", "TrajectorySet", "assign", "load_files", "load_splits"]


def load_splits(data: DataSettings) -> dict[str, dict[str, TrajectorySet]]:
    """The trajectories of every task, by split (`train`, `valid`, `test`) and task.

    With fractions, the trajectories of a task are shared out by `assign`. With named files, validation takes its
    fraction of the training files if it has none of its own. `max_samples` keeps the first trajectories of each file,
    as evenly as they allow. A split of fraction zero has no tasks. Data that fit the memory budget are held in memory,
    once for all splits of a task; otherwise all are read lazily.

    Raises:
        DataError: bad files; files of one task that differ in grid or time step; a resolution that does not divide; too
            few trajectories or frames; a trajectory, by content, in two splits. Every reason found is listed.
    """
    files = find_files(data)
    with ExitStack() as stack:
        opened = _open_all({task: of.all for task, of in files.items()}, stack)
        raise_if_any([fault for task in data.task for fault in _disagreements(list(opened[task].values()), data)])
        sources = {task: _sources(list(opened[task].values()), data) for task in data.task}
        in_memory = _fits([source for of_task in sources.values() for source in of_task], data)
        loaded: dict[str, dict[str, TrajectorySet]] = {split: {} for split in SPLITS}
        problems: list[DataProblem] = []
        for task, of_task in sources.items():
            everything = build_set(of_task, in_memory=in_memory)
            shares = _shares(files[task], of_task, everything.hashes, data)
            problems += _leaks(shares, of_task, everything.hashes)
            for split, chosen in shares.items():
                loaded[split][task] = everything.subset(chosen)
        raise_if_any(problems)
        if not in_memory:
            stack.pop_all()  # the sets read from these files as long as they live
    return loaded


def load_files(paths: Sequence[Path], task: str, data: DataSettings) -> TrajectorySet:
    """All trajectories of some files as one set, thinned as the settings say.

    Args:
        paths: files of one task, on one grid.
        task: name of the equation.
        data: `time_stride`, `resolution`, `max_samples`, `context` and the memory budget are taken from here.

    Raises:
        DataError: as `load_splits`, but for what concerns splits.
    """
    if not paths:
        raise bad("data", "no file given", "name at least one file")
    with ExitStack() as stack:
        files = list(_open_all({task: tuple(paths)}, stack)[task].values())
        raise_if_any(_disagreements(files, data))
        sources = _sources(files, data)
        in_memory = _fits(sources, data)
        loaded = build_set(sources, in_memory=in_memory)
        if not in_memory:
            stack.pop_all()
    return loaded


def assign(
    contents: Sequence[Sequence[str]],
    fractions: Mapping[str, float],
    *,
    order: Literal["random", "file"],
    seed: int,
) -> dict[str, list[np.ndarray]] | None:
    """Shares trajectories out over the splits; None when too few of them differ to give each split one.

    Trajectories of equal content (a discretised family of initial states can hold the same one twice) go to one split
    together: fractions are of the distinct ones. Each file is cut by itself, in an order of positions that depends on
    its number of trajectories and the seed alone. So every file (a parameter's value, say) is in every split in
    proportion, and files that share initial states by position, as published ones do, have each of them in one split
    only. Files are cut together where one is too small for that.

    Args:
        contents: hash of each trajectory, file by file.
        fractions: of each split; those of zero get nothing and are absent from the result, others get one at least.
        order: `random`, or `file`: first test, then valid, then train.
        seed: of the random order.

    Returns:
        For each split the positions it takes in each file, ascending.
    """
    wanted = {split: fractions[split] for split in ("test", "valid", "train") if fractions.get(split, 0) > 0}
    if min(len(set(of_file)) for of_file in contents) >= len(wanted):
        cuts = [_cut(of_file, wanted, order, seed) for of_file in contents]
        return {split: [cut[split] for cut in cuts] for split in wanted}
    pooled = [content for of_file in contents for content in of_file]
    if len(set(pooled)) < len(wanted):
        return None
    edges = np.cumsum([0, *(len(of_file) for of_file in contents)]).tolist()
    return {
        split: [chosen[(chosen >= low) & (chosen < high)] - low for low, high in pairwise(edges)]
        for split, chosen in _cut(pooled, wanted, order, seed).items()
    }


def _cut(
    contents: Sequence[str], wanted: Mapping[str, float], order: Literal["random", "file"], seed: int
) -> dict[str, np.ndarray]:
    """Consecutive pieces of the distinct trajectories; the last takes the rest where the fractions sum to one."""
    distinct = list(dict.fromkeys(contents[position] for position in _order(len(contents), order, seed)))
    home: dict[str, str] = {}
    place, left = 0, len(wanted)
    everything = sum(wanted.values()) > 1 - 1e-9
    for split, fraction in wanted.items():
        left -= 1
        size = len(distinct) - place if everything and not left else round(fraction * len(distinct))
        size = min(max(1, size), len(distinct) - place - left)
        home |= dict.fromkeys(distinct[place : place + size], split)
        place += size
    return {
        split: np.array([i for i, content in enumerate(contents) if home.get(content) == split], dtype=np.int64)
        for split in wanted
    }


def _order(num: int, order: Literal["random", "file"], seed: int) -> Sequence[int]:
    """Positions in the order in which they are shared out: sorted by a hash, alike on every machine and version."""
    if order == "file":
        return range(num)
    keys = [hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest() for position in range(num)]
    return sorted(range(num), key=keys.__getitem__)


def _shares(
    files: TaskFiles, sources: Sequence[Source], hashes: Sequence[str], data: DataSettings
) -> dict[str, np.ndarray]:
    """For each split, which of a task's trajectories it takes, as numbers in the order of the sources."""
    edges = np.cumsum([0, *(len(source.indices) for source in sources)]).tolist()
    numbers = {
        source.file.path: np.arange(low, high) for source, (low, high) in zip(sources, pairwise(edges), strict=True)
    }
    named = {split: np.concatenate([numbers[path] for path in paths]) for split, paths in files.by_split}
    if any(not len(chosen) for chosen in named.values()):
        raise bad(sources[0].file.path, "a split has no trajectory", "raise data.max_samples")
    if "valid" in named:
        return named
    split = data.split
    shared = dict(files.by_split)["train"] if named else files.together
    fractions = {"train": split.train, "valid": split.valid, "test": split.test}
    if named:
        fractions = {"train": 1 - split.valid, "valid": split.valid}
    contents = [[hashes[number] for number in numbers[path]] for path in shared]
    parts = assign(contents, fractions, order=split.order, seed=split.seed)
    if parts is None:
        distinct = len({content for of_file in contents for content in of_file})
        what = f"{distinct} distinct trajectories are too few to give each split one"
        raise bad(shared[0], what, "make more trajectories, or name files per split")
    chosen = {
        split: np.concatenate([numbers[path][part] for path, part in zip(shared, of_files, strict=True)])
        for split, of_files in parts.items()
    }
    return {**named, **chosen}


def _open_all(files: Mapping[str, Sequence[Path]], stack: ExitStack) -> dict[str, dict[Path, TrajectoryFile]]:
    opened: dict[str, dict[Path, TrajectoryFile]] = {}
    problems: list[DataProblem] = []
    for task, paths in files.items():
        opened[task] = {}
        for path in paths:
            try:
                opened[task][path] = stack.enter_context(open_trajectories(path, task))
            except BadDataError as error:
                problems += error.problems
    raise_if_any(problems)
    return opened


def _strides(file: TrajectoryFile, data: DataSettings) -> tuple[int, ...]:
    return tuple(size // (data.resolution or size) for size in file.grid.shape)


def _disagreements(files: Sequence[TrajectoryFile], data: DataSettings) -> list[DataProblem]:
    """Why the files of one task cannot be put together, or cannot be thinned as asked."""
    problems = []

    def wrong(file: TrajectoryFile, what: str, where: str, remedy: str) -> None:
        problems.append(DataProblem(str(file.path), what, where, remedy))

    first = files[0]
    for file in files:
        shape = "x".join(map(str, file.grid.shape))
        if not file.grid.matches(first.grid):
            wrong(file, f"its grid ({shape}) differs from that of {first.path}", "", "name files that fit together")
        if not np.isclose(time_step(file), time_step(first), rtol=1e-4):
            steps = f"its time step {time_step(file):g} differs from {time_step(first):g} of {first.path}"
            wrong(file, steps, "", "name files that fit together")
        if data.resolution is not None and any(size % data.resolution for size in file.grid.shape):
            what = f"its grid ({shape}) cannot be thinned to {data.resolution} points per axis"
            wrong(file, what, "", "set data.resolution to a divisor")
        for trajectory, length in enumerate(-(-file.lengths // data.time_stride)):
            needed = max(2, data.context + 1)
            if length < needed:
                what = f"has {length} frame(s) at data.time_stride {data.time_stride}; data.context needs {needed}"
                wrong(file, what, file.place(trajectory), "lower data.time_stride or data.context")
                break
    return problems


def _limited(counts: Sequence[int], most: int | None) -> list[int]:
    """How many of its first trajectories each file gives, at most `most` together and as evenly as they allow."""
    left = sum(counts) if most is None else most
    limited = [0] * len(counts)
    by_size = sorted(range(len(counts)), key=counts.__getitem__)
    for done, number in enumerate(by_size):
        limited[number] = min(counts[number], -(-left // (len(counts) - done)))
        left -= limited[number]
    return limited


def _sources(files: Sequence[TrajectoryFile], data: DataSettings) -> list[Source]:
    counts = _limited([file.num_trajectories for file in files], data.max_samples)
    pairs = zip(files, counts, strict=True)
    return [Source(file, np.arange(count), data.time_stride, _strides(file, data)) for file, count in pairs]


def _fits(sources: Sequence[Source], data: DataSettings) -> bool:
    return sum(source.num_bytes for source in sources) <= data.memory_budget_gb * 2**30


def _leaks(shares: Mapping[str, np.ndarray], sources: Sequence[Source], hashes: Sequence[str]) -> list[DataProblem]:
    """Trajectories of one task that stand in two splits, by content."""
    origins = [(source.file, int(number)) for source in sources for number in source.indices]
    home: dict[str, tuple[str, int]] = {}
    problems = []
    for split in (name for name in SPLITS if name in shares):
        for number in shares[split].tolist():
            other, earlier = home.setdefault(hashes[number], (split, number))
            if other != split:
                (file, place), (twin_file, twin) = origins[number], origins[earlier]
                what = f"the same trajectory is in {split} and in {other} ({twin_file.path}, {twin_file.place(twin)})"
                problems.append(DataProblem(str(file.path), what, file.place(place), "remove one of the two"))
    return problems
