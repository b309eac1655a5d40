"""What a finished run hands to Weights & Biases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ups.config import Settings
from ups.pipeline.tracking import open_sinks, publish
from ups.runtime import SilentProgress


class Heard(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def settings(mode: str) -> Settings:
    return Settings.model_validate({"data": {"task": "burgers1d"}, "logging": {"wandb": {"mode": mode}}})


def test_scores_model_and_report_are_published_and_a_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[tuple] = []
    monkeypatch.setattr("ups.training.wandb_sink.WandbSink.publish", lambda self, *given: published.append(given))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "model").mkdir()
    scores = {"tasks": {"burgers1d": {"nrmse": 0.25, "bc_violation": None, "reasons": {}}}}
    (tmp_path / "evaluation" / "full.json").write_text(json.dumps(scores))
    publish(settings("disabled"), tmp_path, SilentProgress())
    assert published == []
    publish(settings("offline"), tmp_path, SilentProgress())
    assert published == [({"test/burgers1d/nrmse": 0.25}, {"model": tmp_path / "model"})]

    def fail(*_: Any) -> None:
        raise OSError("no network for canary-key")

    monkeypatch.setenv("WANDB_API_KEY", "canary-key")
    monkeypatch.setattr("ups.training.wandb_sink.WandbSink.publish", fail)
    publish(settings("offline"), tmp_path, heard := Heard())
    assert heard.lines == [
        f"Weights & Biases did not take model and report (OSError: no network for ***); they are in {tmp_path}"
    ]


def test_the_log_is_always_written_and_by_the_first_rank_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [str(sink) for sink in open_sinks(settings("disabled"), tmp_path)] == [str(tmp_path / "log.jsonl")]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert open_sinks(settings("disabled"), tmp_path) == []
