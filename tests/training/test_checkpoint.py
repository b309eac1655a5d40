from __future__ import annotations

import errno
import os
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ups.errors import CheckpointError
from ups.training.checkpoint import CheckpointStore, _digests, _manifest, describe_differences


def state(step: int) -> dict:
    tensor = torch.full((3, 4), float(step))
    return {"step": step, "nested": {"tensors": [tensor, tensor.to(torch.complex64)], "pair": (1, None, "x", 0.1)}}


def store(folder: Path, **options: object) -> CheckpointStore:
    made = CheckpointStore(folder / "stage", **{"fingerprint": {"lr": 0.1}, **options})
    made.prepare()
    return made


def saved(folder: Path, *steps: int) -> CheckpointStore:
    made = store(folder)
    for step in steps:
        made.save(step, state(step))
    return made


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    found = store(tmp_path).load()
    assert found is not None
    expected = state(7)
    assert torch.equal(found["nested"]["tensors"][1], expected["nested"]["tensors"][1])
    assert found["nested"]["pair"] == (1, None, "x", 0.1)
    assert store(tmp_path / "elsewhere").load() is None


def test_the_manifest_is_one_that_sha256sum_can_check(tmp_path: Path) -> None:
    path = saved(tmp_path, 7)._path(7)
    assert os.system(f"cd '{path}' && sha256sum --check --quiet manifest.sha256") == 0


def test_the_latest_few_are_kept(tmp_path: Path) -> None:
    assert saved(tmp_path, 1, 2, 3, 4).steps() == [3, 4]
    assert not list((tmp_path / "stage").glob(".tmp-*"))


def flip(position: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(position * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return damage


DAMAGES = {
    "first bit flipped": flip(0.0),
    "middle bit flipped": flip(0.5),
    "last bit flipped": flip(1.0),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["state.pt", "state.json", "manifest.sha256"])
def test_a_damaged_file_is_named_and_the_previous_checkpoint_used(tmp_path: Path, name: str, damage: str) -> None:
    DAMAGES[damage](saved(tmp_path, 1, 2)._path(2) / name)
    lines: list[str] = []
    again = store(tmp_path, say=lines.append)
    found = again.load()
    assert found is not None
    assert found["step"] == 1
    assert len(lines) == 1
    assert "step-00000002: " in lines[0]
    assert name in lines[0]

    again.save(2, state(2))  # in the damaged one's place
    assert store(tmp_path).load()["step"] == 2  # type: ignore[index]
    assert again.steps() == [1, 2]


def test_a_damaged_checkpoint_does_not_push_out_a_whole_one(tmp_path: Path) -> None:
    DAMAGES["emptied"](saved(tmp_path, 10, 20)._path(20) / "state.pt")
    again = store(tmp_path)
    again.load()
    again.save(15, state(15))
    assert again.steps() == [10, 15]


def test_when_none_is_whole_training_does_not_start_over(tmp_path: Path) -> None:
    made = saved(tmp_path, 1, 2)
    for step in (1, 2):
        DAMAGES["truncated"](made._path(step) / "state.pt")
    with pytest.raises(CheckpointError, match="no checkpoint of this stage is whole") as error:
        store(tmp_path).load()
    assert "step-00000001: state.pt" in str(error.value)
    assert "step-00000002: state.pt" in str(error.value)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (os.system, (f"touch {tmp_path}/ran",))

    path = saved(tmp_path, 1, 2)._path(2)
    for content in (pickle.dumps(Evil(), protocol=2), _torch_archive(Evil(), tmp_path)):
        (path / "state.pt").write_bytes(content)
        files = {name: (path / name).read_bytes() for name in ("state.pt", "state.json")}
        (path / "manifest.sha256").write_bytes(_manifest(_digests(files)))  # whoever forges a file forges its hash
        lines: list[str] = []
        assert store(tmp_path, say=lines.append).load()["step"] == 1  # type: ignore[index]
        assert "nothing of it was run" in lines[0]
    assert not (tmp_path / "ran").exists()


def _torch_archive(content: object, folder: Path) -> bytes:
    torch.save(content, folder / "evil.pt")
    return (folder / "evil.pt").read_bytes()


def test_another_fingerprint_is_refused_with_the_difference(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"(?s)another training:\n  lr: 0\.1 in the checkpoint, 0\.2 now\n"):
        store(tmp_path, fingerprint={"lr": 0.2}).load()


def test_differences_are_listed_by_dotted_key() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "same": 1}
    assert describe_differences(old, {"a": {"c": [1, 3]}, "same": 1, "new": True}) == [
        "a.b: 1 in the checkpoint, absent now",
        "a.c: [1, 2] in the checkpoint, [1, 3] now",
        "new: absent in the checkpoint, True now",
    ]
    assert describe_differences(old, old) == []


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    made = saved(tmp_path, 1)
    with pytest.raises(TypeError, match=r"state\.loader\.order\[0\] is a set"):
        made.save(2, {"loader": {"order": [{1}]}})
    assert made.steps() == [1]


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "stage" / ".tmp-abc").mkdir()
    (tmp_path / "stage" / ".tmp-abc" / "state.pt").write_bytes(b"half")
    store(tmp_path)
    assert [path.name for path in (tmp_path / "stage").iterdir()] == ["step-00000001"]


def test_going_back_leaves_nothing_later_to_resume_from(tmp_path: Path) -> None:
    made = store(tmp_path, keep=3)
    for step in (1, 2, 3):
        made.save(step, state(step))
    made.save(2, state(20))
    assert made.steps() == [1, 2]
    found = store(tmp_path).load()
    assert found is not None
    assert found["step"] == 20
    assert not list((tmp_path / "stage").glob(".*"))
    made.save(4, state(4))
    assert made.steps() == [1, 2, 4]  # what was left counts no more


def test_going_back_fails_with_what_it_was_to_replace_still_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store(tmp_path, keep=1)
    made.save(3, state(3))  # where a stop left it: the only one

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(CheckpointStore, "_put", full)
    with pytest.raises(CheckpointError, match="Earlier checkpoints are intact"):
        made.save(2, state(20))
    assert made.steps() == [3]
    monkeypatch.undo()
    monkeypatch.setattr(CheckpointStore, "_remove", full)
    with pytest.raises(CheckpointError, match="step 2 is written, but what it supersedes could not be removed"):
        made.save(2, state(20))
    assert made.steps() == [2, 3]


def test_what_a_killed_save_was_replacing_is_put_back(tmp_path: Path) -> None:
    path = saved(tmp_path, 1, 2)._path(2)
    replaced = path.with_name(".replaced-00000002")
    path.rename(replaced)  # killed before the new one came to its place
    assert store(tmp_path).steps() == [1, 2]
    shutil.copytree(path, replaced)  # killed after it
    assert store(tmp_path).load()["step"] == 2  # type: ignore[index]
    assert not replaced.exists()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot be written here .*runs_dir"):
        store(tmp_path / "file")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(closed, os.W_OK):
        closed = Path("/proc/self")  # permissions do not bind the superuser; this file system does
    with pytest.raises(CheckpointError, match="cannot be written here"):
        store(closed)
