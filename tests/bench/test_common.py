"""What benches share: table, JSON line and files of a result, and the two commands of those that keep lines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from common import publish, run_or_table

ROWS = [{"task": "a", "ms": 1.23456, "ratio": 2.0}, {"task": "b", "ms": 1234.5, "ratio": 0.001}]


def test_a_result_is_a_table_and_a_json_line_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish("some", ROWS, {"target": 3.0}, tmp_path / "results")
    printed = capsys.readouterr().out
    table = "| task | ms | ratio |\n| --- | --- | --- |\n| a | 1.23 | 2 |\n| b | 1.23e+03 | 0.001 |\n"
    assert printed == table + '{"bench": "some", "target": 3.0}\n'
    assert (tmp_path / "results" / "some.md").read_text() == table
    assert json.loads((tmp_path / "results" / "some.json").read_text()) == {"bench": "some", "target": 3.0}


@pytest.mark.parametrize(
    ("given", "command", "expected"),
    [
        (["run", "--tasks", "x", "--seeds", "4", "5"], "run", {"tasks": ["x"], "seeds": [4, 5], "out": Path("lines")}),
        (["run", "--tasks", "x", "--out", "other"], "run", {"seeds": [0, 1, 2], "out": Path("other")}),
        (["table"], "table", {"out": Path("lines")}),
    ],
)
def test_a_bench_that_keeps_lines_runs_or_draws_its_table(
    monkeypatch: pytest.MonkeyPatch, given: list[str], command: str, expected: dict[str, object]
) -> None:
    called: list[tuple[str, argparse.Namespace]] = []
    monkeypatch.setattr(sys, "argv", ["bench", *given])

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tasks", nargs="+", required=True)

    code = run_or_table(
        "doc", Path("lines"), add, lambda a: called.append(("run", a)), lambda a: called.append(("table", a))
    )
    ((name, arguments),) = called
    assert (code, name) == (0, command)
    assert vars(arguments).items() >= expected.items()
