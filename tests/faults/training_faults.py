"""Trainings that are killed, as a script: each attempt is a child process of its own.

    python training_faults.py kill FOLDER OPTIMIZER      SIGKILL ten times in random steps, resume, compare
    python training_faults.py bad FOLDER OPTIMIZER       the same, of a training that skips steps and rolls back
    python training_faults.py crash FOLDER               trains with sinks of which one fails, then raises
    python training_faults.py save FOLDER HOW            SIGKILL before each file operation of a save: `here`, in the
                                                         `background`, going `back` to an earlier step, or there
                                                         from the `only` checkpoint
    python training_faults.py term FOLDER                trains until SIGTERM, then exits as the command line would
    python training_faults.py full FOLDER BYTES          trains where no file may grow beyond BYTES
    python training_faults.py closed FOLDER              trains in an open folder and in two that refuse, not as root

The last line printed is JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import torch
import torch._dynamo  # here, or the first optimizer step of every child would take seconds to import it
import toy_training
from torch import Tensor
from toy_training import ToyObjective, train

from ups.config.tracking import WandbSettings
from ups.data.fields import Batch
from ups.errors import UpsError
from ups.runtime import Progress, SilentProgress
from ups.training.checkpoint import CheckpointStore
from ups.training.monitor import Monitor
from ups.training.saver import BackgroundSaver
from ups.training.sinks import NullSink, Record, Sink
from ups.training.wandb_sink import WandbSink

STEPS, KILLS = 60, 10
NEW, NOBODY = 100.0, 65534


def in_child(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process; the signal that ended it, 0 for none, 1 after an exception."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except UpsError as error:
            print(error, file=sys.stderr)
            os._exit(error.exit_code)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


class Bad(ToyObjective):
    """A loss that is not finite in the whole third epoch, steps 11 to 15, and in some batches of the eighth."""

    epoch = 0

    def plan(self, epoch: int, fraction: float) -> int:
        self.epoch = epoch
        return super().plan(epoch, fraction)

    def __call__(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = super().__call__(batch, rng)
        bad = self.epoch == 2 or (self.epoch == 7 and float(batch.frames[0, 0, 0, 0]) > 0)
        return (loss * float("nan") if bad else loss), parts


def train_and_keep(
    run: Path, optimizer: str, kill_after: int | None, make: Callable[..., ToyObjective] = ToyObjective
) -> None:
    """Trains; at the `kill_after`-th batch from here the process dies."""
    left = [kill_after]

    def on_batch(_: int) -> None:
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    objective = make(on_batch=on_batch)
    outcome = train(run, objective, steps=STEPS, optimizer=optimizer)
    torch.save([p.detach() for p in objective.module.parameters()], run / "weights.pt")
    (run / "outcome.json").write_text(json.dumps([outcome.steps, outcome.best_metric, outcome.best_step]))


def curve(run: Path) -> list[list[object]]:
    timed = ("elapsed", "samples_per_second", "points_per_second", "data_wait", "checkpoint_stall")
    timed += ("epoch_seconds", "memory_peak_mb")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [[item for item in line.items() if item[0] not in timed] for line in lines]


def kill(folder: Path, optimizer: str, make: Callable[..., ToyObjective] = ToyObjective) -> dict[str, object]:
    whole, parts, draw = folder / "whole", folder / "parts", random.Random(0)
    assert in_child(lambda: train_and_keep(whole, optimizer, None, make)) == 0
    kills = 0
    while kills < KILLS:
        status = in_child(lambda: train_and_keep(parts, optimizer, draw.randrange(14), make))
        assert status in (0, signal.SIGKILL)
        if status == 0:
            break
        kills += 1
        draw.random()
    assert in_child(lambda: train_and_keep(parts, optimizer, None, make)) == 0
    weights = [torch.load(run / "weights.pt") for run in (whole, parts)]
    return {
        "kills": kills,
        "same weights": all(torch.equal(a, b) for a, b in zip(*weights, strict=True)),
        "same outcome": (whole / "outcome.json").read_text() == (parts / "outcome.json").read_text(),
        "same curve": curve(whole) == curve(parts),
    }


def save(folder: Path, how: str) -> dict[str, object]:
    """Kills a save, which also removes what it supersedes, before its n-th file operation, for every n."""
    operations = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.listdir", "os.scandir")
    steps, new = {"back": ((1, 2, 3), 2), "only": ((3,), 2)}.get(how, ((1, 2), 3))
    results = []
    for n in range(1000):
        place = folder / str(n)

        def open_store(place: Path = place) -> CheckpointStore:
            store = CheckpointStore(place, fingerprint={}, keep=len(steps))
            store.prepare()
            return store

        store = open_store()
        for step in steps:
            store.save(step, state_of(step, step))

        def save_and_die(store: CheckpointStore = store, place: Path = place, n: int = n) -> None:
            left = [n]

            def before_operation(event: str, args: tuple[object, ...]) -> None:
                if event in operations and str(args[0]).startswith(str(place)):
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(before_operation)
            if how == "background":
                with BackgroundSaver(store) as saver:
                    saver.save(new, state_of(new, NEW))
            else:
                store.save(new, state_of(new, NEW))

        status = in_child(save_and_die)
        committed = {step: float(store._read(step)[1]["tensor"][0]) for step in store.steps()}  # raises where not whole
        last = steps[-1]  # nothing was purged before the new one was in its place
        assert committed.get(new) == NEW or (last in committed if new < last else committed.keys() == set(steps))
        found = open_store().load()
        assert found is not None
        assert found["tensor"].eq(found["tensor"][0]).all()
        assert not list(place.glob(".*"))
        results.append(float(found["tensor"][0]))
        if status == 0:
            break
        assert status == signal.SIGKILL
    return {"kills": len(results) - 1, "loaded": results}


def state_of(step: int, value: float) -> dict[str, Any]:
    return {"step": step, "tensor": torch.full((100,), float(value))}


def term(folder: Path) -> dict[str, object]:
    def on_batch(batches: int) -> None:
        if batches == 5:
            print("training", flush=True)
        time.sleep(0.01)

    train(folder, ToyObjective(on_batch=on_batch), steps=10**6)
    return {}


def bad(folder: Path, optimizer: str) -> dict[str, object]:
    found = kill(folder, optimizer, Bad)
    lines = [json.loads(line) for line in (folder / "parts" / "log.jsonl").read_text().splitlines()]
    skipped = sum(line.get("skipped_steps", 0) for line in lines if "loss" in line)
    return {**found, "rollbacks": sum("rollbacks" in line for line in lines), "skipped besides": skipped > 0}


def crash(folder: Path) -> dict[str, object]:
    """Ends with a traceback; a sink has failed with the key in its message before."""

    class Leaky(NullSink):
        def write(self, record: Record) -> None:
            raise RuntimeError(f"401 unauthorized: {os.environ['WANDB_API_KEY']}")

    class Told(SilentProgress):
        def say(self, line: str) -> None:
            print(line, flush=True)

    class Loud(Monitor):
        def start(self, progress: Progress, **options: Any) -> None:
            super().start(Told(), **options)

    def on_batch(batches: int) -> None:
        if batches == 20:
            raise RuntimeError("the objective failed")

    def monitor(stage: str, usual: list[Sink]) -> Monitor:
        sinks = [Leaky(), *usual]
        if importlib.util.find_spec("wandb") is not None:
            sinks.append(WandbSink(WandbSettings(mode="offline"), folder, {"seed": 17}))
        return Loud(stage, sinks)

    toy_training.Monitor = monitor  # type: ignore[assignment, misc]
    train(folder, ToyObjective(on_batch=on_batch))
    return {}


def full(folder: Path, most: int) -> dict[str, object]:
    objective, batches = ToyObjective(), []

    def on_batch(number: int) -> None:
        batches.append(number)
        time.sleep(0.05)  # a step takes longer than a save

    objective.on_batch = on_batch
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        train(folder, objective, steps=1000, log_every=1000)
    except UpsError as error:
        return {"error": str(error), "batches": len(batches)}
    return {"error": None, "batches": len(batches)}


def closed(folder: Path) -> dict[str, object]:
    """Permissions do not bind the superuser, so that what is his is tried by another."""
    train(folder / "open", ToyObjective(), steps=2)  # and everything is imported
    empty, begun = folder / "empty", folder / "begun"
    for place in (empty, begun / "checkpoints" / "toy"):
        place.mkdir(parents=True)
        place.chmod(0o555)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    found: dict[str, object] = {}
    for place in (empty, begun):
        objective = ToyObjective()
        try:
            train(place, objective, steps=2)
        except UpsError as error:
            found[place.name] = [str(error), objective.batches]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, where, *rest = sys.argv[1:]
    try:
        match what:
            case "kill":
                result = kill(Path(where), *rest)
            case "bad":
                result = bad(Path(where), *rest)
            case "crash":
                result = crash(Path(where))
            case "save":
                result = save(Path(where), *rest)
            case "closed":
                result = closed(Path(where))
            case "term":
                result = term(Path(where))
            case "full":
                result = full(Path(where), int(rest[0]))
    except UpsError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(result))
