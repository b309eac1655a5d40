"""Where the time of a command goes."""

from __future__ import annotations

import threading
import time

import pytest

from ups.timing import Timings


def test_every_moment_is_counted_once() -> None:
    began = time.perf_counter()
    timings = Timings("imports", began)
    with timings.part("train", compute=True):
        time.sleep(0.02)
        with timings.part("checkpoints"):
            time.sleep(0.05)
        time.sleep(0.02)
    with timings.part("train", compute=True):
        time.sleep(0.01)
    whole, took = timings.total(), time.perf_counter() - began
    assert list(timings.parts) == ["imports", "train", "checkpoints"]
    assert whole.seconds == pytest.approx(took, abs=0.02)
    assert timings.parts["train"].seconds >= 0.05
    assert timings.parts["checkpoints"].seconds >= 0.05
    assert timings.total(compute=True).seconds == timings.parts["train"].seconds
    overhead = timings.parts["imports"].seconds + timings.parts["checkpoints"].seconds
    assert timings.total(compute=False).seconds == pytest.approx(overhead, abs=0.02)


def test_waiting_is_no_cpu_time_and_computing_is() -> None:
    timings = Timings()
    with timings.part("wait"):
        time.sleep(0.1)
    with timings.part("work"):
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    assert timings.parts["wait"].cpu < 0.05
    assert timings.parts["work"].cpu >= 0.1


def test_what_another_thread_does_meanwhile_is_not_counted() -> None:
    timings = Timings("rest")

    def save() -> None:
        with timings.part("save"):
            time.sleep(0.05)

    with timings.part("train"):
        thread = threading.Thread(target=save)
        thread.start()
        time.sleep(0.01)
        with timings.part("validate"):
            thread.join()
    assert set(timings.parts) == {"rest", "train", "validate"}
    assert timings.parts["validate"].seconds > 0.02


def test_a_part_that_fails_is_counted_and_left() -> None:
    timings = Timings("rest")
    with pytest.raises(ZeroDivisionError), timings.part("work"):
        raise ZeroDivisionError
    time.sleep(0.02)
    assert timings.total().seconds >= 0.02
    assert timings.parts["rest"].seconds >= 0.02


def test_the_table_ends_with_the_overhead_and_the_sum() -> None:
    timings = Timings("imports")
    with timings.part("train", compute=True):
        time.sleep(0.01)
    *parts, overhead, everything = timings.rows()
    assert [(row["step"], row["kind"]) for row in parts] == [("imports", "overhead"), ("train", "compute")]
    assert (overhead["step"], everything["step"]) == ("overhead", "all")
    assert float(everything["seconds"]) == pytest.approx(sum(float(row["seconds"]) for row in parts), abs=0.01)
