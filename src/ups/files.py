"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ups.errors import UpsError, UsageError


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


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file beside its place, on the disk, and renames it; its folder is made if missing.

    Args:
        content: text is written as UTF-8.

    Raises:
        UpsError: the place cannot be written, or the disk is full; what stood there before stays.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise UpsError(f"{path} cannot be written: {error.strerror}; make space, or choose another place") from error
