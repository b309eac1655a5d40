"""The accuracy bench's lines: which of them count, and which cells are computed."""

from __future__ import annotations

import fcntl
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.bench.made_lines import CELL, arguments, make_line

import accuracy
from accuracy_bench import cells as bench_cells
from accuracy_bench import results
from accuracy_bench.results import Cell, append, claimed, newest, read_cells, read_lines, stale


def test_newest_line_of_a_key_wins_and_every_part_of_the_key_counts(tmp_path: Path) -> None:
    others = [
        replace(CELL, task="ks"),
        replace(CELL, model="fno"),
        replace(CELL, seconds=60.0),
        replace(CELL, seed=1),
        replace(CELL, device="cuda"),
        replace(CELL, train=20),
    ]
    for number, cell in enumerate([CELL, *others]):
        append(make_line(cell, 1.0 + number), tmp_path / f"{cell.task}.jsonl")
    append(make_line(CELL, 0.25), tmp_path / "burgers.jsonl")
    append({"task": "burgers", "model": "fno"}, tmp_path / "search.jsonl")  # candidates are no cells
    found = read_cells(tmp_path)
    assert {cell: line["nrmse"] for cell, line in found.items()} == {
        CELL: 0.25,
        **{cell: 2.0 + number for number, cell in enumerate(others)},
    }
    assert len({cell.slug for cell in found}) == 7


def test_line_holds_six_digits_and_null_for_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "lines" / "burgers.jsonl"
    append({"a": math.nan, "b": [math.inf, 0.12345678], "c": {"d": -math.inf}, "e": 3, "f": True}, path)
    assert read_lines(path) == [{"a": None, "b": [None, 0.123457], "c": {"d": None}, "e": 3, "f": True}]


def test_processes_side_by_side_append_whole_lines(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "from accuracy_bench.results import append\n"
        "for i in range(200): append({'who': sys.argv[3], 'i': i, 'pad': 'x' * 9000}, Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(Path(accuracy.__file__).parent), str(tmp_path / "x.jsonl")]
    running = [subprocess.Popen([*command, who]) for who in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    lines = read_lines(tmp_path / "x.jsonl")
    assert sorted((line["who"], line["i"]) for line in lines) == [(who, i) for who in "ab" for i in range(200)]


def test_stale_cells_are_those_of_other_code() -> None:
    other = replace(CELL, seed=1)
    cells = newest([make_line(CELL, 1.0), make_line(other, 1.0, source="before")])
    assert stale(cells, "now") == [other]


def test_source_hash_changes_with_any_module(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.py").write_text("x = 1\n")
    before = results.source_hash(tmp_path)
    (tmp_path / "notes.md").write_text("no module")
    assert results.source_hash(tmp_path) == before
    (tmp_path / "a" / "one.py").rename(tmp_path / "one.py")
    assert results.source_hash(tmp_path) != before


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Cell]]:
    """The cells that `run` computes, which here costs nothing."""
    done: list[tuple[str, Cell]] = []

    def compute(cell: Cell, name: str, *given: Any, **more: Any) -> dict[str, Any]:
        done.append((name, cell))
        return make_line(cell, float(len(done)))

    monkeypatch.setattr(bench_cells, "compute", compute)
    return done


def test_run_resumes_and_redoes(computed: list[tuple[str, Cell]], tmp_path: Path) -> None:
    accuracy.run(arguments(tmp_path, seconds=[200.0]))
    accuracy.run(arguments(tmp_path))
    assert [(cell.seconds, cell.seed) for _, cell in computed] == [(200.0, 0), (200.0, 1), (60.0, 0), (60.0, 1)]
    accuracy.run(arguments(tmp_path, seconds=[60.0], seeds=[1], redo=True))
    found = read_cells(tmp_path / "results")
    assert len(computed) == 5
    assert found[Cell("burgers", "fno", 60.0, 1)]["nrmse"] == 5.0


def test_untrained_models_have_one_cell_and_experiments_a_row_of_their_own(
    computed: list[tuple[str, Cell]], tmp_path: Path
) -> None:
    accuracy.run(arguments(tmp_path, models=["linear"]))
    accuracy.run(arguments(tmp_path, models=["ups"], seconds=[200.0], seeds=[0], label="ups-no-frame"))
    assert computed == [
        ("linear", Cell("burgers", "linear", 200.0, 0)),
        ("ups", Cell("burgers", "ups-no-frame", 200.0, 0)),
    ]


def test_cell_of_a_living_process_is_skipped(computed: list[tuple[str, Cell]], tmp_path: Path) -> None:
    cell = Cell("burgers", "fno", 60.0, 0)
    (tmp_path / "locks").mkdir()
    handle = os.open(tmp_path / "locks" / f"{cell.slug}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    accuracy.run(arguments(tmp_path, seconds=[60.0]))
    assert [cell.seed for _, cell in computed] == [1]
    os.close(handle)  # as when it dies
    with claimed(cell, tmp_path / "locks") as ours:
        assert ours
