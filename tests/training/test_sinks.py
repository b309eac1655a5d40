from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ups.config.tracking import LoggingSettings, WandbSettings
from ups.training.sinks import JsonlSink, TensorBoardSink, metrics_of, without_secrets
from ups.training.wandb_sink import WandbSink

OFFLINE = WandbSettings(mode="offline", project="p", entity="e", group="g", tags=("a", "b"))


def record(stage: str, step: int, **metrics: Any) -> dict[str, Any]:
    return {"stage": stage, "step": step, "epoch": step / 10, "elapsed": float(step), "progress": 0.5, **metrics}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- JSON lines ------------------------------------------------------------------------------------------------------


def test_lines_are_on_the_disk_at_once_and_one_per_record(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "run" / "log.jsonl")
    sink.write({"stage": "a\nb</script>", "step": 1, "loss": math.nan, "best": -math.inf})
    assert read(sink.path) == [{"stage": "a\nb</script>", "step": 1, "loss": None, "best": None}]
    sink.close()


def test_rewinding_forgets_later_steps_of_the_stage_and_torn_lines(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "log.jsonl")
    sink.rewind("codec", 0)
    for stage, step in (("codec", 9), ("operator", 4), ("operator", 5), ("operator", 6)):
        sink.write({"stage": stage, "step": step})
    with sink.path.open("a") as file:
        file.write('{"stage": "operator", "st')
    sink.rewind("operator", 5)
    sink.write({"stage": "operator", "step": 6})
    sink.close()
    assert [(r["stage"], r["step"]) for r in read(sink.path)] == [
        *(("codec", 9), ("operator", 4), ("operator", 5), ("operator", 6)),
    ]
    assert list(tmp_path.iterdir()) == [sink.path]


def test_rewinding_forgets_roll_backs_that_are_done_again(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "log.jsonl")
    for more in ({"loss": 1.0}, {"rollbacks": 1}, {"rollbacks": 2}):  # each back to step 7
        sink.write({"stage": "operator", "step": 7, **more})
    sink.rewind("operator", 13, 1)
    sink.close()
    assert [record.get("rollbacks") for record in read(sink.path)] == [None, 1]


