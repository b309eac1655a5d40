"""The bench of several equations in one model: what its table says of its lines."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

import multitask


def line(model: str, seed: int, commit: str) -> dict[str, Any]:
    tasks = list(multitask.VALUES) if model == multitask.BOTH else [model]
    scores = {task: {"seen": 0.1, "between": 0.2} for task in tasks}
    return {"model": model, "seed": seed, "seconds": 1.0, "nrmse": scores, "steps": 30, "commit": commit}


def test_the_table_names_both_commits_where_a_ratio_is_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        *(line("burgers1d", 1, "new"), line("burgers1d", 0, "old")),
        *(line(multitask.BOTH, 0, "old"), line(multitask.BOTH, 0, "new"), line(multitask.BOTH, 1, "new")),
    ]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    monkeypatch.setattr(multitask, "TABLE", tmp_path / "table.md")
    multitask.table(Namespace(out=tmp_path / "lines.jsonl"))
    row = next(row for row in (tmp_path / "table.md").read_text().splitlines() if row.startswith("| burgers1d | seen"))
    assert row.split(" | ")[-2:] == ["2", "old / new, new |"]
