"""Checkpoints that survive a kill at any moment, a full disk and a flipped bit.

    checkpoints/<stage>/step-00001234/state.pt           what the training's `state_dict()` returned
                                      state.json         step and fingerprint, to be read by people
                                      manifest.sha256    SHA-256 of both, in the format of sha256sum(1)

A checkpoint is written to a temporary folder beside its place and renamed when all of it is on the disk, so that a
folder named `step-*` is whole or was damaged later. Reading verifies every byte against the manifest and runs no code
from the file. `ups.training.saver` writes checkpoints while training goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ups.errors import CheckpointError

STATE, DESCRIPTION, MANIFEST = "state.pt", "state.json", "manifest.sha256"
_TEMPORARY, _REPLACED, _STEP = ".tmp-", ".replaced-", "step-"


class _Damaged(Exception):
    """A checkpoint's files are not what was written; the message names the file."""


class CheckpointStore:
    """The checkpoints of one stage of one run.

    Args:
        folder: `checkpoints/<stage>` of the run; made when missing.
        fingerprint: what a checkpoint must share with the training that resumes from it (settings, data hash,
            architecture); values that JSON can hold.
        keep: how many of the latest to keep.
        say: tells the user of a damaged checkpoint that was passed over.

    Attributes:
        part: makes what is entered by whoever keeps training waiting for a checkpoint, so that the time can be counted.
    """

    part: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(
        self,
        folder: Path,
        *,
        fingerprint: Mapping[str, Any],
        keep: int = 2,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder, self.keep, self.say = folder, keep, say
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self._good: list[int] = []  # steps known to be whole: read or written by this process

    def prepare(self) -> None:
        """Makes the folder, removes what a killed process left half-written, and puts back what it was replacing.

        Raises:
            CheckpointError: the folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for replaced in self.folder.glob(f"{_REPLACED}*"):
                place = replaced.with_name(replaced.name.replace(_REPLACED, _STEP))
                if not place.exists():
                    replaced.rename(place)
            for leftover in (*self.folder.glob(f"{_TEMPORARY}*"), *self.folder.glob(f"{_REPLACED}*")):
                shutil.rmtree(leftover)
            Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder)).rmdir()
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: checkpoints cannot be written here ({error.strerror}); "
                "make the folder writable or choose another with runs_dir"
            ) from error

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, ascending; whether they are whole shows on reading."""
        return sorted(int(path.name.removeprefix(_STEP)) for path in self.folder.glob(_STEP + 8 * "[0-9]"))

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, then removes those that it supersedes, latest first.

        Those of later steps are superseded as well: training has gone back, and must not resume from what it left. They
        go once it is in its place, as there may be no other: a process that dies in between resumes from one of them
        and goes back again.

        Args:
            step: optimizer steps done.
            state: nested dicts, lists and tuples of tensors, numbers, texts and None.

        Raises:
            CheckpointError: the disk is full or refuses; the other checkpoints stay, and nothing half-written does.
        """
        require_plain(state)
        try:
            path = self._write(step, state)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} ({_size(state) / 2**20:.1f} MiB) could not be written "
                f"({error.strerror}). Earlier checkpoints are intact: free some space, or lower "
                "training.keep_checkpoints, and run again to continue"
            ) from error
        self._good = [*(good for good in self._good if good < step), step][-self.keep :]
        try:
            for superseded in reversed([one for one in self.steps() if one not in self._good]):
                self._remove(superseded)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} is written, but what it supersedes could not be removed "
                f"({error.strerror}). Make the folder writable and run again to continue"
            ) from error
        return path

    def load(self) -> dict[str, Any] | None:
        """The state of the latest whole checkpoint; None where none was ever written.

        Raises:
            CheckpointError: every checkpoint is damaged, or the latest whole one belongs to another fingerprint.
        """
        reasons = []
        for step in reversed(self.steps()):
            try:
                description, state = self._read(step)
            except _Damaged as damage:
                reasons.append(f"{self._path(step)}: {damage}")
                self.say(f"damaged checkpoint passed over: {reasons[-1]}")
                continue
            self._refuse_other(description["fingerprint"], self._path(step))
            self._good = [step]
            return state
        if reasons:
            raise CheckpointError(
                f"no checkpoint of this stage is whole:{_listed(reasons)}\n"
                f"Restore one from a backup, or remove {self.folder} to train the stage from its beginning"
            )
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"{_STEP}{step:08d}"

    def _write(self, step: int, state: Mapping[str, Any]) -> Path:
        description = json.dumps({"step": step, "fingerprint": self.fingerprint}, indent=2)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
        try:
            with _HashedFile.on_disk(temporary / STATE) as tensors:
                torch.save(state, tensors)
            with _HashedFile.on_disk(temporary / DESCRIPTION) as text:
                text.write(description.encode())
            with _HashedFile.on_disk(temporary / MANIFEST) as manifest:
                manifest.write(_manifest({STATE: tensors.digest, DESCRIPTION: text.digest}))
            _sync_folder(temporary)
            self._put(temporary, self._path(step))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return self._path(step)

    def _put(self, temporary: Path, path: Path) -> None:
        """Renames a checkpoint to its place; what stood there is at hand until it is there, see `prepare`."""
        replaced = path.with_name(path.name.replace(_STEP, _REPLACED))
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        _sync_folder(self.folder)
        if replaced.exists():
            shutil.rmtree(replaced)

    def _remove(self, step: int) -> None:
        """Renames first, so that a kill leaves a temporary folder and no half checkpoint."""
        trash = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
        self._path(step).rename(trash / "superseded")
        shutil.rmtree(trash)

    def _read(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        path = self._path(step)
        files = {}
        for name in (STATE, DESCRIPTION, MANIFEST):
            try:
                files[name] = (path / name).read_bytes()
            except OSError as error:
                raise _Damaged(f"{name} cannot be read ({error.strerror})") from error
        _verify(files)
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(files[STATE]), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise _Damaged(f"{STATE} holds more than tensors and plain values; nothing of it was run") from error
        description: dict[str, Any] = json.loads(files[DESCRIPTION])
        return description, state

    def _refuse_other(self, saved: dict[str, Any], path: Path) -> None:
        differences = describe_differences(saved, self.fingerprint)
        if differences:
            raise CheckpointError(
                f"{path} belongs to another training:{_listed(differences)}\n"
                f"Put the old values back to continue, or remove {self.folder} to train the stage from its beginning"
            )


def describe_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """What differs between two nested mappings, one line per dotted key: `lr: 0.1 in the checkpoint, 0.2 now`."""
    old, new = _flat(saved), _flat(current)
    return [
        f"{key}: {old.get(key, 'absent')} in the checkpoint, {new.get(key, 'absent')} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "absent") != new.get(key, "absent")
    ]


def _listed(lines: list[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class _HashedFile(FileIO):
    """A file that hashes what is written to it.

    `torch.save` writes it piece by piece, so that a state is never in memory as bytes besides; what a write raises it
    hides behind an error of its own.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w")
        self._hash = hashlib.sha256()
        self._error: OSError | None = None

    @classmethod
    @contextmanager
    def on_disk(cls, path: Path) -> Iterator[_HashedFile]:
        """A new file; on leaving, it is on the disk, or the first error of writing it is raised."""
        with cls(path) as file:
            try:
                yield file
            except RuntimeError as error:
                raise file._error or error from error
            os.fsync(file.fileno())

    @property
    def digest(self) -> str:
        """SHA-256 of what was written so far."""
        return self._hash.hexdigest()

    def write(self, content: Any) -> int:
        """Writes all of `content`."""
        self._hash.update(content)
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._error = self._error or error
            raise
        return len(content)


def _manifest(digests: Mapping[str, str]) -> bytes:
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _verify(files: Mapping[str, bytes]) -> None:
    """Compares the manifest byte by byte with the one that the files should have, so that its own damage shows too."""
    expected = _manifest(_digests({name: content for name, content in files.items() if name != MANIFEST}))
    if files[MANIFEST] == expected:
        return
    recorded = set(files[MANIFEST].splitlines())
    wrong = [line.split()[1].decode() for line in expected.splitlines() if line not in recorded]
    raise _Damaged(
        f"{' and '.join(wrong) or 'something'} differs from what {MANIFEST} records (a flipped bit, a cut file)"
    )


def require_plain(value: Any, where: str = "state") -> None:
    """Refuses at the save what a safe load would refuse.

    Raises:
        TypeError: something in `value` is neither a tensor nor a plain value.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            require_plain(key, f"{where} keys")
            require_plain(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            require_plain(item, f"{where}[{i}]")
    elif not isinstance(value, Tensor) and type(value) not in (int, float, bool, str, type(None)):
        raise TypeError(f"{where} is a {type(value).__name__}: a checkpoint holds tensors and plain values alone")


def _size(value: Any) -> int:
    """Bytes of the tensors in a state."""
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    return value.nbytes if isinstance(value, Tensor) else 0


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
