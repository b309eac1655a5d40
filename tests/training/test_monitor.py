from __future__ import annotations

import math

import pytest
import torch
from tests.training.toy_training import GRID

from ups.data.fields import Batch
from ups.runtime import SilentProgress
from ups.training.memory import peak_memory
from ups.training.monitor import Moment, Monitor, NullSink

CPU = torch.device("cpu")


class Memory(NullSink):
    def __init__(self) -> None:
        self.records: list[dict] = []
        self.ended: list[tuple] = []

    def write(self, record: dict) -> None:
        self.records.append(dict(record))

    def rewind(self, stage: str, step: int, rollbacks: int | float = math.inf) -> None:
        self.records = [r for r in self.records if r["step"] <= step]

    def end_stage(self, stage: str, summary: dict) -> None:
        self.ended.append((stage, dict(summary)))


def batch_of(task: str = "toy", value: float = 1.0) -> Batch:
    """Four windows of 25 points in space and time."""
    frames = torch.full((4, 5, 1, 5), value)
    return Batch(task, frames, torch.ones(4), torch.tensor([[0.5], [1.0], [2.0], [1.5]]), GRID, context=1)


def feed(
    monitor: Monitor, losses: list[float], norms: list[float] | None = None, batch: Batch | None = None, flops: int = 0
) -> None:
    for loss, norm in zip(losses, norms or losses, strict=True):
        parts = {"part": torch.tensor(2 * loss)} if loss > 1 else {}
        monitor.record_batch(batch or batch_of(), torch.tensor(loss), parts, epoch=1.5, waited=0.25, flops=flops)
        monitor.record_step(torch.tensor(norm), torch.tensor([0.0, norm]))


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
    ("losses", "norms", "step", "said"),
    [
        ([1, math.nan, math.nan], [1, 1, 1], 11, "network's output overflowed: lower optimizer.lr"),
        ([1, math.inf, -math.inf], [1, 1, 1], 11, "lower optimizer.lr"),
        ([1, 1, 1], [math.nan, math.nan, 1], 10, "The loss is finite, its derivative is not"),
    ],
)
def test_the_first_of_many_bad_steps_is_named_with_its_batch(
    losses: list[float], norms: list[float], step: int, said: str
) -> None:
    monitor = Monitor("toy")
    monitor.start(SilentProgress(), total=1, unit="steps", step=0, parameters=("head.weight", "tail.weight"))
    feed(monitor, list(map(float, losses)), list(map(float, norms)))
    monitor.judge(Moment(12, 1.0, 1.0, 0.1), most=2)
    text = monitor.wrong
    assert text.startswith(f"step {step}, a batch of toy in epoch 1.50 with PDE parameters from [0.5] to [2]: loss ")
    assert said in text
    assert ("not finite are the gradients of tail.weight." in text) == any(map(math.isnan, norms))
    monitor.log_rollback(Moment(8, 1.0, 1.0, 0.1), rollbacks=1)
    monitor.judge(Moment(8, 1.0, 1.0, 0.1), most=2)
    assert monitor.wrong == ""


def test_a_batch_that_is_not_finite_is_told_from_a_network_that_is_not() -> None:
    monitor = Monitor("toy")
    feed(monitor, [math.nan], batch=batch_of(value=math.nan))
    monitor.judge(Moment(1, 1.0, 1.0, 0.1), most=1)
    assert "The batch itself is not finite: look at the data" in monitor.wrong


def test_bad_steps_count_when_they_are_in_a_row_also_over_a_stop() -> None:
    first, second = Monitor("toy"), Monitor("toy")
    feed(first, [math.nan, 1.0, math.nan])
    first.judge(Moment(3, 1.0, 1.0, 0.1), most=2)
    assert (first.wrong, first.last_was_good) == ("", False)
    second.load_state_dict(first.state_dict())
    feed(second, [math.nan, 1.0])
    second.judge(Moment(5, 1.0, 1.0, 0.1), most=2)
    assert second.wrong.startswith("step 3,")
    assert second.last_was_good