def test_metrics_are_the_finite_numbers_beside_the_place() -> None:
    assert metrics_of(record("codec", 3, loss=1.5, mfu=None, diagnosis="text", worst=math.inf)) == {"loss": 1.5}


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def test_tensorboard_shows_every_metric_once_per_step_also_after_a_rewind(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first, second = TensorBoardSink(tmp_path), TensorBoardSink(tmp_path)
    first.rewind("codec", 0)
    for step, loss in ((1, 4.0), (2, 3.0), (3, 9.0)):
        first.write(record("codec", step, loss=loss, mfu=None))
    first.close()
    first.write(record("codec", 4, loss=9.5))
    first.close()
    second.rewind("codec", 2)
    second.write(record("codec", 3, loss=2.0))
    second.close()
    events = EventAccumulator(str(tmp_path / "codec"))
    events.Reload()
    assert events.Tags()["scalars"] == ["codec/loss"]
    assert [(event.step, event.value) for event in events.Scalars("codec/loss")] == [(1, 4.0), (2, 3.0), (3, 2.0)]


# --- Weights & Biases ------------------------------------------------------------------------------------------------


class FakeRun:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.summary = options, {}
        self.logged: list[dict] = []
        self.alerts: list[tuple] = []
        self.defined: list[tuple] = []
        self.artifacts: list[Any] = []
        self.finished = 0

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.defined.append((name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def alert(self, title: str, text: str, level: str) -> None:
        self.alerts.append((title, text, level))

    def log_artifact(self, artifact: Any) -> None:
        self.artifacts.append(artifact)

    def finish(self) -> None:
        self.finished += 1


class FakeArtifact:
    def __init__(self, name: str, type: str) -> None:
        self.name, self.type, self.files = name, type, []

    def add_file(self, path: str, name: str) -> None:
        self.files.append(name)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    made: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        made.append(FakeRun(options))
        return made[-1]

    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=init, Artifact=FakeArtifact, Settings=lambda **options: options)
    )
    monkeypatch.setattr("ups.training.wandb_sink._RUNS", {})
    monkeypatch.setattr("ups.training.wandb_sink._REFUSED", set())
    return made


def test_the_stages_of_a_pipeline_are_one_run_with_a_step_of_their_own(runs: list[FakeRun], tmp_path: Path) -> None:
    folder = tmp_path / "burgers+ks"
    for stage in ("codec", "operator"):
        sink = WandbSink(OFFLINE, folder, {"optimizer": {"lr": 0.1}})
        sink.rewind(stage, 0)
        sink.write(record(stage, 7, loss=0.5, mfu=None, **{"burgers1d/loss": 0.25}))
        sink.end_stage(stage, {"best_metric": 0.125, "stopped": "budget"})
        sink.close()
    (run,) = runs
    assert run.defined == [
        *(("codec/step", None), ("codec/*", "codec/step"), ("operator/step", None), ("operator/*", "operator/step")),
    ]
    assert run.logged[0] == {
        "codec/step": 7,
        "codec/epoch": 0.7,
        "codec/elapsed": 7.0,
        "codec/loss": 0.5,
        "codec/burgers1d/loss": 0.25,
    }
    assert run.summary["operator/best_metric"] == 0.125
    assert run.alerts[1] == ("burgers+ks: operator is done", "best_metric 0.125, stopped budget", "INFO")
    options = run.options
    assert (options["project"], options["entity"], options["group"], options["tags"]) == ("p", "e", "g", ["a", "b"])
    assert (options["mode"], options["name"], options["config"]) == (
        "offline",
        "burgers+ks",
        {"optimizer": {"lr": 0.1}},
    )
    assert not run.finished

    (folder / "model").mkdir()
    (folder / "model" / "weights.safetensors").write_text("w")
    (folder / "report.html").write_text("r")
    WandbSink(OFFLINE, folder, {}).publish(
        {"test/x/nrmse": 0.5}, {"model": folder / "model", "report": folder / "report.html"}
    )
    assert [(a.name, a.type, a.files) for a in run.artifacts] == [
        ("model-burgers-ks", "model", ["weights.safetensors"]),
        ("report-burgers-ks", "report", ["report.html"]),
    ]
    assert (run.finished, run.summary["test/x/nrmse"]) == (1, 0.5)


def test_a_continued_run_is_found_again_and_another_folder_is_another_run(runs: list[FakeRun], tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        sink = WandbSink(OFFLINE.model_copy(update={"mode": "online"}), folder, {})
        sink.write(record("codec", 1, loss=1.0))
        sink.publish({}, {})
    first, second, other = (run.options for run in runs)
    assert first["id"] == second["id"] != other["id"]
    assert first["resume"] == "allow"


def test_a_run_that_cannot_be_opened_is_not_asked_for_by_every_stage(
    runs: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("no network")

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["wandb"], "init", init)
        first = WandbSink(OFFLINE, tmp_path / "run", {})
        assert not first.refused
        with pytest.raises(ConnectionError):
            first.write(record("codec", 1, loss=1.0))
    assert WandbSink(OFFLINE, tmp_path / "run", {}).refused
    assert not WandbSink(OFFLINE, tmp_path / "other", {}).refused


def test_a_roll_back_is_an_alert(runs: list[FakeRun], tmp_path: Path) -> None:
    WandbSink(OFFLINE, tmp_path / "run", {}).write(record("codec", 3, rollbacks=1, diagnosis="step 4 was bad"))
    assert runs[0].alerts == [("run: codec rolled back", "step 4 was bad", "WARN")]


def test_a_real_offline_run_holds_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr("ups.training.wandb_sink._RUNS", {})
    folder = tmp_path / "toy-run"
    sink = WandbSink(WandbSettings(mode="offline"), folder, {"seed": 17})
    for step in (1, 2):
        sink.write(record("codec", step, loss=0.5 / step))
    sink.end_stage("codec", {"best_metric": 0.125})
    (folder / "report.html").write_text("<p>report</p>")
    sink.publish({"test/toy/nrmse": 0.5}, {"report": folder / "report.html"})
    wandb.teardown()  # what writes the file is another process
    found = wandb_records(folder)
    history = [{item["key"] or "/".join(item["path"]): item["value"] for item in one} for one in found["history"]]
    assert [(float(one["codec/step"]), float(one["codec/loss"])) for one in history] == [(1, 0.5), (2, 0.25)]
    summary = {item["key"] or "/".join(item["path"]): item["value"] for one in found["summary"] for item in one}
    assert (summary["codec/best_metric"], summary["test/toy/nrmse"]) == ("0.125", "0.5")
    assert "codec is done" in str(found["alert"])
    assert [one["name"] for one in found["artifact"]] == ["report-toy-run"]


def wandb_records(folder: Path) -> dict[str, list[Any]]:
    """What an offline run's file holds, by kind."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, list[Any]] = {"history": [], "summary": [], "alert": [], "artifact": []}

    def items(of: Any) -> list[dict[str, Any]]:
        return [{"key": item.key, "path": list(item.nested_key), "value": item.value_json} for item in of]

    for data in leveldb_log(path.read_bytes()):
        one = wandb_internal_pb2.Record()
        one.ParseFromString(data)
        if one.HasField("history"):
            found["history"].append(items(one.history.item))
        elif one.HasField("summary"):
            found["summary"].append(items(one.summary.update))
        elif one.HasField("alert"):
            found["alert"].append(one.alert.title)
        elif one.HasField("request") and one.request.HasField("log_artifact"):
            found["artifact"].append({"name": one.request.log_artifact.artifact.name})
        elif one.HasField("artifact"):
            found["artifact"].append({"name": one.artifact.name})
    return found


def leveldb_log(content: bytes, block: int = 2**15) -> list[bytes]:
    """The records of a file in LevelDB's log format, after a header of seven bytes."""
    records, at = [b""], 7
    while at + 7 <= len(content):
        if block - at % block < 7:  # no room for a header
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        records[-1] += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(b"")
    return [record for record in records if record]


# --- what is missing, what is secret ---------------------------------------------------------------------------------


def test_a_sink_that_is_asked_for_and_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert LoggingSettings().missing() == {}
    asked = LoggingSettings(wandb=WandbSettings(mode="online"), tensorboard=True).missing()
    assert "pip install -c constraints.txt 'ups[wandb]'" in asked["logging.wandb.mode"]
    assert "'ups[tensorboard]'" in asked["logging.tensorboard"]


def test_secrets_of_the_environment_are_starred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-of-a-key")
    monkeypatch.setenv("HF_TOKEN", "")
    assert without_secrets("401 for canary-of-a-key") == "401 for ***"
