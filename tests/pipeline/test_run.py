"""Whole runs on tiny data: what is left behind, promoted, repeated, and gone on with after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import pytest
from tests.pipeline.small_run import run, train, write_config

import ups
from ups.config.load import load_settings
from ups.errors import CheckpointError, DataError, UsageError
from ups.evaluation.board import Board
from ups.evaluation.leaderboard import Leaderboard
from ups.models.store import FORMAT, load_model
from ups.pipeline.evaluate import evaluate_run
from ups.pipeline.finished import outcome_of_finished
from ups.pipeline.plan import TimedStore
from ups.pipeline.records import StepRecords
from ups.pipeline.run import open_workspace, run_pipeline, train_pipeline
from ups.pipeline.workspace import RECIPE
from ups.runtime import Progress, SilentProgress
from ups.terminal import LineProgress
from ups.timing import Timings
from ups.versions import SCORES


def test_a_run_leaves_what_is_promised_and_running_again_does_nothing(burgers: Path) -> None:
    outcome = run(burgers)
    folder = outcome.run_dir
    for name in (
        *("config.yaml", "metadata.json", "log.jsonl", "report.html", "evaluation/small.json", "evaluation/full.json"),
        *("model/config.json", "model/weights.safetensors", "checkpoints/operator", "gates.json"),
    ):
        assert (folder / name).exists(), name
    scores = json.loads((folder / "evaluation" / "full.json").read_text())
    assert set(scores["baselines"]) == {"persistence", "linear"}
    ours = scores["tasks"]["burgers1d"]
    assert ours["nrmse"] > 0
    assert ours["codec_nrmse"] < 1e-5
    assert ours["conservation_gap"] < 1e-5
    assert ours["crps"] is None
    assert scores["reasons"]["tasks"]["burgers1d"]["crps"]
    assert [row["model"] for row in outcome.table][-1] == "ups"
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["trained"] is True
    assert metadata["data_hash"]

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = run(burgers)
    assert again == outcome
    changed = {path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp}
    written_again = {"config.yaml", "metadata.json", "data.json", "config.json", "weights.safetensors"}
    assert changed <= {*written_again, "finished.json"}
    settings = load_settings(folder / "config.yaml")
    assert run_pipeline(settings, progress=SilentProgress()).run_dir == folder


def test_the_timings_of_a_run_tell_computing_from_what_comes_with_it(burgers: Path) -> None:
    began = time.perf_counter()
    timings = run(burgers, timings=Timings("rest")).timings
    took = time.perf_counter() - began
    compute = {name for name, part in timings.parts.items() if part.compute}
    assert compute == {
        *("closed form", "codec: validate", "operator: train", "operator: validate", "operator: calibrate"),
        *("evaluate: small", "evaluate: full"),
    }
    rest = {"check: folder", "check: data", "open data", "check: dry run", "operator: rest", "operator: checkpoints"}
    assert {*rest, "evaluate: rest", "gates and promotion", "report"} <= set(timings.parts) - compute
    assert timings.total().seconds == pytest.approx(took, abs=0.5)
    assert timings.parts["operator: checkpoints"].seconds > 0


def test_a_first_run_is_not_promoted_until_it_may_be_and_a_second_must_be_better(burgers: Path) -> None:
    lossy = ["latent.dim=2", "gates.ratios.wall_clock=null", "operator.symmetrize=0"]
    outcome = run(burgers, *lossy)
    assert not outcome.passed
    assert "there is no champion yet; gates.first_champion: true makes this run the first" in outcome.messages[0]
    folder = outcome.run_dir
    trained = (folder / "log.jsonl").stat().st_mtime_ns
    first = run(burgers, *lossy, "gates.first_champion=true")
    assert (first.passed, first.run_dir) == (True, folder)
    assert (folder / "log.jsonl").stat().st_mtime_ns == trained, "judged again, not trained again"
    assert first.messages[0] == f"promoted: {folder.name} became the champion"
    page = (folder / "report.html").read_text()
    assert '<section id="gates">' in page
    assert page.count("Doubtful data.") == 1, "waves that travel are no solution of Burgers' equation"
    assert "check.doubts" not in page
    assert "Promoted: when it was judged" in page
    assert "not judged</b> the domain is periodic: there is no boundary" in page
    second = run(burgers, *lossy, "stages.operator.steps=13", "gates.min_delta=0.9")
    assert not second.passed
    assert (
        f"Not promoted: one gate failed.</span> It was judged against {folder.name}"
        in (second.run_dir / "report.html").read_text()
    )
    third = run(burgers, *lossy[1:])
    assert third.messages[0] == f"promoted: {third.run_dir.name} became the champion after {folder.name}"
    metadata = json.loads((third.run_dir / "metadata.json").read_text())
    assert metadata["last_small_eval"] <= metadata["last_full_eval"]
    rows = Board.read(burgers.parent / "runs" / "leaderboard.sqlite").rows()
    assert {row["run"]: row["standing"] for row in rows} == {
        third.run_dir.name: "champion",
        folder.name: "was champion",
        second.run_dir.name: "not promoted",
    }
    assert run(burgers, *lossy[1:]).messages == third.messages, "it is not judged against itself"
    beaten = run(burgers, *lossy, "gates.first_champion=true")
    assert not beaten.passed
    assert any("does not beat the champion's" in message for message in beaten.messages)


def test_what_is_no_better_than_standing_still_is_not_evaluated_in_full(burgers: Path) -> None:
    gates = "gates.first_champion=true"
    before = run(burgers, gates)
    assert before.passed
    with h5py.File(burgers.parent / "1D_Burgers_Sols_Nu0.01.hdf5", "r+") as file:
        file["tensor"][:] = file["tensor"][:, :1]  # nothing moves: persistence has no error at all
    outcome = run(burgers, gates)
    assert not outcome.passed
    assert "does not beat persistence" in outcome.messages[0]
    scores = outcome.run_dir / "evaluation"
    assert (scores / "small.json").exists()
    assert not (scores / "full.json").exists(), "scores of the model before"
    assert [row["model"] for row in outcome.table] == ["persistence", "linear", "ups"]
    assert "Only the small evaluation exists" in (outcome.run_dir / "report.html").read_text()
    again = run(burgers, gates)
    assert again == outcome
    honest = (scores / "small.json").read_text()
    edited = json.loads(honest)
    edited["tasks"]["burgers1d"]["nrmse"] = 0.0
    edited["baselines"]["persistence"]["burgers1d"]["nrmse"] = 1.0
    (scores / "small.json").write_text(json.dumps(edited))
    once_more = run(burgers, gates)
    assert not once_more.passed
    assert "does not beat persistence" in once_more.messages[0]
    assert not (scores / "full.json").exists()
    assert len(Leaderboard(burgers.parent / "runs" / "leaderboard.sqlite").entries()) == 1


def test_settings_that_nothing_reads_with_time_are_refused(burgers: Path) -> None:
    with pytest.raises(UsageError, match=r"prior.num_steps: burgers1d has time, and nothing would read"):
        run(burgers, "prior.num_steps=6")


def test_a_forced_step_is_done_again_with_all_that_comes_after(burgers: Path) -> None:
    folder = run(burgers).run_dir
    log, report, scores = folder / "log.jsonl", folder / "report.html", folder / "evaluation" / "full.json"

    def stamps() -> list[int]:
        return [path.stat().st_mtime_ns for path in (log, scores, report)]

    first = stamps()
    run(burgers, force=("report",))
    second = stamps()
    assert second[:2] == first[:2]
    assert second[2] > first[2]
    run(burgers, force=("operator",))
    assert all(after > before for after, before in zip(stamps(), second, strict=True))
    with pytest.raises(UsageError, match="the steps are data, check"):
        run(burgers, force=("trainn",))


def test_what_was_deleted_is_made_again(burgers: Path) -> None:
    folder = run(burgers).run_dir
    for name in ("evaluation/full.json", "report.html"):
        (folder / name).unlink()
    shutil.rmtree(folder / "checkpoints")
    run(burgers)
    assert (folder / "evaluation" / "full.json").exists()
    assert (folder / "report.html").exists()


def test_changed_data_is_trained_on_again_and_not_scored_by_the_old_model(burgers: Path) -> None:
    with_fno = "evaluation.baselines=[fno]"
    folder = run(burgers, with_fno).run_dir

    def scored(progress: Progress) -> set[str]:
        return {row["model"] for row in evaluate_run(folder, [], "test", progress)}

    assert scored(SilentProgress()) == {"persistence", "fno", "ups"}
    path = burgers.parent / "1D_Burgers_Sols_Nu0.01.hdf5"
    with h5py.File(path, "r+") as file:
        file["t-coordinate"][:] = 2 * file["t-coordinate"][:]  # the same fields, twice as far apart in time
    with pytest.raises(DataError, match="have changed since"):
        evaluate_run(folder, [], "test", SilentProgress())
    assert run(burgers).run_dir == folder
    assert ups.load(folder).spec().dt == pytest.approx(4 / 7)
    said: list[str] = []
    assert scored(LineProgress(said.append)) == {"persistence", "linear", "ups"}, "the FNO is of the data before"
    assert any("was trained on other data than the model; fno is left out" in line for line in said)
    own, again = (
        json.loads((folder / "evaluation" / name).read_text())["baselines"]["linear"]["burgers1d"]["nrmse"]
        for name in ("full.json", "split-test.json")
    )
    assert again == pytest.approx(own, rel=1e-4), "the propagator of the new data"
    run(burgers, with_fno)
    assert scored(SilentProgress()) == {"persistence", "linear", "fno", "ups"}
    (folder / "baselines" / "fno" / "model" / "config.json").write_text("{}")
    assert scored(LineProgress(said.append)) == {"persistence", "linear", "ups"}
    assert any("describes no model of ups" in line and "fno is left out" in line for line in said)


def test_generated_data_of_other_settings_is_refused(tmp_path: Path) -> None:
    generate = {"samples": 10, "seed": 1, "params": {"nu": 0.05}, "resolution": 32, "frames": 5}
    config = write_config(tmp_path, "burgers1d", ["made.hdf5"])
    settings = json.loads(config.read_text())
    settings["data"]["generate"] = generate
    config.write_text(json.dumps(settings))
    train(config)
    with h5py.File(tmp_path / "made.hdf5") as file:
        assert file.attrs[RECIPE]
    with pytest.raises(UsageError, match="generated by other settings"):
        train(config, "data.generate.seed=2")


@pytest.mark.parametrize(
    ("override", "trained"),
    [
        ("evaluation.small.max_samples=1", True),
        ("evaluation.small.steps=2", True),
        ("evaluation.rollout_mode=physical", True),
        ("evaluation.full.steps=2", False),
        ("evaluation.members=2", False),
    ],
)
def test_weights_are_chosen_again_when_what_they_are_chosen_by_changes(
    burgers: Path, override: str, trained: bool
) -> None:
    """In the same folder; the codec, which no roll-out chooses, stays done."""
    folder = train(burgers).run_dir
    before = StepRecords(folder)
    assert train(burgers, override).run_dir == folder
    after = StepRecords(folder)
    assert (after.key("operator") != before.key("operator")) == trained
    assert after.records["codec"] == before.records["codec"]
    assert (after.note("operator", "training_seconds", 0) != before.note("operator", "training_seconds", 0)) == trained


def test_a_stage_keeps_checkpoints_at_its_own_interval(burgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = TimedStore.save

    def note(self: TimedStore, step: int, state: Any) -> Path:
        saved.append(step)
        return save(self, step, state)

    monkeypatch.setattr(TimedStore, "save", note)
    train(burgers, "stages.operator.checkpoint_interval=3")
    assert saved == [0, 3, 6, 9, 12]


def test_the_same_settings_give_the_same_bits_and_others_another_run(burgers: Path) -> None:
    first, second, other = (
        train(burgers, *overrides).run_dir
        for overrides in ([], [f"runs_dir={burgers.parent / 'elsewhere'}"], ["seed=18"])
    )
    weights = [(folder / "model" / "weights.safetensors").read_bytes() for folder in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]
    assert first != other


def test_one_stage_alone(burgers: Path) -> None:
    settings = load_settings(burgers)
    codec = train_pipeline(settings, progress=SilentProgress(), stage="codec")
    assert not (codec.run_dir / "model").exists()
    both = train_pipeline(settings, progress=SilentProgress())
    assert (both.run_dir / "model" / "weights.safetensors").exists()
    assert not (both.run_dir / "evaluation").exists()
    with pytest.raises(UsageError, match=r"nothing to train; .* such as stages\.codec\.seconds=60"):
        train_pipeline(load_settings(burgers, ["stages.codec.epochs=0"]), progress=SilentProgress(), stage="codec")
    with pytest.raises(UsageError, match="steady_prior is no stage of burgers1d: those are codec, operator"):
        train_pipeline(load_settings(burgers), progress=SilentProgress(), stage="steady_prior")


def test_a_model_of_another_format_is_trained_again_by_what_its_refusal_says(burgers: Path) -> None:
    folder = train(burgers).run_dir
    for path in folder.glob("**/model/config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": FORMAT - 1}))
    with pytest.raises(CheckpointError, match=r"train it again with this version \('ups run --force check'\)"):
        run(burgers)
    run(burgers, force=("check",))
    load_model(folder / "model")


def test_what_a_version_with_another_model_format_trained_is_trained_again(
    burgers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        for place in ("models.store.FORMAT", "pipeline.plan.MODEL_FORMAT", "pipeline.finished.MODEL_FORMAT"):
            older.setattr(f"ups.{place}", FORMAT - 1)
        folder = run(burgers).run_dir
        assert outcome_of_finished(load_settings(burgers)) is not None
    assert outcome_of_finished(load_settings(burgers)) is None
    with pytest.raises(CheckpointError, match="cannot be loaded by this one"):
        load_model(folder / "model")
    run(burgers)
    load_model(folder / "model")


def test_scores_of_another_definition_are_made_again_and_not_compared(
    burgers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ("evaluation.baselines=persistence", "gates.first_champion=true")
    folder = run(burgers, *overrides).run_dir
    trained = (folder / "log.jsonl").stat().st_mtime_ns
    for place in ("evaluation.protocol", "pipeline.run", "pipeline.finished"):
        monkeypatch.setattr(f"ups.{place}.SCORES", SCORES + 1)
    assert outcome_of_finished(load_settings(burgers, overrides)) is None
    assert run(burgers, *overrides).passed
    assert (folder / "log.jsonl").stat().st_mtime_ns == trained
    entries = Leaderboard(burgers.parent / "runs" / "leaderboard.sqlite").entries()
    assert [entry.champion for entry in entries] == [True, True], "of two groups"
    assert len({entry.scored.protocol for entry in entries}) == 2


def test_a_training_of_another_model_format_is_not_gone_on_with(burgers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StepRecords(train(burgers).run_dir).forget("operator")  # as if killed at its end
    monkeypatch.setattr("ups.pipeline.plan.MODEL_FORMAT", 99)
    with pytest.raises(CheckpointError, match=rf"model format: {FORMAT} in the checkpoint, 99 now(.|\n)*remove"):
        train(burgers)


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_run_goes_on_to_the_same_bits(burgers: Path, stop: signal.Signals, code: int) -> None:
    settings = ["stages.operator.steps=60", "training.log_every=5"]
    whole = train(burgers, *settings, f"runs_dir={burgers.parent / 'whole'}")
    command = [sys.executable, "-m", "ups", "train", str(burgers), *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    log = burgers.parent / "runs" / whole.run_dir.name.rsplit("-", 1)[0]
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(path.stat().st_size > 0 for path in log.parent.glob("*/log.jsonl")):
            process.send_signal(stop)
            break
        time.sleep(0.01)
    _, message = process.communicate(timeout=120)
    assert process.returncode == code, message
    assert "Traceback" not in message
    resumed = train(burgers, *settings)
    weights = [outcome.run_dir / "model" / "weights.safetensors" for outcome in (whole, resumed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("override", "other"),
    [
        ("latent.dim=24", True),
        ("diffusion.depth=1", True),
        ("guards.conservation=true", True),
        ("operator.pdet.hidden_dim=32", True),
        ("optimizer.lr=0.001", False),
    ],
)
def test_the_fingerprint_of_the_architecture_is_of_all_that_builds_a_model(
    burgers: Path, override: str, other: bool
) -> None:
    found = []
    for changes in ((), (override,)):
        workspace = open_workspace(load_settings(burgers, changes), SilentProgress())
        workspace.write_metadata()
        found.append(json.loads((workspace.run_dir / "metadata.json").read_text())["architecture"])
    assert (found[0] != found[1]) is other
