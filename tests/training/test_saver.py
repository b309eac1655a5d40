from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ups.errors import CheckpointError
from ups.training.checkpoint import CheckpointStore
from ups.training.saver import BackgroundSaver, copied
from ups.training.signals import Interrupted


class Held(CheckpointStore):
    """A store whose saves wait until they are let go, and fail where told to; counts those under way at once."""

    def __init__(self, folder: Path, *, fail: bool = False) -> None:
        super().__init__(folder / "stage", fingerprint={})
        self.go, self.fail, self.under_way, self.most, self.lock = threading.Event(), fail, 0, 0, threading.Lock()
        self.prepare()

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        assert self.go.wait(timeout=60)
        with self.lock:
            self.under_way -= 1
        if self.fail:
            raise CheckpointError("the disk is full")
        return super().save(step, state)


def letting_go(store: Held, seconds: float) -> None:
    threading.Timer(seconds, store.go.set).start()


def poll_for_long(saver: BackgroundSaver) -> None:
    for _ in range(1000):
        saver.poll()
        time.sleep(0.01)


def save_and_raise(store: Held, error: BaseException | None = None) -> None:
    with BackgroundSaver(store) as saver:
        saver.save(1, {"step": 1})
        if error is not None:
            raise error


def test_what_training_changes_meanwhile_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    store = Held(tmp_path)
    state = {"weights": [torch.ones(3), torch.ones(2, 2)], "series": {"loss": [1.0]}, "step": 5}
    with BackgroundSaver(store) as saver:
        saver.save(5, state)
        state["weights"][0].zero_()
        state["weights"].append(torch.zeros(1))
        state["series"]["loss"].append(2.0)
        store.go.set()
    found = store.load()
    assert found is not None
    assert torch.equal(found["weights"][0], torch.ones(3))
    assert len(found["weights"]) == 2
    assert found["series"] == {"loss": [1.0]}


def test_one_save_at_a_time_and_the_wait_for_it_is_counted(tmp_path: Path) -> None:
    store = Held(tmp_path)
    with BackgroundSaver(store) as saver:
        first = saver.save(1, {"step": 1})
        letting_go(store, 0.3)
        second = saver.save(2, {"step": 2})
        assert saver.stalled == pytest.approx(first + second)
    assert first < 0.2
    assert second > 0.2
    assert store.most == 1
    assert store.steps() == [1, 2]


def test_what_went_wrong_is_raised_once_by_the_next_poll(tmp_path: Path) -> None:
    store = Held(tmp_path, fail=True)
    with BackgroundSaver(store) as saver:
        saver.save(1, {"step": 1})
        saver.poll()  # still under way
        store.go.set()
        with pytest.raises(CheckpointError, match="full"):
            poll_for_long(saver)
        saver.poll()
        store.fail = False
        saver.save(2, {"step": 2})
    assert store.steps() == [2]


def test_what_could_not_be_loaded_is_refused_by_the_save_itself(tmp_path: Path) -> None:
    store = Held(tmp_path)
    with BackgroundSaver(store) as saver, pytest.raises(TypeError, match=r"state\.order is a set"):
        saver.save(1, {"order": {1}})


def test_loading_sees_what_is_still_being_saved(tmp_path: Path) -> None:
    store = Held(tmp_path)
    with BackgroundSaver(store) as saver:
        saver.save(3, {"step": 3})
        letting_go(store, 0.1)
        assert saver.load() == {"step": 3}


@pytest.mark.parametrize("error", [RuntimeError("of training"), Interrupted("stopped", signal.SIGTERM)])
def test_an_error_of_training_leaves_after_the_save(tmp_path: Path, error: Exception) -> None:
    store = Held(tmp_path)
    letting_go(store, 0.1)
    with pytest.raises(type(error)):
        save_and_raise(store, error)
    assert store.load() == {"step": 1}


def test_where_the_last_save_fails_a_stop_does_not_claim_that_it_is_saved(tmp_path: Path) -> None:
    store = Held(tmp_path, fail=True)
    store.go.set()
    for error in (Interrupted("stopped; saved", signal.SIGTERM), None):
        with pytest.raises(CheckpointError, match="full"):
            save_and_raise(store, error)
    with pytest.raises(RuntimeError, match="of training") as raised:
        save_and_raise(store, RuntimeError("of training"))
    assert raised.value.__notes__ == ["the disk is full"]


def test_control_c_while_waiting_leaves_after_the_save(tmp_path: Path) -> None:
    store = Held(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    letting_go(store, 0.6)
    try:
        with pytest.raises(KeyboardInterrupt):
            save_and_raise(store)
    finally:
        signal.signal(signal.SIGINT, before)
    assert store.load() == {"step": 1}


def test_a_process_that_ends_ends_after_the_save(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from ups.training.checkpoint import CheckpointStore\n"
        "from ups.training.saver import BackgroundSaver\n"
        "class Slow(CheckpointStore):\n"
        "    def save(self, *about):\n"
        "        time.sleep(0.5)\n"
        "        return super().save(*about)\n"
        "store = Slow(Path(sys.argv[1]), fingerprint={})\n"
        "store.prepare()\n"
        "BackgroundSaver(store).save(1, {'step': 1})\n"
        "sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], check=False, timeout=120, capture_output=True)
    assert (done.returncode, done.stderr) == (3, b"")
    assert CheckpointStore(tmp_path, fingerprint={}).load() == {"step": 1}


def test_a_copy_shares_no_memory_and_keeps_what_a_module_notes() -> None:
    module = nn.BatchNorm1d(4)
    state = {"module": module.state_dict(), "pair": (torch.arange(4)[::2], None), "names": ["a"]}
    twin = copied(state)
    assert twin["module"]._metadata == module.state_dict()._metadata
    assert all(torch.equal(twin["module"][name], value) for name, value in module.state_dict().items())
    assert twin["module"]["weight"].data_ptr() != module.weight.data_ptr()
    assert torch.equal(twin["pair"][0], torch.tensor([0, 2]))
    assert twin["pair"][0].untyped_storage().nbytes() == 2 * 8  # of the view alone
    assert twin["names"] == ["a"]
    assert twin["names"] is not state["names"]
