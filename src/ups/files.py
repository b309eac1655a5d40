"""Files that appear whole or not at all, and folders that one process holds at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ups.errors import UpsError, UsageError

ABANDONED = 3600.0
"""Seconds after which a half-written file counts as left by a process that died."""


def require_files(*paths: Path) -> None:
    """Refuses paths that name no file.

    Raises:
        UsageError: every such path.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        whats = ["is a folder, not a file" if path.is_dir() else "no such file" for path in missing]
        lines = [f"{path}: {what}; check the path" for path, what in zip(missing, whats, strict=True)]
        raise UsageError("\n".join(lines))


def unwritable(path: Path) -> str | None:
    """Why a file could not be written, and what to do; None where it can.

    Tried with a nameless file in its folder, or in the nearest folder above it that exists.
    """
    place = path.parent
    try:
        if path.is_dir():
            return f"{path} is a folder; name the file to write"
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{path} cannot be written: {error.strerror}; {write_remedy(error)}"


def require_writable(path: Path) -> None:
    """Refuses a file that could not be written, before the work that it is to hold.

    Raises:
        UpsError: why not, and what to do.
    """
    why = unwritable(path)
    if why is not None:
        raise UpsError(why)


def write_remedy(error: OSError) -> str:
    """What to do about a file that could not be written."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return "make space, or choose another place"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "choose a place that you may write to, or change its permissions"
        case errno.ENOENT | errno.ENOTDIR | errno.EEXIST:
            return "choose another place: its folder is not there and cannot be made"
        case errno.ENAMETOOLONG:
            return "choose a shorter name"
        case errno.EFBIG:
            return "choose another place, or raise the limit on the size of files (ulimit -f)"
        case _:
            return "choose another place"


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file beside its place, on the disk, and renames it; its folder is made if missing.

    Processes that write the same file at the same time each write all of theirs; the last one's stays.

    Args:
        content: text is written as UTF-8.

    Raises:
        UpsError: the place cannot be written, or the disk is full; what stood there before stays.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        with part.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UpsError(f"{path} cannot be written: {error.strerror}; {write_remedy(error)}") from error
    finally:  # on an interrupt too: no later file takes this name, so none would replace it
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """Removes what writers that died have left; files of those that may live stay."""
    for part in folder.glob(f".{16 * '[0-9a-f]'}.part"):
        with suppress(OSError):  # its writer is done with it, or it is someone else's
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()


@contextmanager
def held(folder: Path, *, patience: float = 0.0, shared: bool = False) -> Iterator[None]:
    """Holds a folder as this process's own inside; the system lets go of it when the process dies.

    Args:
        patience: seconds to wait for whoever holds it now.
        shared: hold it together with others who share it.

    Raises:
        BlockingIOError: another process holds it.
        FileNotFoundError: it is not there, or was removed by whoever held it.
        OSError: it cannot be opened, or its file system has no locks.
    """
    until, mode = time.monotonic() + patience, fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        handle = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, mode | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise
            else:
                if os.path.samestat(os.fstat(handle), folder.stat()):  # not one that was removed, and made again since
                    yield
                    return
        finally:
            os.close(handle)
        time.sleep(0.01)


def is_held(folder: Path) -> bool | None:
    """Whether a process holds the folder as its own; None where that cannot be told."""
    try:
        with held(folder, shared=True):
            return False
    except BlockingIOError:
        return True
    except OSError:
        return None
