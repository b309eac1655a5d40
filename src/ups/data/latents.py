"""Latents of all frames of a split, kept in one memory-mapped file: a frozen codec encodes every frame once.

A cache is a file of plain numbers, (frame, latent, *tokens), and a manifest beside it. It belongs to a key, the SHA-256
of all that the latents are made of, and is read only if the manifest has that key and the file is, bit for bit, what
the manifest says; otherwise it is made anew. Both files are written beside their places, synced and renamed. So a
writer that dies leaves what stood there before; of two that write at once the last one wins, each goes on with what it
wrote itself, and whoever reads an older file keeps it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from ups.config.kinds import Group
from ups.data.trajectories import MemoryFrames, TrajectorySet
from ups.errors import UpsError

Encode = Callable[[Tensor], Tensor]
"""Physical frames (frame, channel, *grid) to their latents (frame, latent, *tokens), each on its own."""

VERSION = 1
"""Of the layout of the files; another one is another key."""
BLOCK_VALUES = 2**22
"""Grid values that are encoded at once."""
ABANDONED = 3600.0
"""Seconds after which a half-written file that nobody writes to counts as left by a process that died."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
CPU = torch.device("cpu")
DtypeName = Literal["float16", "bfloat16", "float32"]


class Manifest(Group):
    """What stands beside the numbers: to what they belong, how they are laid out, and a hash of both."""

    key: str
    dtype: DtypeName
    shape: tuple[int, ...]
    sha256: str
    """Of the other entries, and of the numbers after them."""

    @property
    def head(self) -> bytes:
        """What is hashed before the numbers."""
        return json.dumps([self.key, self.dtype, self.shape]).encode()


class _Unfit(Exception):
    """A cache cannot be used; says why."""


def latent_key(trajectories: TrajectorySet, weights: Mapping[str, Tensor], dtype: DtypeName) -> str:
    """SHA-256 of all that latents are made of.

    Args:
        trajectories: they enter by their content hashes (of a set that is not in memory, those of the frames probed),
            the frames kept of each, their time step and their grid.
        weights: of the codec, and the statistics by which its fields are scaled.
        dtype: what the latents are kept in.
    """
    kept = [trajectories.lengths.tolist(), float(trajectories.dt), trajectories.grid.periodic]
    axes = [axis.tolist() for axis in trajectories.grid.axes]
    digest = hashlib.sha256(json.dumps([VERSION, trajectories.content_hash, kept, axes, dtype]).encode())
    for name, values in sorted(weights.items()):
        digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        digest.update(_bytes(values))
    return digest.hexdigest()


@dataclass(frozen=True)
class LatentStore:
    """A folder of cached latents.

    Args:
        folder: made when first written to.
        dtype: what the latents are kept in.
        preload: hold them in memory: where they fit in half of what is free (`auto`), always, or never.
        device: where batches are needed. A GPU holds them itself if they fit in half of its free memory, unless
            `preload` is False.
        say: is told what is encoded, and why.
    """

    folder: Path
    dtype: DtypeName = "float16"
    preload: bool | Literal["auto"] = "auto"
    device: torch.device = CPU
    say: Callable[[str], None] = lambda line: None

    def load(
        self, split: str, trajectories: TrajectorySet, encode: Encode, weights: Mapping[str, Tensor]
    ) -> MemoryFrames:
        """The latents of all frames of a set: from its cache, or encoded and kept there.

        Args:
            split: which part of the data the set is; names the files together with its task.
            encode: on any device.
            weights: all that `encode` depends on, for the key.

        Raises:
            UpsError: the folder cannot be read or written, the disk is full, or `dtype` cannot hold a latent.
        """
        path = self.folder / f"{trajectories.task}-{split}.latents"
        key = latent_key(trajectories, weights, self.dtype)
        try:
            values = _read(path, key, int(trajectories.lengths.sum()))
        except _Unfit as reason:
            self.say(f"latent cache {path}: {reason}; every frame is encoded once")
            with torch.no_grad():
                values = _write(path, Manifest(key=key, dtype=self.dtype, shape=(), sha256=""), trajectories, encode)
        values, in_memory = self._place(values)
        return MemoryFrames(values, trajectories.lengths.cumsum(0) - trajectories.lengths, in_memory=in_memory)

    def _place(self, values: Tensor) -> tuple[Tensor, bool]:
        """The latents where they are held, and whether that is memory."""
        if self.preload is False:
            return values, False
        if self.device.type == "cuda" and 2 * values.nbytes <= torch.cuda.mem_get_info(self.device)[0]:
            return values.to(self.device), True
        if self.preload is True or 2 * values.nbytes <= free_memory():
            return values.clone(), True
        return values, False


