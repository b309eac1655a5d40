"""Files appear whole or not at all, and a full disk is one message."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ups.errors import UpsError
from ups.files import held, is_held, require_writable, unwritable, write_whole

FULL = """
import resource, signal, sys
from pathlib import Path
from ups.errors import UpsError
from ups.files import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_whole(Path(sys.argv[1]), b"x" * 5000)
except UpsError as error:
    print(error)
"""


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_whole(path, "ä")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert [one.name for one in path.parent.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on the size of files")
def test_where_nothing_more_fits_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{path} cannot be written: File too large")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_writers_of_one_file_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one begins and ends while the first is not on the disk yet; the first, which ends last, stays."""
    path, fsync, seen = tmp_path / "file", os.fsync, []

    def meanwhile(descriptor: int) -> None:
        if not seen:
            seen.append("first")
            write_whole(path, b"of the second")
            seen.append(path.read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_whole(path, b"first")
    assert seen == ["first", b"of the second"]
    assert path.read_bytes() == b"first"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_writer_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_what_a_dead_writer_left_is_removed_and_a_live_one_spared(tmp_path: Path) -> None:
    kept = (f".{'1' * 16}.part", ".other.part", "data.part")
    for name in (f".{'0' * 16}.part", *kept):
        (tmp_path / name).write_bytes(b"half")
    for name in (f".{'0' * 16}.part", *kept[1:]):
        os.utime(tmp_path / name, (0, 0))
    write_whole(tmp_path / "file", b"")
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*kept, "file"])


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UpsError, match="cannot be written"):
        write_whole(tmp_path / "file" / "inside", b"")


def test_a_place_that_refuses_is_known_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    assert unwritable(tmp_path / "new" / "folders" / "file") is None
    assert unwritable(tmp_path / "file") is None
    assert unwritable(tmp_path) == f"{tmp_path} is a folder; name the file to write"
    assert "its folder is not there and cannot be made" in str(unwritable(tmp_path / "file" / "inside"))
    assert "choose a shorter name" in str(unwritable(tmp_path / ("n" * 300)))
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UpsError, match="cannot be written"):
        require_writable(tmp_path / "file" / "inside")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make space"),
        (errno.EACCES, "permissions"),
        (errno.EROFS, "a place that you may write to"),
        (errno.ENOENT, "folder is not there"),
        (errno.EFBIG, "ulimit"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EIO, "choose another place"),
    ],
)
def test_the_advice_is_that_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UpsError, match=f"{os.strerror(number)}; .*{remedy}") as told:
        write_whole(tmp_path / "file", b"")
    assert ("make space" in str(told.value)) == (number == errno.ENOSPC)


def test_one_process_holds_a_folder_at_a_time(tmp_path: Path) -> None:
    assert is_held(tmp_path) is False
    with held(tmp_path):
        assert is_held(tmp_path) is True
        with pytest.raises(BlockingIOError), held(tmp_path, patience=0.05):
            pass
    assert is_held(tmp_path) is False
    assert is_held(tmp_path / "missing") is None


def test_a_folder_that_was_removed_and_made_again_is_held_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flock, asked = tmp_path / "run", fcntl.flock, []
    folder.mkdir()

    def replaced_once(handle: int, operation: int) -> None:
        if not asked:  # its holder did so just before it let go: opened, but not locked yet
            folder.rename(tmp_path / "removed")
            folder.mkdir()
        asked.append(operation)
        flock(handle, operation)

    monkeypatch.setattr("fcntl.flock", replaced_once)
    with held(folder):
        assert is_held(folder) is True


def test_a_folder_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from ups.files import held\n"
    code += "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert is_held(tmp_path)
        process.kill()
    with held(tmp_path, patience=1.0):
        pass
