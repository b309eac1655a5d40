"""The bench of kills: what its lines say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import kills
from accuracy_bench.results import commit, source_hash


def test_a_line_says_by_which_code_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"left_alone": 1.0, "differences": [], "other_scores": []}.items():
        monkeypatch.setattr(kills, name, lambda *_, value=value: value)
    monkeypatch.setattr(kills, "killed_after", lambda *_: kills.Kill(0.5, "codec", 3, starting=False))
    monkeypatch.setattr("sys.argv", ["kills.py", "--kills", "1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        kills.main()
    line = json.loads((tmp_path / "kills.jsonl").read_text())
    assert (ended.value.code, line["kills"], line["equal"]) == (0, 1, True)
    assert (line["commit"], line["source"]) == (commit(), source_hash())