def free_memory() -> int:
    """Bytes of memory that can be had, by the system and by the limit of this process's group; 0 where neither says."""
    found = []
    with suppress(OSError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    with suppress(OSError, ValueError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        most, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found.append(most - used + int(kept["inactive_file"]))  # copies of files are given up where memory is short
    return max(0, min(found, default=0))


def _read(path: Path, key: str, frames: int) -> Tensor:
    """Maps a cache into memory once it is known to be whole.

    Raises:
        _Unfit: there is none, it belongs to another key, or is damaged.
        UpsError: it cannot be read.
    """
    with _explained(path, "read"):
        try:
            manifest = Manifest.model_validate_json(_beside(path).read_bytes())
            file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise _Unfit("there is none yet") from None
        except ValidationError:
            raise _Unfit("its manifest is damaged") from None
        with file:
            if manifest.key != key:
                raise _Unfit("it is of other data, another codec or another dtype")
            size = os.fstat(file.fileno()).st_size
            expected = math.prod(manifest.shape) * DTYPES[manifest.dtype].itemsize
            if size == 0 or size != expected or manifest.shape[:1] != (frames,):
                raise _Unfit(f"it is torn ({size} bytes instead of {expected})")
            content = np.memmap(file, mode="r")
    digest = hashlib.sha256(manifest.head)
    digest.update(content.data)
    if digest.hexdigest() != manifest.sha256:
        raise _Unfit("it is damaged (its SHA-256 is not the one in its manifest)")
    return _as_tensor(content, manifest)


def _write(path: Path, manifest: Manifest, trajectories: TrajectorySet, encode: Encode) -> Tensor:
    """Encodes a set into the cache at `path`, and maps the very file that was written.

    Raises:
        UpsError: the disk is full or refuses, or a latent does not fit in the dtype; what stood there before stays.
    """
    part, part_beside = (_part_of(final) for final in (path, _beside(path)))
    with _explained(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        file = part.open("x+b", buffering=0)
    try:
        with file:
            frames, digest = int(trajectories.lengths.sum()), hashlib.sha256()
            for block in _encoded(trajectories, encode, DTYPES[manifest.dtype]):
                if not manifest.shape:  # known from the first block on
                    manifest = manifest.model_copy(update={"shape": (frames, *block.shape[1:])})
                    digest = hashlib.sha256(manifest.head)
                content = _bytes(block)
                digest.update(content)
                with _explained(path, "written"):
                    _write_all(file, content)
            manifest = manifest.model_copy(update={"sha256": digest.hexdigest()})
            with _explained(path, "written"):
                os.fsync(file.fileno())
                with part_beside.open("xb", buffering=0) as beside:
                    _write_all(beside, memoryview(manifest.model_dump_json(indent=2).encode()))
                    os.fsync(beside.fileno())
                written = np.memmap(file, mode="r")
                os.replace(part, path)
                os.replace(part_beside, _beside(path))
                _sync_folder(path.parent)
    finally:
        for leftover in (part, part_beside):
            with suppress(OSError):
                leftover.unlink(missing_ok=True)
    return _as_tensor(written, manifest)


def _encoded(trajectories: TrajectorySet, encode: Encode, dtype: torch.dtype) -> Iterator[Tensor]:
    """The latents (frame, latent, *tokens) of all frames in order, in blocks."""
    values = len(trajectories.equation.fields) * math.prod(trajectories.grid.shape)
    most = max(1, BLOCK_VALUES // values)
    for number, length in enumerate(trajectories.lengths.tolist()):
        for start in range(0, length, most):
            num = min(most, length - start)
            exact = encode(trajectories.gather(torch.tensor([number]), torch.tensor([start]), num)[0])
            latents = exact.to(dtype)
            if bool((exact.isfinite() & ~latents.isfinite()).any()):
                raise UpsError(
                    f"{trajectories.task}: a latent of {exact.abs().max().item():g} does not fit in {dtype}; "
                    "give training.latent_cache_dtype float32"
                )
            yield latents


def _as_tensor(content: np.memmap, manifest: Manifest) -> Tensor:
    with warnings.catch_warnings():  # a mapping that could be written to would count as memory taken
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        flat = torch.from_numpy(content)
    return flat.view(DTYPES[manifest.dtype]).reshape(manifest.shape)


def _bytes(values: Tensor) -> memoryview:
    """The bytes of a tensor, in order."""
    content: memoryview = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return content


def _write_all(file: FileIO, content: memoryview) -> None:
    while content:
        content = content[file.write(content) :]


def _beside(path: Path) -> Path:
    """Where the manifest of a cache is."""
    return path.with_name(path.name + ".json")


def _part_of(path: Path) -> Path:
    """A place beside a file that no other writer has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def _remove_abandoned(folder: Path) -> None:
    """Removes what writers that died have left; files of those that may live stay."""
    for part in folder.glob(".*.latents*.part"):
        with suppress(FileNotFoundError):  # its writer is done with it
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path, action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        space = "make space, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UpsError(
            f"the latent cache {path} cannot be {action}: {error.strerror}; {space}give another "
            "training.latent_cache_dir, or null to train without"
        ) from error
