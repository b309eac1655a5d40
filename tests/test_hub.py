"""Models on the Hugging Face Hub, which a folder stands in for: what is put there, and what is loaded from there."""

from __future__ import annotations

import fnmatch
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.pipeline.toy_run import decide_run, write_run

import ups
from ups.errors import CheckpointError, UpsError, UsageError
from ups.models.baselines import make_baseline
from ups.models.emulator import TaskSpec
from ups.models.store import save_model
from ups.pipeline.card import model_card, push_run

SPEC = TaskSpec(
    name="burgers1d",
    fields=("u",),
    lattice=(16,),
    spacing=(1 / 16,),
    origin=(1 / 32,),
    periodic=(True,),
    form="flux",
    conserved=(True,),
    context=1,
    dt=0.05,
    mean=(0.0,),
    std=(1.0,),
    param_names=("nu",),
    param_log=(True,),
    param_mean=(-4.0,),
    param_std=(0.5,),
    param_low=(0.01,),
    param_high=(0.04,),
)


class Hub:
    """The two calls that upload and the one that downloads, on folders; repositories are private or not."""

    def __init__(self, root: Path) -> None:
        self.root, self.private, self.fetched = root, dict[str, bool](), list[str]()

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool, repo_type: str) -> str:
        assert (exist_ok, repo_type) == (True, "model")
        self.private.setdefault(repo_id, private)
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, repo_type: str) -> None:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        source, target = self.root / repo_id, self.root / "cache" / repo_id / str(revision)
        for path in source.rglob("*"):
            name = path.relative_to(source).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                self.fetched.append(name)
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / name)
        return str(target)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    package = SimpleNamespace(HfApi=lambda: found, snapshot_download=found.snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A judged run whose model is the linear baseline, and that has no better champion before it."""
    folder = write_run(tmp_path / "runs", "burgers1d-0123", nrmse=0.125)
    (folder / "model" / "weights.safetensors").unlink()
    save_model(make_baseline("linear", {"burgers1d": SPEC}), folder / "model")
    (folder / "data.json").write_text(json.dumps({"train": {"burgers1d": ["a"] * 8}, "test": {"burgers1d": ["b"] * 2}}))
    return folder


def test_what_is_pushed_is_loaded_again_bit_for_bit(run: Path, hub: Hub) -> None:
    assert push_run(run, "someone/burgers", private=True) == "https://hub.example/someone/burgers"
    assert hub.private == {"someone/burgers": True}
    there = sorted(path.relative_to(hub.root / "someone/burgers").as_posix() for path in hub.root.rglob("*.*"))
    assert there == ["README.md", "evaluation/full.json", "model/config.json", "model/weights.safetensors"]
    u = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0))
    mine, theirs = (ups.load(place).rollout(u, steps=3, params={"nu": 0.02}) for place in (run, "hf://someone/burgers"))
    assert torch.equal(mine, theirs)


def test_of_a_repository_only_safetensors_and_json_are_fetched(run: Path, hub: Hub) -> None:
    push_run(run, "someone/burgers", private=False)
    (hub.root / "someone/burgers/model/pytorch_model.bin").write_bytes(b"a pickle")
    (hub.root / "someone/burgers/setup.py").write_text("raise SystemExit")
    ups.load("hf://someone/burgers@v1")
    assert sorted(hub.fetched) == ["model/config.json", "model/weights.safetensors"]
    with pytest.raises(CheckpointError, match="holds no trained model"):
        ups.load("hf://someone/nothing")


def test_the_card_says_what_was_trained_on_what_and_how_good_it_is(tmp_path: Path, run: Path) -> None:
    card = model_card(run, "someone/burgers")
    assert card.startswith("---\nlibrary_name: ups\n")
    for part in (
        "# burgers",
        'ups.load("hf://someone/burgers")',
        "burgers1d: trajectories 8 train, 2 test; fields u; grid 16, time step 0.05",
        "nu: 0.01 to 0.04",
        "| score | this model | persistence |",
        "| 0.125 | 1 |",
        "Not judged.",
        "It draws no ensemble",
    ):
        assert part in card, part
    assert str(tmp_path) not in card, "a path of this machine"


def test_the_card_gives_the_verdict_on_the_model_that_was_judged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs", "a")
    decide_run(folder)
    config = json.loads((folder / "model" / "config.json").read_text())
    tasks = {"burgers1d": {**vars(replace(SPEC)), "lattice": [16]}}
    (folder / "model" / "config.json").write_text(json.dumps({**config, "tasks": tasks}))
    assert "The model has changed since it was judged: no verdict." in model_card(folder, "someone/a")
    judged = write_run(tmp_path / "others", "b")
    (judged / "model" / "config.json").write_text(json.dumps({**config, "tasks": tasks}))
    from tests.pipeline.toy_run import DATA

    from ups.pipeline.promote import current_hashes
    from ups.pipeline.records import StepRecords

    for step in ("evaluate-small", "evaluate"):
        StepRecords(judged).finish(step, "key", 0.0, hashes=current_hashes(judged, DATA))
    decide_run(judged)
    card = model_card(judged, "someone/b")
    assert "Promoted; judged " in card
    assert "- small: passed" in card


@pytest.mark.parametrize("name", ["burgers", "a/b/c", "../b", "a/..", "a b/c", "/b", "a/", "someone/x.git", ""])
def test_what_is_no_repository_is_wrong_usage(run: Path, hub: Hub, name: str) -> None:
    with pytest.raises(UsageError, match="write it as OWNER/NAME"):
        push_run(run, name, private=False)
    with pytest.raises(UsageError):
        ups.load(f"hf://{name}")
    assert hub.private == {}


def test_no_run_and_no_model_are_told(tmp_path: Path, run: Path, hub: Hub) -> None:
    with pytest.raises(UsageError, match="is no run's folder"):
        push_run(tmp_path, "someone/burgers", private=False)
    (run / "model" / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is missing: this run has no trained model yet"):
        push_run(run, "someone/burgers", private=False)
    assert hub.private == {}


def test_without_the_extra_there_is_one_clear_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for act in (lambda: push_run(run, "a/b", private=False), lambda: ups.load("hf://a/b")):
        with pytest.raises(UpsError, match=r"huggingface_hub is not installed; install it with .*ups\[hub\]"):
            act()


def test_a_token_is_in_no_message(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("401 for hf_CanaryCanary with Authorization: Bearer canary-canary\nand more hf_CanaryCanary")

    monkeypatch.setattr(hub, "create_repo", fail)
    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", fail)
    for act in (lambda: push_run(run, "a/b", private=False), lambda: ups.load("hf://a/b")):
        with pytest.raises(UpsError, match="OSError: 401 for") as caught:
            act()
        assert "anary" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ is True
