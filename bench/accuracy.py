"""How accurate every model is after the same seconds of training: the bench behind the accuracy table.

    python bench/accuracy.py run --tasks burgers advection --models ups fno --seconds 200 --seeds 0 1 2 --data FOLDER
    python bench/accuracy.py search --task burgers --model fno --seconds 45 --data FOLDER
    python bench/accuracy.py solvers --tasks burgers ks --data FOLDER
    python bench/accuracy.py table
    python bench/accuracy.py stale

`run` computes the cells (task, model, seconds, seed) that are missing, one by one, and appends a JSON line for each to
bench/results/accuracy/TASK.jsonl; several processes may run side by side. `solvers` times the reference solver on every
grid, for the speed-up at equal error; on a quiet machine. `table` draws bench/results/accuracy.md and
.png from the lines. Seconds are of this process's CPU time on one thread, of fitting and training alone; on a GPU, of
the wall clock.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is first imported

from accuracy_bench.results import (
    RESULTS,
    Cell,
    append,
    claimed,
    commit,
    newest,
    read_cells,
    read_lines,
    source_hash,
    stale,
)
from accuracy_bench.summary import MAIN_SECONDS, SEEDS, UNTRAINED
from ups.errors import UpsError


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def asked(arguments: argparse.Namespace) -> list[tuple[str, Cell]]:
    """The cells of a `run`, each with the model it is of; one that is not trained has one cell for all budgets."""
    found = {}
    for task in arguments.tasks:
        for model in arguments.models:
            for seconds in (MAIN_SECONDS,) if model in UNTRAINED else arguments.seconds:
                for seed in SEEDS[:1] if model in UNTRAINED else arguments.seeds:
                    name = arguments.label or model
                    found[Cell(task, name, seconds, seed, arguments.device, arguments.train)] = model
    return [(model, cell) for cell, model in found.items()]


def run(arguments: argparse.Namespace) -> None:
    """Computes the missing cells."""
    from accuracy_bench.cells import Places, compute

    places = Places(arguments.data, arguments.work / "data", arguments.work / "cells")
    code = {"commit": commit(), "source": source_hash()}
    for model, cell in asked(arguments):
        path = arguments.results / f"{cell.task}.jsonl"
        with claimed(cell, arguments.work / "locks") as ours:
            if not ours or (cell in newest(read_lines(path)) and not arguments.redo):
                say(f"{cell.slug}: {'done' if ours else 'another process is at it'}")
                continue
            line = compute(cell, model, places, say, more=tuple(arguments.set or ()), code=code)
            append(line, path)
            say(f"{cell.slug}: nrmse {line['nrmse']}, validation {line.get('valid_nrmse')}")


def solvers(arguments: argparse.Namespace) -> None:
    """Times the reference solver of each task."""
    from accuracy_bench.cells import Places
    from accuracy_bench.solvers import LINES, measure

    places = Places(arguments.data, arguments.work / "data", arguments.work / "cells")
    code = {"commit": commit(), "source": source_hash()}
    for task in arguments.tasks:
        line = measure(task, places, say, code=code)
        append(line, arguments.results / LINES)
        finest = line["solver"][-1]
        say(f"{task}: {line['ups_seconds']:.3g} s; solver at {finest['resolution']} points {finest['nrmse']}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data", type=Path, help="folder of the published files")
    shared.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder of made data, runs and locks")
    shared.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines")
    shared.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    shared.add_argument("--clock", choices=("process", "wall"), help="process on a CPU, wall on a GPU; for the record")
    one = commands.add_parser("run", parents=[shared], help="compute missing cells")
    one.add_argument("--tasks", nargs="+", required=True)
    one.add_argument("--models", nargs="+", required=True)
    one.add_argument("--seconds", nargs="+", type=float, default=[200.0])
    one.add_argument("--seeds", nargs="+", type=int, default=[0])
    one.add_argument("--train", type=int, help="cut training to so many trajectories")
    one.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="settings of the stack; only with --label")
    one.add_argument("--label", help="name of the row of an experiment")
    one.add_argument("--redo", action="store_true", help="compute cells again that are there")
    other = commands.add_parser("search", parents=[shared], help="search a peer's recipe on validation")
    other.add_argument("--task", required=True)
    other.add_argument("--model", required=True)
    other.add_argument("--seconds", type=float, default=45.0)
    times = commands.add_parser("solvers", parents=[shared], help="time the reference solver on every grid")
    times.add_argument("--tasks", nargs="+", required=True)
    for command, does in (("table", "draw table and plot from the lines"), ("stale", "list cells of other code")):
        commands.add_parser(command, help=does).add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "run" and bool(arguments.set) != bool(arguments.label):
        parser.error("--set and --label go together: an experiment has a row of its own")
    measured = arguments.command in ("run", "search", "solvers")
    if measured and arguments.clock not in (None, "wall" if arguments.device == "cuda" else "process"):
        parser.error("the CPU is measured in process seconds, a GPU in wall seconds")
    return arguments


def main() -> int:
    """Runs the command."""
    arguments = parse()
    try:
        if arguments.command == "run":
            run(arguments)
        elif arguments.command == "search":
            from accuracy_bench.search import search

            search(arguments, say)
        elif arguments.command == "solvers":
            solvers(arguments)
        elif arguments.command == "table":
            from accuracy_bench.table import draw

            draw(say, arguments.results)
        else:
            cells, now = read_cells(arguments.results), source_hash()
            for cell in stale(cells, now):
                print(f"{cell.slug}: computed by {cells[cell]['source']}, now {now}")
    except UpsError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
