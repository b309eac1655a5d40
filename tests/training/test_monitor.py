from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ups.runtime import SilentProgress
from ups.training.monitor import DivergedError, JsonlSink, Moment, Monitor, NullSink, peak_memory

CPU = torch.device("cpu")


class Memory:
    def __init__(self) -> None:
        self.records: list[dict] = []

    def write(self, record: dict) -> None:
        self.records.append(dict(record))

    def rewind(self, stage: str, step: int) -> None:
        self.records = [r for r in self.records if r["step"] <= step]

    def close(self) -> None: ...


def feed(monitor: Monitor, losses: list[float], norms: list[float] | None = None) -> None:
    for loss, norm in zip(losses, norms or losses, strict=True):
        parts = {"part": torch.tensor(2 * loss)} if loss > 1 else {}
        monitor.record_batch(torch.tensor(loss), parts, samples=4, points=100, waited=0.25)
        monitor.record_step(torch.tensor(norm))


def test_records_are_means_over_the_steps_since_the_last() -> None:
    sink = Memory()
    monitor = Monitor("toy", [sink, NullSink()])
    for step, elapsed, losses in ((3, 2.0, [1.0, 2.0, 6.0]), (5, 3.0, [1.0, 3.0])):
        feed(monitor, losses)
        monitor.log(Moment(step, step / 10, elapsed, 0.1), epochs_since_improvement=0.5, device=CPU)
    first, second = sink.records
    assert (first["stage"], first["step"], first["epoch"], first["elapsed"], first["lr"]) == ("toy", 3, 0.3, 2.0, 0.1)
    assert (first["loss"], first["part"], first["grad_norm"]) == (3.0, 8.0, 3.0)
    assert (first["samples_per_second"], first["points_per_second"], first["data_wait"]) == (6.0, 150.0, 0.375)
    assert (second["loss"], second["part"], second["samples_per_second"], second["data_wait"]) == (2.0, 6.0, 8.0, 0.5)


def test_a_record_cut_in_two_by_a_stop_is_logged_as_one() -> None:
    whole, parts = Memory(), Memory()
    monitor = Monitor("toy", [whole])
    feed(monitor, [1.1, 2.2, 3.3])
    monitor.log(Moment(3, 0.3, 2.0, 0.1), epochs_since_improvement=0.0, device=CPU)
    before, after = Monitor("toy", [parts]), Monitor("toy", [parts])
    feed(before, [1.1, 2.2])
    after.load_state_dict(before.state_dict())
    feed(after, [3.3])
    after.log(Moment(3, 0.3, 2.0, 0.1), epochs_since_improvement=0.0, device=CPU)
    for record in (*whole.records, *parts.records):
        del record["memory_peak_mb"]
    assert parts.records == whole.records


@pytest.mark.parametrize(
    ("losses", "norms", "step"),
    [([1, 2, math.nan], [1, 1, 1], 12), ([1, math.inf, 1], [1, 1, 1], 11), ([1, 1, 1], [math.nan, 1, 1], 10)],
)
def test_divergence_names_the_first_bad_step(losses: list[float], norms: list[float], step: int) -> None:
    monitor = Monitor("toy")
    feed(monitor, list(map(float, losses)), list(map(float, norms)))
    with pytest.raises(DivergedError, match=f"stage toy diverged in step {step}: loss .* learning rate 0.1"):
        monitor.check(Moment(12, 1.0, 1.0, 0.1))


def test_a_loss_scaler_looks_after_its_own_gradients() -> None:
    monitor = Monitor("toy")
    feed(monitor, [1.0, 1.0], [math.inf, 1.0])
    monitor.check(Moment(2, 1.0, 1.0, 0.1), gradients=False)
    Monitor("toy").check(Moment(2, 1.0, 1.0, 0.1))  # nothing gathered, nothing wrong


def test_metrics_may_not_take_the_names_of_the_log() -> None:
    monitor = Monitor("toy", [Memory()])
    monitor.record_batch(torch.ones(()), {"step": torch.ones(())}, samples=1, points=1, waited=0.0)
    with pytest.raises(ValueError, match="rename it"):
        monitor.log(Moment(1, 1.0, 1.0, 0.1), epochs_since_improvement=0.0, device=CPU)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_on_the_disk_at_once_and_one_per_record(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "run" / "log.jsonl")
    sink.write({"stage": "a\nb</script>", "step": 1, "loss": math.nan, "best": -math.inf})
    assert read(sink.path) == [{"stage": "a\nb</script>", "step": 1, "loss": None, "best": None}]
    sink.close()


def test_rewinding_forgets_later_steps_of_the_stage_and_torn_lines(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "log.jsonl")
    sink.rewind("codec", 0)
    for stage, step in (("codec", 9), ("operator", 4), ("operator", 5), ("operator", 6)):
        sink.write({"stage": stage, "step": step})
    with sink.path.open("a") as file:
        file.write('{"stage": "operator", "st')
    sink.rewind("operator", 5)
    sink.write({"stage": "operator", "step": 6})
    sink.close()
    assert [(r["stage"], r["step"]) for r in read(sink.path)] == [
        ("codec", 9),
        ("operator", 4),
        ("operator", 5),
        ("operator", 6),
    ]
    assert list(tmp_path.iterdir()) == [sink.path]


def test_progress_hears_the_stage_and_its_loss() -> None:
    class Heard(SilentProgress):
        def __init__(self) -> None:
            self.lines: list[tuple] = []

        def start(self, name: str, total: float | None = None, unit: str = "") -> None:
            self.lines.append((name, total, unit))

        def update(self, done: float, note: str = "") -> None:
            self.lines.append((done, note))

        def finish(self, note: str = "") -> None:
            self.lines.append((note,))

    heard, monitor = Heard(), Monitor("toy")
    monitor.start(heard, total=10, unit="steps", step=0)
    feed(monitor, [1.0])
    monitor.log(Moment(1, 0.1, 1.0, 0.1), epochs_since_improvement=0.0, device=CPU)
    monitor.log_validation(Moment(1, 0.1, 1.0, 0.1), 0.125, best=0.125, best_step=1)
    monitor.tell(1.0)
    monitor.tell(1.1)  # too soon to say again
    monitor.finish()
    assert heard.lines == [("train toy", 10, "steps"), (1.0, "loss 1  valid 0.125"), ("loss 1  valid 0.125",)]


def test_peak_memory_is_in_bytes() -> None:
    before = peak_memory(CPU)
    block = torch.ones(2**25)
    assert 2**20 < before <= peak_memory(CPU)
    assert peak_memory(CPU) > block.nbytes