def test_what_is_not_finite_is_counted_and_not_averaged() -> None:
    sink = Memory()
    monitor = Monitor("toy", [sink])
    for number, losses in enumerate(([1.0, math.nan, 3.0], [math.inf, math.nan], [1.0]), start=1):
        feed(monitor, losses)
        moment = Moment(number, 1.0, 1.0, 0.1)
        monitor.judge(moment, most=100)
        monitor.log(moment, epochs_since_improvement=0.0, device=CPU)
    assert [(r["loss"], r["grad_norm"], r["skipped_steps"]) for r in sink.records] == [
        *((2.0, 2.0, 1), (None, None, 2), (1.0, 1.0, 0)),
    ]


def test_records_say_what_was_clipped_how_long_an_epoch_takes_and_how_busy_the_device_was() -> None:
    sink = Memory()
    monitor = Monitor("toy", [sink])
    for step, seconds in ((1, 2.0), (2, 5.0)):
        feed(monitor, [1.0, 2.0, 3.0, 0.5], flops=10)
        monitor.log(
            Moment(step, 0.5 * step, seconds, 0.1, step / 2),
            epochs_since_improvement=0.0,
            device=CPU,
            grad_clip=1.0,
            utilisation=lambda flops, taken: flops / taken / 100,
        )
    assert [r["clipped"] for r in sink.records] == [0.5, 0.5]
    assert [r["epoch_seconds"] for r in sink.records] == [4.0, 6.0]
    assert [r["mfu"] for r in sink.records] == [40 / 2 / 100, pytest.approx(40 / 3 / 100)]
    assert [r["progress"] for r in sink.records] == [0.5, 1.0]


def test_tasks_are_logged_apart_when_asked() -> None:
    sinks = Memory(), Memory()
    for per_task, sink in zip((True, False), sinks, strict=True):
        monitor = Monitor("toy", [sink], per_task=per_task)
        for task, loss in (("a", 2.0), ("b", 4.0), ("a", 6.0)):
            feed(monitor, [loss], batch=batch_of(task))
        monitor.log(Moment(3, 1.0, 1.0, 0.1), epochs_since_improvement=0.0, device=CPU)
    apart, together = (sink.records[0] for sink in sinks)
    assert (apart["a/loss"], apart["a/part"], apart["b/loss"], apart["loss"]) == (4.0, 8.0, 4.0, 4.0)
    assert not any("/" in name for name in together)


def test_metrics_may_not_take_the_names_of_the_log() -> None:
    monitor = Monitor("toy", [Memory()])
    monitor.record_batch(batch_of(), torch.ones(()), {"step": torch.ones(())}, waited=0.0)
    with pytest.raises(ValueError, match="rename it"):
        monitor.log(Moment(1, 1.0, 1.0, 0.1), epochs_since_improvement=0.0, device=CPU)


@pytest.mark.parametrize("fails", ["rewind", "write", "end_stage", "close"])
def test_a_sink_that_fails_is_told_of_once_and_stops_nothing(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Heard(SilentProgress):
        lines: list[str] = []  # noqa: RUF012

        def say(self, line: str) -> None:
            self.lines.append(line)

    class Broken(Memory):
        def __str__(self) -> str:
            return "the broken one"

    def fail(*_: object) -> None:
        raise OSError("no space for key canary-value\nand more")

    monkeypatch.setenv("SOME_API_KEY", "canary-value")
    monkeypatch.setattr(Broken, fails, fail)
    heard, good = Heard(), Memory()
    heard.lines = []
    monitor = Monitor("toy", [Broken(), good])
    monitor.start(heard, total=2, unit="steps", step=0)
    for step in (1, 2):
        feed(monitor, [1.0])
        monitor.log(Moment(step, 1.0, 1.0, 0.1), epochs_since_improvement=0.0, device=CPU)
    monitor.finish(best_metric=0.5, best_step=1)
    monitor.close()
    assert len(good.records) == 2
    assert good.ended == [("toy", {"best_metric": 0.5, "best_step": 1})]
    assert heard.lines == [
        "stage toy: the broken one is written no more (OSError: no space for key ***); training goes on without"
    ]


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
    monitor.finish(best_metric=0.0625, best_step=7)
    assert heard.lines == [
        ("train toy", 10, "steps"),
        (1.0, "loss 1  valid nrmse 0.125"),
        ("best nrmse 0.0625 at step 7",),
    ]


def test_peak_memory_is_in_bytes() -> None:
    before = peak_memory(CPU)
    block = torch.ones(2**25)
    assert 2**20 < before <= peak_memory(CPU)
    assert peak_memory(CPU) > block.nbytes
