"""What `ups watch` shows of a run: its log, and whether a process works on it."""

from __future__ import annotations

import errno
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ups.errors import UsageError
from ups.files import held
from ups.health import read_log
from ups.pipeline.records import StepRecords
from ups.terminal_watch import as_text, duration, frame, seconds_left, show_live, sparkline
from ups.watching import watch_once


def record(step: int, stage: str = "operator", **more: Any) -> dict[str, Any]:
    place = {"stage": stage, "step": step, "epoch": step / 100, "elapsed": step / 10, "progress": step / 1000}
    return {**place, **more}


def metrics(step: int) -> dict[str, Any]:
    return {
        "loss": 1 / step,
        "grad_norm": 0.25,
        "lr": 0.004,
        "samples_per_second": 320.0,
        "points_per_second": 2e5,
        "data_wait": 0.03,
        "epoch_seconds": 12.5,
        "memory_peak_mb": 512.0,
        "mfu": None,
        "skipped_steps": 0,
    }


def write(run: Path, records: list[dict[str, Any]], torn: str = "") -> None:
    run.mkdir(exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records) + torn)


def no_locks(handle: int, operation: int) -> None:
    """What `flock` does on a file system without locks."""
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_frame_shows_curves_speed_time_left_and_health(tmp_path: Path) -> None:
    run = tmp_path / "burgers1d-0123"
    codec = [record(200, "codec", loss=1.0, valid_nrmse=0.25), record(400, "codec", loss=1.0, valid_nrmse=0.125)]
    steps = [record(step, **metrics(step)) for step in range(20, 420, 20)]
    scores = [record(400, valid_nrmse=0.5, best_nrmse=0.5, best_step=400)]
    bad = [record(400, skipped_steps=5, rollbacks=1, diagnosis="step 390 was not finite")]
    write(run, [*codec, *steps, *scores, *bad], torn='{"stage": "operator", "step": 42')
    os.utime(run / "log.jsonl", (time.time() - 300, time.time() - 300))
    shown = watch_once(run, width=140)
    assert "burgers1d-0123, last record 5 min ago" in shown
    assert "codec: 400 steps, 40 s, best validation nrmse 0.125" in shown
    for part in ("40 %", "step 400", "epoch 4.00", "60 s left", "320 samples/s", "2e+05 points/s", "12.5 s an epoch"):
        assert part in shown, part
    for part in ("3 % waiting for data", "512 MiB", "rate 0.004", "best 0.5", "0.0025"):
        assert part in shown, part
    assert "✗ 5 steps skipped" in shown
    assert "✓ gradients are healthy (norm 0.25)" in shown
    assert "█" in next(line for line in shown.splitlines() if "loss" in line)
    assert "MFU" not in shown
    assert max(map(len, shown.splitlines())) <= 140


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(("stage", "score"), [("diff_residual", "crps"), ("consistency_distill", "distance")])
def test_what_validations_score_is_called_by_its_name(tmp_path: Path, stage: str, score: str, older: bool) -> None:
    key = "valid_nrmse" if older else f"valid_{score}"  # older logs called every score so
    scored = [record(step, stage, loss=1.0, **{key: 100 / step}) for step in (200, 400)]
    write(tmp_path / "run", [*scored, *(record(step, loss=1.0, valid_nrmse=0.5) for step in (200, 400))])
    shown = watch_once(tmp_path / "run", width=140)
    assert f"{stage}: 400 steps, 40 s, best validation {score} 0.25" in shown
    assert "validation nrmse" in shown
    write(tmp_path / "run", scored)
    line = next(line for line in watch_once(tmp_path / "run", width=140).splitlines() if "validation" in line)
    assert f"validation {score}" in line
    assert "best 0.25" in line


def test_poor_ensembles_are_told_while_their_stage_trains_and_when_it_is_done(tmp_path: Path) -> None:
    poor = [record(step, "diff_residual", valid_crps=0.3, operator_crps=0.2) for step in (200, 400)]
    told = "no better than the operator alone"
    write(tmp_path / "run", poor)
    assert told in watch_once(tmp_path / "run", width=200)
    write(tmp_path / "run", [*poor, record(20, "consistency_distill", loss=1.0)])
    assert told in watch_once(tmp_path / "run", width=200)


