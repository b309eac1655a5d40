"""Models on the Hugging Face Hub, which a folder stands in for: what is put there, and what is loaded from there."""

from __future__ import annotations

import fnmatch
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.pipeline.toy_run import DATA, decide_run, write_run

import ups
from ups.config.gates import GateSettings
from ups.errors import CheckpointError, UpsError, UsageError
from ups.evaluation.leaderboard import Leaderboard
from ups.models.baselines import make_baseline
from ups.models.emulator import TaskSpec
from ups.models.store import save_model
from ups.pipeline.card import model_card, push_run
from ups.pipeline.promote import current_hashes
from ups.pipeline.records import StepRecords

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

    def upload_folder(
        self, *, repo_id: str, folder_path: str, commit_message: str, repo_type: str, delete_patterns: list[str]
    ) -> None:
        for pattern in delete_patterns:
            for path in (self.root / repo_id).glob(pattern):
                path.unlink()
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
    StepRecords(folder).finish("evaluate", "key", 0.0, hashes=current_hashes(folder, DATA))
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


@pytest.fixture
def judged(run: Path) -> Path:
    """The same run, promoted by gates whose leaderboard lies at a place of this machine."""
    board = run.parent / "board.sqlite"
    StepRecords(run).finish("evaluate-small", "key", 0.0, hashes=current_hashes(run, DATA))
    decide_run(run, GateSettings(first_champion=True, leaderboard=str(board)), Leaderboard(board))
    return run


def pushed(run: Path, hub: Hub) -> dict[str, str]:
    """What a push left in the repository, by name, as text."""
    push_run(run, "someone/burgers", private=False)
    root = hub.root / "someone/burgers"
    return {path.relative_to(root).as_posix(): path.read_text("latin-1") for path in root.rglob("*") if path.is_file()}


def test_the_card_gives_the_verdict_and_nothing_else_tells_of_the_machine(
    judged: Path, hub: Hub, tmp_path: Path
) -> None:
    assert str(tmp_path) in (judged / "gates.json").read_text()
    there = pushed(judged, hub)
    assert "Promoted; judged " in there["README.md"]
    assert "- small: passed" in there["README.md"]
    assert not [name for name, content in there.items() if str(tmp_path) in content]


def other_model(run: Path) -> None:
    path = run / "model" / "weights.safetensors"
    path.write_bytes(path.read_bytes() + b" ")


def other_scores(run: Path) -> None:
    path = run / "evaluation" / "full.json"
    path.write_text(path.read_text().replace("0.125", "0.001"))


@pytest.mark.parametrize(
    ("change", "why"),
    [(other_model, "are those of another model."), (other_scores, "are not what its evaluation wrote.")],
)
def test_scores_of_another_model_and_edited_ones_are_neither_shown_nor_uploaded(
    judged: Path, hub: Hub, change: Callable[[Path], None], why: str
) -> None:
    assert "| 0.125 | 1 |" in pushed(judged, hub)["README.md"]
    change(judged)
    there = pushed(judged, hub)
    card = there["README.md"]
    assert f"Not evaluated: the scores of this run {why}" in card
    assert "The model or its evaluation has changed since it was judged: no verdict." in card
    assert "| score |" not in card
    assert sorted(there) == ["README.md", "model/config.json", "model/weights.safetensors"], "nor left there"


def test_an_edited_verdict_is_not_published(judged: Path, hub: Hub) -> None:
    path = judged / "gates.json"
    path.write_text(path.read_text().replace('"small"', '"great"'))
    with pytest.raises(UpsError, match=r"gates\.json is not what was decided"):
        pushed(judged, hub)
    assert hub.private == {}


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
