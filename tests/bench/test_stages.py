"""The bench of the stages: ensembles of one size are not taken for those of another."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from tests.models.small_corrector import make_simulator

import stages


def line(seed: int, **more: Any) -> dict[str, Any]:
    scores = dict.fromkeys(stages.SCORES, 1.0)
    settings: list[str] = []
    what = {"task": "ks", "seed": seed, "seconds": [1.0, 2.0, 3.0], "settings": settings, "commit": "c"}
    return {**what, "teacher": scores, "student": scores, **more}


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lines of two seeds, the first of them of an older bench that did not say how many members there are: 16."""
    lines = [line(0), line(1, members=16), line(0, members=4)]
    path = tmp_path / "stages.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    monkeypatch.setattr(stages, "TABLE", tmp_path / "stages.md")
    return path


def test_the_table_has_a_row_for_each_number_of_members(out: Path) -> None:
    stages.table(Namespace(out=out))
    rows = [row.strip("| ").split(" | ") for row in stages.TABLE.read_text().splitlines() if row.startswith("| ")]
    found = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    assert [(row["members"], row["seeds"]) for row in found] == [("16", "2"), ("4", "1")]


def test_a_line_holds_scores_of_the_teacher_and_of_its_student(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = make_simulator()
    corrector = simulator.corrector
    assert corrector is not None
    student = corrector.add_student()
    corrector.widen(0.5)
    corrector.contract(0.75)
    monkeypatch.setattr(stages, "scores_of", lambda found, *_: {"drawn_by": found.corrector.student})
    monkeypatch.setattr(stages, "speed_up", lambda *_: 8.0)
    found = stages.score(simulator, None, 8)
    assert found == {
        "widen": 0.5,
        "contract": 0.75,
        "speed_up": 8.0,
        "teacher": {"drawn_by": None},
        "student": {"drawn_by": student},
    }


def test_what_is_missing_is_told_by_the_number_of_members_too(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def compute(task: str, seed: int, seconds: list[float], arguments: Namespace) -> dict[str, Any]:
        assert seconds == [1.0, 2.0, 3.0]
        asked.append((seed, arguments.members))
        return line(seed, members=arguments.members)

    monkeypatch.setattr(stages, "compute", compute)
    for members in (16, 4):
        choices = Namespace(tasks=["ks"], seeds=[0, 1], seconds=[1.0, 2.0, 3.0], set=None, redo=False, out=out)
        stages.run(Namespace(**vars(choices), members=members))
    assert asked == [(1, 4)]


def test_stages_train_for_the_seconds_of_the_newest_rows(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def compute(task: str, seed: int, seconds: list[float], arguments: Namespace) -> dict[str, Any]:
        asked[task] = seconds
        return line(seed, members=arguments.members)

    monkeypatch.setattr(stages, "compute", compute)
    tasks = ["ks", "diffusion_reaction2d", "burgers"]
    stages.run(Namespace(tasks=tasks, seeds=[0], seconds=None, set=None, redo=True, out=out, members=8))
    assert asked == {"ks": [100, 120, 240], "diffusion_reaction2d": [200, 240, 160], "burgers": [100, 120, 80]}