def test_a_log_that_grows_line_by_line_can_be_watched_at_any_byte(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, [record(step, **metrics(step)) for step in (20, 40, 60)])
    content = (run / "log.jsonl").read_bytes()
    shown = set()
    for size in (*range(0, len(content), 7), len(content)):
        (run / "log.jsonl").write_bytes(content[:size])
        text = watch_once(run)
        shown |= {step for step in (20, 40, 60) if f"step {step} " in text}
        assert len(read_log(run / "log.jsonl")) == content[:size].count(b"\n")
    assert shown == {20, 40, 60}


def test_before_the_first_record_and_where_there_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    assert "no record yet" in watch_once(tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        watch_once(tmp_path / "none")


def test_the_heading_says_whether_a_process_works_on_the_run(tmp_path: Path) -> None:
    write(tmp_path, [record(200)])
    with held(tmp_path):
        assert watch_once(tmp_path).splitlines()[0].strip("╭─╮ ").endswith("ago")
    assert "ago, stopped: run it again to go on" in watch_once(tmp_path)
    StepRecords(tmp_path).finish("operator", "key", 1.0)  # its training may have ended before its budget
    assert "ago, no longer running" in watch_once(tmp_path)
    write(tmp_path, [record(200), record(200, "diff_residual")])
    assert "ago, stopped: run it again to go on" in watch_once(tmp_path)


def test_those_who_watch_do_not_take_each_other_for_the_run(tmp_path: Path) -> None:
    write(tmp_path, [record(200)])
    with held(tmp_path, shared=True):  # as another one does for a moment
        assert "ago, stopped: run it again to go on" in watch_once(tmp_path)


def test_where_there_are_no_locks_a_run_is_not_said_to_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [record(200)])
    monkeypatch.setattr("fcntl.flock", no_locks)
    assert watch_once(tmp_path).splitlines()[0].strip("╭─╮ ").endswith("ago")


def test_a_folder_that_is_no_run_s_is_not_watched(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no run's folder: it holds neither config\.yaml nor log\.jsonl"):
        watch_once(tmp_path)


def test_names_from_a_file_are_text_and_one_line() -> None:
    shown = as_text(frame("a\nb[red]", [record(1, "[bold]\x1b[31mcodec\n", loss=1.0)], 0.0))
    assert "a b[red]" in shown
    assert "[bold] [31mcodec" in shown
    assert "\x1b" not in shown


def test_a_live_view_draws_anew_what_has_changed() -> None:
    from rich.console import Console

    drawn: list[int] = []

    def draw() -> str:
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return "first one" if len(drawn) == 1 else "second one"

    file = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        show_live(draw, every=0.0, console=Console(file=file, force_terminal=True, width=40))
    assert "first one" in file.getvalue()
    assert "second one" in file.getvalue()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([1.0], "▁"),
        ([2.0, 2.0], "▁▁"),
        ([1.0, 10.0, 100.0], "▁▄█"),  # logarithmic
        ([-1.0, 0.0, 1.0], "▁▅█"),
        ([float(i // 4) for i in range(32)], "▁▂▃▄▅▆▇█"),
    ],
)
def test_sparklines(values: list[float], line: str) -> None:
    assert sparkline(values, width=8).replace("▅", "▄") == line.replace("▅", "▄")


def test_time_left_is_at_the_pace_of_the_last_records() -> None:
    slow_then_fast = [record(step, elapsed=float(e)) for step, e in ((100, 500), (200, 1000), (300, 1010), (400, 1020))]
    recent = [record(100 + step, elapsed=1000.0 + step) for step in range(200, 320, 10)]
    assert seconds_left(slow_then_fast[2:]) == pytest.approx(60.0)
    assert seconds_left([*slow_then_fast, *recent]) == pytest.approx(0.59 * 1000)
    assert seconds_left([record(100)]) is None
    assert seconds_left([{"stage": "a", "step": 1}]) is None
    assert [duration(s) for s in (5, 300, 7200)] == ["5 s", "5 min", "2.0 h"]
